"""Processes told apart without the wall clock, and the Python processes of a server: one for every instance of a model."""

from __future__ import annotations

from pathlib import Path

import psutil

PROC = Path("/proc")
STUB = "triton_python_backend_stub"
START_TICKS, STATE = 19, 0
"""Places in /proc/PID/stat behind the process's name: fields 22 and 3 of proc(5)."""


def identity(pid: int) -> str | None:
    """What tells this process from another one of the same pid: the boot, and its start in ticks since; None if there is none.

    Not its time of day, which a change of the clock would move.
    """
    fields = _stat(pid)
    if fields is None:
        return None
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{boot}/{fields[START_TICKS]}"


def runs(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that waits for its parent to notice has."""
    fields = _stat(pid)
    return fields is not None and fields[STATE] not in "ZX"


def stubs_of(server_pid: int) -> dict[int, str]:
    """The Triton model that each of the server's Python processes runs, by pid. Reads all of /proc: not for an event loop."""
    found = {}
    try:
        children = psutil.Process(server_pid).children()
    except psutil.Error:
        return {}
    for child in children:
        try:
            command = child.cmdline()
        except psutil.Error:  # it has ended
            continue
        if len(command) > 1 and Path(command[0]).name == STUB:
            found[child.pid] = Path(command[1]).parent.parent.name
    return found


def _stat(pid: int) -> list[str] | None:
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
