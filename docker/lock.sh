#!/usr/bin/env bash
# Writes the image's lock files: exact versions with hashes, for Python 3.11 on x86-64 Linux. Needs uv.
#
#   docker/lock.sh             keeps the locked versions that still satisfy pyproject.toml
#   docker/lock.sh --upgrade   the newest of everything (or any other option of `uv pip compile`)
#
# The CPU variant takes torch and torchvision from the PyTorch project's own index of CPU wheels, which uv knows by the
# name of cpu. CPU_WHEELS=folder takes torch's CPU wheel from a folder instead.
set -euo pipefail
cd "$(dirname "$0")/.."

# lock FILE INPUT [OPTION...]
lock() {
    local file=$1 input=$2
    shift 2
    uv pip compile "$input" --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
        --no-emit-find-links --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file "$file" "$@"
    echo "$file: $(grep -c == "$file") packages"
}

extras=(--extra s3 --extra gcs --extra baselines --extra vision --extra hf --extra tensorboard)
if [[ -n ${CPU_WHEELS:-} ]]; then
    cpu=(--find-links "$CPU_WHEELS")
else
    cpu=(--torch-backend cpu)
fi

lock docker/requirements-cpu.txt pyproject.toml "${extras[@]}" "${cpu[@]}" "$@"
# A folder or a mirror may hold another build of the same version of these two: pinned, but without hashes.
awk '/^[^ ]/ { torch = /^torch(vision)?==/ } torch { if (/^[^ ]/) { sub(/ *\\$/, ""); print } next } { print }' \
    docker/requirements-cpu.txt > docker/requirements-cpu.tmp
mv docker/requirements-cpu.tmp docker/requirements-cpu.txt

lock docker/requirements-cuda.txt pyproject.toml "${extras[@]}" --extra gpu "$@"
# What Ray's autoscaler calls on the head of a cluster in AWS or Google Cloud, beside the packages of the image.
printf 'boto3\ngoogle-api-python-client\n' | lock docker/requirements-head.txt - \
    --constraints docker/requirements-cuda.txt "$@"
printf 'uv\nsetuptools>=77\n' | lock docker/requirements-build.txt - "$@"
