#!/usr/bin/env bash
# A Docker Engine for development, tests and the demo, on a machine that may have none.
#
#   dev/engine.sh up       finds a suitable engine, or installs and starts one; safe to repeat
#   dev/engine.sh down     stops the engine that `up` started by hand, never another
#   dev/engine.sh status   exit status 0 if a suitable engine answers
#
# Whoever should leave no engine behind asks first:
#
#   dev/engine.sh status || { trap 'dev/engine.sh down' EXIT; dev/engine.sh up; }
#
# The files under /run/ds01-engine exist only while an engine started by hand runs (and its log after it).
set -euo pipefail

readonly OLDEST=26                  # the first engine in Debian with CDI; 25 has it too, but nobody packages it
readonly PREFIX=/opt/ds01-engine    # unpacked packages, where the distribution's own are too old
readonly STATE=/run/ds01-engine
readonly CONFIG=$STATE/daemon.json PIDFILE=$STATE/dockerd.pid LOG=$STATE/dockerd.log
readonly LOCAL=unix:///var/run/docker.sock
readonly START_SECONDS=60 STOP_SECONDS=30

# Administrators' folders are missing from the path of some root shells.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
readonly ENGINE_PATH=$PREFIX/usr/sbin:$PREFIX/usr/bin:$PATH

# Contexts are ignored on purpose: the hub's own client (docker-py) knows only DOCKER_HOST.
export DOCKER_HOST=${DOCKER_HOST:-$LOCAL}

say() { printf 'engine: %s\n' "$*"; }
fail() {
    printf 'engine: %s\n' "$*" >&2
    exit 1
}

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
}

# --- looking ---

server_version() {
    docker version --format '{{.Server.Version}}' 2>/dev/null
}

# Succeeds when the engine that answers will do; otherwise says what is wrong with it and how to put that right.
why_unsuitable() {
    local version=$1
    if ((${version%%.*} < OLDEST)); then
        echo "Docker Engine $version at $DOCKER_HOST is too old, $OLDEST or later is needed." \
            "Upgrade it, or point DOCKER_HOST at another engine."
    elif [[ $(docker info --format '{{json .CDISpecDirs}}') == '[]' ]]; then
        echo "Docker Engine $version at $DOCKER_HOST has CDI turned off." \
            'Add {"features": {"cdi": true}} to its daemon.json (usually /etc/docker/daemon.json) and restart it.'
    elif ! docker buildx version >/dev/null 2>&1; then
        echo "Docker Engine $version answers, but 'docker buildx' is missing." \
            "Install your distribution's docker-buildx package (docker-buildx-plugin in Docker's own repository)."
    else
        return 1
    fi
}

