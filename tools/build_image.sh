#!/bin/sh
# Builds the container image with whichever builder is here.
set -eu
image=${1:?name of the image}
if [ ! -f Dockerfile ]; then
    echo "There is no Dockerfile yet: the image comes with the Kubernetes part; make up serves without one."
    exit 0
fi
for builder in docker buildah podman; do
    if command -v "$builder" >/dev/null 2>&1; then
        exec "$builder" build -t "$image" .
    fi
done
echo "No image builder on PATH: install docker, buildah or podman, then run make build again." >&2
exit 1
