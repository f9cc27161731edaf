#!/usr/bin/env bash
# What the source's users feel of a refresh before its stop: the latency of a standard load (sysbench, OLTP read and write) while the
# source is copied as it runs, beside the same load undisturbed, second by second in one interleaved run.
set -euo pipefail

usage() {
    cat <<'END'
usage: benches/latency.sh [--size MB] [--rounds N] [--threads N] [--max-rate RATE] [--calm SECONDS] [--in FOLDER]

Makes a source and a destination (utils/sandbox.sh), lets sysbench load the source all the time, and in each round waits for a while, then
refreshes with everything to be copied in passes (`freeze = "none"`, `basis = "none"`). Prints the medians of all whole seconds with a pass under way
and of all without a run. All on one machine: what the destination does costs the same cores.

  --size MB        the source's data beside sysbench's, about (default 2500)
  --rounds N       how often (default 3)
  --threads N      sysbench's (default 2)
  --max-rate RATE  mysql-refreshd's `max_rate` (default none)
  --calm SECONDS   before each refresh (default 20)
  --in FOLDER      where the servers are made (default /tmp; short, for the sockets)
  --help           this text
END
}

size=2500 rounds=3 threads=2 rate='' calm=20 where=/tmp
while [ $# -gt 0 ]; do
    case $1 in
        --size) size=${2-} && shift ;;
        --rounds) rounds=${2-} && shift ;;
        --threads) threads=${2-} && shift ;;
        --max-rate) rate=${2-} && shift ;;
        --calm) calm=${2-} && shift ;;
        --in) where=${2-} && shift ;;
        --help | -h) usage && exit ;;
        *) usage >&2 && exit 2 ;;
    esac
    shift
done
[[ "$size $rounds $threads $calm" =~ ^[1-9][0-9]*\ [1-9][0-9]?\ [1-9][0-9]?\ [1-9][0-9]*$ ]] || { usage >&2 && exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=utils/sandbox.sh
. "$root/utils/sandbox.sh"

say() { printf 'latency: %s\n' "$*"; }

box='' load=''
clean_up() {
    local code=$?
    trap '' INT TERM HUP
    [ -z "$load" ] || kill "$load" 2>/dev/null || true
    if [ $code -ne 0 ] && [ $code -lt 130 ] && [ -n "$box" ]; then tail -n 5 "$box"/said "$box"/load >&2 2>/dev/null || true; fi
    if [ -n "$box" ]; then sandbox_destroy "$box"; fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$root/utils/install-dependencies.sh" --bench
PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
(cd "$root" && cargo build --release --locked --quiet)
program=${CARGO_TARGET_DIR:-$root/target}/release/mysql-refreshd

box=$(mktemp -d "$(readlink -f "$where")/mrl.XXXXXX")
export SANDBOX_BUFFER_POOL=512M
sandbox_programs
SANDBOX_SERVER=$(readlink -f "$(command -v "$SANDBOX_SERVER")")
say "making the servers and $size MB of data"
for server in src dst; do
    sandbox_create "$box" "$server"
    sandbox_start "$box" "$server"
done
"$root/utils/shop.sh" --size "$size" | sandbox_sql "$box" src
sandbox_sql "$box" src <<<'CREATE DATABASE sbtest'

cat >"$box/config.toml" <<END
[daemon]
state_dir = "$box/state"
log_dir = "$box/log"
$(sandbox_host "$box" prod src)
$(sandbox_host "$box" rnd dst)
[refreshes.all]
source = "prod"
destinations = ["rnd"]
freeze = "none"
basis = "none"
${rate:+max_rate = "$rate"}
END
"$program" consent grant --from prod --instance dst --datadir "$box/dst/data" --policy "$box/host.toml" >/dev/null

bench() {
    sysbench oltp_read_write --db-driver=mysql --mysql-socket="$box/src/sock" --mysql-user="$(id -un)" --tables=4 \
        --table-size=50000 "$@"
}
bench prepare >/dev/null

# The seconds since the load's beginning in which a pass was under way, and those in which no run was.
: >"$box/passes"
: >"$box/runs"
whole_seconds() { awk -v from="$1" -v to="$2" -v began="$3" 'BEGIN { for (s = int(from - began) + 2; s < to - began; s++) print s }'; }

for ((round = 1; round <= rounds; round++)); do
    : >"$box/load"
    bench --threads="$threads" --time=3600 --report-interval=1 --mysql-ignore-errors=all run >"$box/load" 2>&1 &
    load=$!
    until grep -q '^\[ 1s \]' "$box/load"; do sleep 0.05; done
    began=$(awk -v now="$(date +%s.%N)" 'BEGIN { print now - 1 }')
    sleep "$calm"
    calm_end=$(date +%s.%N)
    "$program" --config "$box/config.toml" --json --now all >"$box/said"
    { kill "$load" && wait "$load"; } 2>/dev/null || true
    load=''
    # a pass begins and ends where its step does, by the program's own log
    read -r from to < <(python3 - "$box/log" <<'END'
import datetime, glob, json, sys
last = {}
for name in sorted(glob.glob(sys.argv[1] + "/*")):
    for line in open(name):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("message") == "step finished" and event.get("step") == "precopy":
            end = datetime.datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")).timestamp()
            last = (end - event["ms"] / 1000, end)
print(*last)
END
    )
    awk -F'[][ ,:()/s]+' '/^\[ [0-9]+s \]/ { print $2, $0 }' "$box/load" |
        sed -n 's/^\([0-9]*\) .*tps: \([0-9.]*\) .*lat (ms,95%): \([0-9.]*\) .*/\1 \2 \3/p' >"$box/seconds"
    pick() { awk 'NR == FNR { want[$1]; next } $1 in want { print $2, $3 }' <(whole_seconds "$1" "$2" "$began") "$box/seconds"; }
    pick "$from" "$to" >>"$box/passes"
    pick "$(awk -v b="$began" 'BEGIN { print b + 2 }')" "$calm_end" >>"$box/runs"
    say "round $round of $rounds: a pass of $(awk -v a="$from" -v b="$to" 'BEGIN { printf "%.1f", b - a }') s"
    # the destination is as it was, for everything to be copied again
    sandbox_stop "$box" dst
    rm -rf "$box/dst/data" "$box/dst/.data.refreshd"
    cp -a --reflink=auto "$box/.template/data" "$box/dst/data"
    sandbox_start "$box" dst
    sync
done

# figures FILE COLUMN: median and 95 % point
figures() {
    awk -v n="$2" '{ print $n }' "$1" | sort -n | awk '{ v[NR] = $1 }
        END { if (NR) printf "%.2f (95 %% of seconds below %.2f)", v[int((NR + 1) / 2)], v[int(NR * 0.95 + 0.5)]; else printf "none" }'
}
printf '\n%-40s %-44s %s\n' "" "latency, 95th percentile of a second, ms" "transactions a second"
printf '%-40s %-44s %s\n' "no run ($(wc -l <"$box/runs") s)" "$(figures "$box/runs" 2)" "$(figures "$box/runs" 1)"
printf '%-40s %-44s %s\n' "a pass under way ($(wc -l <"$box/passes") s)" "$(figures "$box/passes" 2)" "$(figures "$box/passes" 1)"
printf '\nThe data: %s MB on %s, buffer pool %s, %s threads, %s cores%s.\n' "$(du -sm "$box/src/data" | cut -f1)" \
    "$(stat -f -c %T "$box")" "$SANDBOX_BUFFER_POOL" "$threads" "$(nproc)" "${rate:+, max_rate $rate}"
