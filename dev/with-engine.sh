#!/usr/bin/env bash
# Runs a command with a Docker Engine and base images there, and stops the engine after it if this started it.
#
#   dev/with-engine.sh [DEBIAN-RELEASE ...] -- COMMAND [ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."

releases=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  releases+=("$1")
  shift
done
shift

if ! dev/engine.sh status >/dev/null 2>&1; then
  trap 'dev/engine.sh down' EXIT
  dev/engine.sh up
fi
dev/base-images.sh "${releases[@]}"
# Orphans of a killed hub are reaped by tini where the machine's first process does not reap (as in many containers): a
# hub that starts again waits for its old proxy to be gone, and a zombie never is.
reaper=()
if command -v tini >/dev/null; then reaper=(tini -s --); fi
# Ctrl-C reaches the command by itself; this shell only has to outlive it.
trap : INT
"${reaper[@]}" "$@"