dockerd_suits() {
    local version
    version=$(PATH=$ENGINE_PATH dockerd --version 2>/dev/null) || return
    version=${version#Docker version }
    ((${version%%.*} >= OLDEST))
}

# The process that `up` started, and not another one that has its number by now.
our_pid() {
    local pid
    [[ -r $PIDFILE ]] && pid=$(<"$PIDFILE") && grep -qsF -- "$CONFIG" "/proc/$pid/cmdline" && echo "$pid"
}

status() {
    local version problem pid origin="not started by this script"
    version=$(server_version) || {
        say "no engine answers at $DOCKER_HOST"
        return 1
    }
    if pid=$(our_pid); then
        origin="started by this script, process $pid"
    fi
    if problem=$(why_unsuitable "$version"); then
        say "$problem"
        return 1
    fi
    say "Docker Engine $version answers at $DOCKER_HOST ($origin)"
}

# --- installing ---

apt_get() {
    # Another apt may be running: wait for it instead of failing.
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

candidate() {
    apt-cache policy "$1" | sed -n 's/^  Candidate: \([0-9].*\)$/\1/p'
}

# Without systemd the packages' init script could start an engine without our settings; runlevel 1 forbids that.
install_packages() {
    say "apt-get install $*"
    RUNLEVEL=1 apt_get install -y --no-install-recommends "$@" >/dev/null ||
        fail "apt could not install these packages: $*. Run 'apt-get install $*' to see why, then run this again."
}

# Where this machine gets Debian's packages. apt answers itself, so both formats of its sources are understood.
mirror() {
    # shellcheck disable=SC2016 # the $(...) is apt's, not the shell's
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' "Codename: $VERSION_CODENAME" |
        head -n 1
}

# The engine of a newer Debian, unpacked beside the system instead of installed into it: only its runc and tini would
# need a newer libc, and those come from this release.
unpack_from_trixie() {
    local uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg packages=(docker.io docker-cli containerd docker-buildx)
    local -a private
    install_packages runc iptables iproute2 tini ca-certificates
    if [[ -x $PREFIX/usr/sbin/dockerd && -x $PREFIX/usr/libexec/docker/cli-plugins/docker-buildx ]]; then
        return
    fi
    uri=$(mirror)
    [[ -n $uri ]] || fail "apt knows no source for Debian $VERSION_CODENAME. Add one under /etc/apt and run this again."

    say "this release's docker.io is older than $OLDEST: unpacking Debian 13's into $PREFIX"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    : >"$work/status"
    echo "deb [signed-by=$keyring] $uri trixie main" >"$work/sources.list"
    # Only the places are private; proxies, certificates and credentials stay the machine's own.
    private=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::State::Status=$work/status" -o "Dir::Cache=$work/cache"
        -o APT::Sandbox::User=root)
    apt_get "${private[@]}" update ||
        fail "cannot read Debian 13's package lists. If its signing key is unknown, upgrade debian-archive-keyring and run this again."
    (cd "$work" && apt_get "${private[@]}" download "${packages[@]}") ||
        fail "cannot download ${packages[*]}. Check the network and the proxy settings of apt, then run this again."
    for package in "$work"/*.deb; do
        dpkg-deb -x "$package" "$PREFIX"
    done
    # The package would make the group whose members may use the engine's socket.
    getent group docker >/dev/null || groupadd --system docker
    # Its link points at tini beside itself; `docker run --init` needs it to resolve.
    ln -sfn "$(command -v tini-static)" "$PREFIX/usr/bin/docker-init"
    rm -rf "$work"
    trap - EXIT
}

install_engine() {
    # shellcheck source=/dev/null
    . /etc/os-release
    case " $ID ${ID_LIKE:-} " in
        *' debian '* | *' ubuntu '*) ;;
        *) fail "no engine answers at $DOCKER_HOST, and this script can install one only on Debian and Ubuntu." \
            "Install Docker Engine $OLDEST or later with buildx (docs.docker.com/engine/install), then run this again." ;;
    esac
    say "reading the package lists"
    apt_get update || say "apt-get update reported errors; going on with what it has"

    local version packages=(docker.io docker-buildx iptables)
    version=$(candidate docker.io)
    if [[ -n $version ]] && dpkg --compare-versions "$version" ge "$OLDEST"; then
        # Debian has the command line in a package of its own, Ubuntu in docker.io.
        [[ -z $(candidate docker-cli) ]] || packages+=(docker-cli)
        install_packages "${packages[@]}"
    elif [[ $ID == debian ]]; then
        unpack_from_trixie
    else
        fail "$PRETTY_NAME offers docker.io ${version:-not at all}, and $OLDEST or later is needed." \
            "Install Docker's own packages (docs.docker.com/engine/install), then run this again."
    fi
}

# Links only what nothing else provides.
provide_client() {
    local plugin=$PREFIX/usr/libexec/docker/cli-plugins/docker-buildx plugins=/usr/local/lib/docker/cli-plugins
    hash -r
    if ! command -v docker >/dev/null; then
        ln -s "$PREFIX/usr/bin/docker" /usr/local/bin/docker
        say "linked /usr/local/bin/docker"
    fi
    if ! docker buildx version >/dev/null 2>&1 && [[ -x $plugin ]]; then
        mkdir -p "$plugins"
        ln -sfn "$plugin" "$plugins/docker-buildx"
        say "linked $plugins/docker-buildx"
    fi
}

# --- starting ---

# Containers behind a bridge must not send larger packets than the way out takes: some networks lose the answer that
# would tell them, and downloads then hang.
uplink_mtu() {
    local interface destination rest
    while read -r interface destination rest; do
        if [[ $destination == 00000000 ]]; then
            cat "/sys/class/net/$interface/mtu"
            return
        fi
    done </proc/net/route
    echo 1500
}

ensure_cgroups() {
    if ! grep -qE '^[^ ]+ [^ ]+ cgroup2? ' /proc/mounts; then
        mount -t cgroup2 cgroup2 /sys/fs/cgroup ||
            fail "no cgroups are mounted, and cgroup2 cannot be. Mount them (or start the machine with systemd), then run this again."
        say "mounted cgroup2"
    fi
}

# Prints the folder to put first on dockerd's path, so that it uses an iptables that this kernel understands.
working_iptables() {
    local tool
    if iptables -w -t nat -S >/dev/null 2>&1; then
        return
    fi
    if iptables-legacy -w -t nat -S >/dev/null 2>&1; then
        mkdir -p "$STATE/bin"
        for tool in iptables ip6tables; do
            ln -sfn "$(command -v "$tool-legacy")" "$STATE/bin/$tool"
        done
        echo "$STATE/bin:"
        return
    fi
    fail "iptables cannot reach this kernel's nat table, so containers would have no network." \
        "Load the module (modprobe nf_tables or ip_tables) or use a kernel that has it, then run this again."
}

start_by_hand() {
    local path mtu deadline=$((SECONDS + START_SECONDS))
    ensure_cgroups
    path=$(working_iptables)
    mtu=$(uplink_mtu)
    mkdir -p "$STATE"
    cat >"$CONFIG" <<JSON
{
  "features": {"cdi": true},
  "hosts": ["$LOCAL"],
  "pidfile": "$PIDFILE",
  "mtu": $mtu,
  "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "$mtu"}}
}
JSON
    say "starting dockerd (log: $LOG)"
    # A session of its own, so that closing the terminal does not stop it; without the lock that `up` holds.
    PATH="$path$ENGINE_PATH" setsid --fork dockerd --config-file "$CONFIG" </dev/null >"$LOG" 2>&1 9>&-
    until server_version >/dev/null; do
        if ((SECONDS >= deadline)) || { ((SECONDS > deadline - START_SECONDS + 10)) && ! our_pid >/dev/null; }; then
            tail -n 20 "$LOG" >&2
            fail "dockerd did not answer within $START_SECONDS s; the end of its log is above, the whole of it in $LOG."
        fi
        sleep 0.3
    done
}

start_service() {
    local config=/etc/docker/daemon.json
    # Engines before 28.2 leave CDI off unless told. An existing file is the administrator's: status will tell.
    if [[ ! -e $config ]]; then
        mkdir -p /etc/docker
        echo '{"features": {"cdi": true}}' >"$config"
        systemctl stop docker.service docker.socket 2>/dev/null || true
    fi
    say "starting the docker service"
    systemctl enable --now docker.service >/dev/null ||
        fail "the docker service did not start. See 'journalctl -u docker', then run this again."
}

# --- the three commands ---

up() {
    local version problem socket=${DOCKER_HOST#unix://}
    if version=$(server_version); then
        problem=$(why_unsuitable "$version") && fail "$problem"
        status
        return
    fi
    [[ $DOCKER_HOST == "$LOCAL" ]] ||
        fail "no engine answers at DOCKER_HOST=$DOCKER_HOST. Start it, or unset DOCKER_HOST to use one on this machine."
    if [[ -S $socket && ! -w $socket ]]; then
        fail "you may not use $socket. Join the group docker (sudo usermod -aG docker $(id -un), then log in again), or use sudo."
    fi
    ((EUID == 0)) ||
        fail "no engine answers at $DOCKER_HOST, and installing one needs root. Run: sudo $0 up"

    # Two callers at once would install and start twice.
    mkdir -p "$STATE"
    exec 9>"$STATE/lock"
    flock 9
    if ! server_version >/dev/null; then
        if ! dockerd_suits || ! docker buildx version >/dev/null 2>&1; then
            install_engine
            provide_client
        fi
        # An unpacked engine has no service; a service that exists beside it belongs to the older one.
        if [[ -d /run/systemd/system && ! -x $PREFIX/usr/sbin/dockerd ]]; then
            start_service
        else
            start_by_hand
        fi
    fi
    exec 9>&-
    status || fail "the engine started but does not suit, see above."
}

down() {
    local pid containerd containerd_pid=/run/docker/containerd/containerd.pid deadline=$((SECONDS + STOP_SECONDS))
    pid=$(our_pid) || {
        say "nothing to stop: no engine was started by this script"
        return
    }
    ((EUID == 0)) || fail "only root may stop the engine, process $pid. Run: sudo $0 down"
    # Its containerd is its child, and normally ends with it; read before, because both remove their files.
    containerd=$(cat "$containerd_pid" 2>/dev/null || true)
    say "stopping dockerd, process $pid, and its containers"
    kill -TERM "$pid"
    while grep -qs . "/proc/$pid/cmdline"; do # empty once it has ended, even if nobody has collected it yet
        ((SECONDS < deadline)) ||
            fail "dockerd (process $pid) is still stopping after $STOP_SECONDS s. See $LOG; 'kill -KILL $pid' ends it."
        sleep 0.2
    done
    if [[ -n $containerd && $(cat "/proc/$containerd/comm" 2>/dev/null) == containerd ]]; then
        kill -TERM "$containerd"
    fi
    rm -rf "${STATE:?}"/{bin,daemon.json,dockerd.pid}
    say "stopped"
}

case ${1:-} in
    up | down | status) "$1" ;;
    -h | --help | help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
