"""Files that appear whole or not at all, and locks between processes. Linux: rename(2) and flock(2)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from redline.errors import StoreError

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def guarded(doing: str, path: Path, *, absent_ok: bool = False) -> Iterator[None]:
    """OSError -> StoreError that says what could not be done, where, and what to do.

    With `absent_ok` a missing file just ends the block.
    """
    try:
        yield
    except OSError as error:
        if absent_ok and isinstance(error, FileNotFoundError):
            return
        raise _explained(doing, path, error) from error


def _explained(doing: str, path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            "store.full",
            f"cannot {doing} {path}: the disk is full",
            got=error.strerror,
            fix="free some space (`redline gc` removes what no run needs) and run again",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(
            "store.permission",
            f"cannot {doing} {path}: no permission",
            got=error.strerror,
            fix="choose another folder with --runs, or make this one writable",
        )
    return StoreError("store.io", f"cannot {doing} {path}", got=error.strerror or str(error))


def write_whole(chunks: Iterable[bytes], target: Callable[[str], Path], scratch: Path) -> tuple[str, int]:
    """Write to a temporary file in `scratch`, then rename to `target(sha256)`; returns (sha256, bytes).

    The data is on the disk before the name is; on any error the temporary file is removed and `target` is as before.
    """
    with guarded("write in", scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        temporary = scratch / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            hasher, size = hashlib.sha256(), 0
            with open(temporary, "xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    hasher.update(chunk)
                    size += len(chunk)
                file.flush()
                os.fsync(file.fileno())
            final = target(hasher.hexdigest())
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, final)
            _sync_folder(final.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    return hasher.hexdigest(), size


def write_file(path: Path, data: bytes, scratch: Path) -> None:
    write_whole([data], lambda _: path, scratch)


def read_chunks(path: Path) -> Iterator[bytes]:
    """The file in pieces; StoreError if it cannot be read."""
    with guarded("read", path), open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def sha256_of(path: Path) -> str:
    hasher = hashlib.sha256()
    for chunk in read_chunks(path):
        hasher.update(chunk)
    return hasher.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def flocked(
    path: Path, *, shared: bool = False, on_wait: Callable[[], None] | None = None, wait: bool = True
) -> Iterator[bool]:
    """Hold flock on `path` (created on demand). With `wait=False`, yields False instead of waiting.

    The kernel drops the lock when its holder dies, so a killed process blocks nobody.
    """
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with guarded("lock", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        held = True
        with guarded("lock", path):
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                held = wait
                if wait:
                    if on_wait is not None:
                        on_wait()
                    fcntl.flock(descriptor, mode)
        try:
            yield held
        finally:
            if held:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
