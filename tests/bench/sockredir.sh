#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: sockredir.sh BPFTK
#
# Redis and PostgreSQL by their own benchmarks over 127.0.0.1, with bpftk sockredir and without, in turn; in a network namespace and a
# cgroup of its own. Prints, stores nothing. Exit status: 0 measured what is installed, 1 something could not be measured.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '4s/^# //p' "$0" >&2; exit 2; }
bpftk=$(readlink -f "$1")
PATH=$PATH:/usr/sbin:/usr/local/bin:$(echo /usr/lib/postgresql/*/bin | tr ' ' ':')
if [ -z "${BPFTK_BENCH_NS-}" ]; then BPFTK_BENCH_NS=1 exec unshare --net "$0" "$bpftk"; fi
ip link set lo up

mount=$(awk '/ - cgroup2 / { print $5; exit }' /proc/self/mountinfo)
home=$mount$(sed -n 's/^0:://p' /proc/self/cgroup)
cgroup=$mount/bpftk-bench-$$
tmp=$(mktemp -d)
mkdir "$cgroup"
echo $$ >"$cgroup/cgroup.procs"
server='' redirecting=''
finish() {
    [ -z "$server" ] || kill -QUIT "$server" 2>/dev/null || true
    [ -z "$redirecting" ] || kill -INT "$redirecting" 2>/dev/null || true
    wait
    echo $$ >"$home/cgroup.procs"
    rmdir "$cgroup" || true
    rm -rf "$tmp"
}
trap finish EXIT

wait_for() { # PORT
    for _ in $(seq 200); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
        sleep 0.05
    done
    echo "sockredir.sh: nothing listens on port $1" >&2
    exit 1
}
with_bpftk() { # COMMAND...
    "$bpftk" sockredir -v -i 1h --learn 0 --cgroup "$cgroup" 2>"$tmp/said" >/dev/null &
    redirecting=$!
    for _ in $(seq 200); do grep -q armed "$tmp/said" && break; sleep 0.05; done
    grep -q armed "$tmp/said" || { cat "$tmp/said" >&2; exit 1; }
    "$@"
    kill -INT "$redirecting"
    wait "$redirecting"
    redirecting=''
}
median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
compare() { # NAME COMMAND...: the command prints a rate
    local name=$1 round
    shift
    : >"$tmp/without" >"$tmp/with"
    for round in 1 2 3 4 5; do
        "$@" >>"$tmp/without"
        with_bpftk "$@" >>"$tmp/with"
    done
    awk -v name="$name" -v without="$(median <"$tmp/without")" -v with="$(median <"$tmp/with")" \
        'BEGIN { printf "%-28s %10.0f a second by TCP, %10.0f redirected: %.2f times\n", name, without, with, with / without }'
}

redis() { # COMMAND CLIENTS SIZE
    redis-benchmark -p 6391 -n 30000 -t "$1" -c "$2" -d "$3" --csv | awk -F'"' 'END { print $4 }'
}
postgres_rate() { # CLIENTS
    su -s /bin/sh nobody -c "PATH='$PATH' pgbench -h 127.0.0.1 -p 6392 -U nobody -S -c $1 -j 1 -T 2 postgres" 2>/dev/null |
        sed -n 's/^tps = \([0-9.]*\) .*/\1/p'
}

if command -v redis-benchmark >/dev/null; then
    # One program with the server, and its package starts no service.
    (exec -a redis-server redis-check-rdb --port 6391 --bind 127.0.0.1 --save '' --appendonly no --dir "$tmp" >/dev/null) &
    server=$!
    wait_for 6391
    compare 'Redis GET, 1 client' redis get 1 64
    compare 'Redis GET, 50 clients' redis get 50 64
    compare 'Redis SET 4 KB, 10 clients' redis set 10 4096
    kill "$server"
    wait "$server" || true
    server=''
else
    echo 'redis-benchmark is not installed: make deps-bench'
fi
if command -v initdb >/dev/null && command -v pgbench >/dev/null; then
    chown nobody "$tmp"
    su -s /bin/sh nobody -c "PATH='$PATH' LC_ALL=C initdb -A trust -U nobody -N -D '$tmp/data'" >/dev/null
    su -s /bin/sh nobody -c "PATH='$PATH' LC_ALL=C exec postgres -D '$tmp/data' -h 127.0.0.1 -p 6392 -k '' -F" >/dev/null 2>&1 &
    server=$!
    wait_for 6392
    sleep 1
    su -s /bin/sh nobody -c "PATH='$PATH' pgbench -h 127.0.0.1 -p 6392 -U nobody -i -q postgres" >/dev/null 2>&1
    compare 'pgbench -S, 1 client' postgres_rate 1
    compare 'pgbench -S, 8 clients' postgres_rate 8
    server=$(head -1 "$tmp/data/postmaster.pid")
else
    echo 'PostgreSQL is not installed: no figures of pgbench'
fi
