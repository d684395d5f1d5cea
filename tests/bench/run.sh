#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: run.sh BPFTK FIGURES UNIT-TESTS
#
# bpftk beside libbpf-tools, bpftrace and xdp-filter on the 6.1 kernel in QEMU, then bpftk alone, its filters, and xdp-drop beside
# xdp-filter on this machine's kernel. The files are static. Prints, stores nothing. Exit status: 0 measured, whatever came out; 1
# something could not be measured.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -eq 3 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
bpftk=$1 figures=$2 unit=$3

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
PATH=$PATH:/usr/sbin

# A program and its libraries, where its interpreter looks for them.
copy() { # FILE DEST
    install -D -m 755 "$1" "$tmp/root$2"
    ldd "$1" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | while read -r library; do
        [ -e "$tmp/root$library" ] || install -D -m 755 "$(readlink -f "$library")" "$tmp/root$library"
    done
}

install -D -m 755 "$figures" "$tmp/root/bench/figures"
peers=''
if tcpconnect=$(dpkg -L libbpf-tools 2>/dev/null | grep '/tcpconnect$'); then
    copy "$tcpconnect" /bench/tcpconnect
    peers="$peers -- libbpf-tools /bench/tcpconnect"
fi
if script=$(dpkg -L bpftrace 2>/dev/null | grep '/tcpconnect\.bt$'); then
    copy "$(command -v bpftrace)" /bench/bpftrace
    # The guest has no C headers: their two constants as numbers.
    sed '/^#/d; s/AF_INET6/10/g; s/AF_INET/2/g' "$script" >"$tmp/root/bench/tcpconnect.bt"
    peers="$peers -- bpftrace /bench/bpftrace /bench/tcpconnect.bt"
fi
then=''
if objects=$(dpkg -L xdp-tools libxdp1 2>/dev/null | sed -n 's|/xdpfilt_alw_ip\.o$||p') && [ -n "$objects" ]; then
    copy "$(command -v bash)" /bin/bash
    copy "$(command -v bpftool)" /usr/sbin/bpftool
    install -D -m 755 tests/bench/xdp-filter.sh "$tmp/root/bench/xdp-filter.sh"
    cp "$objects"/xdpfilt_alw_*.o "$tmp/root/bench/"
    then='; echo; /bench/xdp-filter.sh /usr/bin/bpftk /bench'
fi

status=0
dpkg-query -W -f '${Package} ${Version}\n' libbpf-tools bpftrace 2>/dev/null || true
case $peers in *libbpf-tools*bpftrace*) ;; *) echo 'libbpf-tools or bpftrace is not installed: make deps-bench'; status=1 ;; esac

# Old QEMUs translate a program's code again wherever it is loaded: at the same place each time, a start is the program's, not QEMU's.
fixed='echo 0 >/proc/sys/kernel/randomize_va_space'
out=$(tests/vm/run.sh --kernels 6.1 --memory 3072 --bpftk "$bpftk" --extra "$tmp/root" \
    --env LC_ALL=C --env REPEAT=300000 \
    --command "uname -r; $fixed; /bench/figures guest /usr/bin/bpftk $peers$then" | tee /dev/stderr) || status=1
case $out in *SKIP* | '') status=1 ;; esac

echo
echo "This machine, $(uname -r), $(nproc) CPUs:"
"$figures" host "$bpftk" || status=1
echo
# They are in the unit tests, where the translator can be called; by name they don't run with these.
BPFTK_FIGURES=1 "$unit" --test-threads=1 --nocapture kernel::filter::tests::figures | grep -v '^$' || status=1
echo
BPFTK_FIGURES=1 "$unit" --test-threads=1 --nocapture kernel::addrset::tests::figures kernel::drop::tests::figures | grep -E '^(V4|V6|xdp|tc)' || status=1
echo
BPFTK_FIGURES=1 "$unit" --test-threads=1 --nocapture kernel::egress::tests::figures | grep -E '^egress' || status=1
echo
tests/bench/egress.sh "$bpftk" || status=1
echo
tests/bench/xdp-filter.sh "$bpftk" || status=1
echo
"$figures" sockredir "$bpftk" || status=1
echo
tests/bench/sockredir.sh "$bpftk" || status=1
exit $status
