#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: egress.sh BPFTK
#
# What tc-egress costs a stream: iperf3 over a veth pair between two network namespaces, without it, counting by destination, by
# destination and process, and with an allow list, in turns. Prints medians and ratios. Exit status: 0 measured, 1 not.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
bpftk=$1
rounds=${ROUNDS:-15} seconds=${SECONDS_EACH:-2}

command -v iperf3 >/dev/null || { echo 'egress: no iperf3: make deps-test' >&2; exit 1; }
near=bpftk-bench-near-$$ far=bpftk-bench-far-$$
tmp=$(mktemp -d)
server='' watcher=''
cleanup() {
    for pid in $watcher $server; do kill "$pid" 2>/dev/null || true; done
    wait
    ip netns del "$near" 2>/dev/null || true
    ip netns del "$far" 2>/dev/null || true
    rm -rf "$tmp"
}
trap cleanup EXIT

ip netns add "$near"
ip netns add "$far"
ip -n "$near" link add near type veth peer name far netns "$far"
for end in "$near near 198.51.100.1" "$far far 198.51.100.2"; do
    read -r namespace device address <<<"$end"
    ip -n "$namespace" addr add "$address/24" dev "$device"
    ip -n "$namespace" link set "$device" up
done
ip netns exec "$far" iperf3 -s >/dev/null 2>&1 &
server=$!
echo '198.51.100.0/24' >"$tmp/allowed"

stream() { # bits per second
    local tries
    for tries in 1 2 3 4 5; do
        if ip netns exec "$near" iperf3 -c 198.51.100.2 -t "$seconds" -J >"$tmp/json" 2>/dev/null; then
            jq -r '.end.sum_sent.bits_per_second' "$tmp/json"
            return
        fi
        sleep 0.5
    done
    echo "egress: iperf3 fails after $tries tries" >&2
    return 1
}

measure() { # NAME ARGUMENT...: one run, with bpftk if there are arguments
    local name=$1
    shift
    if [ $# -gt 0 ]; then
        ip netns exec "$near" "$bpftk" tc-egress near -v "$@" >/dev/null 2>"$tmp/err" &
        watcher=$!
        local waited=0
        until grep -q armed "$tmp/err"; do
            waited=$((waited + 1))
            [ $waited -lt 200 ] || { echo "egress: tc-egress did not start: $(cat "$tmp/err")" >&2; return 1; }
            sleep 0.05
        done
    fi
    stream >>"$tmp/$name"
    if [ -n "$watcher" ]; then
        kill -INT "$watcher"
        wait "$watcher" || true
        watcher=''
    fi
}

stream >/dev/null
for round in $(seq "$rounds"); do
    # In another order each time: nothing is always the first.
    turns=$(printf '%s\n' nothing dst process allow-only | sort -R --random-source=<(yes "$round"))
    for turn in $turns; do
        case $turn in
            nothing) measure nothing ;;
            dst) measure dst --by dst ;;
            process) measure process --by dst,process ;;
            allow-only) measure allow-only --by dst,process --allow-only "$tmp/allowed" ;;
        esac
    done
done

median() { sort -g "$1" | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
without=$(median "$tmp/nothing")
for turn in nothing dst process allow-only; do
    median "$tmp/$turn" | awk -v name=$turn -v without="$without" -v rounds="$rounds" \
        '{ printf "iperf3 over veth, tc-egress %-10s %6.2f Gbit/s, %.3f of without (median of %d)\n", name, $1 / 1e9, $1 / without, rounds }'
done
