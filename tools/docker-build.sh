#!/bin/sh
# Builds the image of docker/Dockerfile as anvil:latest and anvil:VERSION, with whatever can: docker, podman or buildah. Arguments go to
# its `build`. PIP_INDEX_URL and PIP_CERT are passed on where they are set.
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || true)
[ -z "${PIP_INDEX_URL:-}" ] || set -- --build-arg PIP_INDEX_URL "$@"
[ -z "${PIP_CERT:-}" ] || set -- --build-arg PIP_CERT "$@"
for engine in docker podman buildah; do
    command -v $engine >/dev/null 2>&1 || continue
    case $engine in
    docker) docker info >/dev/null 2>&1 || continue ;; # the program alone, without an engine to speak to
    *) set -- --format docker "$@" ;;                  # OCI's own format has no HEALTHCHECK
    esac
    echo "Building anvil:$version with $engine"
    exec $engine build --build-arg REVISION="$revision" -f docker/Dockerfile -t anvil:latest -t "anvil:$version" "$@" .
done
echo "No docker (with a running engine), podman or buildah here: install one of them" >&2
exit 1
