#!/bin/sh
# Builds one target of the Dockerfile with whichever builder is here: build_image.sh <image> [target].
# BUILD_ARGS adds arguments, such as --build-arg=BASE=… (split at spaces).
set -eu
image=${1:?name of the image}
target=${2:-app}
revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
set -- --target "$target" --tag "$image" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" ${BUILD_ARGS:-} .
# BuildKit, which the secret needs; docker before version 23 has it, but asks to be told.
export DOCKER_BUILDKIT=1
# The docker format: OCI's has no place for a health check.
for builder in docker buildah podman; do
    command -v "$builder" >/dev/null 2>&1 || continue
    case $builder in
    docker) docker version >/dev/null 2>&1 && exec docker build "$@" ;; # without its daemon: the next one
    buildah) exec buildah bud --isolation=chroot --format docker "$@" ;;
    podman) exec podman build --format docker "$@" ;;
    esac
done
echo "No image builder on PATH: install docker, buildah or podman, then run make build again." >&2
exit 1
