#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: run.sh [OPTION]... --bpftk FILE --tests FILE [--tests FILE]... [-- TEST-ARGUMENT...]
#        run.sh [OPTION]... [--bpftk FILE] --command 'SHELL LINE'
#
# Runs test binaries (Rust libtest), or one shell line, on Debian's stock cloud kernels in QEMU, without KVM.
#
#   --kernels LIST   kernel series, separated by spaces or commas (default: KERNELS, or 5.10 6.1 6.12 7)
#   --bpftk FILE     the static bpftk, /usr/bin/bpftk in the guest and BPFTK_BIN for the tests
#   --tests FILE     a static test binary; may be given several times
#   --pick WORDS     libtest's arguments for the last --tests alone, separated by spaces
#   --command LINE   run this instead; its output is streamed to stdout, its exit status is this script's
#   --extra DIR      a tree that is copied over the guest's root
#   --env NAME=VALUE set in the guest; may be given several times
#   --modules LIST   kernel modules to load, beside the usual ones
#   --timeout S      seconds for one kernel, boot included (default: 900)
#   --memory MIB     memory of a guest (default: 2048)
#   --stream         show the output of the tests while they run
#   --refresh        fetch the kernels again, though they are in the cache
#
# Environment: KERNELS, see --kernels. KERNELS_DIR: unpacked kernels to use instead of fetching, one in each subdirectory.
# JOBS: how many guests at a time (default: 1). Console logs: target/vm/<kernel>.log.
#
# Exit status: 0 all passed, or nothing could be run and a SKIP line says why; 1 a kernel failed; 2 wrong usage.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() { sed -n '4,27s/^# \{0,1\}//p' "$0"; }
wrong() { echo "run.sh: $*" >&2; exit 2; }

# What the tests use, and what of iproute2 needs a module. tls and smc: sockets that sockredir refuses. Kernels that have one built in or
# not at all don't mind.
modules='veth dummy tun wireguard ipip ipv6 8021q sch_ingress sch_prio sch_netem cls_bpf cls_u32 cls_matchall act_bpf act_gact
    inet_diag tcp_diag udp_diag unix_diag tls smc'
kernels=${KERNELS:-5.10 6.1 6.12 7}
bpftk='' command='' extra=() tests=() picks=() environment=() timeout=900 memory=2048 stream='' refresh=''
while [ $# -gt 0 ]; do
    case $1 in
        --stream) stream=1; shift; continue ;;
        --refresh) refresh=--refresh; shift; continue ;;
        --help | -h) usage; exit 0 ;;
        --) shift; break ;;
        --kernels | --bpftk | --tests | --pick | --command | --extra | --env | --modules | --timeout | --memory)
            [ $# -ge 2 ] || wrong "$1 needs a value" ;;
        *) wrong "unknown argument '$1' (arguments for the tests come after --)" ;;
    esac
    case $1 in
        --kernels) kernels=$2 ;;
        --bpftk) bpftk=$2 ;;
        --tests) tests+=("$2"); picks+=('') ;;
        --pick)
            [ ${#tests[@]} -gt 0 ] || wrong '--pick comes after the --tests that it is for'
            picks[-1]=$2 ;;
        --command) command=$2 ;;
        --extra) extra+=("$2") ;;
        --env) environment+=("$2") ;;
        --modules) modules="$modules ${2//,/ }" ;;
        --timeout) timeout=$2 ;;
        --memory) memory=$2 ;;
    esac
    shift 2
