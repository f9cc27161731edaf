#!/usr/bin/env bash
# Puts the program, its units, account, manual and completions in place on this machine, or takes them away again.
set -euo pipefail

usage() {
    cat <<'END'
usage: utils/install.sh [--controller | --host] [--binary FILE] [--destdir DIR] [--uninstall] [--dry-run]

Puts in place, as root; builds first where no program is built (cargo build --release --locked):
  /usr/local/bin/mysql-refreshd
  /usr/local/share/man/man1, completions for bash, zsh and fish
on a controller (the default)
  the units mysql-refreshd.service, mysql-refreshd@.service and mysql-refreshd@.timer, the account and group mysql-refreshd, its folders, a rule
  for polkit; /etc/mysql-refreshd/config.toml from config/minimal.toml only where there is none, as config.toml.example
on a host
  the unit mysql-refreshd-repair.service, enabled

Starts nothing on a controller: write the configuration, then `systemctl enable --now mysql-refreshd`. May be run again at will; an upgrade is the
same, and leaves a running daemon alone until you restart it.

  --controller   the machine that runs the daemon (default)
  --host         a machine with a server: a source or a destination
  --binary FILE  this program instead of target/release/mysql-refreshd
  --destdir DIR  below this folder, for packages: no account, no reload
  --uninstall    take it all away again, but for configuration, keys, state, log and account
  --dry-run      say what would be done
  --help         this text

Exit code: 0 done, 1 failed, 2 usage.
END
}

role=controller binary='' destdir='' uninstall=no dry=no
misuse() {
    printf 'error: %s, see --help\n' "$1" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --controller) role=controller ;;
        --host) role=host ;;
        --binary | --destdir)
            [ $# -ge 2 ] || misuse "$1 takes a value"
            if [ "$1" = --binary ]; then binary=$2; else destdir=$2; fi
            shift
            ;;
        --uninstall) uninstall=yes ;;
        --dry-run) dry=yes ;;
        --help | -h) usage && exit ;;
        *) misuse "unknown argument $1" ;;
    esac
    shift
done
root=$(cd "$(dirname "$0")/.." && pwd)
die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}
act() {
    if [ $dry = yes ]; then printf 'would:'; printf ' %q' "$@"; printf '\n'; else "$@"; fi
}
[ $dry = yes ] || [ -n "$destdir" ] || [ "$(id -u)" = 0 ] || die "this needs root" "run it through sudo, or name a --destdir"
umask 022

units=$destdir/etc/systemd/system
man=$destdir/usr/local/share/man/man1
share=$destdir/usr/local/share
program=$destdir/usr/local/bin/mysql-refreshd
here() { [ -z "$destdir" ] && [ $dry = no ] && [ -d /run/systemd/system ]; }

# Of this role: one line each, what and where.
unit_files() {
    if [ $role = host ]; then
        echo "mysql-refreshd-repair.service $units/mysql-refreshd-repair.service"
    else
        echo "mysql-refreshd.service $units/mysql-refreshd.service"
        echo "mysql-refreshd@.service $units/mysql-refreshd@.service"
        echo "mysql-refreshd@.timer $units/mysql-refreshd@.timer"
        echo "mysql-refreshd.sysusers $destdir/usr/lib/sysusers.d/mysql-refreshd.conf"
        echo "mysql-refreshd.tmpfiles $destdir/usr/lib/tmpfiles.d/mysql-refreshd.conf"
        echo "mysql-refreshd.rules $destdir/usr/share/polkit-1/rules.d/50-mysql-refreshd.rules"
    fi
}
completions() {
    echo "bash $share/bash-completion/completions/mysql-refreshd"
    echo "zsh $share/zsh/site-functions/_mysql-refreshd"
    echo "fish $share/fish/vendor_completions.d/mysql-refreshd.fish"
}

