#!/bin/sh
# Build the images: scripts/build_docker.sh [cpu] [gpu], by default both. DOCKER, IMAGE, COMFYUI_VERSION and PYTHON_VERSION are settings.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
docker="${DOCKER:-docker}"
image="${IMAGE:-yggdrasill}"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/__init__.py")
if [ -z "$version" ]; then
    echo "No version found in $root/__init__.py" >&2
    exit 1
fi
if [ "$#" -eq 0 ]; then set -- cpu gpu; fi

for target in "$@"; do
    case "$target" in
    cpu | gpu) ;;
    *)
        echo "Unknown target '$target'. Available: 'cpu', 'gpu'." >&2
        exit 2
        ;;
    esac
done

for target in "$@"; do
    "$docker" build \
        --file "$root/docker/Dockerfile" \
        --target "$target" \
        ${COMFYUI_VERSION:+--build-arg "COMFYUI_VERSION=$COMFYUI_VERSION"} \
        ${PYTHON_VERSION:+--build-arg "PYTHON_VERSION=$PYTHON_VERSION"} \
        --label "org.opencontainers.image.version=$version" \
        --tag "$image:$target" \
        --tag "$image:$version-$target" \
        "$root"
done
