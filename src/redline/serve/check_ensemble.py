"""How the steps of ensembles fit together: what a server would refuse only when it loads them, or at the first request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from redline.serve.check_model import agree, describe
from redline.serve.problem import Problem


def ensemble_problems(configs: Mapping[str, Any]) -> Iterator[Problem]:
    """`configs`: every model of the repository that an ensemble may name, parsed, by name."""
    for name, config in configs.items():
        if config.WhichOneof("scheduling_choice") == "ensemble_scheduling":
            yield from _one(name, config, configs)
    yield from _cycles(configs)


def _one(name: str, config: Any, configs: Mapping[str, Any]) -> Iterator[Problem]:
    known = {tensor.name: tensor for tensor in config.input}
    if not config.ensemble_scheduling.step:
        yield Problem("ensemble-steps", name, "the steps", "none", "one or more")
    for number, step in enumerate(config.ensemble_scheduling.step):
        here = f"step {number} ({step.model_name})"
        member = configs.get(step.model_name)
        if member is None:
            yield Problem("ensemble-model", name, here, "no such model", f"one of {', '.join(sorted(configs))}")
            continue
        yield from _version(name, here, step, member)
        if member.max_batch_size < config.max_batch_size:
            got = f"up to {member.max_batch_size} images"
            yield Problem("ensemble-batch", name, here, got, f"{config.max_batch_size}, as the ensemble, or more")
        yield from _inputs(name, here, step, member, known)
        yield from _outputs(name, here, step, member, known)
    produced = {key: tensor for key, tensor in known.items() if key not in {entry.name for entry in config.input}}
    for output in config.output:
        made = produced.get(output.name)
        if made is None:
            yield Problem("ensemble-output", name, f"output {output.name}", "no step gives it", "an output of a step")
        elif made.data_type != output.data_type or not agree(made.dims, output.dims):
            yield Problem(
                "ensemble-output", name, f"output {output.name}", describe(output), f"{describe(made)}, as its step has it"
            )


def _version(name: str, here: str, step: Any, member: Any) -> Iterator[Problem]:
    versions = list(member.version_policy.specific.versions)
    if step.model_version not in versions or step.model_version < 1:
        got = "the latest" if step.model_version == -1 else str(step.model_version)
        yield Problem("ensemble-version", name, f"version of {here}", got, f"one of {versions}, by its number")


def _inputs(name: str, here: str, step: Any, member: Any, known: Mapping[str, Any]) -> Iterator[Problem]:
    wanted = {tensor.name: tensor for tensor in member.input}
    for extra in sorted(set(step.input_map) - set(wanted)):
        yield Problem("ensemble-input", name, f"input {extra} of {here}", "no such input", ", ".join(wanted))
    for key, tensor in wanted.items():
        source = step.input_map.get(key)
        if source is None or source not in known:
            got = "nothing" if source is None else f"{source}, which no step before gives"
            allowed = f"an input of the ensemble or an output of an earlier step: {', '.join(known)}"
            yield Problem("ensemble-input", name, f"input {key} of {here}", got, allowed)
        elif known[source].data_type != tensor.data_type or not agree(known[source].dims, tensor.dims):
            allowed = f"{describe(tensor)}, as the step has it"
            yield Problem("ensemble-tensor", name, f"input {key} of {here} from {source}", describe(known[source]), allowed)


def _outputs(name: str, here: str, step: Any, member: Any, known: dict[str, Any]) -> Iterator[Problem]:
    given = {tensor.name: tensor for tensor in member.output}
    for key in sorted(step.output_map):
        target = step.output_map[key]
        if key not in given:
            yield Problem("ensemble-input", name, f"output {key} of {here}", "no such output", ", ".join(given))
        elif target in known:
            yield Problem(
                "ensemble-twice", name, f"tensor {target} of {here}", "is there already", "each tensor from one place"
            )
        else:
            known[target] = triton.ModelOutput(name=target, data_type=given[key].data_type, dims=given[key].dims)


def _cycles(configs: Mapping[str, Any]) -> Iterator[Problem]:
    calls = {name: [step.model_name for step in config.ensemble_scheduling.step] for name, config in configs.items()}
    for name in calls:
        reached, todo = set[str](), list(calls[name])
        while todo:
            member = todo.pop()
            if member not in reached:
                reached.add(member)
                todo.extend(calls.get(member, []))
        if name in reached:
            yield Problem("ensemble-cycle", name, "its steps", "lead back to it", "no model among its own steps")
