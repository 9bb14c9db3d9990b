"""A Triton model repository on disk: releases beside each other, and the stable names that move between them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from redline.errors import BadInput, StoreError
from redline.records.serve import Release, Role, Target
from redline.serve import names
from redline.serve.checks import check, check_release
from redline.serve.config import ModelFiles, adapted, render, render_stable
from redline.serve.material import BOOTSTRAP, Given, copy, installed_code, require, write_material
from redline.serve.moves import Moves, all_or_nothing
from redline.serve.readme import readme
from redline.serve.schema import SERVERS
from redline.store.disk import guarded, read_chunks, write_file

CONFIG = "config.pbtxt"
README = "README.md"
KEEP = ".gitkeep"
"""An ensemble's version folder holds nothing, and must be there."""
CACHE = "__pycache__"
CACHE_TEXT = (
    b"A file where Python would make a folder, so that it writes no bytecode here: Triton takes any newer file in a model's\n"
    b"folder for a changed model, and would load the release again with every promotion.\n"
)
ROLES: tuple[Role, ...] = ("network", "prepare", "finish", "tensor", "entry")
STABLE_ROLES: tuple[Role, ...] = ("entry", "tensor")


def write_repository(
    folder: Path,
    release: Release,
    target: Target,
    *,
    network_file: Path,
    golden_files: Mapping[str, Path],
    code_root: Path | None = None,
    server_version: str | None = None,
) -> tuple[ModelFiles, ...]:
    """Write all models of a release beside what is in `folder`, which is made if needed; returns them in loading order.

    Everything is prepared in a hidden folder and renamed into place, the entry model last: a release is there once that is.
    `golden_files`: path by `Golden.file`. `code_root`: the redline package to copy, by default the running one.
    Whatever goes wrong, the repository is as before. Raises BadInput (of the configuration: see `checks.problems`;
    release-exists, release-engine-missing, release-engine-digest, release-golden, head-function) and StoreError.
    """
    version = server_version if server_version is not None else SERVERS[target]
    check_release(release, target)
    models = render(release, target)
    check((*models, *render_stable(release.service, release, target)), release, target, version)
    given = Given(network=network_file, golden=golden_files, code_root=code_root or installed_code())
    require(release, given)
    with all_or_nothing(folder) as moves:
        if release.number in releases_in(folder, release.service):
            raise BadInput(
                "release-exists",
                f"release {release.number} of {release.service} is in {folder} already, and a release never changes",
                fix="give the new one the next number, or remove the old one first",
            )
        for files in models:
            _write_model(moves.scratch / "new" / files.name, files, adapted(release, target), target, given)
        if target == "container":
            write_file(moves.scratch / README, readme(release, models, version).encode(), moves.scratch)
        for files in models:
            moves.take(folder / files.name)  # left over from a process that was killed before the entry model was there
        if target == "container":
            moves.replace(moves.scratch / README, folder / README)
        for files in models:
            moves.place(moves.scratch / "new" / files.name, folder / files.name)
    return models


def write_stable(folder: Path, service: str, release: Release) -> tuple[ModelFiles, ...]:
    """Point the stable names at a release that is in `folder`; returns their models. A server sees it when it loads them.

    Each config.pbtxt is replaced at once, by one that is newer than anything in its model's folder even if the clock went back:
    Triton reloads a model only if its newest file became newer. On failure both are as before. Raises BadInput
    (release-absent) and StoreError.
    """
    models = render_stable(service, release, "embedded")
    with all_or_nothing(folder) as moves:
        if release.number not in releases_in(folder, release.service):
            known = ", ".join(map(str, releases_in(folder, release.service))) or "none"
            raise BadInput("release-absent", f"release {release.number} is not in {folder}", allowed=known)
        for files in models:
            _point(folder / files.name, files, moves)
        for files in models:
            for old in sorted((folder / files.name).glob("[0-9]*")):
                if old.name != str(files.version):
                    moves.take(old)
    return models


def remove_release(folder: Path, service: str, number: int) -> bool:
    """Remove every model of a release; whether there was one. Raises BadInput (release-in-use), StoreError."""
    with all_or_nothing(folder) as moves:
        if number in stable_releases(folder, service):
            raise BadInput(
                "release-in-use", f"{service} answers with release {number}", fix="promote or roll back to another one first"
            )
        paths = [folder / names.model_name(service, number, role) for role in reversed(ROLES)]
        found = [path for path in paths if path.exists()]
        for path in found:
            moves.take(path)
    return bool(found)


def releases_in(folder: Path, service: str) -> tuple[int, ...]:
    """Numbers of the complete releases in a repository, ascending; none where there is no folder. Raises StoreError."""
    pattern = re.compile(re.escape(names.model_name(service, 0, "entry")[:-1]) + r"(\d+)")
    found: list[int] = []
    with guarded("read", folder, absent_ok=True):
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match is not None and (path / match[1] / "release.json").exists():
                found.append(int(match[1]))
    return tuple(sorted(found))


def stable_releases(folder: Path, service: str) -> tuple[int, ...]:
    """Releases that the stable names point at: one, or two if a promotion was killed half way. Raises StoreError."""
    found: set[int] = set()
    for role in STABLE_ROLES:
        path = folder / names.stable_name(service, role) / CONFIG
        if path.exists():
            try:
                config = text_format.Parse(b"".join(read_chunks(path)), triton.ModelConfig())
            except (text_format.ParseError, UnicodeDecodeError) as error:
                fix = "remove its folder: the next promotion writes it anew"
                raise StoreError("store.config", f"{path} is not a model configuration", got=error, fix=fix) from error
            found.update(step.model_version for step in config.ensemble_scheduling.step)
    return tuple(sorted(found))


def _write_model(path: Path, files: ModelFiles, release: Release, target: Target, given: Given) -> None:
    version = path / str(files.version)
    write_file(path / CONFIG, files.text.encode(), path)
    if files.python:
        copy(given.code_root / BOOTSTRAP, version / "model.py")
        write_file(version / CACHE, CACHE_TEXT, path)
    if files.network is not None:
        copy(given.network, version / files.network)
    if files.role == "entry":
        write_material(version, release, target, given)
    golden = {name: b"".join(read_chunks(given.golden[name])) for name in files.images}
    for name, data in files.warmup(golden).items():
        write_file(path / "warmup" / name, data, path)
    if not version.exists():
        write_file(version / KEEP, b"", path)


def _point(model: Path, files: ModelFiles, moves: Moves) -> None:
    """Give a stable model a new configuration and the version folder it names."""
    version = model / str(files.version)
    if not version.exists():
        prepared = moves.scratch / f"{files.name}-{files.version}"
        write_file(prepared / KEEP, b"", moves.scratch)
        moves.make(model)
        moves.place(prepared, version)
    fresh = moves.scratch / files.name
    write_file(fresh, files.text.encode(), moves.scratch)
    with guarded("write", fresh):
        newest = max(path.stat().st_mtime_ns for path in (model, *model.rglob("*")))
        stamp = max(time.time_ns(), newest + 1)
        os.utime(fresh, ns=(stamp, stamp))
    moves.replace(fresh, model / CONFIG)
