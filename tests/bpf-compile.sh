#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: bpf-compile.sh
#
# Compiles every bpf/*.bpf.c, and those of the tests, for each architecture that has a vmlinux.h, with the flags of build.rs and
# warnings as errors. The build itself does that for one architecture only. libbpf's headers are those of the libbpf-sys that
# Cargo.lock names.
set -euo pipefail
cd "$(dirname "$0")/.."

clang=${CLANG:-}
if [ -z "$clang" ]; then
    newest=0
    for candidate in clang $(seq -f 'clang-%g' 15 40); do
        version=$("$candidate" -dumpversion 2>/dev/null | cut -d. -f1) || continue
        if [ "$version" -gt "$newest" ]; then newest=$version clang=$candidate; fi
    done
    [ -n "$clang" ] || { echo 'bpf-compile: no clang: make deps' >&2; exit 1; }
fi

manifest=$(cargo metadata --locked --format-version 1 |
    jq -r '.packages[] | select(.name == "libbpf-sys") | .manifest_path')
[ -n "$manifest" ] || { echo 'bpf-compile: Cargo.lock names no libbpf-sys' >&2; exit 1; }
out=${CARGO_TARGET_DIR:-target}/bpf
mkdir -p "$out/include"
# The programs say <bpf/bpf_helpers.h>.
ln -sfn "$(dirname "$manifest")/libbpf/src" "$out/include/bpf"

failed=0 count=0
for arch in x86_64:x86 aarch64:arm64; do
    rust=${arch%:*} kernel=${arch#*:}
    mkdir -p "$out/$rust"
    for source in bpf/*.bpf.c tests/bpf/*.bpf.c; do
        count=$((count + 1))
        "$clang" -target bpf -g -O2 -mcpu=v3 -Wall -Werror -Wno-missing-declarations "-D__TARGET_ARCH_$kernel" \
            -I "vmlinux/$rust" -I bpf -I "$out/include" -c "$source" -o "$out/$rust/$(basename "$source" .c).o" ||
            { echo "bpf-compile: $source does not compile for $rust" >&2; failed=1; }
    done
done
[ $failed -ne 0 ] || echo "bpf-compile: $count objects with $clang: every program compiles for x86_64 and aarch64"
exit $failed
