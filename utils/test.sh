#!/usr/bin/env bash
# Everything that must be green before a change goes in: format, lints, all tests (against real MariaDB servers),
# scripts and dependencies. Checks whose tool is not installed are named at the end, never passed over in silence.
set -euo pipefail

usage() {
    cat <<'END'
usage: utils/test.sh [--fast | --hosts | --matrix] [ARGUMENTS]

Installs what the tests need (utils/install-dependencies.sh --tests), then runs, and goes on after a failure:
  cargo fmt --check · cargo clippy · cargo nextest run (or cargo test) · the same over SSH · tests on real hosts · doc tests · shellcheck · cargo deny

The tests on real hosts boot systemd machines with sshd and the distributions' MariaDB and MySQL packages (tests/hosts/hosts). They need
root, Debian and its package archives; elsewhere they are named as skipped, with the reason.

  --fast       only the quick tests: none over SSH, none on real hosts
  --hosts      only the tests on real hosts
  --matrix     only those, and all that is long and named as skipped otherwise: power cuts in every step, servers that do not
               stop or start as told, the faults with MySQL and in the default ways, contention and faults over SSH, every fault at every point, and
               the loss of everyone at each of the controller's points (two hours)
  ARGUMENTS    for the test runner: a part of a test's name, or any of its options
  --help       this text

Exit code: 0 when no check failed, 1 otherwise.
END
}

fast=no only_hosts=no matrix=no
case ${1-} in
    --help | -h)
        usage
        exit
        ;;
    --fast)
        fast=yes
        shift
        ;;
    --hosts)
        only_hosts=yes
        shift
        ;;
    --matrix)
        only_hosts=yes matrix=yes
        shift
        ;;
esac
cd "$(dirname "$0")/.."
utils/install-dependencies.sh --tests
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

passed=() failed=() skipped=()

# check NAME COMMAND…: runs it, keeps its verdict, goes on.
check() {
    local name=$1 began=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    if "$@"; then
        passed+=("$name")
        printf '=== %s: passed in %s s\n' "$name" $((SECONDS - began))
    else
        failed+=("$name")
        printf '=== %s: FAILED in %s s\n' "$name" $((SECONDS - began))
    fi
}

# skip NAME WHY
skip() {
    skipped+=("$1: $2")
    printf '\n=== %s: SKIPPED, %s\n' "$1" "$2"
}

# Fail points are a test hook: only with them can a run be stopped or killed at every step.
features=(--features failpoints)

# What only --matrix runs: modules on real hosts, and tests of the points. The same stands in .config/nextest.toml.
LONG='faults_power|faults_server|faults_mysql|faults_ways'
LONG_POINTS='points::others_'

run_tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run "${features[@]}" "$@"
    else
        cargo test "${features[@]}" --all-targets "$@" -- --test-threads=4 --skip $LONG_POINTS
    fi
}

# Every fault at every point, not only half of them, and everyone else's death and lost connection at each of the controller's; a filter
# expression (-E) among the ARGUMENTS chooses among them.
all_points() {
    export MR_FAULTS=all
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run "${features[@]}" --ignore-default-filter --no-tests=pass points:: "$@"
    else
        cargo test "${features[@]}" --test it points:: -- --test-threads=4
    fi
}

