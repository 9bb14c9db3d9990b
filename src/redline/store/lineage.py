"""Where an object came from, and which objects no run needs any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from redline.errors import StoreError
from redline.records import Library
from redline.store.content import META_SUFFIX, Store, digests_in
from redline.store.disk import flocked, guarded

ABSENT = "not in the store"
ROOT_FILES = ("run.json", "journal.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """An object and, recursively, what it was made from."""

    digest: str
    kind: str
    """"not in the store" for a parent that is known by its digest alone (a data set, weights, something reclaimed)."""
    created: str
    stage: str
    redline: str
    tools: tuple[Library, ...]
    bytes: int
    parents: tuple[Lineage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimed:
    files: int
    """Files removed; with `dry_run`, files that would be."""
    bytes: int
    kept: int
    """Objects that some run needs."""
    dry_run: bool


def explain(store: Store, digest_prefix: str) -> Lineage:
    """The ancestry of one object. Raises BadInput if no or several objects start with `digest_prefix`."""
    return _lineage(store, store.resolve(digest_prefix), ())


def _lineage(store: Store, digest: str, above: tuple[str, ...]) -> Lineage:
    try:
        meta = store.meta(digest)
    except StoreError:
        return Lineage(digest=digest, kind=ABSENT, created="", stage="", redline="", tools=(), bytes=0, parents=())
    # Of equal bytes only the first origin is kept, so an object may name its own descendant: stop there.
    path = (*above, digest)
    parents = tuple(_lineage(store, parent, path) for parent in meta.parents if parent not in path)
    return Lineage(
        digest=digest,
        kind=meta.kind,
        created=meta.created,
        stage=meta.stage,
        redline=meta.redline,
        tools=meta.tools,
        bytes=meta.bytes,
        parents=parents,
    )


def collect(store: Store, keep_roots: Iterable[Path], *, dry_run: bool = False) -> Reclaimed:
    """Remove every object that no run folder of `keep_roots` needs.

    Needed: each digest named in a run's run.json or journal.jsonl, and whatever a needed object has as parent or names.
    Raises StoreError if a root cannot be read (`store.root`), or if any process is using the store (`store.busy`).
    """
    with flocked(store.gate, shared=dry_run, wait=False) as held:
        if not held:
            raise StoreError(
                "store.busy", f"{store.root} is in use by a run: nothing was removed", fix="try again when the run has ended"
            )
        needed = _needed(store, keep_roots)
        files = freed = 0
        for path in list(_unneeded(store, needed)):
            with guarded("remove", path, absent_ok=True):
                freed += path.stat().st_size
                files += 1
                if not dry_run:
                    path.unlink()
        if not dry_run:
            for lock in (store.root / "locks").glob("*"):
                with guarded("remove", lock, absent_ok=True):
                    lock.unlink()
    return Reclaimed(files=files, bytes=freed, kept=len(needed), dry_run=dry_run)


def _needed(store: Store, keep_roots: Iterable[Path]) -> set[str]:
    needed: set[str] = set()
    ahead = [digest for root in keep_roots for digest in _named_by_run(root)]
    while ahead:
        digest = ahead.pop()
        if digest in needed or not store.has(digest):
            continue
        needed.add(digest)
        meta = store.meta(digest)
        ahead.extend((*meta.parents, *meta.names))
    return needed


def _named_by_run(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise StoreError("store.root", f"no run folder {folder}: nothing was removed", fix="check the folder")
    named: list[str] = []
    for name in ROOT_FILES:
        path = folder / name
        with guarded("read", path, absent_ok=True):
            named.extend(digests_in(path.read_bytes()))
    return named


def _unneeded(store: Store, needed: set[str]) -> Iterator[Path]:
    # A .meta before its bytes: if this is stopped half-way, what is left of an object is not visible.
    objects = sorted((store.root / "objects").glob("??/*"), key=lambda path: (path.suffix != META_SUFFIX, path.name))
    yield from (path for path in objects if path.name.partition(".")[0] not in needed)
    yield from (path for path, output in store.memos() if output not in needed)
    yield from store.scratch.glob("*")
