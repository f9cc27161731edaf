#!/usr/bin/env bash
# One refresh by mysql-refreshd beside the flows it must beat, on the same real servers and data, in one interleaved run:
# how long the source is down, and how long until the destination answers with the new content.
set -euo pipefail

usage() {
    cat <<'END'
usage: benches/flows.sh [--size MB] [--rounds N] [--change WHICH,…] [--freeze WAY] [--settle S] [--writes] [--only FLOW,…] [--in FOLDER]

Makes a source and destinations (utils/sandbox.sh), then in each round runs every flow once, and prints the medians. Before each flow
some of the source's rows change, so that none finds what the one before it made the server write: in a round as much as --change
says, in equal shares. All on one machine: no network, no ssh.

  --size MB       the source's data, about (default 1000)
  --rounds N      how often (default 3)
  --change WHICH,…
                  what changes: the newest 2 % of rows are added (newest, the default), 2 % of rows anywhere (random), nothing; of
                  several, each in every round, with a table of its own
  --freeze WAY    mysql-refreshd's `freeze` (default auto)
  --settle S      seconds between the change and what is measured: files touched within a minute are read again (default 0)
  --writes        a client writes to the source all the time
  --only FLOW,…   these flows only: refreshd refreshd-again script tar-zstd rsync rsync-twice rsync-twice-again mariadb-backup
  --in FOLDER     where the servers are made (default /tmp; short, for the sockets)
  --help          this text
END
}

size=1000 rounds=3 only='' where=/tmp change=newest freeze=auto settle=0 writes=no
while [ $# -gt 0 ]; do
    case $1 in
        --size) size=${2-} && shift ;;
        --rounds) rounds=${2-} && shift ;;
        --change) change=${2-} && shift ;;
        --freeze) freeze=${2-} && shift ;;
        --settle) settle=${2-} && shift ;;
        --writes) writes=yes ;;
        --only) only=${2-} && shift ;;
        --in) where=${2-} && shift ;;
        --help | -h) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done
