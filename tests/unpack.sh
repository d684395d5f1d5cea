#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: unpack.sh DIR PACKAGE...
#
# Unpacks the distribution's packages into DIR, unless all are installed or DIR has them already. They are not installed, because
# those of servers start services, which no test run may do to its machine. Neither is root needed, nor does apt's state change.
#
# Programs are where their packages put them, below DIR; libraries that the machine lacks are in DIR/usr/lib/<architecture>. If a package
# can't be had, a line says why, and what is missing is not in DIR: the tests that need it are skipped then.
set -eu
[ $# -ge 2 ] || { sed -n '4p' "$0" | cut -c3- >&2; exit 2; }
dir=$1
shift

say() { echo "unpack.sh: $*" >&2; }
unavailable() { say "$asked can't be had: $*"; exit 0; }

asked=$*
[ "$(cat "$dir/packages" 2>/dev/null)" != "$asked" ] || exit 0
wanted=''
for package in "$@"; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
        installed) ;;
        *) wanted="$wanted $package" ;;
    esac
done
[ -n "$wanted" ] || exit 0
command -v apt-get >/dev/null || unavailable 'no apt-get'

# What installing each would bring; what it would only renew is here, and good enough. Of that the tests run the servers alone, whose
# Perl scripts and just-in-time compilers of queries are not used.
packages=''
for package in $wanted; do
    brought=$(apt-get -qq -s install --no-install-recommends "$package" 2>/dev/null | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }' |
        grep -vE '^(perl|lib(llvm|z3|perl)|lib.*-perl$)' || true)
    [ -n "$brought" ] || say "apt would not install $package"
    packages="$packages $brought"
done
packages=$(printf '%s\n' $packages | sort -u)
[ -n "$packages" ] || exit 0

mkdir -p "$(dirname "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/deb" "$work/root"
say "unpacking$wanted into $dir"
# shellcheck disable=SC2086 # a list
(cd "$work/deb" && apt-get -q download $packages >../log 2>&1) || unavailable "$(tail -n 1 "$work/log")"
for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
echo "$asked" >"$work/root/packages"
# The directory of mktemp is its maker's alone, and a server may be somebody else.
chmod 755 "$work/root"
rm -rf "$dir"
mv -T "$work/root" "$dir"
