"""What the configurations must hold because of the compiled network: its tensors, its batch, its profiles, its CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from redline.records import TensorFact
from redline.records.engine import EngineProfile
from redline.records.serve import Release, Target
from redline.serve import names
from redline.serve.blocks import TYPES, free_dims
from redline.serve.check_model import describe
from redline.serve.problem import Problem
from redline.serve.shapes import holds, largest_batch, sent_sizes, uncovered


def engine_problems(release: Release, target: Target) -> Iterator[Problem]:
    """Whether this release can be served there at all."""
    engine, here = release.engine, f"release {release.number}"
    if release.candidate.prepost == "graph":
        allowed = "the bare network: the tensor entry and the container have no use for an end-to-end graph"
        yield Problem("release-prepost", here, "pre- and post-processing", "in the graph", allowed)
        return
    shape = engine.input.shape
    if engine.input.dtype != "float32" or len(shape) != 4 or not (shape[1] == 3 or isinstance(shape[1], str)):
        got = f"{engine.input.dtype} {list(shape)}"
        yield Problem("release-input", here, "the engine's input", got, "float32 (N, 3, height, width)")
        return
    yield from _outputs(release, here)
    yield from _batch(release, here, target)
    yield from _sizes(release, here)
    yield from _place(release, here, target)
    yield from _profiles(release, here)
    if engine.format == "tensorrt" and target == "embedded" and engine.profiles and all(map(_ordered, engine.profiles)):
        yield from _range(release, here, engine.profiles, release.candidate.batch, "what a process may get")


def network_problems(name: str, config: Any, release: Release) -> Iterator[Problem]:
    """The network model's configuration against the engine."""
    engine = release.engine
    for side, facts, tensors in (("input", (engine.input,), config.input), ("output", engine.outputs, config.output)):
        found = {tensor.name: tensor for tensor in tensors}
        for fact in facts:
            tensor = found.pop(fact.name, None)
            # A side that the engine fixes must be said; one that it leaves free may be fixed here (onnxruntime_utils.cc).
            if tensor is None or not _fits(tensor, fact):
                got = "none" if tensor is None else describe(tensor)
                wanted = f"{TYPES.get(fact.dtype, fact.dtype)} {list(free_dims(fact))}, as the engine has it"
                yield Problem("engine-tensor", name, f"{side} {fact.name}", got, wanted)
        for extra in sorted(found):
            yield Problem("engine-tensor", name, f"{side} {extra}", describe(found[extra]), "the engine has none of that name")
    if config.backend == "tensorrt":
        yield from _instance_profiles(name, config, release)
    if config.optimization.HasField("cuda"):
        yield from _graphs(name, config, release)


def batch_problems(configs: Mapping[str, Any], release: Release) -> Iterator[Problem]:
    """No model may gather more images than the network takes at once."""
    limit = largest_batch(release.engine)
    network = configs.get(names.model_name(release.service, release.number, "network"))
    if network is not None and network.max_batch_size > 0:
        limit = network.max_batch_size if limit is None else min(limit, network.max_batch_size)
    for name, config in configs.items():
        if limit is not None and config.max_batch_size > limit:
            yield Problem(
                "engine-batch", name, "max_batch_size", str(config.max_batch_size), f"{limit}, as the network, or less"
            )


def _fits(tensor: Any, fact: TensorFact) -> bool:
    engine = free_dims(fact)
    same = TYPES.get(fact.dtype) == triton.DataType.Name(tensor.data_type) and len(tensor.dims) == len(engine)
    return same and all(side in (-1, dim) for dim, side in zip(tensor.dims, engine, strict=True))


def _outputs(release: Release, here: str) -> Iterator[Problem]:
    outputs = release.engine.outputs
    twice = [name for name, count in Counter(output.name for output in outputs).items() if count > 1 or name == names.PLACEMENT]
    if not outputs or twice:
        got = f"{', '.join(twice)}" if twice else "none"
        yield Problem(
            "release-outputs", here, "the engine's outputs", got, f"one or more, names differ, none is {names.PLACEMENT!r}"
        )
    for output in outputs:
        if len(output.shape) < 2 or any(not isinstance(axis, str) and axis < 1 for axis in output.shape):
            allowed = "a batch axis and one or more others, positive or named"
            yield Problem("release-outputs", here, f"the engine's output {output.name}", str(list(output.shape)), allowed)


def _batch(release: Release, here: str, target: Target) -> Iterator[Problem]:
    fixed = release.engine.input.shape[0]
    if isinstance(fixed, str):
        return
    if target == "container" or fixed != 1:
        allowed = "a dynamic batch axis" + (" (or 1 image)" if target == "embedded" else ", which a max_batch_size needs")
        yield Problem("release-batch", here, "the engine's batch axis", f"fixed at {fixed}", allowed)


def _sizes(release: Release, here: str) -> Iterator[Problem]:
    """A side that the engine fixes must be the one that every image is brought to."""
    sizes = sent_sizes(release.preprocess, release.candidate.shapes)
    for axis, side in enumerate(("height", "width")):
        fixed = release.engine.input.shape[2 + axis]
        if isinstance(fixed, str):
            continue
        spans = {(fixed, fixed)} if sizes is None else {(size.height, size.width)[axis] for size in sizes}
        if sizes is None or spans != {(fixed, fixed)}:
            got = "of any size" if sizes is None else ", ".join(f"{low} to {high}" for low, high in sorted(spans))
            yield Problem("release-size", here, f"the {side} of preprocessed images", got, f"{fixed}, which the engine fixes")