changes=${change//,/ }
if ! [[ $rounds =~ ^[1-9][0-9]?$ && $settle =~ ^[0-9]+$ && $change =~ ^(newest|random|nothing)(,(newest|random|nothing))*$ ]]; then usage >&2 && exit 2; fi
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=utils/sandbox.sh
. "$root/utils/sandbox.sh"
"$root/utils/shop.sh" --size "$size" >/dev/null

# NAME: what it is
describe() {
    case $1 in
        refreshd) echo "mysql-refreshd, first copy" ;;
        refreshd-again) echo "mysql-refreshd, over yesterday's copy" ;;
        script) echo "cp -R, tar -czf, cp, tar -xzf (the old script)" ;;
        tar-zstd) echo "tar | zstd -1 | zstd -d | tar" ;;
        rsync) echo "rsync -aW" ;;
        rsync-twice) echo "rsync hot, then cold (in place), first copy" ;;
        rsync-twice-again) echo "rsync hot, then cold (in place), over yesterday's" ;;
        mariadb-backup) echo "mariadb-backup | mbstream, prepare" ;;
        *) return 1 ;;
    esac
}
flows='refreshd refreshd-again script tar-zstd rsync rsync-twice rsync-twice-again mariadb-backup'
[ -z "$only" ] || flows=${only//,/ }
for flow in $flows; do
    describe "$flow" >/dev/null || { usage >&2 && exit 2; }
done

say() { printf 'flows: %s\n' "$*"; }
now() { date +%s.%N; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f\n", a - b }'; }

# --- the servers -----------------------------------------------------------------------------------------------------

box='' observer='' writer='' running=''
clean_up() {
    local code=$?
    trap '' INT TERM HUP
    if [ -n "$running" ] && [ $code -lt 130 ]; then
        say "error: $running failed with exit code $code" >&2
        tail -n 20 "$box/events" "$box/backup.log" >&2 2>/dev/null || true
    fi
    for job in $observer $writer; do kill "$job" 2>/dev/null || true; done
    if [ -n "$box" ]; then sandbox_destroy "$box"; fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

stop() { sandbox_stop "$box" "$1"; }
start() { sandbox_start "$box" "$1"; }

# A destination as it was before anything was copied to it: another server's content, running.
reset_destination() {
    local at=$box/$1
    stop "$1"
    rm -rf "$at/data" "$at/.data.refreshd" "$at/state" "$at/conf.d/90-refreshd.cnf"
    cp -a --reflink=auto "$box/.template/data" "$at/data"
    start "$1"
}

# Stopped, and with an empty datadir: for the flows that write straight into it.
empty_destination() {
    stop "$1"
    rm -rf "$box/$1/data"
    mkdir "$box/$1/data"
}

# One flow's share of 2 % of the rows: one of so many.
part=$((50 * $(wc -w <<<"$flows")))

change_source() {
    case $change in
        newest) grow_source ;;
        random) scatter_source ;;
    esac
}

scatter_source() {
    sandbox_sql "$box" src shop <<END
UPDATE documents SET body = REVERSE(body) WHERE CRC32(CONCAT(id, '-$flow-$change-$round')) % $part = 0;
UPDATE orders SET remark = REVERSE(remark) WHERE CRC32(CONCAT(id, '-$flow-$change-$round')) % $part = 0;
UPDATE items SET pieces = pieces + 1 WHERE CRC32(CONCAT(order_id, '-$flow-$change-$round')) % $part = 0;
END
}

grow_source() {
    sandbox_sql "$box" src shop <<END
SET @documents = (SELECT MAX(id) FROM documents), @orders = (SELECT MAX(id) FROM orders);
INSERT INTO documents SELECT id + @documents, order_id, REVERSE(body) FROM documents WHERE id <= @documents DIV $part;
INSERT INTO orders SELECT id + @orders, customer, CURDATE(), state, REVERSE(remark) FROM orders WHERE id <= @orders DIV $part;
INSERT INTO items SELECT order_id + @orders, line, product, pieces, price FROM items WHERE order_id <= @orders DIV $part;
END
}

content() {
    sandbox_query "$box" "$1" 'SELECT (SELECT MAX(id) FROM shop.documents), (SELECT COUNT(*) FROM shop.orders),
        (SELECT SUM(LENGTH(page)) FROM shop.visits)'
}

write_config() {
    cat >"$box/config.toml" <<END
[daemon]
state_dir = "$box/state"
log_dir = "$box/log"
$(sandbox_host "$box" prod src)
$(sandbox_host "$box" rnd dst)
$(sandbox_host "$box" rnd keep-refreshd)
[refreshes.first]
source = "prod"
destinations = ["rnd/dst"]
freeze = "$freeze"
[refreshes.again]
source = "prod"
destinations = ["rnd/keep-refreshd"]
freeze = "$freeze"
END
}

# --- the flows -------------------------------------------------------------------------------------------------------
# Each ends when its destination answers. Each stops its destination itself, once, and starts it once.

refreshd() { "$program" --config "$box/config.toml" --json --now "$1" >"$box/events"; }
flow_refreshd() { refreshd first; }
flow_refreshd-again() { refreshd again; }

flow_script() {
    local to=$1
    stop src
    cp -R "$box/src/data" "$box/copy"
    tar -C "$box/copy" -czf "$box/copy.tgz" .
    start src
    cp "$box/copy.tgz" "$box/$to/copy.tgz"
    empty_destination "$to"
    tar -C "$box/$to/data" -xzf "$box/$to/copy.tgz"
    start "$to"
    rm -rf "$box/copy" "$box/copy.tgz" "$box/$to/copy.tgz"
}

flow_tar-zstd() {
    local to=$1
    empty_destination "$to"
    stop src
    tar -C "$box/src/data" -cf - . | zstd -1 -T0 -q | zstd -d -q | tar -C "$box/$to/data" -xf -
    start src
    start "$to"
}

flow_rsync() {
    local to=$1
    empty_destination "$to"
    stop src
    rsync -aW "$box/src/data/" "$box/$to/data/"
    start src
    start "$to"
}

rsync_pass() {
    local code=0
    rsync -a --inplace --no-whole-file --delete "$box/src/data/" "$box/$1/data/" || code=$?
    # 24: files that vanished while they were read, which a running server's do.
    [ $code -eq 0 ] || [ $code -eq 24 ]
}
rsync_twice() {
    rsync_pass "$1"
    stop src
    rsync_pass "$1"
    start src
    start "$1"
}
flow_rsync-twice() {
    empty_destination "$1"
    rsync_twice "$1"
}
flow_rsync-twice-again() {
    stop "$1"
    rsync_twice "$1"
}

flow_mariadb-backup() {
    local to=$1
    empty_destination "$to"
    mariadb-backup --defaults-file="$box/src/backup.cnf" --backup --stream=mbstream 2>"$box/backup.log" |
        mbstream -x -C "$box/$to/data"
    mariadb-backup --defaults-file="$box/src/backup.cnf" --prepare --target-dir="$box/$to/data" 2>>"$box/backup.log"
    start "$to"
}

# --- measuring -------------------------------------------------------------------------------------------------------

# A client that asks the source all the time: its longest wait is what the source's users see, whatever a flow says.
observe() {
    set +e
    while :; do
        if sandbox_answers "$box" src; then now >>"$box/answers"; fi
        sleep 0.03
    done
}
longest_silence() { awk 'NR > 1 && $1 - last > most { most = $1 - last } { last = $1 } END { printf "%.2f\n", most }' "$box/answers"; }

# A client that writes all the time: new rows in a table of its own. What it writes is not part of what is compared.
write_all_the_time() {
    set +e
    while :; do
        sandbox_sql "$box" src >/dev/null 2>&1 <<<'INSERT INTO bench.writes (text)
            SELECT REPEAT(MD5(RAND()), 20) FROM seq_1_to_200' || sleep 0.2
        sleep 0.02
    done
}

destination_of() {
    case $1 in
        refreshd-again) echo keep-refreshd ;;
        rsync-twice-again) echo keep-rsync ;;
        *) echo dst ;;
    esac
}