done
kernels=${kernels//,/ }
if [ -n "$command" ]; then
    [ ${#tests[@]} -eq 0 ] && [ $# -eq 0 ] || wrong '--command runs instead of --tests: give one of them'
    stream=1
else
    [ ${#tests[@]} -gt 0 ] || wrong 'nothing to run: --tests FILE or --command LINE'
    [ -n "$bpftk" ] || wrong '--tests needs --bpftk FILE'
fi
for file in ${bpftk:+"$bpftk"} "${tests[@]}"; do [ -f "$file" ] || wrong "no such file: $file"; done
for dir in "${extra[@]}"; do [ -d "$dir" ] || wrong "no such directory: $dir"; done
[ -n "${kernels// /}" ] || wrong 'no kernel given'

skip_all() { echo "SKIP kernels $kernels: $*"; exit 0; }
[ "$(uname -m)" = x86_64 ] || skip_all "guests are x86_64 only so far, this machine is $(uname -m)"
for tool in qemu-system-x86_64 busybox cpio xz; do
    command -v $tool >/dev/null || skip_all "no $tool (Debian: qemu-system-x86, busybox-static, cpio, xz-utils)"
done

read -ra emulator < <("$here/qemu.sh")

# How fast the TSC of this machine runs, which is the guests' clock, in kHz; nothing where that can't be told. A guest that measures it
# while other guests have the processors gets it wrong, by a factor of two at times, and then all its waits are.
tsc_khz() {
    local program=$tmp/tsc
    printf '%s\n' '#include <stdio.h>' '#include <time.h>' '#include <x86intrin.h>' \
        'static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC_RAW, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }' \
        'int main(void) { double t = now(); unsigned long long c = __rdtsc(); struct timespec s = { 0, 300000000 };' \
        'nanosleep(&s, 0); c = __rdtsc() - c; t = now() - t; printf("%.0f\n", c / t); return 0; }' |
        "${CC:-cc}" -O2 -x c -o "$program" - 2>/dev/null && "$program"
}

target=${CARGO_TARGET_DIR:-$here/../../target}
mkdir -p "$target/vm"
logs=$(cd "$target/vm" && pwd)
tmp=$(mktemp -d)
cleanup() {
    local pids
    pids=$(jobs -p)
    # shellcheck disable=SC2086 # a list of process ids
    [ -z "$pids" ] || kill $pids 2>/dev/null || true
    wait
    rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The job is a script: so arguments keep their quoting, whatever is in them.
mkdir -p "$tmp/root/tests"
{
    echo 'export BPFTK_BIN=/usr/bin/bpftk BPFTK_VM=1'
    for setting in "${environment[@]}"; do printf 'export %q\n' "$setting"; done
    echo 'cd /root; failed=0'
    if [ -n "$command" ]; then
        printf '%s\n' "$command"
    else
        number=0
        for file in "${tests[@]}"; do
            number=$((number + 1))
            install -D -m 755 "$file" "$tmp/root/tests/$number/$(basename "$file")"
            printf 'echo "$1 begin"; /tests/%q --test-threads=1 --show-output' "$number/$(basename "$file")"
            # shellcheck disable=SC2086 # a list of words
            [ -z "${picks[number - 1]}" ] || printf ' %q' ${picks[number - 1]}
            [ $# -eq 0 ] || printf ' %q' "$@"
            printf '; status=$?; [ $status -eq 0 ] || failed=1; echo; echo "$1 end $status"\n'
        done
        echo 'exit $failed'
    fi
} >"$tmp/root/job"
[ -z "$bpftk" ] || install -D -m 755 "$bpftk" "$tmp/root/usr/bin/bpftk"
"$here/initramfs.sh" base "$tmp/base.cpio" "$tmp/root" "${extra[@]}"
khz=$(tsc_khz || true)
marker=@bpftk-$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')@

# What a job prints need not end with a newline, so a line of ours may start anywhere in one.
without_markers="/^$marker /d; s/$marker .*//"

# Reads a guest's output; prints "passed failed skipped problem". libtest knows no run-time skip: a test that can't run here
# prints a line "SKIP reason" and returns, which libtest counts as passed, and this as skipped, once a test.
summary() {
    awk -v marker="$marker" -v command="$command" '
        { at = index($0, marker " ") }
        at {
            split(substr($0, at), word, " ")
            if (word[2] == "boot") booted = 1
            if (word[2] == "begin") { running = 1; result = 0; binary++ }
            if (word[2] == "end") {
                running = 0
                if (!result) problem = "a test binary printed no result (exit status " word[3] ")"
                else if (word[3] != 0 && failed == 0) problem = "a test binary ended with exit status " word[3]
            }
            if (word[2] == "exit") { ended = 1; status = word[3] }
        }
        /^test .* \.\.\. / { name = $2 }
        /^---- .* stdout ----$/ { name = $2 }
        /^SKIP / || /^test .* \.\.\. SKIP / { if (!((binary, name) in seen)) { seen[binary, name]; skipped++ } }
        /^test result: / {
            if (running) result = 1
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") passed += $(i - 1)
                if ($i == "failed;") failed += $(i - 1)
                if ($i == "ignored;") ignored += $(i - 1)
            }
        }
        END {
            if (!booted) problem = "the guest did not get as far as the tests"
            else if (!ended) problem = "the guest ended in the middle of the tests"
            else if (command != "") { if (status != 0) problem = "exit status " status }
            else if (problem == "" && failed > 0) problem = "tests failed"
            else if (problem == "" && status != 0) problem = "exit status " status
            else if (problem == "" && passed + failed + ignored == 0) problem = "no test was run"
            print passed - skipped + 0, failed + 0, skipped + ignored + 0, problem
        }' "$1"
}

# Boots one kernel. Writes NAME.status (what the matrix counts), NAME.line (its line in the summary) and NAME.show.
run_kernel() { # NAME DIRECTORY
    local name=$1 dir=$2 vmlinuz release modules_dir
    local console=$tmp/$name.console output=$tmp/$name.output log=$logs/$name.log
    # Of these directories a package has some: find's complaint about the others means nothing.
    vmlinuz=$({ find -L "$dir/boot" "$dir/usr/lib/modules" "$dir/lib/modules" -maxdepth 2 -name 'vmlinuz*' -type f \
        2>/dev/null || true; } | sort -V | tail -n 1)
    modules_dir=$({ find -L "$dir/usr/lib/modules" "$dir/lib/modules" -mindepth 1 -maxdepth 1 -type d \
        2>/dev/null || true; } | sort -V | tail -n 1)
    if [ -z "$vmlinuz" ] || [ -z "$modules_dir" ]; then
        echo "kernel $name: FAILED: no boot/vmlinuz-* or lib/modules/* in its directory" >"$tmp/$name.line"
        echo 1 >"$tmp/$name.status"
        return
    fi
    release=$(basename "$modules_dir")
    : >"$console"
    : >"$output"

    # shellcheck disable=SC2086 # a list of names
    "$here/initramfs.sh" modules "$tmp/$name.cpio" "$modules_dir" $modules
    cat "$tmp/base.cpio" "$tmp/$name.cpio" >"$tmp/$name.initrd"

    # oops=panic: a kernel that stumbled must not go on to pass. nowatchdog: on a busy machine an emulated CPU looks stuck.
    # no_timer_check: on a machine that is busy otherwise, the timer seems dead to a guest that asks it too early.
    # tsc=reliable: the kernel's test finds that virtual processors take turns and gives the TSC up for the HPET, which takes
    # microseconds to read, dozens of times what it takes on a machine. QEMU has one TSC for all of them.
    # rcu_expedited: what a tracer detaches from waits for all processors dozens of times, each time for some ticks.
    # Westmere: what every distribution asks for, without AVX and XSAVE, whose emulation is slow: 0.72 of the time of `max`.
    # thread=single: with a thread a CPU, guests that patch their text while both CPUs run die of a stale int3 now and
    # then, or hang. Guests run side by side instead (JOBS).
    local faster=rcupdate.rcu_expedited=1
    local start=$SECONDS qemu reader='' ended=0
    timeout -k 5 "$timeout" "${emulator[@]}" \
        -accel tcg,thread=single -cpu Westmere -smp 2 -m "$memory" \
        -nodefaults -no-user-config -display none -monitor none -no-reboot \
        -serial "file:$console" -serial "file:$output" \
        -kernel "$vmlinuz" -initrd "$tmp/$name.initrd" \
        -append "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic nowatchdog no_timer_check tsc=reliable ${khz:+tsc_early_khz=$khz} mitigations=off $faster bpftk.marker=$marker" \
        </dev/null >"$tmp/$name.qemu" 2>&1 &
    qemu=$!
    # An interrupted matrix leaves no guest behind; timeout passes the signal on to QEMU.
    trap 'kill $qemu ${reader:+$reader} 2>/dev/null; wait; exit 143' INT TERM HUP
    if [ -n "$stream" ]; then
        tail -n +1 -f --pid=$qemu -s 0.1 "$output" 2>/dev/null | sed -u "$without_markers" &
        reader=$!
    fi
    wait $qemu || ended=$?
    [ -z "$reader" ] || wait $reader || true
    trap - INT TERM HUP

    local passed failed skipped problem seconds=$((SECONDS - start))
    read -r passed failed skipped problem < <(summary "$output")
    # The guest's own account is believed only if nothing worse is known.
    if [ $ended -eq 124 ] || [ $ended -eq 137 ]; then
        problem="timed out after $timeout s"
    elif grep -aq '^[^d].*Kernel panic - not syncing' "$console"; then
        problem="kernel panic: $(grep -ao 'Kernel panic - not syncing.*' "$console" | head -n 1 | tr -d '\r' | cut -d: -f2- | cut -c2-)"
    elif [ $ended -ne 0 ]; then
        problem="QEMU ended with status $ended: $(tail -n 1 "$tmp/$name.qemu")"
    fi

    {
        echo "---- console of $release"
        tr -d '\r' <"$console"
        echo "---- output"
        cat "$output"
        cat "$tmp/$name.qemu"
    } >"$log"

    if [ -n "$command" ]; then
        echo "kernel $release: ${problem:-ok} ($seconds s)" >"$tmp/$name.line"
    else
        echo "kernel $release: $passed passed, $failed failed, $skipped skipped ($seconds s)${problem:+ FAILED: $problem}" \
            >"$tmp/$name.line"
    fi
    if [ -n "$problem" ]; then
        {
            echo "==== kernel $release: $problem; complete log: $log"
            # What passed is in the log; here it would only hide the rest.
            [ -n "$stream" ] || sed "$without_markers" "$output" |
                awk '/^successes:$/ { hide = 1 } /^(failures:$|test result: )/ { hide = 0 } !hide && !/^test .* \.\.\. (ok|ignored)$/'
            # Without an end the reason is on the console, not in the output.
            grep -aq "$marker exit " "$output" || { echo "---- last lines of the console"; tail -n 40 "$console" | tr -d '\r'; }
        } >"$tmp/$name.show"
        # With --command a failure is the command's own status, if it has one.
        local status
        status=$(sed -n "s/.*$marker exit \([0-9]*\).*/\1/p" "$output" | tail -n 1)
        if [ -n "$command" ] && [ -n "$status" ] && [ "$status" -ne 0 ]; then echo "$status"; else echo 1; fi
    else
        [ -n "$stream" ] || sed "$without_markers" "$output" | sed -n 's/^test .* \.\.\. \(SKIP .*\)/\1/; /^SKIP /p' | sort | uniq -c |
            sed "s/^ *1 /kernel $release: /; s/^ *\([0-9]*\) \(SKIP.*\)/kernel $release: \2 (\1 times)/" >"$tmp/$name.show"
        echo 0
    fi >"$tmp/$name.status"
    # No failure by itself, but nothing to keep quiet about when one's own programs run in that kernel.
    tr -d '\r' <"$console" | sed '1,/bpftk-vm: the job starts/d' |
        sed -n "s/^dmesg: .*\(\(WARNING\|BUG\|UBSAN\): .*\)/kernel $release: note: the kernel printed \1/p" >>"$tmp/$name.show"
    rm -f "$tmp/$name.initrd" "$tmp/$name.cpio"
}

# Which kernels there are: pairs of a name and a directory, or a reason to skip.
names=()
if [ -n "${KERNELS_DIR:-}" ]; then
    [ -d "$KERNELS_DIR" ] || wrong "KERNELS_DIR: no such directory: $KERNELS_DIR"
    for dir in "$KERNELS_DIR"/*/; do
        name=$(basename "$dir")
        # All of them, unless KERNELS or --kernels names some, by the name of the directory or the start of the version.
        for wanted in $kernels; do
            case $name in "$wanted" | "$wanted".* | "$wanted"-* | linux-"$wanted".*) ;; *) continue ;; esac
            names+=("$name")
            echo "$dir" >"$tmp/$name.dir"
            break
        done
    done
    [ ${#names[@]} -gt 0 ] || skip_all 'none of them in KERNELS_DIR'
else
    for series in $kernels; do
        names+=("$series")
        status=0
        "$here/fetch.sh" $refresh "$series" amd64 >"$tmp/$series.dir" 2>"$tmp/$series.why" || status=$?
        [ $status -ne 2 ] || wrong "$(tail -n 1 "$tmp/$series.why")"
        if [ $status -ne 0 ]; then
            rm "$tmp/$series.dir"
            echo "SKIP kernel $series: $(tail -n 1 "$tmp/$series.why")" >"$tmp/$series.line"
            # Not to be had is one thing, a fetch that broke another.
            if [ $status -ne 3 ]; then sed -i 's/^SKIP kernel \([^:]*\):/kernel \1: FAILED: fetch:/' "$tmp/$series.line"; fi
            if [ $status -ne 3 ]; then echo 1; else echo skip; fi >"$tmp/$series.status"
        fi
    done
fi

running=0
for name in "${names[@]}"; do
    [ -e "$tmp/$name.dir" ] || continue
    if [ $running -ge "${JOBS:-1}" ]; then
        wait -n || true
        running=$((running - 1))
    fi
    [ -n "$command" ] || echo "kernel $name: running" >&2
    run_kernel "$name" "$(cat "$tmp/$name.dir")" &
    running=$((running + 1))
done
wait

result=0 ran=0
for name in "${names[@]}"; do
    [ ! -s "$tmp/$name.show" ] || [ -n "$command" ] || cat "$tmp/$name.show"
    # A kernel whose run broke before it could say anything is a failure too.
    [ -e "$tmp/$name.status" ] || { echo 1 >"$tmp/$name.status"; echo "kernel $name: FAILED: run.sh broke" >"$tmp/$name.line"; }
    status=$(cat "$tmp/$name.status")
    [ "$status" = skip ] || ran=$((ran + 1))
    [ "$status" = skip ] || [ "$status" -eq 0 ] || [ "$result" -ne 0 ] || result=$status
done
[ -n "$command" ] && exec >&2
for name in "${names[@]}"; do cat "$tmp/$name.line"; done
[ $ran -gt 0 ] || echo "SKIP kernels: none could be run"
exit "$result"
