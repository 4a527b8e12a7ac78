#!/usr/bin/env bash
# Builds the image on a machine without a container engine, and runs the default experiment in it.
#
#   docker/build-here.sh [FOLDER] [OPTION...]     options of `buildah bud`, as --build-arg VARIANT=cuda
#
# Debian's mmdebstrap makes a base of Debian bookworm with Python, in place of the official Python image; buildah builds
# the same Dockerfile on it with no more than chroot. Needs root, and the Debian packages mmdebstrap and buildah.
# FOLDER keeps base, storage and runs (several times the image's size); by default it is a temporary one, removed.
#
# pip's and uv's settings of this shell (PIP_..., UV_...) serve the build too, as its secret; SSL_CERT_FILE takes the place
# of the base's certificates. CPU_WHEELS=folder: where torch's CPU wheel lies, instead of the PyTorch project's index.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in mmdebstrap buildah; do
    command -v "$tool" > /dev/null || { echo "build-here.sh: $tool is missing: apt-get install $tool" >&2; exit 1; }
done

if [[ $# -gt 0 && $1 != -* ]]; then
    mkdir -p "$1"
    folder=$(cd "$1" && pwd)
    shift
else
    folder=$(mktemp -d /var/tmp/coar-dist-image.XXXXXX)
    temporary=$folder
fi
export TMPDIR=$folder BUILDAH_ISOLATION=chroot

build() {
    buildah --root "$folder/storage" --runroot "$folder/runroot" "$@"
}

clean() {
    rm -f "$folder/packages"
    build rm --all > /dev/null || true
    if [[ -n ${temporary:-} ]]; then
        build rmi --all --force > /dev/null || true
        rm -rf "$temporary"
    fi
}
trap clean EXIT

took() {
    echo "== $1: $((SECONDS - started)) s"
    started=$SECONDS
}
started=$SECONDS

# --- the base
base=localhost/python:3.11-bookworm
if ! build inspect --type image "$base" > /dev/null 2>&1; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3-dev,python3-venv bookworm "$folder/base.tar"
    container=$(build from scratch)
    build add --quiet "$container" "$folder/base.tar" / > /dev/null
    build commit --quiet --rm "$container" "$base" > /dev/null
    rm "$folder/base.tar"
fi
took "base"

# --- the image
# Mounted over what the base has, settings leave no trace in the image.
umask 077 # they may hold credentials
{ export -p | grep -E '^declare -x (PIP|UV)_' | grep -vE ' PIP_(CERT|FIND_LINKS)=' || true; } > "$folder/packages"
if [[ -n ${SSL_CERT_FILE:-} ]]; then
    certificates=/etc/ssl/certs/ca-certificates.crt
    set -- --volume "$SSL_CERT_FILE:$certificates:ro" "$@"
    echo "export SSL_CERT_FILE=$certificates PIP_CERT=$certificates" >> "$folder/packages"
fi
if [[ -n ${CPU_WHEELS:-} ]]; then
    set -- --volume "$CPU_WHEELS:/srv:ro" --build-arg TORCH_BACKEND=none "$@"
    echo "export UV_FIND_LINKS=/srv" >> "$folder/packages"
fi
build bud --file docker/Dockerfile --tag coar-dist --build-arg BASE_IMAGE="$base" \
    --build-arg REVISION="$(git rev-parse HEAD 2> /dev/null || echo unknown)" \
    --secret id=packages,src="$folder/packages" --format docker --layers=false "$@" .
took "image"
build images coar-dist

# --- the default experiment in it, as the image's own user, through its entry point
container=$(build from localhost/coar-dist)
build run "$container" -- entrypoint.sh id
build run "$container" -- entrypoint.sh run.dir=runs/digits
took "coar-dist in the image"
