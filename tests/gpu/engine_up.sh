#!/usr/bin/env bash
# Starts the Docker Engine that carry.sh packed, on a bare machine, as root; safe to repeat.  The socket and all of its
# files are in the folder given, so that an engine of the machine itself is neither used nor disturbed.
#
#   tests/gpu/engine_up.sh FOLDER       prints the socket's address
#   tests/gpu/engine_up.sh --stop FOLDER
set -euo pipefail

carry=$(cd "$(dirname "$0")/../.." && pwd)/.carry
readonly carry START_SECONDS=60

say() { printf 'engine_up: %s\n' "$*" >&2; }
fail() {
    printf 'engine_up: %s\n' "$*" >&2
    exit 1
}

answers() {
    python3 - "$1" <<'PYTHON' 2>/dev/null
import socket, sys
with socket.socket(socket.AF_UNIX) as there:
    there.settimeout(5)
    there.connect(sys.argv[1])
    there.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
    sys.exit(b" 200 " not in there.recv(64))
PYTHON
}

if [[ ${1:-} == --stop ]]; then
    [[ -r $2/dockerd.pid ]] && kill -TERM "$(<"$2/dockerd.pid")"
    exit 0
fi

readonly FOLDER=${1:?the folder for the engine\'s files}
readonly SOCKET=$FOLDER/docker.sock
if answers "$SOCKET"; then
    echo "unix://$SOCKET"
    exit 0
fi
((EUID == 0)) || fail "starting an engine needs root"
[[ -r $carry/engine.tar.xz ]] || fail "$carry/engine.tar.xz is missing; run tests/gpu/carry.sh where there is an engine"
mkdir -p "$FOLDER"/{engine,data,exec}
python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' \
    "$carry/engine.tar.xz" "$FOLDER/engine"

# Overlays do not stack on the overlay that a container or a small virtual machine may have as its root.
if [[ $(stat --file-system --format %T "$FOLDER/data") == overlay* ]]; then
    mount -t tmpfs -o size=8g tmpfs "$FOLDER/data"
    say "the engine's files are in memory: the root is an overlay"
fi
if ! grep -qE '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    say "mounted cgroup2"
fi
# On the unified hierarchy nothing may sit in the root when controllers are handed down.
if [[ -f /sys/fs/cgroup/cgroup.controllers ]] && ! grep -q cpu /sys/fs/cgroup/cgroup.subtree_control; then
    mkdir -p /sys/fs/cgroup/init
    xargs -rn1 </sys/fs/cgroup/cgroup.procs 2>/dev/null >/sys/fs/cgroup/init/cgroup.procs || true
    sed -e 's/ / +/g' -e 's/^/+/' </sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control || true
fi

# No packet filter: nothing here needs to reach anything outside, and the machine may have no iptables.
cat >"$FOLDER/daemon.json" <<JSON
{
  "features": {"cdi": true},
  "hosts": ["unix://$SOCKET"],
  "pidfile": "$FOLDER/dockerd.pid",
  "data-root": "$FOLDER/data",
  "exec-root": "$FOLDER/exec",
  "bridge": "none",
  "iptables": false,
  "ip6tables": false,
  "ip-forward": false,
  "ip-masq": false,
  "userland-proxy": false,
  "init-path": "$FOLDER/engine/bin/docker-init"
}
JSON
# A session of its own outlives this script; whoever runs it ends it with --stop, or with the machine.
PATH=$FOLDER/engine/bin:$PATH:/usr/sbin:/sbin LD_LIBRARY_PATH=$FOLDER/engine/lib \
    setsid --fork dockerd --config-file "$FOLDER/daemon.json" </dev/null >"$FOLDER/dockerd.log" 2>&1
deadline=$((SECONDS + START_SECONDS))
until answers "$SOCKET"; do
    if ((SECONDS >= deadline)); then
        tail -n 40 "$FOLDER/dockerd.log" >&2
        fail "the engine did not answer within $START_SECONDS s; the end of its log is above"
    fi
    sleep 0.2
done
echo "unix://$SOCKET"
