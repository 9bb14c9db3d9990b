"""What a release carries beside its configurations: itself as a record, its network, its golden images and its own code.

The code is a copy of the sources that the release was verified with, so that going back runs what ran before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

import redline
from redline.backend.material import NETWORKS
from redline.errors import BadInput
from redline.records.serve import Release, Target
from redline.store import dump
from redline.store.disk import guarded, read_chunks, sha256_of, write_file, write_whole

SOURCES = ("__init__.py", "errors.py", "predict.py", "engine/__init__.py", "engine/onnxruntime_runner.py")
TENSORRT_SOURCES = tuple(
    f"engine/{name}.py"
    for name in ("cuda", "dlpack", "tensorrt_log", "tensorrt_order", "tensorrt_place", "tensorrt_runner", "tensorrt_versions")
)
"""Of a release whose network is a TensorRT plan."""
PACKAGES = ("records", "vision", "backend")
"""With `SOURCES`, all of redline that runs inside the server; a test holds that they import nothing else of it."""
BOOTSTRAP = "backend/bootstrap.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The files that a release is written from. All are only read."""

    network: Path
    golden: Mapping[str, Path]
    """By the name that the release has for each (`Golden.file`)."""
    code_root: Path
    """The redline package whose sources are copied."""


def installed_code() -> Path:
    return Path(redline.__file__).parent


def require(release: Release, given: Given) -> None:
    """Raises BadInput (release-engine-missing, release-engine-digest, release-golden, head-function); StoreError (store.io)."""
    fix = f"run the spec again: run {release.run} made the engine, and what is missing is made anew"
    here = f"release {release.number} of {release.service}"
    if not given.network.is_file():
        raise BadInput("release-engine-missing", f"{here} has no engine", got=f"no file {given.network}", fix=fix)
    found = sha256_of(given.network)
    if found != release.engine.digest:
        what = f"the engine of {here} is not the one that was verified"
        raise BadInput(
            "release-engine-digest", what, got=f"{given.network}, sha256 {found}", allowed=release.engine.digest, fix=fix
        )
    for golden in release.golden:
        path = given.golden.get(golden.file)
        if Path(golden.file).name != golden.file or golden.file.startswith("."):
            raise BadInput(
                "release-golden", f"a golden image of {here} has a path for a name", got=golden.file, allowed="a file name"
            )
        if path is None or not path.is_file() or sha256_of(path) != golden.sha256:
            got = "no such file" if path is None or not path.is_file() else "another content"
            raise BadInput("release-golden", f"golden image {golden.file!r} of {here}", got=f"{path}: {got}", fix=fix)
    dict(_sources(release, given.code_root))


def write_material(folder: Path, release: Release, target: Target, given: Given) -> None:
    """release.json, golden/, code/ and, for the embedded server, the network, in `folder`. Raises StoreError."""
    write_file(folder / "release.json", dump(release, indent=2), folder)
    if target == "embedded":
        copy(given.network, folder / NETWORKS[release.engine.format])
    for golden in release.golden:
        copy(given.golden[golden.file], folder / "golden" / golden.file)
    for name, source in _sources(release, given.code_root):
        copy(source, folder / "code" / name)


def copy(source: Path, target: Path) -> None:
    """Stream `source` to a new file `target`. Raises StoreError."""
    write_whole(read_chunks(source), lambda _: target, target.parent)


def _sources(release: Release, code_root: Path) -> Iterator[tuple[str, Path]]:
    """(path in the code folder, file) of all that the release's Python models import beside installed libraries."""
    names = (*SOURCES, *(TENSORRT_SOURCES if release.engine.format == "tensorrt" else ()))
    files = [code_root / name for name in names]
    for package in PACKAGES:
        files += sorted((code_root / package).glob("*.py"))
    yield from ((f"redline/{path.relative_to(code_root).as_posix()}", path) for path in files)
    if release.head.kind == "custom":
        yield from _head_sources(release.head.function or "")


def _head_sources(function: str) -> Iterator[tuple[str, Path]]:
    """The module of the user's head function, or the whole package that it is in."""
    top = function.partition(":")[0].partition(".")[0]
    try:
        spec = find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
    files = [] if spec is None else _files_of(spec)
    if not files:
        raise BadInput(
            "head-function",
            f"the code of the head function {function!r} cannot be copied into the release",
            got="not found" if spec is None else f"no source file ({spec.origin})",
            allowed="a module or package of Python files that can be imported here",
        )
    yield from files


def _files_of(spec: ModuleSpec) -> list[tuple[str, Path]]:
    if spec.submodule_search_locations is None:
        path = Path(spec.origin or "")
        return [(path.name, path)] if path.is_file() else []
    found: dict[str, Path] = {}
    for location in map(Path, spec.submodule_search_locations):
        with guarded("read", location):
            paths = [path for path in sorted(location.rglob("*")) if path.is_file()]
        for path in paths:
            inside = path.relative_to(location)
            if not any(part == "__pycache__" or part.startswith(".") for part in inside.parts):
                found.setdefault(f"{spec.name}/{inside.as_posix()}", path)
    return list(found.items())
