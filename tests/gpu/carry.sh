#!/usr/bin/env bash
# Packs what tests/gpu/prove.py needs on a machine that has NVIDIA GPUs and their driver, and nothing else: no network,
# no Docker Engine, no packages.  Run it here, on a machine with an engine (dev/engine.sh up) and base images
# (dev/base-images.sh 13); copy the checkout with .carry/ there; run tests/gpu/prove.sh there as root.
#
#   tests/gpu/carry.sh [python version there]      default: 3.12
#
#   .carry/engine.tar.xz   dockerd, containerd and runc of this machine, with the libraries they need
#   .carry/image.tar.xz    the files of ds01/debian:13 that a small Python program needs, to be imported as an image
#   .carry/site.tar.xz     the Python packages that our adapters and the contract tests import
#
# What exists is kept; remove it to have it made anew.  Everything together stays under 64 MiB, for one copy.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly VERSION=${1:-3.12} IMAGE=ds01/debian:13 OUT=.carry
export PATH=/opt/ds01-engine/usr/sbin:/opt/ds01-engine/usr/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf 'carry: %s\n' "$*"; }
fail() {
    printf 'carry: %s\n' "$*" >&2
    exit 1
}

# The C library and what comes with it must be the other machine's own.
libraries_of() {
    ldd "$@" | awk '$3 ~ /^\// { print $3 }' | sort -u | grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv)\.so'
}

pack() {
    local target=$1 folder=$2
    tar --create --owner=0 --group=0 --numeric-owner --directory "$folder" . | nice xz -6 --threads=0 >"$OUT/$target.part"
    mv "$OUT/$target.part" "$OUT/$target"
}

pack_engine() {
    local program path programs=(dockerd containerd containerd-shim-runc-v2 runc)
    mkdir -p "$work/engine/bin" "$work/engine/lib"
    for program in "${programs[@]}"; do
        path=$(command -v "$program") || fail "$program is not on this machine. Run dev/engine.sh up, then this again."
        cp --dereference "$path" "$work/engine/bin/"
    done
    path=$(command -v docker-init || command -v tini-static) || fail "neither docker-init nor tini is on this machine."
    cp --dereference "$path" "$work/engine/bin/docker-init"
    libraries_of "$work/engine/bin/"{dockerd,containerd,containerd-shim-runc-v2,runc} |
        xargs --no-run-if-empty cp --dereference --target-directory "$work/engine/lib"
    pack engine.tar.xz "$work/engine"
}

# Chosen, not excluded: settings and certificates of this machine, which the base image has, stay here.
pack_image() {
    local container library libraries=()
    for library in ld-linux-x86-64 libc libm libdl librt libpthread libutil libz libexpat libffi libgcc_s 'libstdc++' libtinfo; do
        libraries+=("usr/lib/x86_64-linux-gnu/$library.*")
    done
    container=$(docker create "$IMAGE" true) || fail "there is no image $IMAGE. Run dev/base-images.sh 13, then this again."
    mkdir -p "$work/image/"{tmp,root,proc,sys,dev}
    chmod 1777 "$work/image/tmp"
    docker export "$container" | tar --extract --directory "$work/image" --wildcards --exclude='*__pycache__*' \
        bin lib lib64 sbin usr/lib64 etc/passwd etc/group etc/nsswitch.conf \
        'usr/bin/python3*' usr/bin/sh usr/bin/dash usr/bin/bash usr/bin/sleep usr/bin/cat \
        'usr/lib/python3.[0-9]*' "${libraries[@]}"
    docker rm "$container" >/dev/null
    pack image.tar.xz "$work/image"
}

pack_site() {
    local uv=uv
    command -v uv >/dev/null || uv=.venv/bin/uv
    "$uv" pip install --quiet --target "$work/site" --python-version "$VERSION" --python-platform x86_64-manylinux_2_28 \
        --only-binary :all: nvidia-ml-py docker pyyaml aiohttp pytest pytest-asyncio
    rm -rf "$work/site/bin"
    pack site.tar.xz "$work/site"
}

mkdir -p "$OUT"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for part in engine image site; do
    if [[ -e $OUT/$part.tar.xz ]]; then
        say "$part: kept"
    else
        say "$part: packing"
        "pack_$part"
    fi
done
du --human-readable --total "$OUT"/*.tar.xz
