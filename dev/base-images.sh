#!/usr/bin/env bash
# Local base images for tests and the demo, made without an image registry.
#
#   dev/base-images.sh [11] [12] [13]     default: 13
#
#   ds01/debian:11 :12 :13   Debian with python3 and ca-certificates, nothing else: what the runtime must cope with
#   ds01/python:13           the same with pip, for projects whose Dockerfile says `RUN pip install`
#
# An image that exists is kept; `docker image rm` it to have it made anew. How this machine reaches Debian's packages
# and Python's index (mirror, proxy, certificates) is read here and written into the images, so that `RUN apt-get
# install` and `RUN pip install` work in a build as they do outside. Where an index or a proxy needs a password, the
# image holds it: do not push these images anywhere.
set -euo pipefail

readonly BUNDLE=/etc/ssl/certs/ca-certificates.crt
readonly PACKAGES=python3,ca-certificates

say() { printf 'base-images: %s\n' "$*"; }
fail() {
    printf 'base-images: %s\n' "$*" >&2
    exit 1
}

codename() {
    case $1 in
        11) echo bullseye ;;
        12) echo bookworm ;;
        13) echo trixie ;;
        *) fail "no Debian release '$1' is known here. Choose from 11, 12 and 13." ;;
    esac
}

image_exists() {
    docker image inspect "$1" >/dev/null 2>&1
}

# --- this machine's settings, as a tree of files to lay over an image's root ---

