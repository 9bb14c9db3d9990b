"""What one model's configuration must hold whatever the network: the schema accepts a negative batch, a dim of 0, no queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from redline.records.serve import Release, Target
from redline.serve import names
from redline.serve.config import ModelFiles, material
from redline.serve.problem import Problem

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
BACKENDS: dict[Target, tuple[str, ...]] = {"embedded": ("python",), "container": ("python", "onnxruntime", "tensorrt")}
GROUP = triton.ModelInstanceGroup
Signature = dict[str, tuple[str, list[int]]]
"""Data type and dims by name; a dim of -1 stands for any."""


def model_problems(files: ModelFiles, config: Any, release: Release, target: Target) -> Iterator[Problem]:
    """Every problem of one model by itself."""
    yield from _identity(files, config, release)
    yield from _tensors(files.name, config)
    yield from _backend(files, config, target)
    if config.platform != "ensemble":
        yield from _instances(files, config, release, target)
        yield from _queue(files.name, config, target)
        yield from _warmup(files, config)
    if config.backend == "python":
        yield from _parameters(files, config, release)
    yield from _signature(files, config, release)


def describe(tensor: Any) -> str:
    return f"{triton.DataType.Name(tensor.data_type)} {list(tensor.dims)}"


def agree(left: Sequence[int], right: Sequence[int]) -> bool:
    """Whether two lists of dims can be one tensor's; -1 goes with any."""
    return len(left) == len(right) and all(a == b or -1 in (a, b) for a, b in zip(left, right, strict=True))


def _identity(files: ModelFiles, config: Any, release: Release) -> Iterator[Problem]:
    name = files.name
    if config.name != name or not NAME.fullmatch(name):
        yield Problem("config-name", name, "the name", repr(config.name), "that of its folder, of A-Z a-z 0-9 _ . -")
    versions = list(config.version_policy.specific.versions)
    if versions != [release.number] or files.version != release.number:
        got = str(versions or config.version_policy.WhichOneof("policy_choice"))
        yield Problem("config-version-policy", name, "the served versions", got, f"version {release.number} by its number")
    if config.max_batch_size < 1:
        yield Problem("config-batch", name, "max_batch_size", str(config.max_batch_size), "1 or more")


def _tensors(name: str, config: Any) -> Iterator[Problem]:
    for side, tensors in (("input", config.input), ("output", config.output)):
        known = [tensor.name for tensor in tensors]
        if not known or len(set(known)) < len(known) or "" in known:
            yield Problem("config-tensors", name, f"the {side}s", str(known), "one or more, each with a name of its own")
        for tensor in tensors:
            if tensor.data_type == triton.TYPE_INVALID:
                yield Problem("config-dtype", name, f"{side} {tensor.name}", "no data type", "a data type")
            if not tensor.dims or any(dim == 0 or dim < -1 for dim in tensor.dims):
                allowed = "positive dims, or -1 where requests may differ"
                yield Problem("config-dims", name, f"{side} {tensor.name}", str(list(tensor.dims)), allowed)


def _backend(files: ModelFiles, config: Any, target: Target) -> Iterator[Problem]:
    if config.WhichOneof("scheduling_choice") == "ensemble_scheduling":
        sound = config.platform == "ensemble" and not config.backend and not config.instance_group
    else:
        sound = not config.platform and config.backend in BACKENDS[target]
    if not sound:
        allowed = f"backend {' or '.join(BACKENDS[target])} ({target}), or an ensemble without instances"
        yield Problem("config-backend", files.name, "what runs it", config.platform or config.backend or "nothing", allowed)
    if files.python != (config.backend == "python"):
        yield Problem("config-code", files.name, "model.py", str(files.python), "with the python backend and no other")
    ending = {"onnxruntime": ".onnx", "tensorrt": ".plan"}.get(config.backend)
    wanted = config.default_model_filename or (f"model{ending}" if ending else None)
    if files.network != wanted:
        yield Problem("config-file", files.name, "the network's file", str(files.network), str(wanted))


def _instances(files: ModelFiles, config: Any, release: Release, target: Target) -> Iterator[Problem]:
    """What runs the network is where the release was measured; everything else is on the CPU."""
    name = files.name
    if not config.instance_group:
        yield Problem("config-instances", name, "instance groups", "none", "one or more")
    fused = release.candidate.serving is not None and release.candidate.serving.pipeline == "fused" and target == "embedded"
    gpus = list(release.candidate.gpus) if fused or files.role == "network" else []
    kind = GROUP.KIND_GPU if gpus else GROUP.KIND_CPU
    for group in config.instance_group:
        if group.count < 1:
            yield Problem("config-instances", name, "the number of instances", str(group.count), "1 or more")
        if group.kind != kind or list(group.gpus) != gpus:
            allowed = f"{GROUP.Kind.Name(kind)} {gpus} with the {config.backend} backend ({target})"
            yield Problem(
                "config-kind", name, "where instances run", f"{GROUP.Kind.Name(group.kind)} {list(group.gpus)}", allowed
            )
        if group.profile and config.backend != "tensorrt":
            yield Problem("config-profile", name, "profiles", str(list(group.profile)), "only with the tensorrt backend")


