#!/usr/bin/env bash
# Makes .venv with everything that the project, its tests and its demo need; does nothing when that is done already.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      command -v "$candidate"
      return
    fi
  done
  die "Python 3.11 or newer is needed and was not found. Install it, for example with: apt-get install python3 python3-venv"
}

# What is installed is described by pyproject.toml alone, so its checksum tells whether .venv is up to date.
stamp=.venv/.ds01-setup
wanted=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x .venv/bin/configurable-http-proxy ]; then
  dev/editor.sh
  exit 0
fi

python=$(find_python)
if [ ! -x .venv/bin/python ]; then
  say "making .venv with $("$python" --version)"
  if ! "$python" -m venv .venv >/dev/null 2>&1; then
    rm -rf .venv
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "Python's venv module is missing. Install it: apt-get install python3-venv"
    say "installing python3-venv"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null 2>&1
    "$python" -m venv .venv
  fi
fi
say "installing the package and its tools (one or two minutes the first time)"
.venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
.venv/bin/python -m pip install --quiet --editable . --group dev
dev/proxy.sh
dev/editor.sh
printf '%s\n' "$wanted" >"$stamp"
say "done"
