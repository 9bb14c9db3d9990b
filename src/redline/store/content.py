"""The store itself: objects by the sha256 of their bytes, what is known of each, and what was computed before."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from redline import __version__
from redline.errors import BadInput, StoreError
from redline.records import SCHEMA_VERSION, Library
from redline.store.codec import digest_of, dump, load
from redline.store.disk import flocked, guarded, read_chunks, sha256_of, write_file, write_whole
from redline.store.journal import Journal, is_digest, now
from redline.store.tools import tool_versions

T = TypeVar("T")
RECORD_SUFFIX = ".json"
META_SUFFIX = ".meta"
SHORTEST_PREFIX = 6
DIGESTS = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """What is known of an object beside its bytes. Of two origins of the same bytes the first is kept."""

    digest: str
    kind: str
    suffix: str
    bytes: int
    created: str
    """ISO 8601, UTC."""
    stage: str
    parents: tuple[str, ...]
    """Digests it was made from; not all of them need be objects of this store (data sets, weights)."""
    names: tuple[str, ...]
    """Objects that a record names and that were in the store when it was put: its files. Also among the parents."""
    redline: str
    tools: tuple[Library, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memo:
    stage: str
    key: str
    """Canonical JSON of the key."""
    output: str
    created: str


class Store:
    """A folder of objects; created on demand. Safe for several processes at once.

    objects/ab/<sha256><suffix> and <sha256>.meta; memo/ab/<sha256 of the key>; locks/; scratch/. An object is there once
    its .meta is: that is written last. Whoever puts objects outside `once` holds a `lock` until a run's journal or
    run.json names them, so that reclaiming (`collect`) leaves them alone. `on_wait` is told, in words, what is waited for.
    """

    def __init__(self, root: Path, *, on_wait: Callable[[str], None] | None = None) -> None:
        self.root = Path(root)
        self._on_wait = on_wait
        self._held: set[tuple[int, str]] = set()

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def put_record(self, record: object, *, kind: str, parents: Sequence[str] = (), stage: str = "") -> str:
        """Store a record as canonical JSON; its digest is `digest_of(record)`. Objects it names become parents too."""
        data = dump(record)
        names = tuple(digest for digest in digests_in(data) if self.has(digest))
        return self._put([data], kind=kind, suffix=RECORD_SUFFIX, parents=(*parents, *names), stage=stage, names=names)

    def get_record(self, type: type[T], digest: str) -> T:
        """Raises StoreError if it is not there, is corrupted (`store.corrupt`) or does not fit `type`."""
        data = b"".join(read_chunks(self.path(digest)))
        if digest_of(data) != digest:
            raise self._corrupt(digest)
        return load(type, data)

    def put_bytes(self, data: bytes, *, kind: str, suffix: str = "", parents: Sequence[str] = (), stage: str = "") -> str:
        return self._put([data], kind=kind, suffix=suffix, parents=parents, stage=stage)

    def put_file(self, path: Path, *, kind: str, parents: Sequence[str] = (), stage: str = "") -> str:
        """Copy a file in, streaming; its suffix is kept."""
        return self._put(read_chunks(path), kind=kind, suffix=path.suffix, parents=parents, stage=stage)

    def path(self, digest: str) -> Path:
        """Absolute path of an object's bytes. Raises StoreError (`store.absent`) if there is none."""
        return self._object(self.meta(digest))

    def meta(self, digest: str) -> Meta:
        """Raises StoreError (`store.absent`) if the store has no such object."""
        try:
            return load(Meta, self._meta_path(digest).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                "store.absent", f"no object {digest[:12]} in {self.root}", fix="run again to make it anew"
            ) from None
        except OSError as error:
            raise StoreError("store.io", f"cannot read {self._meta_path(digest)}", got=error.strerror) from error

    def has(self, digest: str) -> bool:
        with guarded("read", self.root):
            return self._meta_path(digest).exists()

    def intact(self, digest: str) -> bool:
        """Whether the object is there with the bytes its name promises (reads all of it)."""
        try:
            return sha256_of(self.path(digest)) == digest
        except StoreError:
            return False

    def resolve(self, prefix: str) -> str:
        """The one object whose digest starts with `prefix` (6 characters or more). Raises BadInput if none or several do."""
        text = prefix.lower()
        if len(text) < SHORTEST_PREFIX or not re.fullmatch(r"[0-9a-f]{1,64}", text):
            raise BadInput(
                "store.prefix",
                "not the start of a digest",
                got=repr(prefix),
                allowed=f"{SHORTEST_PREFIX} to 64 hexadecimal digits",
                fix="take a digest from the run's journal.jsonl or report",
            )
        found = sorted(path.stem for path in (self.root / "objects" / text[:2]).glob(f"{text}*{META_SUFFIX}"))
        if len(found) == 1:
            return found[0]
        if not found:
            raise BadInput("store.unknown", f"no object of {self.root} starts with {text}", fix="check the digest and --runs")
        shown = ", ".join(digest[:16] for digest in found[:5])
        raise BadInput("store.ambiguous", f"{len(found)} objects start with {text}", got=shown, fix="give more digits")

    def digests(self) -> Iterator[str]:
        """Every object, in no particular order."""
        return (path.stem for path in (self.root / "objects").glob(f"??/*{META_SUFFIX}"))

    @contextlib.contextmanager
    def lock(self, name: str, *, what: str | None = None) -> Iterator[None]:
        """Exclusive across processes and threads; while it is held nothing is reclaimed from the store.

        Not re-entrant: RuntimeError, instead of waiting for ever, if this thread holds it. `what`: its name for people.
        """
        file = name if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) else digest_of(name)
        mine = (threading.get_ident(), file)
        if mine in self._held:
            raise RuntimeError(f"this thread holds the lock {name!r} already")
        with self.in_use(), flocked(self.root / "locks" / file, on_wait=lambda: self._tell(what or name)):
            self._held.add(mine)
            try:
                yield
            finally:
                self._held.discard(mine)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Shared: many at once, and nothing is reclaimed meanwhile."""
        with flocked(self.gate, shared=True, on_wait=lambda: self._tell("gc")):
            yield

    @property
    def gate(self) -> Path:
        """Held shared by whoever uses the store, exclusively by whoever reclaims from it."""
        return self.root / "gate"

    def once(
        self,
        *,
        stage: str,
        key: Mapping[str, Any],
        kind: str,
        type: type[T],
        compute: Callable[[], T],
        parents: Sequence[str] = (),
        journal: Journal | None = None,
    ) -> T:
        """`compute()`, unless the same `stage`, `kind` and `key` were computed before by this version of redline.

        Of several processes one computes and the others wait and reuse. What `compute` raises is passed on and nothing is
        stored. A stored result whose bytes (or those of an object it names) are damaged is dropped and computed anew.
        `journal` gets one line, whichever way it went. `compute` must not call `once` with the same key.
        """
        named = {"stage": stage, "kind": kind, "redline": __version__, "schema": SCHEMA_VERSION, "key": dict(key)}
        name = digest_of(named)
        started = time.perf_counter()
        with self.in_use():
            found = self._recall(name, type)
            if found is not None:
                return _journalled(journal, stage, name, found, started, "reused")
            with self.lock(f"once-{name}", what=stage):
                found = self._recall(name, type)
                if found is not None:
                    return _journalled(journal, stage, name, found, started, "reused")
                note = self._drop(name)
                try:
                    value = compute()
                except Exception as error:
                    if journal is not None:
                        text = f"{error.__class__.__name__}: {error}"
                        journal.append(stage, name, None, time.perf_counter() - started, "failed", text)
                    raise
                output = self.put_record(value, kind=kind, parents=parents, stage=stage)
                memo = Memo(stage=stage, key=dump(named["key"]).decode(), output=output, created=now())
                write_file(self._memo_path(name), dump(memo), self.scratch)
                return _journalled(journal, stage, name, (output, value), started, "computed", note)

    def memos(self) -> Iterator[tuple[Path, str]]:
        """(file, digest of the output) of everything remembered; unreadable ones have the output ""."""
        return ((path, _output_of(path)) for path in (self.root / "memo").glob("??/*"))

    def drop(self, digest: str) -> None:
        """Remove an object. The .meta goes first: what is half removed is not there."""
        with guarded("remove from", self.root), flocked(self.root / "put"):
            for path in (self._meta_path(digest), *self._folder(digest).glob(f"{digest}*")):
                path.unlink(missing_ok=True)

    def _put(
        self,
        chunks: Iterable[bytes],
        *,
        kind: str,
        suffix: str,
        parents: Sequence[str],
        stage: str,
        names: tuple[str, ...] = (),
    ) -> str:
        if not re.fullmatch(r"(\.[A-Za-z0-9_]{1,20})?", suffix) or suffix == META_SUFFIX:
            suffix = ""
        with self.in_use():
            digest, size = write_whole(chunks, lambda digest: self._folder(digest) / f"{digest}{suffix}", self.scratch)
            written = self._folder(digest) / f"{digest}{suffix}"
            with flocked(self.root / "put"):
                if self.has(digest) and self.intact(digest):
                    if self.path(digest) != written:
                        with guarded("remove", written, absent_ok=True):
                            written.unlink()
                    return digest
                meta = Meta(
                    digest=digest,
                    kind=kind,
                    suffix=suffix,
                    bytes=size,
                    created=now(),
                    stage=stage,
                    parents=tuple(dict.fromkeys(parent for parent in parents if parent != digest)),
                    names=names,
                    redline=__version__,
                    tools=tool_versions(),
                )
                try:
                    write_file(self._meta_path(digest), dump(meta), self.scratch)
                except BaseException:
                    with contextlib.suppress(OSError):
                        written.unlink()
                    raise
        return digest

    def _recall(self, name: str, type: type[T]) -> tuple[str, T] | None:
        try:
            output = load(Memo, self._memo_path(name).read_bytes()).output
            value = self.get_record(type, output)
            named = self.meta(output).names
        except (StoreError, OSError):
            return None
        return (output, value) if all(self.intact(digest) for digest in named) else None

    def _drop(self, name: str) -> str:
        """Forget a result that `_recall` refused; returns the note for the journal ("" if there was none)."""
        try:
            data = self._memo_path(name).read_bytes()
        except OSError:
            return ""
        with contextlib.suppress(StoreError):
            output = load(Memo, data).output
            if self.has(output):
                for digest in (output, *self.meta(output).names):
                    if self.has(digest) and not self.intact(digest):
                        self.drop(digest)
        with guarded("remove", self._memo_path(name)):
            self._memo_path(name).unlink(missing_ok=True)
        return "an earlier result was damaged or of another schema: dropped and computed anew"

    def _corrupt(self, digest: str) -> StoreError:
        what = f"object {digest[:12]} of {self.root} is damaged: its bytes do not have its digest"
        return StoreError("store.corrupt", what, fix="run again: what is damaged is computed anew")

    def _tell(self, what: str) -> None:
        if self._on_wait is not None:
            self._on_wait(f"waiting for another run in {self.root}: {what}")

    def _folder(self, digest: str) -> Path:
        return self.root.absolute() / "objects" / digest[:2]

    def _object(self, meta: Meta) -> Path:
        return self._folder(meta.digest) / f"{meta.digest}{meta.suffix}"

    def _meta_path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise StoreError("store.absent", "not a digest", got=repr(digest), allowed="64 hexadecimal digits")
        return self._folder(digest) / f"{digest}{META_SUFFIX}"

    def _memo_path(self, name: str) -> Path:
        return self.root / "memo" / name[:2] / name


def _output_of(memo: Path) -> str:
    try:
        return load(Memo, memo.read_bytes()).output
    except (StoreError, OSError):
        return ""


def digests_in(data: bytes) -> tuple[str, ...]:
    """Every sha256 in hex that a text names, in order, without repeats."""
    return tuple(dict.fromkeys(match.decode() for match in DIGESTS.findall(data)))


def _journalled(
    journal: Journal | None, stage: str, name: str, found: tuple[str, T], started: float, outcome: Any, note: str = ""
) -> T:
    if journal is not None:
        journal.append(stage, name, found[0], time.perf_counter() - started, outcome, note)
    return found[1]
