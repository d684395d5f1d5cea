#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: extract-btf.sh VMLINUZ OUT
#
# Takes the BTF out of a compressed kernel: x86 bzImage, arm64 Image, Image.gz or EFI zboot image.
set -eu
[ $# -eq 2 ] || { sed -n '4,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
in=$1 out=$2

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

die() { echo "extract-btf.sh: $in: $*" >&2; exit 1; }
# value FILE OFFSET BYTES: an unsigned little-endian number.
value() { od -An -v -tu"$3" --endian=little -j "$2" -N "$3" "$1" | tr -d ' '; }
slice() { tail -c +$(($2 + 1)) "$1" | head -c "$3"; }
hex() { od -An -v -tx1 -j "$2" -N "$3" "$1" | tr -d ' \n'; }

payload=$in
if [ "$(hex "$in" 514 4)" = 48647253 ]; then
    # bzImage, boot protocol 2.08+: the header says where the compressed kernel is. setup_sects 0 means 4.
    sects=$(value "$in" 497 1)
    [ "$sects" -ne 0 ] || sects=4
    slice "$in" $(((sects + 1) * 512 + $(value "$in" 584 4))) "$(value "$in" 588 4)" >"$tmp/payload"
    payload=$tmp/payload
elif [ "$(hex "$in" 0 2)" = 4d5a ] && [ "$(hex "$in" 4 4)" = 7a696d67 ]; then
    slice "$in" "$(value "$in" 8 4)" "$(value "$in" 12 4)" >"$tmp/payload"
    payload=$tmp/payload
fi

# The build appends the uncompressed size to all but gzip: the tools report that as trailing garbage after they have
# written everything, so their exit status says nothing. The search below is the check.
case $(hex "$payload" 0 6) in
    1f8b*) gzip -dc <"$payload" ;;
    fd377a585a00) xz -dc --single-stream <"$payload" ;;
    28b52ffd*) zstd -dc <"$payload" ;;
    0221*) lz4 -dc <"$payload" ;;
    5d0000*) xz -dc --format=lzma <"$payload" ;;
    *) cat "$payload" ;;
esac >"$tmp/image" 2>/dev/null || true

# An arm64 Image isn't an ELF file, so look for the blob itself: magic 0xeb9f, version 1, no flags, then a header whose
# sections add up. Of several (none is expected) the largest is vmlinux's own.
size=$(wc -c <"$tmp/image")
best=0 at=
for off in $(LC_ALL=C grep -obUaP '\x9f\xeb\x01\x00[\x18-\x40]\x00\x00\x00\x00\x00\x00\x00' "$tmp/image" | cut -d: -f1); do
    hdr=$(value "$tmp/image" $((off + 4)) 4)
    type_len=$(value "$tmp/image" $((off + 12)) 4)
    str_off=$(value "$tmp/image" $((off + 16)) 4)
    str_len=$(value "$tmp/image" $((off + 20)) 4)
    len=$((hdr + str_off + str_len))
    if [ "$str_off" -ge "$type_len" ] && [ $((off + len)) -le "$size" ] && [ "$len" -gt "$best" ]; then
        best=$len at=$off
    fi
done
[ -n "$at" ] || die 'no BTF found'
slice "$tmp/image" "$at" "$best" >"$out"
