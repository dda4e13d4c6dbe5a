#!/usr/bin/env bash
# What the browser tests and the screenshots need beyond .venv: Debian's chromium, and axe-core from npm; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly AXE=axe-core@4.14.1 TARGET=.venv/lib/axe
export PATH=$PWD/.venv/bin:$PATH

missing=()
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && [ -z "${DS01_CHROMIUM:-}" ]; then
    missing+=(chromium fonts-dejavu-core)
fi
# Playwright brings a Node of its own, which wants this library and does not bring it.
if ! .venv/bin/python -m playwright --version >/dev/null 2>&1; then
    missing+=(libatomic1)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "browser: the browser tests need ${missing[*]} (names of Debian packages); install them, or for the browser" \
            "set DS01_CHROMIUM to one of its kind" >&2
        exit 1
    fi
    echo "browser: apt-get install ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
        "${missing[@]}" >/dev/null
fi
if [ ! -f "$TARGET/node_modules/axe-core/axe.min.js" ]; then
    echo "browser: npm install $AXE"
    npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$TARGET" "$AXE"
fi
