#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# usage: apt-conf.sh DIR ARCH SITE SUITE [SITE SUITE]...
#
# Makes DIR/apt.conf, with which apt (APT_CONFIG) asks those suites alone for ARCH, and keeps its state in DIR: the machine's sources, lists
# and architectures stay as they are, and root isn't needed. Signatures are checked. DIR/deb and DIR/root are made for what is fetched.
set -eu
[ $# -ge 4 ] || { sed -n '4p' "$0" | cut -c3- >&2; exit 2; }
work=$1 arch=$2
shift 2

mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/deb" "$work/root"
: >"$work/status"

keyring=
for k in /usr/share/keyrings/debian-archive-keyring.pgp /usr/share/keyrings/debian-archive-keyring.gpg; do
    if [ -r $k ]; then keyring="[signed-by=$k] "; break; fi
done
while [ $# -ge 2 ]; do
    echo "deb $keyring$1 $2 main"
    shift 2
done >"$work/sources.list"

cat >"$work/apt.conf" <<CONF
#clear APT::Architectures;
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "";
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages { "none"; };
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
CONF