# measure FLOW: appends "FLOW down total durable" to the results.
measure() {
    local flow=$1 to began answered durable down own=''
    to=$(destination_of "$flow")
    if [ "$to" = dst ]; then reset_destination dst; fi
    # What the flow before left to be written is not this one's.
    sync
    : >"$box/answers"
    observe &
    observer=$!
    sleep 0.3
    began=$(now)
    # Not in an "if": there, a flow would go on after its first failed command.
    running=$flow
    "flow_$flow" "$to"
    running=''
    answered=$(now)
    sync -f "$box/$to/data"
    durable=$(now)
    sleep 0.3
    kill "$observer"
    wait "$observer" 2>/dev/null || true
    observer=''
    down=$(longest_silence)
    if [ "$(content src)" != "$(content "$to")" ]; then
        say "error: after $flow the destination has other content than the source"
        exit 1
    fi
    case $flow in refreshd*) own="; by its own clock $(own_figures)" ;; esac
    echo "$change:$flow $down $(minus "$answered" "$began") $(minus "$durable" "$began")" >>"$box/results"
    say "$(printf '%-7s %-18s source down %6s s, total %6s s%s' "$change" "$flow" "$down" "$(minus "$answered" "$began")" "$own")"
}

# What mysql-refreshd itself reports, in its last event.
own_figures() {
    local event
    event=$(grep '"run_finished"' "$box/events" | tail -n 1)
    field() { sed -n "s/.*\"$1\": *\\([0-9]*\\).*/\\1/p" <<<"$event"; }
    steps() { grep -o '{"step":"[a-z]*","ms":[0-9]*}' <<<"$event" | awk -F'[":,}]+' '$5 >= 50 { printf "%s%s %.2f", sep, $3, $5 / 1000; sep = ", " }'; }
    awk -v d="$(field outage_ms)" -v t="$(field total_ms)" -v steps="$(steps)" -v read="$(field read_bytes)" -v cold="$(field cold_bytes)" \
        -v lacking="$(field changed_bytes)" -v sent="$(field sent_bytes)" 'BEGIN {
            printf "%.2f and %.2f s (%s); MB read %d, down %d, lacking %d, sent %d",
                d / 1000, t / 1000, steps, read / 1e6, cold / 1e6, lacking / 1e6, sent / 1e6
        }'
}

