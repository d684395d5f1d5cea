#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: postgres.sh DIR
#
# Unpacks PostgreSQL into DIR, from the distribution's packages, unless it is installed or there already. It is not installed, because
# its package makes a cluster and starts a service, which no test run may do to its machine. Neither is root needed, nor does apt's
# state change.
#
# PostgreSQL finds its files relative to its program, so DIR may be moved or copied. Libraries that the machine lacks are in
# DIR/usr/lib/<architecture>. If it can't be had, a line says why, and DIR is not there: the tests that need it are skipped then.
set -eu
[ $# -eq 1 ] || { sed -n '4p' "$0" | cut -c3- >&2; exit 2; }
dir=$1

unavailable() { echo "postgres.sh: PostgreSQL can't be had: $*" >&2; exit 0; }

for postgres in "$dir"/usr/lib/postgresql/*/bin/postgres /usr/lib/postgresql/*/bin/postgres "$(command -v postgres || true)"; do
    [ ! -x "$postgres" ] || exit 0
done
command -v apt-get >/dev/null || unavailable 'no apt-get'

version=$(apt-cache depends postgresql 2>/dev/null | sed -n 's/^ *Depends: postgresql-\([0-9]*\)$/\1/p' | head -n 1)
[ -n "$version" ] || unavailable 'apt knows no package postgresql'
# What installing it would bring; what it would only renew is here, and good enough. Of that the server runs its programs and libraries alone, and compiles no query to machine code.
packages=$(apt-get -qq -s install --no-install-recommends "postgresql-$version" 2>/dev/null | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }' |
    grep -E "^(lib|postgresql-(client-)?$version\$)" | grep -vE '^lib(llvm|z3|perl)' || true)
case $packages in *postgresql-"$version"*) ;; *) unavailable "apt would not install postgresql-$version" ;; esac

mkdir -p "$(dirname "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/deb" "$work/root"
echo "postgres.sh: unpacking PostgreSQL $version into $dir"
# shellcheck disable=SC2086 # a list
(cd "$work/deb" && apt-get -q download $packages >../log 2>&1) || unavailable "$(tail -n 1 "$work/log")"
for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
# The directory of mktemp is its maker's alone, and the server is somebody else.
chmod 755 "$work/root"
mv -T "$work/root" "$dir"
