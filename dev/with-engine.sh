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
# Ctrl-C reaches the command by itself; this shell only has to outlive it.
trap : INT
"$@"
