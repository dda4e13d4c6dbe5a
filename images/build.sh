#!/usr/bin/env bash
# Builds base images that projects can start from, and verifies each inside itself.
#
#   images/build.sh python jax-cpu             builds ds01/python:latest, then ds01/jax-cpu:latest
#   BASE=ds01/python:13 images/build.sh python   starts from another image than the Dockerfile says
#   VERIFY=no images/build.sh pytorch          builds only, for an image whose GPU is elsewhere
#
# An image that is built like this carries its name and description in labels, and is then offered on "New project".
set -euo pipefail
cd "$(dirname "$0")"

(($#)) || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit 2; }
for name in "$@"; do
    [[ -f $name/Dockerfile ]] || { echo "images: there is no folder $name here" >&2; exit 2; }
    image=ds01/$name:latest
    arguments=()
    [[ -z ${BASE:-} ]] || arguments+=(--build-arg "BASE=$BASE")
    docker buildx build --load --quiet --tag "$image" "${arguments[@]}" \
        --label "ds01.base.name=$name" --label "ds01.base.description=$(cat "$name/description")" - <"$name/Dockerfile" >/dev/null
    if [[ ${VERIFY:-yes} == yes ]]; then
        docker run --rm --interactive --user 12345:12345 --env HOME=/tmp "$image" python3 - <"$name/verify"
    fi
    echo "images: $image"
done
