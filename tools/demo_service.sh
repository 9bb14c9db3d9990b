#!/bin/sh
# The second half of `make demo`: two releases of the run's choice on a real server, a rollback, and the service ended again.
set -eu
redline=$1
spec=$2

show() {
    printf '\n$ redline %s\n' "$*"
    "$redline" "$@"
}

trap '"$redline" serve "$spec" --stop >/dev/null 2>&1 || true' EXIT
show release "$spec"
show release "$spec"
show rollback "$spec"
show release "$spec" --status
show serve "$spec" --stop
