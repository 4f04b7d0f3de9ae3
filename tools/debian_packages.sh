#!/bin/sh
# Puts the programs on the machine that only the deep tests use; loud when it can't.
set -eu
missing=
for pair in chromium:chromium nginx:nginx redis-check-rdb:redis-tools; do
    PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
sudo=
[ "$(id -u)" = 0 ] || sudo='sudo -n'
echo "Installing for the deep tests:$missing"
if command -v apt-get >/dev/null 2>&1 &&
    $sudo apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null; then
    exit 0
fi
echo "The deep tests need these programs, and they could not be installed:$missing. Install them and run make test-deep again." >&2
exit 1
