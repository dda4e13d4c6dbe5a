#!/usr/bin/env bash
# Proves on a machine with NVIDIA GPUs what the project says about them, as root, with what carry.sh packed.  Prints a
# transcript and ends with 0 if every statement holds.  Leaves no process, container or file behind.
#
#   tests/gpu/prove.sh [prove_culler.py]      default: prove.py
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$(mktemp -d /tmp/ds01-proof.XXXXXX)
clean_up() {
    tests/gpu/engine_up.sh --stop "$folder" || true
    # Its files can be removed once it has let go of them.
    for _ in {1..50}; do
        [[ -e $folder/dockerd.pid ]] || break
        sleep 0.2
    done
    umount "$folder/data" 2>/dev/null || true
    rm -rf "$folder" 2>/dev/null || true
}
trap clean_up EXIT

mkdir -p "$folder/site"
python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' \
    .carry/site.tar.xz "$folder/site"
DOCKER_HOST=$(tests/gpu/engine_up.sh "$folder")
export DOCKER_HOST PYTHONPATH=$PWD:$folder/site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
DS01_REVISION=${DS01_REVISION:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
export DS01_REVISION
python3 "tests/gpu/${1:-prove.py}" .carry/image.tar.xz
