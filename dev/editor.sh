#!/usr/bin/env bash
# Bundles the Dockerfile editor of the project's page into ds01_spawner/static/editor.js; safe to repeat.
#
# The page works without it, with a plain text field. What goes in is pinned in dev/editor/package-lock.json.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH=$PWD/.venv/bin:$PATH
readonly TARGET=ds01_spawner/static/editor.js STAMP=.venv/.ds01-editor
wanted=$(cat dev/editor/package-lock.json dev/editor/editor.mjs | sha256sum | cut -d' ' -f1)
if [ -f "$TARGET" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
command -v npm >/dev/null || { echo "editor: npm is missing; run dev/proxy.sh, which brings Node into .venv" >&2; exit 1; }
printf 'editor: bundling CodeMirror\n'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp dev/editor/package.json dev/editor/package-lock.json dev/editor/editor.mjs "$work/"
(cd "$work" && npm ci --silent --no-audit --no-fund)
{
    printf '/* CodeMirror 6, MIT licence, (c) Marijn Haverbeke and others; bundled by dev/editor.sh */\n'
    "$work/node_modules/.bin/esbuild" "$work/editor.mjs" --bundle --minify --format=esm --target=es2022 --legal-comments=none
} >"$TARGET"
printf '%s\n' "$wanted" >"$STAMP"
printf 'editor: made %s (%s bytes)\n' "$TARGET" "$(stat -c %s "$TARGET")"
