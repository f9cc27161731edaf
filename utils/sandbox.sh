#!/usr/bin/env bash
# Real MariaDB servers as plain processes of this account, all in one folder: for trying things out, for the demo and for
# benchmarks. Run it, or source it for its functions. Needs no root, and touches nothing outside its folder.
set -euo pipefail

sandbox_usage() {
    cat <<'END'
usage: utils/sandbox.sh COMMAND FOLDER [SERVER…]

Real MariaDB servers as plain processes, each in FOLDER/SERVER with an option file, a datadir and a socket of its own.

  create FOLDER SERVER…   make and start servers; those that exist already are only started
  start FOLDER SERVER…    start servers that exist
  stop FOLDER SERVER…     stop them cleanly
  sql FOLDER SERVER       an SQL prompt; reads statements from standard input if that is no terminal
  list FOLDER             each server, its process and port
  destroy FOLDER          stop every server in FOLDER, then remove FOLDER
  --help                  this text

FOLDER must be short (a unix socket's path has at most 107 bytes); /tmp/box, for example. Servers listen on 127.0.0.1 at a
free port; the only account that may log in is yours, over the socket.
END
}

# Server programs stand outside an ordinary account's PATH on most distributions.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec"

sandbox_say() { printf 'sandbox: %s\n' "$*" >&2; }

sandbox_first_of() {
    local program
    for program in "$@"; do
        if command -v "$program"; then return 0; fi
    done
    sandbox_say "error: $1 is missing"
    sandbox_say "hint: run utils/install-dependencies.sh"
    return 1
}

# Paths of the programs, looked up once.
sandbox_programs() {
    [ -n "${SANDBOX_SERVER-}" ] && return
    SANDBOX_SERVER=$(sandbox_first_of mariadbd mysqld)
    SANDBOX_CLIENT=$(sandbox_first_of mariadb mysql)
    SANDBOX_INSTALL=$(sandbox_first_of mariadb-install-db mysql_install_db)
}

# A folder that may hold servers: its own marker tells it from anybody's folder, so that destroy removes nothing else.
sandbox_open() {
    local folder=$1
    if [ ${#folder} -gt 60 ]; then
        sandbox_say "error: $folder is too long for the sockets in it"
        sandbox_say "hint: choose a folder with at most 60 characters"
        return 1
    fi
    if [ -d "$folder" ] && [ ! -e "$folder/.sandbox" ] && [ -n "$(ls -A "$folder")" ]; then
        sandbox_say "error: $folder exists and is no sandbox"
        sandbox_say "hint: choose a folder that does not exist yet"
        return 1
    fi
    mkdir -p "$folder"
    chmod 700 "$folder"
    touch "$folder/.sandbox"
}

# sandbox_free_port FOLDER: one that nobody listens on and no server of the folder has.
sandbox_free_port() {
    local folder=$1 port hex
    while :; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        hex=$(printf ':%04X ' "$port")
        if ! cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '{ print $2 " " }' | grep -q "$hex" &&
            ! grep -qs "^port *= *$port\$" "$folder"/*/my.cnf "$folder"/*/conf.d/*.cnf; then
            echo "$port"
            return
        fi
    done
}

# An empty datadir, made once and copied for every server: making one takes seconds, copying it does not.
sandbox_template() {
    local folder=$1
    [ -e "$folder/.template/complete" ] && return
    rm -rf "$folder/.template"
    mkdir -p "$folder/.template"
    local options=(--no-defaults --datadir="$folder/.template/data" --auth-root-authentication-method=socket
        --auth-root-socket-user="$(id -un)" --skip-test-db --innodb-log-file-size=64M)
    if [ "$(id -u)" -eq 0 ]; then options+=(--user=root); fi
    if ! "$SANDBOX_INSTALL" "${options[@]}" >"$folder/.template/log" 2>&1; then
        sandbox_say "error: $SANDBOX_INSTALL failed"
        tail -n 20 "$folder/.template/log" >&2
        return 1
    fi
    touch "$folder/.template/complete"
}

# sandbox_cnf FOLDER SERVER PORT ID: the server's option file. What is generated for it goes to conf.d, which is read last.
sandbox_cnf() {
    local at=$1/$2
    cat <<END
[mariadbd]
datadir = $at/data
socket = $at/sock
pid-file = $at/run/pid
tmpdir = $at/tmp
log-error = $at/log/error.log
bind-address = 127.0.0.1
port = $3
server-id = $4
skip-name-resolve
innodb-buffer-pool-size = ${SANDBOX_BUFFER_POOL:-128M}
innodb-log-file-size = 64M
END
    if [ "$(id -u)" -eq 0 ]; then echo "user = root"; fi
    echo "!includedir $at/conf.d"
}

# sandbox_create FOLDER SERVER [ID]: makes the server, does not start it. Does nothing if it exists.
sandbox_create() {
    local folder=$1 server=$2 id=${3:-$((1 + RANDOM))} at=$1/$2
    [ -e "$at/my.cnf" ] && return
    if ! [[ $server =~ ^[a-z0-9][a-z0-9_-]{0,20}$ ]]; then
        sandbox_say "error: '$server' is no name for a server: at most 21 letters, digits, '-' and '_'"
        return 1
    fi
    sandbox_programs
    sandbox_open "$folder"
    sandbox_template "$folder"
    mkdir -p "$at"/{conf.d,run,tmp,log}
    rm -rf "$at/data"
    cp -a --reflink=auto "$folder/.template/data" "$at/data"
    # Last and at once: a server exists when its option file does.
    sandbox_cnf "$folder" "$server" "$(sandbox_free_port "$folder")" "$id" >"$at/my.cnf.new"
    mv "$at/my.cnf.new" "$at/my.cnf"
}

# The pid of a running server; fails if it does not run. A pid that is somebody else's by now does not count.
sandbox_pid() {
    local at=$1/$2 pid
    pid=$(cat "$at/run/pid" 2>/dev/null) || return 1
    [ -n "$pid" ] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$at/" || return 1
    echo "$pid"
}

sandbox_answers() {
    "$SANDBOX_CLIENT" --no-defaults --socket="$1/$2/sock" --user="$(id -un)" --connect-timeout=5 \
        -e 'DO 1' >/dev/null 2>&1
}

# sandbox_start FOLDER SERVER: returns when it answers.
sandbox_start() {
    local at=$1/$2 waited=0
    sandbox_programs
    if [ ! -e "$at/my.cnf" ]; then
        sandbox_say "error: there is no server $2 in $1"
        return 1
    fi
    if sandbox_pid "$@" >/dev/null && sandbox_answers "$@"; then return; fi
    # A session of its own: Ctrl-C at the terminal is for the script, which stops its servers cleanly.
    setsid "$SANDBOX_SERVER" --defaults-file="$at/my.cnf" </dev/null >>"$at/log/console.log" 2>&1 &
    local child=$!
    disown "$child"
    until sandbox_answers "$@"; do
        waited=$((waited + 1))
        if [ $waited -gt 1200 ] || ! kill -0 "$child" 2>/dev/null; then
            sandbox_say "error: the server $2 did not start"
            tail -n 20 "$at/log/error.log" "$at/log/console.log" >&2 || true
            return 1
        fi
        sleep 0.05
    done
}

# sandbox_stop FOLDER SERVER: cleanly; returns when its process is gone.
sandbox_stop() {
    local pid waited=0
    pid=$(sandbox_pid "$@") || return 0
    kill -TERM "$pid"
    while kill -0 "$pid" 2>/dev/null && [ "$(cut -d' ' -f3 "/proc/$pid/stat" 2>/dev/null)" != Z ]; do
        waited=$((waited + 1))
        if [ $waited -gt 6000 ]; then
            sandbox_say "error: the server $2 did not stop"
            return 1
        fi
        sleep 0.02
    done
}

# sandbox_sql FOLDER SERVER [CLIENT OPTION…]: statements come from standard input, so none is ever seen in a process list.
sandbox_sql() {
    local folder=$1 server=$2
    shift 2
    sandbox_programs
    "$SANDBOX_CLIENT" --no-defaults --socket="$folder/$server/sock" --user="$(id -un)" \
        --default-character-set=utf8mb4 "$@"
}

# sandbox_query FOLDER SERVER STATEMENT: bare rows, tab-separated. Not for statements with a secret.
sandbox_query() { sandbox_sql "$1" "$2" --batch --skip-column-names --raw <<<"$3"; }

sandbox_port() { sed -n 's/^port *= *//p' "$1/$2/my.cnf"; }

# sandbox_host FOLDER ENVIRONMENT SERVER: it as a host of a configuration.
sandbox_host() {
    cat <<END
[environments.$2.hosts.$3]
transport = "local"
policy = "$1/host.toml"
datadir = "$1/$3/data"
socket = "$1/$3/sock"
user = "$(id -un)"
service = { server = "$SANDBOX_SERVER", defaults_file = "$1/$3/my.cnf" }
state_dir = "$1/$3/state"
END
}

sandbox_names() {
    local cnf
    for cnf in "$1"/*/my.cnf; do
        [ -e "$cnf" ] || continue
        basename "$(dirname "$cnf")"
    done
}

# Pids of the processes whose command line names the folder: servers that a program under test has started, its guards.
# Never this script's own, nor those it was started by.
sandbox_processes() {
    local folder=$1 entry pid name
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        name=$(cat "$entry/comm" 2>/dev/null) || continue
        case $name in
            mariadbd | mysqld | mysql-refreshd) ;;
            *) continue ;;
        esac
        if tr '\0' '\n' 2>/dev/null <"$entry/cmdline" | grep -qF "$folder/"; then echo "$pid"; fi
    done
}

# sandbox_destroy FOLDER: whatever state it is in.
sandbox_destroy() {
    local folder=$1 pids
    [ -e "$folder" ] || return 0
    if [ ! -e "$folder/.sandbox" ]; then
        sandbox_say "error: $folder is no sandbox, it stays"
        return 1
    fi
    # Nothing in the folder is wanted any more: no clean stop. Again, because a guard may start what was killed before it.
    for _ in 1 2 3 4 5; do
        pids=$(sandbox_processes "$folder")
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086 # a list of numbers
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
    done
    rm -rf "$folder" || { sleep 1 && rm -rf "$folder"; }
}

sandbox_list() {
    local server pid
    for server in $(sandbox_names "$1"); do
        pid=$(sandbox_pid "$1" "$server") || pid=stopped
        printf '%-12s %-8s 127.0.0.1:%s  %s\n' "$server" "$pid" "$(sandbox_port "$1" "$server")" "$1/$server/sock"
    done
}

sandbox_main() {
    local command=${1---help} folder server
    case $command in
        --help | -h) sandbox_usage && return ;;
        create | start | stop | sql | list | destroy) ;;
        *) sandbox_usage >&2 && return 2 ;;
    esac
    if [ -z "${2-}" ]; then sandbox_usage >&2 && return 2; fi
    folder=$(readlink -m "$2")
    shift 2
    case $command in
        list | destroy) "sandbox_$command" "$folder" ;;
        sql) sandbox_sql "$folder" "$@" ;;
        create)
            for server in "$@"; do
                sandbox_create "$folder" "$server"
                sandbox_start "$folder" "$server"
            done
            sandbox_list "$folder"
            ;;
        *) for server in "$@"; do "sandbox_$command" "$folder" "$server"; done ;;
    esac
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then sandbox_main "$@"; fi
