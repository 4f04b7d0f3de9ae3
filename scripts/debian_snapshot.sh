#!/bin/sh
# debian_snapshot.sh ARCHIVE TIME: let apt take its packages as they were at a time (20261101T000000Z) from an archive of
# Debian's states, instead of the newest; nothing without a time. For the Dockerfile: the same sources, the same image.
set -eu
[ -n "${2:-}" ] || exit 0
[ -n "$1" ] || { echo "SNAPSHOT needs SNAPSHOTS, the archive's address" >&2 && exit 2; }
case $2 in *[!0-9TZ]*) echo "SNAPSHOT is a time such as 20261101T000000Z, not $2" >&2 && exit 2 ;; esac
release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d
cat >/etc/apt/sources.list <<TEXT
deb [check-valid-until=no] $1/debian/$2 $release main
deb [check-valid-until=no] $1/debian/$2 $release-updates main
deb [check-valid-until=no] $1/debian-security/$2 $release-security main
TEXT
