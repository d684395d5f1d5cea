#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: generate.sh
#
# Makes vmlinux/<arch>/vmlinux.h from the BTF of Debian's cloud kernels. KERNEL=SERIES takes another series than 6.12;
# --refresh in FETCH_FLAGS takes the newest package of it instead of the one in the kernel cache.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
series=${KERNEL:-6.12}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

for pair in x86_64:amd64 aarch64:arm64; do
    rust=${pair%:*} deb=${pair#*:}
    # shellcheck disable=SC2086 # a list of flags
    kernel=$("$here/../tests/vm/fetch.sh" ${FETCH_FLAGS-} "$series" "$deb")
    vmlinuz=$(find "$kernel/boot" "$kernel/usr/lib/modules" -name 'vmlinuz*' -type f 2>/dev/null | head -n 1)
    "$here/extract-btf.sh" "$vmlinuz" "$tmp/btf"
    package=$(head -n 1 "$kernel/packages")
    mkdir -p "$here/$rust"
    {
        echo '/* SPDX-License-Identifier: GPL-2.0-only */'
        echo "/* From the BTF of Debian's ${package% *}, version ${package#* }. Made by vmlinux/generate.sh. */"
        bpftool btf dump file "$tmp/btf" format c
    } >"$tmp/vmlinux.h"
    mv "$tmp/vmlinux.h" "$here/$rust/vmlinux.h"
    echo "$rust: $package"
done
