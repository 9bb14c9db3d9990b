#!/bin/sh
# Makes the virtual environment $1 on a fresh machine: says clearly what is missing, and installs Debian's venv package if it may.
set -eu
venv=$1
python=${PYTHON:-python3}

fail() {
    printf 'redline: %s\n' "$@" >&2
    exit 2
}

system=$(uname -s)
machine=$(uname -m)
if [ "$system" != Linux ] || [ "$machine" != x86_64 ]; then
    fail "this platform is not supported" "  got:     $system $machine" "  allowed: Linux x86_64" \
        "  fix:     use a Linux x86-64 machine, container or WSL 2"
fi
command -v "$python" >/dev/null 2>&1 || fail "no $python found" "  fix:     apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python is too old" "  got:     $("$python" --version 2>&1)" "  allowed: 3.10 or newer" "  fix:     make PYTHON=python3.12 ..."

if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    # Debian and Ubuntu ship Python without ensurepip; the package python3-venv brings it.
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo=sudo; else
        fail "Python's venv module is not installed" "  fix:     sudo apt-get install $package, then run make again"
    fi
    echo "redline: installing $package"
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq "$package"
fi
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$venv"