def _queue(name: str, config: Any, target: Target) -> Iterator[Problem]:
    batching = config.dynamic_batching
    if target == "container":
        yield from _queue_policy(name, batching)
    elif batching.HasField("default_queue_policy") or not config.HasField("dynamic_batching"):
        allowed = "dynamic batching without one: the gateway bounds the queue, and a policy makes the batcher sleep"
        yield Problem("config-queue", name, "the queue policy", "one, or no dynamic batching", allowed)
    preferred = list(batching.preferred_batch_size)
    if any(not 1 <= batch <= config.max_batch_size for batch in preferred):
        yield Problem("config-preferred", name, "preferred batch sizes", str(preferred), f"1 to {config.max_batch_size}")


def _queue_policy(name: str, batching: Any) -> Iterator[Problem]:
    policy = batching.default_queue_policy
    if policy.max_queue_size < 1 or policy.timeout_action != triton.ModelQueuePolicy.REJECT:
        action = triton.ModelQueuePolicy.TimeoutAction.Name(policy.timeout_action)
        allowed = "a queue of 1 or more requests that refuses what is over (0 would be without end)"
        yield Problem("config-queue", name, "the queue", f"{policy.max_queue_size}, {action}", allowed)
    timeout, delay = policy.default_timeout_microseconds, batching.max_queue_delay_microseconds
    if timeout <= delay:
        allowed = "longer than the delay, or every request that waits for others is refused"
        yield Problem("config-timeout", name, "the queue's timeout", f"{timeout} us with a delay of {delay} us", allowed)


def _warmup(files: ModelFiles, config: Any) -> Iterator[Problem]:
    inputs = {tensor.name: tensor for tensor in config.input}
    written = set(files.warmup(dict.fromkeys(files.images, b"")))
    for sample in config.model_warmup:
        wrong = [] if set(sample.inputs) == set(inputs) else [f"inputs {sorted(sample.inputs)}"]
        if not 1 <= sample.batch_size <= config.max_batch_size:
            wrong.append(f"batch {sample.batch_size}")
        for name in sorted(set(sample.inputs) & set(inputs)):
            data = sample.inputs[name]
            if (
                data.data_type != inputs[name].data_type
                or min(data.dims, default=0) < 1
                or not agree(data.dims, inputs[name].dims)
            ):
                wrong.append(f"{name} {describe(data)}")
            source = data.WhichOneof("input_data_type")
            if source is None or (source == "input_data_file" and data.input_data_file not in written):
                wrong.append(f"{name} from {data.input_data_file or source}")
        if wrong:
            allowed = "every input with its type and whole dims, files that are written, a batch up to max_batch_size"
            yield Problem("config-warmup", files.name, f"warm-up {sample.name!r}", ", ".join(wrong), allowed)


def _parameters(files: ModelFiles, config: Any, release: Release) -> Iterator[Problem]:
    for key, wanted in (("role", files.role), ("material", material(release))):
        got = config.parameters[key].string_value if key in config.parameters else None
        if got != wanted:
            yield Problem("config-parameters", files.name, f"parameter {key!r}", repr(got), repr(wanted))


def _signature(files: ModelFiles, config: Any, release: Release) -> Iterator[Problem]:
    """Names, types and dims that clients and the release's code rely on; the network's own are the engine's to say."""
    if files.role == "network":
        return
    place = {names.PLACEMENT: ("TYPE_FP64", [names.PLACEMENT_NUMBERS])}
    encoded: Signature = {names.IMAGE: ("TYPE_STRING", [1])}
    placed: Signature = {names.IMAGES: ("TYPE_FP32", [3, -1, -1]), **place}
    most = release.postprocess.max_detections
    kinds = [("TYPE_FP32", [most, 4]), ("TYPE_FP32", [most]), ("TYPE_INT32", [most]), ("TYPE_INT32", [1]), ("TYPE_STRING", [1])]
    answer = dict(zip(names.DETECTIONS, kinds, strict=True))
    role = files.role or ("tensor" if files.name.endswith("_tensor") else "entry")
    inputs = {"entry": encoded, "prepare": encoded, "tensor": placed, "finish": place}[role]
    yield from _compare(files.name, "input", inputs, config.input, more=role == "finish")
    yield from _compare(files.name, "output", placed if role == "prepare" else answer, config.output, more=False)


def _compare(model: str, side: str, wanted: Signature, tensors: Any, *, more: bool) -> Iterator[Problem]:
    found = {tensor.name: tensor for tensor in tensors}
    for name, (dtype, dims) in wanted.items():
        got = describe(found[name]) if name in found else "none"
        sound = name in found and triton.DataType.Name(found[name].data_type) == dtype and len(found[name].dims) == len(dims)
        if not sound or any(want not in (-1, dim) for want, dim in zip(dims, found[name].dims, strict=True)):
            yield Problem("config-signature", model, f"{side} {name}", got, f"{dtype} {dims}")
    extra = sorted(set(found) - set(wanted))
    if extra and not more:
        yield Problem("config-signature", model, f"more {side}s", str(extra), f"only {', '.join(wanted)}")