# column CHANGE FLOW N: median (least-most)
column() {
    awk -v flow="$1:$2" -v n="$3" '$1 == flow { print $n }' "$box/results" | sort -n | awk '
        { v[NR] = $1 }
        END {
            m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
            printf "%.2f (%.2f-%.2f)", m, v[1], v[NR]
        }'
}

report() {
    for change in $changes; do
        printf '\n%-52s %-24s %-24s %s\n' "changed: $change; median (least-most) of $rounds, s" "source down" "total" "and on disk"
        for flow in $flows; do
            printf '%-52s %-24s %-24s %s\n' "$(describe "$flow")" "$(column "$change" "$flow" 2)" \
                "$(column "$change" "$flow" 3)" "$(column "$change" "$flow" 4)"
        done
    done
    cat <<END

source down   the longest time in which a client that asks all the time got no answer (to about 0.05 s)
total         from the beginning until the destination answers with the new content
and on disk   until its filesystem has written everything; only mysql-refreshd makes sure of that by itself
The data: $(du -sm "$box/src/data" | cut -f1) MB on $(stat -f -c %T "$box"), in the page cache. $(nproc) cores. All local, no ssh.
Only mysql-refreshd proves the copy, keeps the old generation, and keeps the destination's accounts and settings.
END
}

# --- the run ---------------------------------------------------------------------------------------------------------

"$root/utils/install-dependencies.sh" --bench
PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
(cd "$root" && cargo build --release --locked --quiet)
program=${CARGO_TARGET_DIR:-$root/target}/release/mysql-refreshd

box=$(mktemp -d "$(readlink -f "$where")/mrb.XXXXXX")
export SANDBOX_BUFFER_POOL=512M
sandbox_programs
SANDBOX_SERVER=$(readlink -f "$(command -v "$SANDBOX_SERVER")")
say "making the servers and $size MB of data"
for server in src dst keep-refreshd keep-rsync; do
    sandbox_create "$box" "$server"
    start "$server"
done
"$root/utils/shop.sh" --size "$size" | sandbox_sql "$box" src
# mariadb-backup reads its account from an option file, like a server.
{ cat "$box/src/my.cnf" && printf '[client]\nsocket = %s\nuser = %s\n' "$box/src/sock" "$(id -un)"; } >"$box/src/backup.cnf"
write_config
for server in dst keep-refreshd; do
    "$program" consent grant --from prod --instance "$server" --datadir "$box/$server/data" --policy "$box/host.toml" >/dev/null
done
say "$("$program" --version), $("$SANDBOX_SERVER" --version | sed 's/.*Ver //'), $(rsync --version | sed -n 1p)"

# Yesterday's copies.
# yesterday's, and what is left of the night before: as on every night but the first two
case " $flows " in *" refreshd-again "*) flow_refreshd-again; flow_refreshd-again ;; esac
case " $flows " in *" rsync-twice-again "*) flow_rsync-twice-again keep-rsync ;; esac

if [ $writes = yes ]; then
    sandbox_sql "$box" src <<<'CREATE DATABASE bench; CREATE TABLE bench.writes (id INT AUTO_INCREMENT PRIMARY KEY, text TEXT)'
    write_all_the_time &
    writer=$!
fi
for ((round = 1; round <= rounds; round++)); do
    say "round $round of $rounds"
    for change in $changes; do
        for flow in $flows; do
            change_source
            sleep "$settle"
            measure "$flow"
        done
    done
done
report
