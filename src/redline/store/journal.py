"""The journal of a run: one JSON line a stage, appended whole, readable after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from redline.errors import StoreError
from redline.store.codec import digest_of, dump, load
from redline.store.disk import guarded

Outcome = Literal["computed", "reused", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLine:
    at: str
    """ISO 8601, UTC: when the stage ended."""
    stage: str
    inputs: str
    """Digest of the stage's inputs."""
    output: str | None
    """Digest of what it gave; None if it failed."""
    seconds: float
    outcome: Outcome
    note: str = ""


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path

    def append(
        self, stage: str, inputs: object, output: str | None, seconds: float, outcome: Outcome, note: str = ""
    ) -> JournalLine:
        """Add one line, on the disk when this returns. `inputs`: a digest, or whatever `digest_of` takes."""
        named = inputs if isinstance(inputs, str) and is_digest(inputs) else digest_of(inputs)
        line = JournalLine(at=now(), stage=stage, inputs=named, output=output, seconds=seconds, outcome=outcome, note=note)
        with guarded("write", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _append(file.fileno(), dump(line) + b"\n")
        return line

    def read(self) -> tuple[JournalLine, ...]:
        """Every whole line; a last line torn by a kill is left out. Raises StoreError for any other damage."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError("store.io", f"cannot read {self.path}", got=error.strerror) from error
        whole = data[: data.rfind(b"\n") + 1]
        return tuple(self._line(number, line) for number, line in enumerate(whole.splitlines(), start=1))

    def _line(self, number: int, line: bytes) -> JournalLine:
        try:
            return load(JournalLine, line)
        except StoreError as error:
            raise StoreError("store.journal", f"{self.path}, line {number}: damaged", got=error.got, fix=error.fix) from error


def _append(descriptor: int, line: bytes) -> None:
    """Under the lock no writer lives, so bytes after the last newline are a dead writer's: cut them, then append."""
    end = os.fstat(descriptor).st_size
    whole = _end_of_last_line(descriptor, end)
    if whole != end:
        os.ftruncate(descriptor, whole)
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, whole)
        raise


def _end_of_last_line(descriptor: int, end: int) -> int:
    step = 4096
    while end > 0:
        start = max(0, end - step)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def is_digest(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