# Certificate authorities that this machine trusts beyond its distribution's: behind an inspecting proxy, HTTPS needs them.
write_extra_authorities() {
    local target=$1/usr/local/share/ca-certificates
    mkdir -p "$target"
    [[ -r $BUNDLE ]] || return 0
    # One file each, because update-ca-certificates takes no bundles. A certificate is compared by its text.
    cat /dev/null /usr/share/ca-certificates/*/*.crt 2>/dev/null | awk -v target="$target" '
        /^-----BEGIN/ { text = ""; inside = 1 }
        inside { text = text $0 "\n" }
        /^-----END/ {
            inside = 0
            if (FILENAME == "-") known[text] = 1
            else if (!(text in known)) printf "%s", text > (target "/host-" ++n ".crt")
        }' - "$BUNDLE"
}

write_apt_settings() {
    local target=$1/etc/apt/apt.conf.d
    mkdir -p "$target"
    # Unread descriptions and kept packages only make images larger, as in Debian's own images.
    printf '%s\n' 'Acquire::Languages "none";' 'APT::Keep-Downloaded-Packages "false";' >"$target/90small"
    if command -v apt-config >/dev/null; then
        apt-config dump | grep -E '^Acquire::(https?::.*(Proxy|CaInfo)|Check-(Valid-Until|Date)|Retries)' >"$target/95host" || true
    fi
}

# Only what makes sense in a container: a path of this machine does not.
write_pip_settings() {
    local target=$1/etc/pip.conf
    # Debian's pip reads the system's authorities, but the pip of a virtual environment brings its own.
    printf '[global]\ncert = %s\ndisable-pip-version-check = true\n' "$BUNDLE" >"$target"
    python3 -m pip config list 2>/dev/null | awk -F= '
        { value = substr($0, index($0, "=") + 1); gsub(/^.|.$/, "", value); sub(/.*\./, "", $1) }
        $1 ~ /^(index-url|extra-index-url|trusted-host|proxy|timeout|default-timeout)$/ {
            kept = ""
            count = split(value, words, /[ ]|\\n/)
            for (i = 1; i <= count; i++) if (words[i] != "" && words[i] !~ /^(file:|\/)/) kept = kept " " words[i]
            if (kept != "") line[$1] = kept
        }
        END { for (key in line) print key " =" line[key] }' >>"$target" || true
}

write_settings() {
    mkdir -p "$1/etc"
    write_extra_authorities "$1"
    write_apt_settings "$1"
    write_pip_settings "$1"
}

# Prints the environment that an image on this machine needs, one NAME=value a line.
environment() {
    local name
    echo LANG=C.UTF-8
    # Node and Python packages with certificates of their own are told to use the system's; only where it matters.
    if compgen -G "$settings/usr/local/share/ca-certificates/*.crt" >/dev/null; then
        printf '%s\n' "SSL_CERT_FILE=$BUNDLE" "REQUESTS_CA_BUNDLE=$BUNDLE" "NODE_EXTRA_CA_CERTS=$BUNDLE"
    fi
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        [[ -z ${!name:-} ]] || echo "$name=${!name}"
    done
}

# --- making an image ---

mirror() {
    # shellcheck disable=SC1091
    . /etc/os-release
    [[ $ID == debian ]] || return 0 # another distribution's mirror has no Debian on it
    # shellcheck disable=SC2016 # the $(...) is apt's, not the shell's
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Codename: $VERSION_CODENAME" |
        head -n 1
}

# Runs as root in a mount namespace of its own (see from_packages) and writes the image's files to standard output.
# They live in memory: twice as fast as a disk, and gone with this process however it ends.
bootstrap() {
    local code=$1 uri=$2 settings=$3 work=$4 root=$4/root
    mount -t tmpfs -o size=2g tmpfs "$work"
    # Debian's own slim images leave the same out.
    mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$root/usr/sbin"
    printf 'path-exclude %s\n' '/usr/share/'{doc,info,man,locale,lintian}'/*' >"$root/etc/dpkg/dpkg.cfg.d/slim"
    debootstrap --variant=minbase --include="$PACKAGES" "$code" "$root" "$uri" >&2
    rm -rf "$root"/usr/share/{doc,info,man,locale,lintian}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* \
        "$root"/var/log/*.log "$root"/var/cache/debconf/*-old "$root/etc/hostname" "$root/etc/resolv.conf"
    # No service starts while an image is built.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    echo "deb $uri $code main" >"$root/etc/apt/sources.list"
    cp -r "$settings/." "$root/"
    chroot "$root" update-ca-certificates >&2
    tar --create --numeric-owner --one-file-system --directory "$root" --exclude './dev/*' --exclude './proc/*' --exclude './sys/*' .
}

from_packages() {
    local release=$1 image=$2 changes=() line
    while read -r line; do
        changes+=(--change "ENV $line")
    done < <(environment)
    mkdir -p "$work/$release"
    unshare --mount -- "$0" --bootstrap "$(codename "$release")" "$uri" "$settings" "$work/$release" |
        docker import --change 'CMD ["bash"]' "${changes[@]}" - "$image"
}

from_registry() {
    local release=$1 image=$2
    {
        echo "FROM debian:$(codename "$release")-slim"
        environment | sed 's/^/ENV /'
        echo 'COPY . /'
        echo "RUN apt-get update && apt-get install -y --no-install-recommends ${PACKAGES//,/ } && rm -rf /var/lib/apt/lists/*"
        echo 'RUN update-ca-certificates'
    } >"$work/Dockerfile.$release"
    docker buildx build --load --tag "$image" --file "$work/Dockerfile.$release" "$settings"
}

make_debian() {
    local release=$1 image=ds01/debian:$1 log=$work/$1.log from=from_packages started=$SECONDS
    local next="If the release has left the mirror, make an image of it elsewhere and 'docker tag' it $image."
    if image_exists "$image"; then
        say "$image exists"
        return
    fi
    if [[ -z $uri ]]; then
        from=from_registry
        next="Where no image registry can be reached, run this as root on Debian: it then uses Debian's packages."
    fi
    say "making $image"
    if ! "$from" "$release" "$image" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "$image could not be made, the end of the log is above. $next"
    fi
    say "made $image in $((SECONDS - started)) s"
}

make_python() {
    local image=ds01/python:$1 log=$work/python-$1.log started=$SECONDS
    if image_exists "$image"; then
        say "$image exists"
        return
    fi
    say "making $image"
    # An image is its own environment: there is no system here that pip could break.
    if ! docker buildx build --load --tag "$image" - >"$log" 2>&1 <<DOCKERFILE; then
FROM ds01/debian:$1
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update && apt-get install -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
DOCKERFILE
        tail -n 20 "$log" >&2
        fail "$image could not be made, the end of the log is above. Once it is put right, run this again."
    fi
    say "made $image in $((SECONDS - started)) s"
}

main() {
    local release job jobs=() failed=0
    (($#)) || set -- 13
    for release in "$@"; do
        codename "$release" >/dev/null
    done
    docker version >/dev/null 2>&1 || fail "no Docker Engine answers. Run dev/engine.sh up, then this again."

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    settings=$work/settings
    write_settings "$settings"
    uri=
    if ((EUID == 0)) && command -v apt-get >/dev/null; then
        uri=$(mirror)
    fi
    if [[ -n $uri ]] && ! command -v debootstrap >/dev/null; then
        say "apt-get install debootstrap"
        DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends debootstrap >/dev/null ||
            fail "apt could not install debootstrap. Run 'apt-get update && apt-get install debootstrap', then this again."
    fi

    # All at once: each waits for the network and the disk about as long as it computes.
    for release in "$@"; do
        {
            make_debian "$release"
            [[ $release != 13 ]] || make_python "$release"
        } &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do
        wait "$job" || failed=1
    done
    return "$failed"
}

if [[ ${1:-} == --bootstrap ]]; then
    shift
    bootstrap "$@"
elif [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
else
    main "$@"
fi