def _profiles(release: Release, here: str) -> Iterator[Problem]:
    engine = release.engine
    if (engine.format == "tensorrt") != bool(engine.profiles):
        allowed = "one or more for TensorRT, none for ONNX"
        yield Problem("release-profiles", here, "optimization profiles", f"{len(engine.profiles)} ({engine.format})", allowed)
    if sorted(profile.index for profile in engine.profiles) != list(range(len(engine.profiles))):
        got = str([profile.index for profile in engine.profiles])
        yield Problem("release-profiles", here, "indices of the profiles", got, "0, 1, 2 ... without gaps")
    for profile in engine.profiles:
        if not _ordered(profile):
            got = f"{profile.minimum}, {profile.optimum}, {profile.maximum}"
            allowed = "minimum <= optimum <= maximum, each (N, 3, height, width)"
            yield Problem("release-profiles", here, f"profile {profile.index}", got, allowed)


def _place(release: Release, here: str, target: Target) -> Iterator[Problem]:
    """Where the network runs, and whether it is known what it was built on."""
    engine, device = release.engine, release.candidate.device
    if engine.format == "tensorrt" and not release.candidate.gpus:
        yield Problem("release-device", here, "the device of a TensorRT engine", device, "GPUs by their indices, as cuda:0")
    if engine.format == "onnx" and release.candidate.gpus and target == "embedded":
        allowed = "cpu: the embedded server's ONNX Runtime has no GPU"
        yield Problem("release-device", here, "the device of an ONNX network", device, allowed)
    if (engine.format == "tensorrt") != (engine.origin is not None):
        got = "none" if engine.origin is None else f"{engine.origin.library} {engine.origin.version}"
        allowed = "that of the plan for TensorRT, none for ONNX"
        yield Problem("release-origin", here, "what the engine was built with and on", got, allowed)


def _ordered(profile: EngineProfile) -> bool:
    shapes = (profile.minimum, profile.optimum, profile.maximum)
    whole = all(len(shape) == 4 and shape[1] == 3 and min(shape) > 0 for shape in shapes)
    return whole and all(low <= best <= high for low, best, high in zip(*shapes, strict=True))


def _instance_profiles(name: str, config: Any, release: Release) -> Iterator[Problem]:
    known = {str(profile.index): profile for profile in release.engine.profiles if _ordered(profile)}
    for number, group in enumerate(config.instance_group):
        here = f"instance group {number}"
        wrong = [index for index in group.profile if index not in known]
        if wrong or len(set(group.profile)) < len(group.profile):
            yield Problem(
                "engine-profile", name, f"profiles of {here}", str(list(group.profile)), f"each once, of {sorted(known)}"
            )
            continue
        # Without a list an instance has the first profile alone.
        profiles = tuple(known[index] for index in (group.profile or ["0"]) if index in known)
        yield from _range(release, name, profiles, max(config.max_batch_size, 1), f"what {here} may get")


def _range(release: Release, where: str, profiles: tuple[EngineProfile, ...], batch: int, what: str) -> Iterator[Problem]:
    sizes = sent_sizes(release.preprocess, release.candidate.shapes)
    missing = None if sizes is None else uncovered(profiles, sizes, batch)
    if sizes is None or missing is not None:
        shape = "images of any size" if missing is None else "{} x 3 x {} x {}".format(*missing)
        allowed = "shapes of its own profiles: any free instance gets a request, whatever its shape"
        yield Problem("engine-range", where, what, shape, allowed)


def _graphs(name: str, config: Any, release: Release) -> Iterator[Problem]:
    if config.backend != "tensorrt":
        yield Problem("engine-graph", name, "CUDA graphs", config.backend, "only with the tensorrt backend")
        return
    listed = {index for group in config.instance_group for index in (group.profile or ["0"])}
    profiles = [profile for profile in release.engine.profiles if str(profile.index) in listed and _ordered(profile)]
    for number, spec in enumerate(config.optimization.cuda.graph_spec):
        here, bound = f"CUDA graph {number}", spec.graph_lower_bound
        batches = (bound.batch_size, spec.batch_size)
        if not 1 <= batches[0] <= batches[1] <= config.max_batch_size:
            allowed = f"1 <= lowest <= captured <= {config.max_batch_size}, the max_batch_size"
            yield Problem("engine-graph-batch", name, f"batches of {here}", f"{batches[0]} to {batches[1]}", allowed)
        shapes = {key: list(spec.input[key].dim) for key in sorted(spec.input)}
        lowest = {key: list(bound.input[key].dim) for key in sorted(bound.input)}
        if set(shapes) != {release.engine.input.name} or lowest != shapes:
            allowed = f"{release.engine.input.name}, the same shape in the lower bound: rows of another length cannot be padded"
            yield Problem("engine-graph", name, f"inputs of {here}", f"{shapes}, lower bound {lowest}", allowed)
            continue
        (shape,) = shapes.values()
        if len(shape) != 3 or shape[0] != 3 or not any(holds(p, spec.batch_size, (shape[1], shape[2])) for p in profiles):
            allowed = "a shape in a profile of its instances"
            yield Problem("engine-graph", name, f"shape of {here}", f"{spec.batch_size} x {shape}", allowed)
