# Tailrun's images. Build with docker (BuildKit: version 23 or newer with buildx), or without a daemon:
#
#   docker build --target app -t tailrun .
#   buildah bud --isolation=chroot --target app -t tailrun .
#   docker build --target toolbox -t tailrun-toolbox .
#
# BASE       any Debian with Python 3.11 or newer and its venv module; the same one for building and running. A tag can
#            be moved: for images that can be made again, give a digest, BASE=python:3.13.…@sha256:…
# SNAPSHOTS, SNAPSHOT   the address of an archive of Debian's states (…/archive) and a time (20261101T000000Z): the
#            toolbox's packages come from there, always the same ones. Empty: the newest, with their security fixes.
# VERSION, REVISION   what the image's labels say.
# A package index of your own: --secret id=pip.conf,src=pip.conf; it reaches no layer.

ARG BASE=python:3.13.9-slim-trixie

# ---- toolbox: what tools run in as Jobs, and what carries their files -----------------------------------
FROM ${BASE} AS toolbox
ARG SNAPSHOTS=
ARG SNAPSHOT=
COPY scripts/debian_snapshot.sh /tmp/debian_snapshot.sh
RUN sh /tmp/debian_snapshot.sh "${SNAPSHOTS}" "${SNAPSHOT}" && rm /tmp/debian_snapshot.sh \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        bash ca-certificates curl git jq nodejs >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*.log /var/log/apt
RUN echo 'tool:x:10001:10001:Tool:/workspace:/bin/bash' >> /etc/passwd \
    && echo 'tool:x:10001:' >> /etc/group \
    && mkdir -p /workspace /tailrun /run/tailrun && chown 10001:10001 /workspace /tailrun
COPY toolbox /opt/toolbox/toolbox
# Found with -I as well; compiled now, for at run time the file system is read-only.
RUN python3 -c 'import sysconfig; open(sysconfig.get_path("purelib") + "/toolbox.pth", "w").write("/opt/toolbox\n")' \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/toolbox \
    && chmod -R go=u,go-w /opt/toolbox
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 \
    HOME=/workspace
# Not /workspace: nobody's files stand where Python looks for modules.
WORKDIR /
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["python", "-I", "-m", "toolbox"]
# Last: a new commit makes no layer anew.
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tailrun-toolbox" \
      org.opencontainers.image.description="Runs Tailrun's tools in pods: the wrapper, the sync container, and usual programs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# ---- app-build: a virtual environment with exactly what the two requirements files lock ---------------
FROM ${BASE} AS app-build
COPY requirements.txt requirements-fast.txt /build/
RUN python3 -m venv /opt/tailrun
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/tailrun/bin/python -m pip install --disable-pip-version-check --no-input --no-cache-dir --no-compile \
        --require-hashes --only-binary :all: --no-deps -r /build/requirements.txt -r /build/requirements-fast.txt \
    && /opt/tailrun/bin/python -m pip uninstall --yes --quiet pip setuptools 2>/dev/null
# strip takes the debugging symbols out of the libraries, about 60 MB of them.
RUN command -v strip >/dev/null \
    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils >/dev/null; }
COPY scripts/slim_packages.py /build/slim_packages.py
# What is imported is compiled now: at run time the file system is read-only.
RUN /opt/tailrun/bin/python /build/slim_packages.py /opt/tailrun \
    && /opt/tailrun/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/tailrun/lib
COPY app /app/app
COPY tailrun /app/tailrun
COPY examples/agent-cli /app/app/agent_cli
COPY toolbox /app/toolbox
COPY LICENSE scripts/container_health.py /app/
COPY scripts/container_launcher.sh /opt/tailrun/bin/tailrun
RUN /opt/tailrun/bin/python -c 'import sysconfig; open(sysconfig.get_path("purelib") + "/tailrun.pth", "w").write("/app\n")' \
    && /opt/tailrun/bin/python -m compileall -q --invalidation-mode unchecked-hash /app \
    && chmod -R go=u,go-w /app /opt/tailrun && chmod 0755 /opt/tailrun/bin/tailrun

# ---- app: API, worker, migrate and the command line ---------------------------------------------------
FROM ${BASE} AS app
RUN echo 'tailrun:x:10001:10001:Tailrun:/data:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'tailrun:x:10001:' >> /etc/group \
    && mkdir -p /data && chown 10001:10001 /data
COPY --from=app-build /opt/tailrun /opt/tailrun
COPY --from=app-build /app /app
ENV PATH=/opt/tailrun/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    DATA_DIR=/data \
    HOST=0.0.0.0 \
    WORKER_HOST=0.0.0.0
WORKDIR /app
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "/app/container_health.py"]
ENTRYPOINT ["tailrun"]
CMD ["--help"]
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tailrun" \
      org.opencontainers.image.description="Runs agent jobs and streams their lines: API, worker and command line" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