if [ $uninstall = yes ]; then
    if here; then
        if [ $role = host ]; then systemctl disable --quiet mysql-refreshd-repair.service 2>/dev/null || true; fi
        if [ $role = controller ]; then
            if systemctl is-active --quiet mysql-refreshd.service; then echo "stopping the daemon; runs under way are put back"; fi
            systemctl disable --quiet --now mysql-refreshd.service 2>/dev/null || true
            systemctl list-units --all --plain --no-legend 'mysql-refreshd@*.timer' | cut -d' ' -f1 |
                xargs -r systemctl disable --quiet --now
        fi
    fi
    while read -r _ place; do act rm -f "$place"; done < <(unit_files)
    # the other role may be installed, too
    other=mysql-refreshd-repair.service
    if [ $role = host ]; then other=mysql-refreshd.service; fi
    if [ -e "$units/$other" ]; then
        echo "the program stays: this machine has it in another role, too"
    else
        while read -r _ place; do act rm -f "$place"; done < <(completions)
        if [ -d "$man" ]; then act find "$man" -name 'mysql-refreshd*.1' -delete; fi
        act rm -f "$program"
    fi
    if here; then systemctl daemon-reload; fi
    if [ $dry = yes ]; then exit; fi
    echo "taken away; configuration, keys, state, log and the account mysql-refreshd stay"
    exit
fi

if [ -z "$binary" ]; then
    binary=${CARGO_TARGET_DIR:-$root/target}/release/mysql-refreshd
    if [ ! -x "$binary" ]; then
        command -v cargo >/dev/null || die "nothing is built, and there is no cargo here" "build it where there is one: cargo build --release --locked; then --binary FILE"
        act cargo build --release --locked --manifest-path "$root/Cargo.toml"
    fi
fi
case $binary in
    /*) ;;
    *) binary=$PWD/$binary ;;
esac
[ $dry = yes ] || [ -x "$binary" ] || die "$binary is no program" "build it: cargo build --release --locked"
[ $dry = yes ] || "$binary" --version >/dev/null || die "$binary does not run on this machine"

act install -d -m 0755 "$destdir/usr/local/bin" "$units" "$man"
# by rename: a daemon or an agent that runs keeps the program it runs
act install -m 0755 "$binary" "$program.new"
act mv -f "$program.new" "$program"
while read -r file place; do
    act install -D -m 0644 "$root/systemd/$file" "$place"
done < <(unit_files)
if [ $dry = yes ]; then
    echo "would: write the manual to $man and completions to $share"
else
    "$binary" man "$man"
    while read -r shell place; do
        install -d -m 0755 "$(dirname "$place")"
        "$binary" completions "$shell" >"$place.new"
        mv -f "$place.new" "$place"
    done < <(completions)
fi
act install -d -m 0755 "$destdir/etc/mysql-refreshd"
if [ $role = controller ]; then act install -m 0644 "$root/config/minimal.toml" "$destdir/etc/mysql-refreshd/config.toml.example"; fi

if here; then
    if [ $role = controller ]; then
        systemd-sysusers mysql-refreshd.conf
        systemd-tmpfiles --create mysql-refreshd.conf
    fi
    systemctl daemon-reload
    if [ $role = host ]; then systemctl enable --quiet mysql-refreshd-repair.service; fi
elif [ -z "$destdir" ] && [ $dry = no ]; then
    echo "warning: this machine does not run systemd: no account was made, no unit is enabled" >&2
fi
if [ $dry = yes ]; then
    if [ -z "$destdir" ]; then
        [ $role = host ] || echo "would: make the account and its folders (systemd-sysusers, systemd-tmpfiles), and reload systemd"
        [ $role = controller ] || echo "would: reload systemd, and enable mysql-refreshd-repair.service"
    fi
    exit
fi
"$binary" --version
if [ $role = controller ]; then
    if [ ! -e "$destdir/etc/mysql-refreshd/config.toml" ]; then
        echo "next: write /etc/mysql-refreshd/config.toml (config.toml.example is a start), then systemctl enable --now mysql-refreshd"
    elif here && systemctl is-active --quiet mysql-refreshd.service; then
        echo "next: systemctl restart mysql-refreshd; runs under way are put back, better wait until there is none (mysql-refreshd status)"
    else
        echo "next: systemctl enable --now mysql-refreshd"
    fi
fi
