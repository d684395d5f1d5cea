#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: qemu.sh
#
# Prints the command of QEMU for x86_64 guests, words separated by spaces: the installed one, or, where that is older than 8, the one of the
# distribution's backports, unpacked beside the kernel cache. Emulation became faster since 7.2, by a tenth to a quarter of the tests' time.
# Nothing is installed, and whatever can't be had leaves the installed one.
set -eu

program=qemu-system-x86_64
installed() { echo $program; exit 0; }

major=$($program --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\)\..*/\1/p')
[ "${major:-8}" -lt 8 ] || installed

cache=${BPFTK_KERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bpftk/kernels}
dest=${cache%/}/qemu
found() {
    # Its BIOS is the installed package's, and so are its libraries.
    [ -x "$dest/usr/bin/$program" ] && "$dest/usr/bin/$program" --version >/dev/null 2>&1 || installed
    echo "$dest/usr/bin/$program -L $dest/usr/share/qemu -L /usr/share/seabios"
    exit 0
}
[ ! -e "$dest" ] || found

say() { echo "qemu.sh: $*; the installed one is used" >&2; }
for tool in apt-get dpkg-deb flock; do
    command -v $tool >/dev/null || { say "no $tool"; installed; }
done
codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
mirror=$(apt-get indextargets 'Created-By: Packages' 'Origin: Debian' --format '$(REPO_URI) $(RELEASE)' 2>/dev/null |
    awk '$2 !~ /-security$/ { print $1; exit }')
[ -n "$codename" ] && [ -n "$mirror" ] || { say 'no Debian mirror is known'; installed; }

mkdir -p "$cache"
# Guests start beside each other, and one fetches.
exec 9>"$cache/.qemu.lock"
flock 9
[ ! -e "$dest" ] || found

work=$(mktemp -d "$cache/.qemu.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
"$(dirname "$0")/apt-conf.sh" "$work" "$(dpkg --print-architecture)" "$mirror" "$codename-backports"
APT_CONFIG=$work/apt.conf
export APT_CONFIG
apt-get -q update >"$work/log" 2>&1 || true
for package in qemu-system-x86 qemu-system-common qemu-system-data; do
    (cd "$work/deb" && apt-get -q download $package) >>"$work/log" 2>&1 || { say "$package of $codename-backports can't be had"; installed; }
done
for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
mv -T "$work/root" "$dest"
found
