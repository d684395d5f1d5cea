#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: fetch.sh [--refresh] SERIES ARCH
#
# Fetches and unpacks the newest Debian cloud kernel of SERIES (5.10, 6.1, 6.12, 7) for ARCH (amd64, arm64) into the kernel
# cache, unless it is there, and prints the directory. Exit status 3: can't be had here (the last line on stderr says why).
#
# apt does the fetching and the checking of signatures, but with a configuration and a state of its own: the machine's
# sources, lists and architectures stay as they are, and root isn't needed.
set -eu

refresh=
if [ "${1-}" = --refresh ]; then refresh=1; shift; fi
[ $# -eq 2 ] || { sed -n '4,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
series=$1 arch=$2

unavailable() { echo "$*" >&2; exit 3; }

# The suites that carry a series. A name ending in -security is looked for on the site that serves this machine's own
# -security suite, all others on the site that serves its main suite.
case $series in
    5.10) suites='bullseye bullseye-updates bullseye-security' ;;
    6.1) suites='bookworm bookworm-updates bookworm-security' ;;
    6.12) suites='trixie trixie-updates trixie-security' ;;
    7) suites=trixie-backports ;;
    *) echo "fetch.sh: unknown kernel series '$series': one of 5.10, 6.1, 6.12, 7" >&2; exit 2 ;;
esac

cache=${BPFTK_KERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bpftk/kernels}
dest=$cache/$arch/$series
if [ -z "$refresh" ] && [ -s "$dest/packages" ]; then
    echo "$dest"
    exit 0
fi

for tool in apt-get apt-cache dpkg-deb; do
    command -v $tool >/dev/null || unavailable "no $tool: Debian's kernels come through apt"
done

# The mirror is whatever this machine uses already.
targets=$(apt-get indextargets 'Created-By: Packages' 'Origin: Debian' --format '$(REPO_URI) $(RELEASE)' 2>/dev/null || true)
[ -n "$targets" ] || unavailable "apt knows no Debian mirror (another distribution, or 'apt-get update' was never run)"
main=$(echo "$targets" | awk '$2 !~ /-security$/ { print $1; exit }')
security=$(echo "$targets" | awk '$2 ~ /-security$/ { print $1; exit }')

mkdir -p "$cache/$arch"
work=$(mktemp -d "$cache/$arch/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
sources=$(for suite in $suites; do
    case $suite in *-security) site=$security ;; *) site=$main ;; esac
    [ -z "$site" ] || echo "$site $suite"
done)
# shellcheck disable=SC2086 # pairs of words
"$(dirname "$0")/apt-conf.sh" "$work" "$arch" $sources
APT_CONFIG=$work/apt.conf
export APT_CONFIG

# One suite that is gone (an old -updates pocket) must not cost the others: what counts is whether the kernel is found.
apt-get -q update >"$work/update.log" 2>&1 || true

# madison lists newest first within a suite only, so sort; the series must match as whole components (6.1 is not 6.12).
meta=linux-image-cloud-$arch
version=$(apt-cache madison "$meta" 2>/dev/null | awk -F'|' '{ gsub(/ /, "", $2); print $2 }' |
    awk -v s="$series" 'index($0, s ".") == 1' | sort -V | tail -n 1)
if [ -z "$version" ]; then
    why=$(grep -A 1 '^Err:' "$work/update.log" | sed -n '2s/^ *//p')
    unavailable "no $series cloud kernel in $suites${why:+ (apt: $why)}"
fi

# What one package version depends on, a name a line, alternatives and versions cut off.
depends() {
    apt-cache show "$1" | sed -n 's/^\(Pre-\)\{0,1\}Depends: //p' | tr ',' '\n' | sed 's/^ *//; s/[ |].*//' | sort -u
}
image=$(depends "$meta=$version" | grep "^linux-image-.*-cloud-$arch" | head -n 1)
[ -n "$image" ] || unavailable "$meta $version names no image package"

# Up to 7.1 the image package holds all; since 7.2 vmlinuz, modules and config are in packages that it depends on.
( cd "$work/deb"
  for p in "$image=$version" $(depends "$image=$version" | grep -E '^linux-(base|binary|modules)-[0-9]' | sed "s/\$/=$version/"); do
      apt-get -q download "$p" >>"$work/download.log" 2>&1 || { tail -n 5 "$work/download.log" >&2; exit 1; }
  done ) || unavailable "$image $version could not be downloaded"

for deb in "$work"/deb/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
    dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb" >>"$work/root/packages"
done

rm -rf "$dest"
mv -T "$work/root" "$dest"
echo "$dest"
