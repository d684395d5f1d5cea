#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: xdp-filter.sh BPFTK [OBJECTS]
#
# What a packet costs that is dropped by its address, or by its port: bpftk beside xdp-filter of xdp-tools, whose programs are in
# OBJECTS (default: where its package has them), by BPF_PROG_TEST_RUN on one processor, in turn, the best of ROUNDS of REPEAT packets.
# Their programs are loaded without libxdp's dispatcher, which needs a kernel that takes freplace, and would only add to them. All of
# it happens in namespaces of its own. Exit status: 0 measured, whatever came out.
set -euo pipefail
[ $# -eq 1 ] || [ $# -eq 2 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
PATH=$PATH:/usr/sbin
if [ "${BPFTK_BENCH_INSIDE-}" != 1 ]; then
    BPFTK_BENCH_INSIDE=1 exec unshare -m -n "$0" "$(realpath "$1")" "${@:2}"
fi
bpftk=$1
rounds=${ROUNDS:-21} repeat=${REPEAT:-2000000}

objects=${2-$(dpkg -L xdp-tools libxdp1 2>/dev/null | sed -n 's|/xdpfilt_alw_ip\.o$||p')}
[ -n "$objects" ] || { echo 'xdp-tools is not installed: make deps-bench' >&2; exit 1; }
tmp=$(mktemp -d)
running=''
cleanup() {
    [ -z "$running" ] || { kill "$running" 2>/dev/null || true; wait "$running" 2>/dev/null || true; }
    rm -rf "$tmp"
}
trap cleanup EXIT
# Where their maps ask to be pinned. Nobody else sees it.
mount -t bpf bpf /sys/fs/bpf
ip link set lo up

# UDP from 10.9.0.2 port 5353 to 10.9.0.1 port 53, 18 bytes of payload: the shortest frame.
{
    printf '\2\0\0\0\0\1\2\0\0\0\0\2\10\0'
    printf '\105\0\0\56\0\0\0\0\100\21\0\0\12\11\0\2\12\11\0\1'
    printf '\24\351\0\65\0\32\0\0'
    printf '%018d' 0
} >"$tmp/packet"

# What all runs take, in microseconds by the clock: the kernel's own average is whole nanoseconds, of which there are only some tens.
# Starting bpftool is in it, for both. Fails if the packet is not dropped.
run() { # bpftool's words for the program
    local out begin=$EPOCHREALTIME end
    out=$(taskset 1 bpftool prog run "$@" data_in "$tmp/packet" repeat "$repeat" 2>&1)
    end=$EPOCHREALTIME
    case $out in *'Return value: 1,'*) ;; *) echo "not dropped by $*: $out" >&2; return 1 ;; esac
    echo $((${end/[.,]/} - ${begin/[.,]/}))
}

theirs() { # OBJECT NAME
    bpftool prog load "$objects/$1" "/sys/fs/bpf/$2" type xdp >/dev/null 2>"$tmp/error" || { cat "$tmp/error" >&2; return 1; }
}

least() { # CURRENT NEW
    if [ -z "$1" ] || [ "$2" -lt "$1" ]; then echo "$2"; else echo "$1"; fi
}

# Their programs that let pass what no rule names. In a value, 2 is destination and 8 UDP; a port is a key in network order.
theirs xdpfilt_alw_ip.o ip
bpftool map update pinned /sys/fs/bpf/filter_ipv4 key hex 0a 09 00 01 value hex 02 00 00 00 00 00 00 00
theirs xdpfilt_alw_udp.o udp
bpftool map update pinned /sys/fs/bpf/filter_ports key hex 00 35 00 00 value hex 0a 00 00 00 00 00 00 00

echo "UDP packet, dropped by      xdp-filter      bpftk      ratio"
for what in address port; do
    case $what in
        address) program=ip rule=(--dst 10.9.0.1) ;;
        port) program=udp rule=(--proto udp --dport 53) ;;
    esac
    "$bpftk" xdp-drop lo "${rule[@]}" -v >/dev/null 2>"$tmp/log" &
    running=$!
    for _ in $(seq 200); do
        ! grep -q armed "$tmp/log" || break
        sleep 0.05
    done
    id=$(bpftool net show dev lo | sed -n 's/.* id \([0-9]*\).*/\1/p' | head -n 1)
    [ -n "$id" ] || { cat "$tmp/log" >&2; exit 1; }
    them='' us=''
    for _ in $(seq $rounds); do
        time=$(run pinned "/sys/fs/bpf/$program")
        them=$(least "$them" "$time")
        time=$(run id "$id")
        us=$(least "$us" "$time")
    done
    kill "$running"
    wait "$running" || true
    running=''
    awk -v what=$what -v them="$them" -v us="$us" -v repeat="$repeat" 'BEGIN {
        printf "%-24s %10.1f ns %7.1f ns %10.2f\n", what, 1000 * them / repeat, 1000 * us / repeat, us / them
    }'
done
