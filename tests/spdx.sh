#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: spdx.sh
#
# Every source file names its licence in its first lines, and the right one: bpf/ and tests/bpf/ go into the kernel and are
# GPL-2.0-only OR BSD-2-Clause, vmlinux.h is the kernel's own, all else is MIT OR Apache-2.0.
set -eu
cd "$(dirname "$0")/.."

bad=0 count=0
# A file of the repository, or one that will be. A tarball has no git: there, every file that isn't a build's.
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    files=$(git ls-files --cached --others --exclude-standard)
else
    files=$(find . \( -name target -o -name dist \) -prune -o -type f -print | sed 's/^\.\///')
fi
# The names have no spaces in them: that is checked as well.
IFS='
'
for file in $files; do
    [ -f "$file" ] || continue
    case $file in
        *' '*) echo "spdx: a file name with a space: $file"; bad=1; continue ;;
        # The licences themselves, what cargo writes, and what is rendered from the command line's definition.
        LICENSE-* | bpf/LICENSE.* | Cargo.lock | man/*.1) continue ;;
        bpf/* | tests/bpf/*) licence='GPL-2.0-only OR BSD-2-Clause' ;;
        vmlinux/*/vmlinux.h) licence='GPL-2.0-only' ;;
        *) licence='MIT OR Apache-2.0' ;;
    esac
    count=$((count + 1))
    # To the end of the line: `MIT OR Apache-2.0` must not pass as `MIT`, nor the other way round.
    head -n 3 "$file" | sed 's/ *\(\*\/\|-->\) *$//' | grep -q "SPDX-License-Identifier: $licence\$" || {
        echo "spdx: $file: no line 'SPDX-License-Identifier: $licence' at its top"
        bad=1
    }
done
[ $bad -ne 0 ] || echo "spdx: $count files name their licence"
exit $bad
