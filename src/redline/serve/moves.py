"""Renames that all happen or none: how a prepared folder becomes part of a repository that a server reads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from redline.store.disk import guarded

SCRATCH = ".scratch-"
"""Hidden folders of the repository itself, so that a rename crosses no file systems; Triton loads only what it is told to."""


class Moves:
    """Each step can be undone; `scratch` holds what was moved out of the way until all are done. Raises StoreError."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._undo: list[Callable[[], object]] = []

    def place(self, source: Path, target: Path) -> None:
        """Rename a folder to where nothing is."""
        with guarded("write", target):
            os.rename(source, target)
        self._undo.append(lambda: os.rename(target, source))

    def take(self, path: Path) -> None:
        """Move a folder out of the repository; nothing happens where there is none."""
        if path.exists():
            aside = self.scratch / f"taken-{secrets.token_hex(8)}"
            with guarded("remove", path):
                os.rename(path, aside)
            self._undo.append(lambda: os.rename(aside, path))

    def replace(self, source: Path, target: Path) -> None:
        """Put a file in another's place at once: a reader finds the old or the new one, never none."""
        with guarded("write", target):
            if target.exists():
                aside = self.scratch / f"old-{secrets.token_hex(8)}"
                shutil.copy2(target, aside)
                self._undo.append(lambda: os.replace(aside, target))
            else:
                self._undo.append(lambda: target.unlink(missing_ok=True))
            os.replace(source, target)

    def make(self, folder: Path) -> None:
        """Make a folder and its parents in the repository."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        with guarded("write", folder):
            for path in reversed(missing):
                path.mkdir()
                self._undo.append(path.rmdir)

    def undo(self) -> None:
        """Back to what was before, last step first; a step that fails does not keep the others from being undone."""
        with guarded("restore what was in", self.scratch.parent), contextlib.ExitStack() as steps:
            for step in self._undo:
                steps.callback(step)
            self._undo.clear()


@contextlib.contextmanager
def all_or_nothing(repository: Path) -> Iterator[Moves]:
    """Moves in `repository`, which is locked meanwhile against other processes of redline, and made if it is not there.

    Whatever goes wrong inside, the repository is as before. Raises StoreError.
    """
    made = [path for path in (repository, *repository.parents) if not path.exists()]
    try:
        with guarded("write in", repository):
            repository.mkdir(parents=True, exist_ok=True)
        with _locked(repository):
            _sweep(repository)
            scratch = repository / f"{SCRATCH}{os.getpid()}-{secrets.token_hex(4)}"
            with guarded("write in", repository):
                scratch.mkdir()
            moves = Moves(scratch)
            try:
                yield moves
            except BaseException:
                moves.undo()
                raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """flock on the folder itself: the kernel drops it when its holder dies, and no lock file is left for a server to see."""
    with guarded("lock", repository):
        descriptor = os.open(repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with guarded("lock", repository):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(repository: Path) -> None:
    """Scratch folders of processes that were killed: under the lock nobody works in them."""
    for path in repository.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)
