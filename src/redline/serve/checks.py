"""Whether rendered configurations hold together: what the schema accepts and a server would refuse, or answer wrongly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import text_format

from redline.records.serve import Release, Role, Target
from redline.serve import names
from redline.serve.check_engine import batch_problems, engine_problems, network_problems
from redline.serve.check_ensemble import ensemble_problems
from redline.serve.check_model import model_problems
from redline.serve.config import ModelFiles, adapted
from redline.serve.problem import Problem, refuse
from redline.serve.schema import unknown_fields

ROLES: dict[str, tuple[Role, ...]] = {
    "fused": ("entry", "tensor"),
    "bls": ("entry", "tensor", "network"),
    "ensemble": ("entry", "tensor", "prepare", "network", "finish"),
}
"""The models that a pipeline is made of."""


def problems(models: Sequence[ModelFiles], release: Release, target: Target, server_version: str) -> tuple[Problem, ...]:
    """Everything that is wrong with the models of one release (with or without the stable names), for a server of this version.

    Pure. Raises BadInput: release-serving, server-version.
    """
    release = adapted(release, target)
    found = list(engine_problems(release, target))
    configs: dict[str, Any] = {}
    for files in models:
        try:
            config = files.config
        except text_format.ParseError as error:
            found.append(Problem("config-syntax", files.name, "config.pbtxt, line:column", str(error), "a ModelConfig"))
            continue
        if files.name in configs:
            found.append(Problem("config-twice", files.name, "the name", "two models have it", "a name for each model"))
        configs[files.name] = config
        unknown = f"server {server_version} does not know it"
        found += (Problem("config-field", files.name, path, unknown, "none") for path in unknown_fields(config, server_version))
        found += model_problems(files, config, release, target)
        if files.role == "network":
            found += network_problems(files.name, config, release)
    found += _missing(models, release)
    found += batch_problems(configs, release)
    found += ensemble_problems(configs)
    return tuple(found)


def check_release(release: Release, target: Target) -> None:
    """Whether the release can be rendered and served there at all. Raises BadInput with every reason."""
    found = tuple(engine_problems(adapted(release, target), target))
    refuse(found, f"release {release.number} of {release.service} cannot be served ({target})")


def check(models: Sequence[ModelFiles], release: Release, target: Target, server_version: str) -> None:
    """Raises BadInput with every problem, under the first one's code."""
    found = problems(models, release, target, server_version)
    refuse(found, f"release {release.number} of {release.service} cannot be served by Triton {server_version} ({target})")


def _missing(models: Sequence[ModelFiles], release: Release) -> Iterator[Problem]:
    assert release.candidate.serving is not None
    known = {(files.name, files.role) for files in models}
    for role in ROLES[release.candidate.serving.pipeline]:
        name = names.model_name(release.service, release.number, role)
        if (name, role) not in known:
            yield Problem(
                "config-models", name, "the model", "none", f"one for {role} in a {release.candidate.serving.pipeline}"
            )
