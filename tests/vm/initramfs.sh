#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: initramfs.sh base OUT ROOT [EXTRA_DIR]       everything but the modules; ROOT is a tree to start from
#        initramfs.sh modules OUT MODULES_DIR NAME... these modules and what they depend on
#
# Two archives, because the kernel takes them one after the other in one file and only the second differs between kernels.
# Neither is compressed: under emulation the guest's decompression costs more than the reading.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '4,5s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
what=$1 out=$2
shift 2

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

pack() { # DIR OUT: owned by root, whoever builds it
    (cd "$1" && find . -mindepth 1 -print0 | sort -z | cpio --quiet -0 -o -H newc -R 0:0) >"$2"
}

# A program and the shared libraries it needs, at the paths where its interpreter will look. A static one needs none. Libraries that
# are below FROM are installed as if it were the root.
install_with_libraries() { # ROOT FILE DEST [FROM]
    install -D -m 755 "$2" "$1$3"
    { ldd "$2" 2>/dev/null || true; } | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' |
        while read -r library; do
            [ -e "$1${library#"${4-}"}" ] || install -D -m 755 "$(readlink -f "$library")" "$1${library#"${4-}"}"
        done
}

# PostgreSQL, where this machine has it or where tests/unpack.sh unpacked it: four programs and what they read.
install_postgres() { # ROOT
    local from server program
    for from in '' "${BPFTK_POSTGRES-}"; do
        server=$({ ls -d "$from"/usr/lib/postgresql/*/bin/postgres 2>/dev/null || true; } | sort -V | tail -n 1)
        [ -z "$server" ] || break
    done
    [ -n "$server" ] || return 0
    server=${server%/bin/postgres}
    server=${server#"$from"}
    for program in postgres initdb psql pgbench; do
        LD_LIBRARY_PATH=$from/usr/lib/$(uname -m)-linux-gnu install_with_libraries "$1" "$from$server/bin/$program" "$server/bin/$program" "$from"
    done
    install -D -m 755 -t "$1$server/lib" "$from$server"/lib/{plpgsql,dict_snowball}.so
    # But for the manual, and for links into /var.
    (cd "$from/" && find "usr/share/postgresql/${server##*/}" -type f ! -name '*.gz' | tar -c -T -) | tar -C "$1" -x --no-same-owner
}

base() {
    local root=$tmp/root
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{dev,proc,sys,tmp,run,root,mnt,etc,var,modules}
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$root"
    ln -s ../run "$root/var/run"
    ln -s ../tmp "$root/var/tmp"

    # nc, ping, wget and so on.
    install -m 755 "$(command -v busybox)" "$root/usr/bin/busybox"
    # busybox has no netns, no clsact, no ss. And when it starts a program it takes an applet of its own first, whatever PATH
    # says: with its sh or its timeout, `ip` would be busybox's. So what starts programs comes from this machine as well.
    local tool path
    for tool in sbin/ip sbin/tc sbin/ss bin/env bin/timeout bin/setsid bin/nohup bin/nice bin/xargs bin/unshare bin/nsenter; do
        if path=$(PATH=$PATH:/usr/sbin:/sbin type -P "${tool#*/}"); then
            install_with_libraries "$root" "$path" "/usr/$tool"
        else
            echo "initramfs.sh: no ${tool#*/} on this machine: tests that use it may not work in the guest" >&2
        fi
    done
    install_with_libraries "$root" "$(readlink -f "$(type -P sh)")" /usr/bin/sh
    if path=$(type -P bash); then install_with_libraries "$root" "$path" /usr/bin/bash; fi
    # What sockredir's tests let talk to each other: who lacks one skips a test.
    for tool in redis-benchmark redis-cli redis-check-rdb iperf3 curl ssh scp ssh-keygen dropbear dropbearkey; do
        if path=$(PATH=$PATH:/usr/sbin:/sbin type -P "$tool"); then install_with_libraries "$root" "$path" "/usr/bin/$tool"; fi
    done
    install_postgres "$root"
    for applet in $("$root/usr/bin/busybox" --list); do
        [ -e "$root/usr/sbin/$applet" ] || [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
    done

    install -m 755 "$here/init" "$root/init"
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/:/bin/false \
        nobody:x:65534:65534:nobody:/:/bin/false >"$root/etc/passwd"
    printf '%s\n' root:x:0: daemon:x:1: nogroup:x:65534: >"$root/etc/group"
    printf '%s\n' '127.0.0.1 localhost bpftk-vm' '::1 localhost' >"$root/etc/hosts"
    echo 'hosts: files' >"$root/etc/nsswitch.conf"

    # Trees of others may have real directories where this one has links, or the other way round.
    local tree
    for tree in "$@"; do
        tar -C "$tree" -c . | tar -C "$root" -x --no-same-owner --keep-directory-symlink
    done
    # What was copied may need libraries as well: static is the rule, not a condition.
    local file
    while IFS= read -r file; do
        install_with_libraries "$root" "$root$file" "$file.with-libraries" && mv "$root$file.with-libraries" "$root$file"
    done < <(cd "$root" && find ./usr/bin/bpftk ./tests -type f 2>/dev/null | sed 's/^\.//')
    pack "$root" "$out"
}

modules() {
    local dir=$1
    shift
    mkdir -p "$tmp/modules"
    : >"$tmp/modules/order"
    # Built-in modules have no file; a name that is nowhere is for the tests to notice, since kernels differ in what they have.
    add() {
        local name=${1//-/_} file depends dependency
        [ ! -e "$tmp/modules/$name.ko" ] || return 0
        file=$(find "$dir/kernel" \( -name "${name//_/[-_]}.ko" -o -name "${name//_/[-_]}.ko.*" \) | head -n 1)
        [ -n "$file" ] || return 0
        case $file in
            *.xz) xz -dc "$file" ;;
            *.zst) zstd -dcq "$file" ;;
            *.gz) gzip -dc "$file" ;;
            *) cat "$file" ;;
        esac >"$tmp/modules/$name.ko"
        # modules.dep is made at installation, so it isn't in the package; the module itself says what it needs.
        depends=$(tr '\0' '\n' <"$tmp/modules/$name.ko" | LC_ALL=C sed -n 's/^depends=//p' | head -n 1)
        for dependency in ${depends//,/ }; do add "$dependency"; done
        echo "$name" >>"$tmp/modules/order"
    }
    for name in "$@"; do add "$name"; done
    mkdir "$tmp/root"
    mv "$tmp/modules" "$tmp/root/modules"
    pack "$tmp/root" "$out"
}

case $what in
    base) base "$@" ;;
    modules) modules "$@" ;;
    *) usage ;;
esac
