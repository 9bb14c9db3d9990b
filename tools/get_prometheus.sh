#!/bin/sh
# Prints a folder with `prometheus` and `promtool`: where they are installed, or unpacked from Debian's package, which starts
# no service. $1: folder to unpack into (default: build/prometheus). Exit 1, with the reason, where it cannot be had.
set -eu
if command -v promtool >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1; then
    dirname "$(command -v promtool)"
    exit
fi
cd "$(dirname "$0")/.."
home=${1:-build/prometheus}
if [ ! -x "$home/usr/bin/promtool" ]; then
    command -v apt-get >/dev/null 2>&1 || { echo "no prometheus, and no apt-get to fetch it" >&2; exit 1; }
    mkdir -p "$home.new.$$"
    trap 'rm -rf "$home.new.$$"' EXIT
    (
        cd "$home.new.$$"
        apt-get download -qq prometheus >/dev/null 2>log ||
            { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>log && apt-get download -qq prometheus >/dev/null 2>log; } ||
            { echo "cannot fetch Debian's package prometheus: $(tail -n 1 log)" >&2; exit 1; }
        dpkg -x prometheus_*.deb .
        rm -f prometheus_*.deb log
    )
    # Another process may have been faster; then its copy is as good.
    [ -x "$home/usr/bin/promtool" ] || { mkdir -p "$(dirname "$home")" && rm -rf "$home" && mv "$home.new.$$" "$home"; } || true
fi
[ -x "$home/usr/bin/promtool" ] || { echo "no promtool in $home" >&2; exit 1; }
cd "$home/usr/bin" && pwd