# What works on one machine, once more with every host behind an sshd: the source by our own client, destinations by the system's. Always
# those refreshes in which most travels (WAYS); the others, and what else acts on hosts (contention, faults), go with --matrix, since the
# bench of real hosts has their like. Tests that go through every point of the code one by one have done so on one machine, where it
# takes a third of the time.
WAYS='every_way|three_destinations|a_second_refresh|under_live_writes|is_a_replica|kept_by_commands'
over_ssh() {
    local modules=$1 some=${2-.} one_by_one='dies|ctrl_c|at_every_step|every_point|death_in_a|does_not_start_at_once'
    if cargo nextest --version >/dev/null 2>&1; then
        MR_OVER=mixed cargo nextest run "${features[@]}" \
            -E "binary(it) and test(/^($modules)::.*($some)/) and not test(/$one_by_one/)"
    else
        local skip=() part names=()
        for part in ${one_by_one//|/ }; do skip+=(--skip "$part"); done
        for part in ${modules//|/ }; do names+=("$part::"); done
        MR_OVER=mixed cargo test "${features[@]}" --test it -- --test-threads=4 "${names[@]}" "${skip[@]}"
    fi
}

# --- the bench of real hosts: waits for machines more than it computes, so it runs beside everything else -----------------

hosts_cannot='' hosts_job='' hosts_output=target/hosts.log
trap '[ -z "$hosts_job" ] || kill -TERM -- "-$hosts_job" 2>/dev/null || true' EXIT

# Says whether the bench can be used here, and compiles it. The fail points' build overwrites the program that is to be
# installed, and cargo run once more would overwrite theirs: so that program is copied aside, and cargo is not asked again.
prepare_hosts() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then tests/hosts/hosts deps || true; fi
    if ! hosts_cannot=$(tests/hosts/hosts able 2>&1); then
        printf '\n!!! the tests on real hosts will NOT run: %s\n' "$hosts_cannot"
        return 0
    fi
    hosts_cannot=''
    mkdir -p target/hosts
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest list --test hosts --list-type binaries-only --message-format json >target/hosts/binaries.json
        cargo metadata --format-version 1 >target/hosts/metadata.json
    else
        cargo test --no-run --test hosts
    fi
    cp target/debug/mysql-refreshd target/hosts/mysql-refreshd.new
    mv target/hosts/mysql-refreshd.new target/hosts/mysql-refreshd
}

hosts_tests() {
    tests/hosts/hosts build && tests/hosts/hosts sweep || return 1
    export MR_PROGRAM="$PWD/target/hosts/mysql-refreshd"
    local all=() skip=() module
    if [ $matrix = yes ]; then
        # ARGUMENTS may choose among the points only
        all=(--ignore-default-filter --no-tests=pass)
    else
        for module in ${LONG//|/ }; do skip+=(--skip "$module::"); done
    fi
    if [ -e target/hosts/binaries.json ]; then
        cargo nextest run --binaries-metadata target/hosts/binaries.json --cargo-metadata target/hosts/metadata.json \
            "${all[@]}" "$@"
    else
        cargo test --test hosts "$@" -- --test-threads=2 "${skip[@]}"
    fi
}

# In a process group of its own, so that it can be ended whole. Without nextest it would need cargo, and waits for its turn.
start_hosts() {
    [ -z "$hosts_cannot" ] && [ -e target/hosts/binaries.json ] || return 0
    set -m
    (
        set -e
        began=$SECONDS
        hosts_tests "$@"
        printf '(beside the other checks: %s s)\n' $((SECONDS - began))
    ) >"$hosts_output" 2>&1 </dev/null &
    hosts_job=$!
    set +m
}

join_hosts() {
    local verdict=0
    wait "$hosts_job" || verdict=$?
    hosts_job=''
    cat "$hosts_output"
    return $verdict
}

check_hosts() {
    if [ -z "$hosts_cannot" ] && [ $matrix = no ]; then
        local module
        for module in ${LONG//|/ }; do skip "on real hosts, $module" "long, see utils/test.sh --matrix"; done
    fi
    if [ -n "$hosts_job" ]; then
        check "tests on real hosts" join_hosts
        return
    elif [ -z "$hosts_cannot" ]; then
        check "tests on real hosts" hosts_tests "$@"
        return
    fi
    local name
    while read -r name; do skip "on real hosts, $name" "$hosts_cannot"; done < <(
        cargo test --quiet --test hosts -- --list 2>/dev/null | sed -n 's/: test$//p'
    )
    [ ${#skipped[@]} -gt 0 ] || skip "tests on real hosts" "$hosts_cannot"
}

[ $fast = yes ] || prepare_hosts
if [ $only_hosts = yes ]; then
    check_hosts "$@"
    if [ $matrix = yes ]; then
        check "every fault at every point" all_points "$@"
        check "refreshes, contention and faults over SSH" over_ssh 'refresh|contention|faults'
        check "lints of tests without fail points" cargo clippy --all-targets -- -D warnings
        if why=$(tests/hosts/guest deps >/dev/null 2>&1 && tests/hosts/guest able 2>&1); then
            check "freezing logical volumes, in a guest machine" tests/hosts/guest freeze
            check "refreshes from logical volumes, in a guest machine" tests/hosts/guest refresh
        else
            skip "freezing logical volumes, and refreshes from them, in a guest machine" "${why:-its packages cannot be installed}"
        fi
    fi
    printf 'checks: %s passed, %s failed, %s skipped\n' ${#passed[@]} ${#failed[@]} ${#skipped[@]}
    [ ${#failed[@]} -eq 0 ]
    exit
fi

if [ $fast = no ]; then
    start_hosts
    check "format" cargo fmt --check
    check "lints" cargo clippy --all-targets --test hosts "${features[@]}" -- -D warnings
    check "lints of what is installed" cargo clippy --lib --bins -- -D warnings
fi
check "tests" run_tests "$@"
if [ $fast = no ]; then
    check "tests over SSH" over_ssh refresh "$WAYS"
    check_hosts
    # nextest does not run the examples in the documentation.
    check "doc tests" cargo test --quiet --doc "${features[@]}"
    if command -v shellcheck >/dev/null; then
        check "scripts" shellcheck -x utils/*.sh benches/*.sh tests/hosts/hosts tests/hosts/guest .ci/run
    else
        skip "scripts" "shellcheck is not installed"
    fi
    if ! cargo deny --version >/dev/null 2>&1; then
        skip "dependencies" "cargo-deny is not installed (cargo install --locked cargo-deny)"
    elif [ -d "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs" ]; then
        check "dependencies" cargo deny --offline check
    else
        check "dependencies" cargo deny --offline check bans licenses sources
        skip "advisories" "their database was never fetched (cargo deny fetch)"
    fi
fi

skip "${LONG_POINTS}…: the loss of everyone at the controller's points, and half of all other faults" "long, see utils/test.sh --matrix"
skip "freezing logical volumes, and refreshes from them, in a guest machine" "long, see utils/test.sh --matrix"
skip "the other refreshes, contention and faults over SSH" "long, see utils/test.sh --matrix"
skip "lints of tests without fail points" "nobody runs them so, see utils/test.sh --matrix"

lines() { find "$@" -type f -exec cat {} + | wc -l; }
printf '\nlines: src %s, tests %s, scripts %s\n' \
    "$(lines src)" "$(lines tests)" "$(lines utils benches .ci)"
[ ${#skipped[@]} -eq 0 ] || printf 'SKIPPED  %s\n' "${skipped[@]}"
[ ${#failed[@]} -eq 0 ] || printf 'FAILED   %s\n' "${failed[@]}"
printf 'checks: %s passed, %s failed, %s skipped\n' ${#passed[@]} ${#failed[@]} ${#skipped[@]}
[ ${#failed[@]} -eq 0 ]
