"""A release's models into the server and out again, in the order in which they need each other, proved by their readiness."""

from __future__ import annotations

import contextlib
from pathlib import Path

from redline.errors import BadInput, StoreError, TrialError
from redline.records import Release
from redline.serve.config import render
from redline.serve.control import Control
from redline.serve.names import model_name, stable_name
from redline.serve.repository import write_stable
from redline.store import load


def read_release(repository: Path, service: str, number: int) -> Release:
    """Raises BadInput (serve.no-release) if the repository has no such release, StoreError if it is damaged."""
    path = repository / model_name(service, number, "entry") / str(number) / "release.json"
    try:
        return load(Release, path.read_bytes())
    except OSError as error:
        raise BadInput("serve.no-release", f"there is no release {number} of {service}", got=error.strerror) from error


def load_release(control: Control, repository: Path, service: str, number: int) -> Release:
    """Load every model of a release and see that each is ready at its version; a failed one leaves nothing loaded.

    Raises BadInput, StoreError, or TrialError with the server's reason.
    """
    release = read_release(repository, service, number)
    try:
        for files in render(release, "embedded"):
            control.load(files.name)
            if not control.ready(files.name, number):
                raise TrialError("serve.not-ready", f"{files.name} was loaded but is not ready", got=f"version {number}")
    except (TrialError, StoreError):
        with contextlib.suppress(TrialError, StoreError):
            unload_release(control, repository, service, number)
        raise
    return release


def unload_release(control: Control, repository: Path, service: str, number: int) -> None:
    for files in reversed(render(read_release(repository, service, number), "embedded")):
        with contextlib.suppress(TrialError):  # it may never have been loaded
            control.unload(files.name)


def load_stable(control: Control, repository: Path, release: Release) -> None:
    """Point the names that clients use at this release, and see that they serve its version. Raises as `load_release`."""
    write_stable(repository, release.service, release)
    for role in ("tensor", "entry"):
        name = stable_name(release.service, role)
        control.load(name)
        if not control.ready(name, release.number):
            raise TrialError("serve.not-ready", f"{name} was loaded but is not ready", got=f"version {release.number}")


def reload_model(control: Control, model: str, version: int) -> None:
    """Out and in again: a load alone does nothing where no file has changed. Raises TrialError, StoreError."""
    control.unload(model)
    control.load(model)
    if not control.ready(model, version):
        raise TrialError("serve.not-ready", f"{model} was loaded again but is not ready", got=f"version {version}")
