#!/bin/sh
# Installs what building, testing and trying mysql-refreshd needs, and nothing that is there already.
# Debian and Ubuntu (apt), Fedora and RHEL (dnf). Needs root, or sudo, only if something is missing.
set -eu

usage() {
    cat <<'END'
usage: utils/install-dependencies.sh [--tests] [--bench] [--dry-run]

Installs what is missing of: a MariaDB server and client (the programs only, no service), a C compiler, make and perl, and an SSH client (for
the transport `openssh` and utils/copy-all-keys.sh). Checks that cargo is there and new enough. Does nothing, and needs no
root, when all of it is there.

  --tests    what utils/test.sh needs too: the MariaDB server's plugins, an SSH server (run by the tests themselves, on
             loopback), sudo, unshare and setpriv
  --bench    what the benches compare and load with too: rsync, zstd, mariadb-backup, sysbench
  --dry-run  say what is missing and which packages would be installed, change nothing
  --help     this text

A MariaDB, MySQL or SSH service that this machine has is left as it is. Where packages bring a service that was not there
before, it is neither started nor enabled. No installed package is ever removed.
END
}

say() { printf '%s\n' "install-dependencies: $*"; }
die() {
    say "error: $1" >&2
    [ $# -lt 2 ] || say "hint: $2" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

# Server programs stand outside an ordinary account's PATH on Debian, cargo often outside a script's.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
export PATH

# --- what is missing -------------------------------------------------------------------------------------------------

have_server() { { have mariadbd || have mysqld; } && { have mariadb-install-db || have mysql_install_db; }; }
have_client() { have mariadb || have mysql; }
# A compiler without the C library's headers is no use.
have_cc() {
    { have cc || have gcc || have clang; } || return 1
    printf '#include <stdlib.h>\nint main(void) { return 0; }\n' |
        "$(command -v cc || command -v gcc || command -v clang)" -x c -fsyntax-only - 2>/dev/null
}
# OpenSSL is built from source, for the program's own SSH client: its Configure is a Perl program with modules that a minimal
# Perl lacks.
have_openssl_build() { have make && have perl && perl -MFindBin -MIPC::Cmd -MFile::Compare -MFile::Copy -e 1 2>/dev/null; }
have_plugins() {
    for folder in /usr/lib/mysql/plugin /usr/lib64/mariadb/plugin /usr/lib64/mysql/plugin /usr/lib/*/mariadb*/plugin; do
        [ ! -e "$folder/file_key_management.so" ] || return 0
    done
    return 1
}

have_ssh() { have ssh && have ssh-keygen && have ssh-keyscan; }
have_sudo() { have sudo && have visudo; }
have_namespaces() { have unshare && have setpriv; }

missing() {
    have_server || echo server
    have_client || echo client
    have_cc || echo compiler
    have_openssl_build || echo openssl-build
    have_ssh || echo ssh
    if [ "$tests" = yes ]; then
        have_plugins || echo plugins
        have sshd || echo sshd
        have_sudo || echo sudo
        have_namespaces || echo namespaces
        have strace || echo strace
    fi
    if [ "$bench" = yes ]; then
        have rsync || echo rsync
        have zstd || echo zstd
        have mariadb-backup || have mariabackup || echo backup
        have sysbench || echo sysbench
    fi
}

# --- what provides it ------------------------------------------------------------------------------------------------

# The first of the named packages that this release of the distribution has.
apt_first() {
    for package in "$@"; do
        if apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]'; then
            echo "$package"
            return
        fi
    done
    echo "$1"
}

# The -core packages hold the programs without a service, a system account or a datadir.
apt_packages() {
    for need in "$@"; do
        case $need in
            server) apt_first mariadb-server-core mariadb-server-core-10.6 mariadb-server ;;
            client) apt_first mariadb-client-core mariadb-client-core-10.6 mariadb-client ;;
            compiler) echo gcc libc6-dev ;;
            openssl-build) echo make perl ;;
            plugins) echo mariadb-server ;;
            ssh) echo openssh-client ;;
            sshd) echo openssh-server ;;
            namespaces) echo util-linux ;;
            backup) echo mariadb-backup ;;
            *) echo "$need" ;;
        esac
    done | tr ' ' '\n' | sort -u
}

dnf_packages() {
    for need in "$@"; do
        case $need in
            server | plugins) echo mariadb-server ;;
            client) echo mariadb ;;
            compiler) echo gcc glibc-devel ;;
            openssl-build) echo make perl ;;
            ssh) echo openssh-clients openssh ;;
            sshd) echo openssh-server ;;
            namespaces) echo util-linux ;;
            backup) echo mariadb-backup ;;
            *) echo "$need" ;;
        esac
    done | tr ' ' '\n' | sort -u
}

# --- installing (as root) --------------------------------------------------------------------------------------------

# Debian starts a service as soon as its package is installed, unless this file says no. One that stands there already
# is put aside and comes back.
POLICY=/usr/sbin/policy-rc.d
ASIDE=$POLICY.before-mysql-refreshd
forbid_services() {
    if [ -e "$POLICY" ] && [ ! -e "$ASIDE" ]; then mv "$POLICY" "$ASIDE"; fi
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}
allow_services() {
    rm -f "$POLICY"
    if [ -e "$ASIDE" ]; then mv "$ASIDE" "$POLICY"; fi
}

