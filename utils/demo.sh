#!/usr/bin/env bash
# The main job on real servers: makes a "production" under live writes and two "R&D" servers, refreshes them from it with
# mysql-refreshd, and proves the result with its own eyes, not the program's.
set -euo pipefail

usage() {
    cat <<'END'
usage: utils/demo.sh [--size MB] [--keep] [--dev]

Installs what is missing, builds, then runs a whole refresh on three real MariaDB servers, plain processes in a new folder
under /tmp: plan, refresh, proof, history, rollback. Needs no root where MariaDB is installed; touches nothing outside that
folder and the build's.

  --size MB  production's data, about (default 400)
  --keep     leave the folder and its servers for a look around
  --dev      build without optimisation: quicker to build, slower to run
  --help     this text

Exit code: 0 when every check held.
END
}

size=400 keep=no profile=release
while [ $# -gt 0 ]; do
    case $1 in
        --size) size=${2-} && shift ;;
        --keep) keep=yes ;;
        --dev) profile=dev ;;
        --help | -h) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=utils/sandbox.sh
. "$root/utils/sandbox.sh"
# Before anything is made: a wrong --size ends here.
"$root/utils/shop.sh" --size "$size" >/dev/null

# --- how it looks ----------------------------------------------------------------------------------------------------

if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi
held=0 broken=0
title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '   %s\n' "$*"; }
ok() {
    held=$((held + 1))
    printf '   %sok%s    %s\n' "$green" "$plain" "$*"
}
bad() {
    broken=$((broken + 1))
    printf '   %sFAIL%s  %s\n' "$red" "$plain" "$*"
}
# expect WHAT WANTED FOUND
expect() {
    if [ "$2" = "$3" ]; then ok "$1"; else
        bad "$1"
        diff <(printf '%s\n' "$2") <(printf '%s\n' "$3") | sed -n '1,12s/^/         /p' || true
    fi
}
command_line() { printf '   %s$ mysql-refreshd %s%s\n' "$bold" "$*" "$plain"; }

# --- the folder and its end ------------------------------------------------------------------------------------------

