#!/bin/sh
# Puts the programs on the machine that only the deep tests and a benchmark use; loud when it can't.
# Arguments: <program or file>:<package> …; without any, what the deep tests need.
set -eu
[ $# -gt 0 ] || set -- chromium:chromium nginx:nginx redis-check-rdb:redis-tools buildah:buildah debootstrap:debootstrap promtool:prometheus
missing=
for pair in "$@"; do
    PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || [ -e "${pair%%:*}" ] ||
        missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
sudo=
[ "$(id -u)" = 0 ] || sudo='sudo -n'
echo "Installing:$missing"
if command -v apt-get >/dev/null 2>&1 &&
    $sudo apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
    exit 0
fi
echo "These packages are needed, and they could not be installed:$missing. Install them and try again." >&2
exit 1
