"""Where the cluster is and how to prove who we are: from the pod we run in, or from a kubeconfig.

A token of a pod lives for an hour and is replaced in its file long before; one of a kubeconfig
may come from a program. So whoever sends a request asks here for the header, and after a 401
says so and asks again.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_FRESH_S = 60.0
_PLUGIN_S = 60.0


class NoCluster(Exception):
    """There is no cluster to be found, or its configuration can't be read; the message says where."""


@dataclass(slots=True)
class Credentials:
    """One cluster's address and how we authenticate there."""

    server: str
    namespace: str
    tls: ssl.SSLContext | None = None
    token: str | None = None
    token_file: Path | None = None
    plugin: dict[str, Any] | None = None
    basic: str | None = None
    _read_at: float = field(default=float("-inf"))

    @property
    def header(self) -> str | None:
        """The value of `Authorization`; None where a certificate speaks for us."""
        if self.basic is not None:
            return f"Basic {self.basic}"
        return f"Bearer {self.token}" if self.token else None

    @property
    def stale(self) -> bool:
        """Whether `renew` is to be called before `header` is used."""
        return bool(self.token_file or self.plugin) and time.monotonic() - self._read_at > _TOKEN_FRESH_S

    def renew(self) -> None:
        """Get the token anew. Blocks for a file, or for a program; may raise `NoCluster`."""
        self.token = self._fresh_token()
        self._read_at = time.monotonic()

    def refused(self) -> None:
        """Take note of a 401: what `header` returned is good no longer."""
        self._read_at = float("-inf")

    def _fresh_token(self) -> str:
        if self.token_file is not None:
            try:
                return self.token_file.read_text().strip()
            except OSError as error:
                raise NoCluster(f"{self.token_file}: {error.strerror}") from error
        return _ask_plugin(self.plugin or {})


def find(kubeconfig: str | None, environ_host: str | None, environ_port: str | None) -> Credentials:
    """Return the credentials that a kubeconfig holds, else those of the pod we run in. Blocking.

    Raises:
        NoCluster: neither is there, or it can't be read.
    """
    if kubeconfig:
        return _from_kubeconfig(Path(kubeconfig.split(os.pathsep)[0]))
    if not environ_host:
        raise NoCluster(
            "TOOL_EXECUTOR=kubernetes needs a cluster: run the worker in a pod with a service account, "
            "or set KUBECONFIG."
        )
    return _in_cluster(environ_host, environ_port or "443")


def _in_cluster(host: str, port: str) -> Credentials:
    try:
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
        tls = _verifying(SERVICE_ACCOUNT / "ca.crt")
    except OSError as error:
        raise NoCluster(f"This pod has no service account token: {error}") from error
    address = f"[{host}]" if ":" in host else host
    token_file = SERVICE_ACCOUNT / "token"
    return Credentials(f"https://{address}:{port}", namespace, tls, token_file=token_file)


def _from_kubeconfig(path: Path) -> Credentials:
    try:
        config = cast("dict[str, Any]", yaml.safe_load(path.read_text()) or {})
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"] or {}
        return _credentials(path.parent, context, cluster, user)
    except (OSError, KeyError, ValueError, yaml.YAMLError) as error:
        raise NoCluster(f"KUBECONFIG {path} can't be used: {type(error).__name__} {error}") from error


def _credentials(
    folder: Path, context: dict[str, Any], cluster: dict[str, Any], user: dict[str, Any]
) -> Credentials:
    found = Credentials(
        cluster["server"].rstrip("/"), context.get("namespace") or "default", token=user.get("token")
    )
    if cluster["server"].startswith("https"):
        found.tls = _tls(folder, cluster, user)
    if "tokenFile" in user:
        found.token_file = folder / user["tokenFile"]
    if "exec" in user:
        found.plugin = user["exec"]
    if "username" in user:
        found.basic = base64.b64encode(f"{user['username']}:{user.get('password', '')}".encode()).decode()
    return found


def _tls(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    context = _verifying()
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif data := cluster.get("certificate-authority-data"):
        context.load_verify_locations(cadata=base64.b64decode(data).decode())
    elif file := cluster.get("certificate-authority"):
        context.load_verify_locations(cafile=str(folder / file))
    if "client-certificate-data" in user or "client-certificate" in user:
        _load_client_certificate(context, folder, user)
    return context


def _verifying(authority: Path | None = None) -> ssl.SSLContext:
    """Return a context that asks of certificates what kubectl does.

    From Python 3.13 on the default asks for more: authorities without the key usage extension, which
    clusters made by older tools have, would be refused.
    """
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _load_client_certificate(context: ssl.SSLContext, folder: Path, user: dict[str, Any]) -> None:
    """Load certificate and key; OpenSSL reads them from files only, so data is one for a moment."""
    with tempfile.TemporaryDirectory() as tmp:
        files: list[str] = []
        for name in ("client-certificate", "client-key"):
            file = folder / user.get(name, "")
            if data := user.get(f"{name}-data"):
                file = Path(tmp, name)
                file.touch(mode=0o600)
                file.write_bytes(base64.b64decode(data))
            files.append(str(file))
        context.load_cert_chain(*files)


def _named(config: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    return next(item for item in config[kind] if item["name"] == name)


def _ask_plugin(plugin: dict[str, Any]) -> str:
    """Run a credential plugin (client.authentication.k8s.io) for a token."""
    env = dict(os.environ) | {pair["name"]: pair["value"] for pair in plugin.get("env") or []}
    info = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
    env["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    argv = [plugin["command"], *(plugin.get("args") or [])]
    try:
        done = subprocess.run(argv, env=env, capture_output=True, check=True, timeout=_PLUGIN_S)
        return str(json.loads(done.stdout)["status"]["token"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise NoCluster(f"the credential program {plugin['command']!r} gave no token: {error}") from error