box='' writer=''
clean_up() {
    local code=$?
    trap '' INT TERM HUP
    [ -n "$box" ] || exit "$code"
    if [ -n "$writer" ]; then kill "$writer" 2>/dev/null || true; fi
    if [ "$keep" = yes ] && [ -e "$box/config.toml" ]; then
        title "kept: $box"
        note "look around:   utils/sandbox.sh list $box;  utils/sandbox.sh sql $box rnd1"
        note "and remove it: utils/sandbox.sh destroy $box"
    else
        sandbox_destroy "$box"
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

sql() { sandbox_query "$box" "$@"; }
refreshd() { "$program" --config "$box/config.toml" "$@"; }
shown() {
    command_line "$*"
    refreshd "$@"
}

# --- the servers -----------------------------------------------------------------------------------------------------

# A password nobody has seen before, in a file only we can read: no secret in a process list.
login_file() {
    local file=$1 account=$2
    (umask 077 && printf '[client]\nuser = %s\npassword = %s\n' "$account" "$(head -c 18 /dev/urandom | base64)" >"$file")
}
password_in() { sed -n 's/^password = //p' "$1"; }

# may_log_in SERVER LOGIN_FILE
may_log_in() {
    "$SANDBOX_CLIENT" --defaults-file="$2" --protocol=tcp --host=127.0.0.1 --port="$(sandbox_port "$box" "$1")" \
        -e 'DO 1' >/dev/null 2>&1
}

make_production() {
    sandbox_create "$box" prod 11
    printf '[mariadbd]\nevent-scheduler = ON\n' >"$box/prod/conf.d/10-own.cnf"
    sandbox_start "$box" prod
    "$root/utils/shop.sh" --size "$size" | sandbox_sql "$box" prod
    login_file "$box/prod/shop_app.cnf" shop_app
    sandbox_sql "$box" prod <<END
CREATE USER shop_app IDENTIFIED BY '$(password_in "$box/prod/shop_app.cnf")';
GRANT ALL ON shop.* TO shop_app;
CREATE USER backup@localhost IDENTIFIED BY '$(head -c 18 /dev/urandom | base64)';
GRANT RELOAD, PROCESS ON *.* TO backup@localhost;
END
}

# An R&D server has other content, and people, of its own.
make_rnd() {
    local server=$1 id=$2
    sandbox_create "$box" "$server" "$id"
    printf '[mariadbd]\nevent-scheduler = ON\n' >"$box/$server/conf.d/10-own.cnf"
    sandbox_start "$box" "$server"
    login_file "$box/$server/alice.cnf" alice
    sandbox_sql "$box" "$server" <<END
CREATE DATABASE playground;
USE playground;
CREATE TABLE notes (id INT PRIMARY KEY, note TEXT);
INSERT INTO notes SELECT seq, CONCAT('$server ', SHA1(seq)) FROM seq_1_to_5000;
CREATE ROLE developers;
GRANT SELECT, INSERT, UPDATE, DELETE ON *.* TO developers;
CREATE USER alice IDENTIFIED BY '$(password_in "$box/$server/alice.cnf")';
GRANT developers TO alice;
SET DEFAULT ROLE developers FOR alice;
CREATE USER ci_$server@localhost IDENTIFIED VIA unix_socket;
GRANT ALL ON playground.* TO ci_$server@localhost;
END
}

host_config() {
    local environment=$1 server=$2 dropin=$3
    cat <<END

[environments.$environment.hosts.$server]
transport = "local"
policy = "$box/host.toml"
datadir = "$box/$server/data"
socket = "$box/$server/sock"
user = "$(id -un)"
service = { server = "$(command -v "$SANDBOX_SERVER")", defaults_file = "$box/$server/my.cnf" }
state_dir = "$box/$server/state"
END
    if [ "$dropin" = yes ]; then
        cat <<END
dropin = "$box/$server/conf.d/90-refreshd.cnf"
[environments.$environment.hosts.$server.settings]
server_id = $(identity "$server")
port = $(sandbox_port "$box" "$server")
END
    fi
}
# The server_id that the configuration gives an R&D server.
identity() { echo "90${1#rnd}"; }

write_config() {
    cat >"$box/config.toml" <<END
[daemon]
state_dir = "$box/state"
log_dir = "$box/log"

[environments.prod]
protected = true
$(host_config prod prod no)

[environments.rnd.settings]
bind_address = "127.0.0.1"
max_connections = 77
$(host_config rnd rnd1 yes)
$(host_config rnd rnd2 yes)

[refreshes.nightly]
source = "prod"
destinations = ["rnd"]
schedule = "30 2 * * *"
END
}

# --- live writes -----------------------------------------------------------------------------------------------------

# One client that commits and notes what was acknowledged, and by which life of the server, in $box/acknowledged. It
# connects again whenever the server is away. A commit whose answer never came may have happened or not: not noted.
write_ledger() {
    set +e
    trap '' PIPE
    local life next answer to from
    while :; do
        coproc CLIENT { exec "$SANDBOX_CLIENT" --no-defaults --socket="$box/prod/sock" --user="$(id -un)" \
            --batch --skip-column-names --unbuffered 2>/dev/null; }
        # The copies of the ends outlive the client; bash's own vanish with it.
        { exec {to}>&"${CLIENT[1]}" {from}<&"${CLIENT[0]}"; } 2>/dev/null || { sleep 0.1 && continue; }
        echo 'DO 1; SELECT 0;' >&"$to"
        if read -r -t 30 -u "$from" answer; then
            life=$(sandbox_pid "$box" prod)
            # Answered again on the same connection: so this is the life that it belongs to.
            echo 'SELECT COALESCE(MAX(id), 0) + 1 FROM shop.ledger;' >&"$to"
            read -r -t 30 -u "$from" next || life=''
            while [ -n "$life" ]; do
                echo "INSERT INTO shop.ledger (id, life) VALUES ($next, $life); SELECT $next;" >&"$to"
                read -r -t 60 -u "$from" answer || break
                [ "$answer" = "$next" ] || break
                echo "$next $life" >>"$box/acknowledged"
                next=$((next + 1))
            done
        fi
        exec {to}>&- {from}<&-
        wait "${CLIENT_PID:-}" 2>/dev/null
        sleep 0.05
    done
}

acknowledged() { wc -l <"$box/acknowledged"; }
# wait_for_writes N: until so many more commits are acknowledged.
wait_for_writes() {
    local wanted=$(($(acknowledged) + $1)) waited=0
    while [ "$(acknowledged)" -lt "$wanted" ]; do
        waited=$((waited + 1))
        [ $waited -lt 300 ] || return 1
        sleep 0.1
    done
}

# --- what is compared ------------------------------------------------------------------------------------------------

# The tables that the client does not write to.
checksums() {
    sql "$1" 'USE shop; CHECKSUM TABLE countries, customers, products, orders, items, visits, documents' | tr '\t' ' '
}
objects() {
    sql "$1" "
SELECT 'table', table_name, engine FROM information_schema.tables WHERE table_schema = 'shop' UNION ALL
SELECT 'view', table_name, MD5(view_definition) FROM information_schema.views WHERE table_schema = 'shop' UNION ALL
SELECT 'trigger', trigger_name, MD5(action_statement) FROM information_schema.triggers WHERE trigger_schema = 'shop' UNION ALL
SELECT 'routine', routine_name, MD5(routine_definition) FROM information_schema.routines WHERE routine_schema = 'shop' UNION ALL
SELECT 'event', event_name, MD5(event_definition) FROM information_schema.events WHERE event_schema = 'shop' UNION ALL
SELECT 'partition', partition_name, table_name FROM information_schema.partitions
  WHERE table_schema = 'shop' AND partition_name IS NOT NULL UNION ALL
SELECT DISTINCT 'index', table_name, CONCAT(index_name, ' ', index_type) FROM information_schema.statistics
  WHERE table_schema = 'shop' ORDER BY 1, 2, 3"
}
# Every account and role with its grants, as the server itself states them. Passwords' hashes are in it: compared, not shown.
accounts() {
    local account
    sql "$1" "SELECT IF(is_role = 'Y', CONCAT('''', user, ''''), CONCAT('''', user, '''@''', host, '''')), is_role
        FROM mysql.user ORDER BY 1" | while IFS=$'\t' read -r account role; do
        printf '%s\n' "$account"
        if [ "$role" != Y ]; then sql "$1" "SHOW CREATE USER $account"; fi
        sql "$1" "SHOW GRANTS FOR $account"
    done
    sql "$1" "SELECT user, host, default_role FROM mysql.user WHERE default_role <> '' ORDER BY 1, 2"
}
playground() { sql "$1" 'CHECKSUM TABLE playground.notes'; }
has_database() { sql "$1" "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = '$2'"; }

# --- the proof -------------------------------------------------------------------------------------------------------

prove_source() {
    local life
    life=$(sandbox_pid "$box" prod) || life=none
    if [ "$life" != "$first_life" ] && [ "$life" != none ]; then
        ok "production was stopped once and is up again (pid $first_life, now $life)"
    else
        bad "production was stopped once and is up again (pid $first_life, now $life)"
    fi
    if wait_for_writes 10; then ok "production takes writes again"; else bad "production takes writes again"; fi
    expect "production has had one restart, not more" 2 "$(cut -d' ' -f2 "$box/acknowledged" | sort -u | wc -l)"
}

prove_ledger() {
    local server=$1 acked last rows greatest lives
    acked=$(awk -v life="$first_life" '$2 == life' "$box/acknowledged" | wc -l)
    last=$(awk -v life="$first_life" '$2 == life { last = $1 } END { print last + 0 }' "$box/acknowledged")
    read -r rows greatest lives < <(sql "$server" 'SELECT COUNT(*), MAX(id), GROUP_CONCAT(DISTINCT life) FROM shop.ledger')
    # One commit may have been made whose answer was cut off by the stop.
    if [ "$rows" = "$greatest" ] && [ "$greatest" -ge "$last" ] && [ "$greatest" -le $((last + 1)) ]; then
        ok "$server: the ledger is whole, with all $acked commits acknowledged before the stop"
    else
        bad "$server: the ledger has $rows rows up to $greatest; acknowledged before the stop: $last"
    fi
    expect "$server: the ledger has no commit from after the restart" "$first_life" "$lives"
    expect "$server: the trigger's total agrees with the ledger" "$rows" "$(sql "$server" 'SELECT commits FROM shop.ledger_total')"
}

prove_destination() {
    local server=$1 pulse
    expect "$server: row checksums of all static tables equal production's" "$(cat "$box/prod.checksums")" "$(checksums "$server")"
    expect "$server: tables, views, triggers, routines, events, partitions, indexes equal" "$(cat "$box/prod.objects")" "$(objects "$server")"
    expect "$server: full-text search works on the copy" "$(cat "$box/prod.found")" "$(sql "$server" "$full_text")"
    prove_ledger "$server"
    if [ "$(accounts "$server" | sha256sum)" = "$(cat "$box/$server.accounts")" ]; then
        ok "$server: its own accounts, roles and grants are exactly as before"
    else
        bad "$server: its own accounts, roles and grants are exactly as before"
    fi
    expect "$server: production's accounts are not there" 0 "$(sql "$server" "SELECT COUNT(*) FROM mysql.user WHERE user IN ('shop_app', 'backup')")"
    if may_log_in "$server" "$box/$server/alice.cnf"; then ok "$server: alice logs in with her own password"; else bad "$server: alice logs in with her own password"; fi
    if may_log_in "$server" "$box/prod/shop_app.cnf"; then bad "$server: production's application is turned away"; else ok "$server: production's application is turned away"; fi
    expect "$server: its old content is gone" 0 "$(has_database "$server" playground)"
    expect "$server: no event is enabled" 0 "$(sql "$server" "SELECT COUNT(*) FROM information_schema.events WHERE status = 'ENABLED'")"
    pulse=$(sql "$server" 'SELECT COUNT(*) FROM shop.pulse')
    sleep 1.3
    expect "$server: and none has fired" "$pulse" "$(sql "$server" 'SELECT COUNT(*) FROM shop.pulse')"
    expect "$server: settings are as configured" "$(identity "$server") $(sandbox_port "$box" "$server") 77 127.0.0.1" \
        "$(sql "$server" "SELECT CONCAT_WS(' ', @@server_id, @@port, @@max_connections, @@bind_address)")"
}
full_text="SELECT COUNT(*) FROM shop.products WHERE MATCH (name, description) AGAINST ('+kettle +garden' IN BOOLEAN MODE)"

# --- the demo --------------------------------------------------------------------------------------------------------

title "What is needed"
"$root/utils/install-dependencies.sh"
PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
note "building (the first time takes minutes)"
(cd "$root" && cargo build --profile "$profile" --locked --quiet)
program=${CARGO_TARGET_DIR:-$root/target}/${profile/#dev/debug}/mysql-refreshd
note "$("$program" --version)"

# Short: a unix socket's path has at most 107 bytes. Not TMPDIR, which may be long.
box=$(mktemp -d /tmp/mrd.XXXXXX)
title "Three real servers in $box"
began=$SECONDS
export SANDBOX_BUFFER_POOL=256M
sandbox_programs
SANDBOX_SERVER=$(readlink -f "$(command -v "$SANDBOX_SERVER")")
make_production
make_rnd rnd1 21
make_rnd rnd2 22
write_config
touch "$box/acknowledged"
sandbox_list "$box" | sed 's/^/   /'
note "production holds $(du -sm "$box/prod/data" | cut -f1) MB, made in $((SECONDS - began)) s; a client commits to it all the time"
first_life=$(sandbox_pid "$box" prod)
write_ledger &
writer=$!
if ! wait_for_writes 100; then
    bad "the client's commits reach production"
    exit 1
fi
for server in rnd1 rnd2; do
    accounts "$server" | sha256sum >"$box/$server.accounts"
    playground "$server" >"$box/$server.playground"
done
checksums prod >"$box/prod.checksums"
objects prod >"$box/prod.objects"
sql prod "$full_text" >"$box/prod.found"
if [ "$(cat "$box/prod.found")" -lt 10 ]; then bad "full-text search finds something on production"; fi

title "Nobody's server is overwritten without its owner's consent"
for server in rnd1 rnd2; do
    if refreshd consent show --policy "$box/host.toml" --instance "$server" >/dev/null; then
        bad "$server has not consented yet"
    fi
    shown consent grant --from prod --instance "$server" --datadir "$box/$server/data" --policy "$box/host.toml"
done

title "What would happen"
shown plan nightly

title "The refresh"
commits=$(acknowledged)
if shown --now nightly; then ok "mysql-refreshd reports success"; else
    bad "mysql-refreshd failed with exit code $?"
    note "its log: $box/log; to keep it, run again with --keep"
    exit 1
fi
note "$(($(acknowledged) - commits)) commits were made meanwhile"

title "The proof, by other means than the program's own"
prove_source
prove_destination rnd1
prove_destination rnd2

title "What it remembers"
shown history
run=$(refreshd --json history --limit 1 | grep -o '"run" *: *"[^"]*"' | head -n 1 | cut -d'"' -f4)
shown show "$run"

title "Back to the old generation on rnd2"
shown rollback rnd/rnd2
expect "rnd2: its old content is back" "$(cat "$box/rnd2.playground")" "$(playground rnd2)"
expect "rnd2: production's content is gone" 0 "$(has_database rnd2 shop)"
expect "rnd2: it has its old server_id again" 22 "$(sql rnd2 'SELECT @@server_id')"
expect "rnd1: keeps the fresh copy" "$(cat "$box/prod.checksums")" "$(checksums rnd1)"

title "Where to look next"
note "README.md: the first real set-up        config/config.toml: every setting, explained"
note "ARCHITECTURE.md: how it works           benches/flows.sh: how fast, beside other ways"
if [ $broken -gt 0 ]; then
    printf '\n%sdemo: %s checks held, %s did not%s\n' "$red" "$held" "$broken" "$plain"
    exit 1
fi
printf '\n%sdemo: all %s checks held%s\n' "$green" "$held" "$plain"