# Services that the packages may bring, by the names that they have in systemd and in /etc/init.d.
SERVICES='mariadb ssh sshd'
# A socket's unit would start the server, too: Ubuntu's SSH server has one.
has_unit() { [ -e "/lib/systemd/system/$1" ] || [ -e "/usr/lib/systemd/system/$1" ] || [ -e "/etc/systemd/system/$1" ]; }
has_service() { has_unit "$1.service" || has_unit "$1.socket" || [ -e "/etc/init.d/$1" ]; }
services_here() { for service in $SERVICES; do if has_service "$service"; then echo "$service"; fi; done; }

# Not started is not enough: it must not come up at the next boot either.
disable_service() {
    if have systemctl; then
        for unit in "$1.service" "$1.socket"; do
            if has_unit "$unit"; then systemctl disable "$unit" >/dev/null 2>&1 || true; fi
        done
    fi
    if [ -e "/etc/init.d/$1" ] && have update-rc.d; then update-rc.d "$1" disable >/dev/null 2>&1 || true; fi
}

# disable_new SERVICES: those that were not there before.
disable_new() {
    for service in $(services_here); do
        case " $1 " in *" $service "*) continue ;; esac
        # Debian's sshd is another name of its ssh, and gone with it.
        has_service "$service" || continue
        disable_service "$service"
        say "the $service service that came with the packages is neither started nor enabled"
    done
}

install_apt() {
    before=$(services_here | tr '\n' ' ')
    trap 'allow_services' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    forbid_services
    export DEBIAN_FRONTEND=noninteractive
    # --no-remove: a MySQL server that conflicts with MariaDB's packages is somebody's, not ours to take away.
    apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends --no-remove "$@"
    disable_new "$before"
}

# Here nothing starts a service, but the distribution's presets enable the SSH server.
install_dnf() {
    before=$(services_here | tr '\n' ' ')
    dnf install -y -q --setopt=install_weak_deps=False "$@"
    disable_new "$before"
}

# Package lists of a fresh machine or container are empty.
refresh_lists() {
    if [ "$manager" = apt ] && [ "$dry_run" = no ]; then
        say "refreshing the package lists"
        as_root apt-get -o DPkg::Lock::Timeout=300 update -q >/dev/null ||
            say "warning: the package lists could not be refreshed, going on with what is there" >&2
    fi
}

install_missing() {
    if have apt-get; then manager=apt; elif have dnf; then manager=dnf; else
        die "missing: $*; this machine has neither apt nor dnf" \
            "install a MariaDB server and client (10.6 or newer), a C compiler, make, perl and an SSH client with your system's package manager"
    fi
    if [ "$dry_run" = no ] && [ "$(id -u)" -ne 0 ] && ! have sudo; then
        die "missing: $*; installing needs root, and there is no sudo" \
            "run as root: $(readlink -f "$0")$options"
    fi
    refresh_lists
    packages=$("${manager}_packages" "$@" | tr '\n' ' ')
    say "missing: $*; packages: $packages"
    [ "$dry_run" = no ] || return 0
    # shellcheck disable=SC2086 # a list of package names
    as_root sh "$0" --install-as-root "$manager" $packages
    left=$(missing | tr '\n' ' ')
    [ -z "$left" ] || die "still missing after installing: $left"
}

# --- Rust ------------------------------------------------------------------------------------------------------------

# Rust is never installed: toolchains are the account's own choice, and distributions' are mostly too old.
check_cargo() {
    manifest=$(dirname "$0")/../Cargo.toml
    msrv=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$manifest")
    have cargo || die "cargo is missing; Rust $msrv or newer is needed" \
        "install Rust with rustup (https://rustup.rs), then run this again"
    # rustup's cargo is there without any toolchain, too: then the version is empty.
    version=$(cd "$(dirname "$manifest")" && cargo --version 2>/dev/null | cut -d' ' -f2)
    [ -n "$version" ] || die "cargo does not run here" "run 'cargo --version' to see why"
    if ! newer_or_same "$version" "$msrv"; then
        die "cargo is $version; Rust $msrv or newer is needed" "run: rustup update stable"
    fi
}

# newer_or_same 1.90.0-nightly 1.88
newer_or_same() {
    oldest=$(printf '%s\n%s\n' "${1%%-*}" "$2" | sort -t. -k1,1n -k2,2n -k3,3n | head -n 1)
    [ "$oldest" = "$2" ] || [ "${1%%-*}" = "$2" ]
}

# --- main ------------------------------------------------------------------------------------------------------------

tests=no bench=no dry_run=no options=''
if [ "${1-}" = --install-as-root ]; then
    shift
    manager=$1
    shift
    "install_$manager" "$@"
    exit
fi
for argument in "$@"; do
    case $argument in
        --tests) tests=yes options="$options $argument" ;;
        --bench) bench=yes options="$options $argument" ;;
        --dry-run) dry_run=yes ;;
        --help | -h)
            usage
            exit
            ;;
        *)
            usage >&2
            exit 2
            ;;
    esac
done

needs=$(missing | tr '\n' ' ')
if [ -z "$needs" ]; then
    say "nothing is missing"
else
    # shellcheck disable=SC2086 # a list of words
    install_missing $needs
fi
check_cargo
