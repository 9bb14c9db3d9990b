"""The parts of a Triton model configuration that a release decides, as protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2 as triton

from redline.errors import BadInput
from redline.records import Candidate, Objective, TensorFact
from redline.records.serve import EngineFacts, Release, Role, Target
from redline.serve import names
from redline.serve.shapes import holds, image_dims, warm_sizes

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
TIMEOUT_P95 = 10.0
"""A request that has waited this many times the objective's P95 is refused: the gateway's latency histogram ends there too."""
TIMEOUT_FLOOR_US = 5_000_000
"""But never sooner: loading a release beside the traffic can stall a small machine for a second, and what waits then must
be late, not lost."""
WARM_IMAGES = 4
"""Golden images that each process detects on before it takes requests."""


def tensor(message: Any, name: str, dtype: str, dims: Iterable[int]) -> None:
    """Fill a ModelInput or ModelOutput; `dims` without the batch axis, -1 where requests may differ."""
    message.name, message.data_type = name, triton.DataType.Value(dtype)
    message.dims.extend(dims)


def triton_type(fact: TensorFact) -> str:
    """Raises BadInput: release-dtype."""
    if fact.dtype not in TYPES:
        raise BadInput(
            "release-dtype",
            f"Triton cannot carry the engine's tensor {fact.name!r}",
            got=fact.dtype,
            allowed=", ".join(TYPES),
            fix="export the network with another output type",
        )
    return TYPES[fact.dtype]


def free_dims(fact: TensorFact) -> tuple[int, ...]:
    """An engine tensor's shape without the batch axis; -1 for dynamic axes."""
    return tuple(-1 if isinstance(axis, str) else axis for axis in fact.shape[1:])


def image_input(config: Any) -> None:
    tensor(config.input.add(), names.IMAGE, "TYPE_STRING", [1])


def placement(message: Any) -> None:
    tensor(message, names.PLACEMENT, "TYPE_FP64", [names.PLACEMENT_NUMBERS])


def detections(config: Any, most: int) -> None:
    """Outputs of a model that answers with detections: rows beyond `count` are 0."""
    shapes: tuple[tuple[str, list[int]], ...] = (
        ("TYPE_FP32", [most, 4]), ("TYPE_FP32", [most]), ("TYPE_INT32", [most]), ("TYPE_INT32", [1]), ("TYPE_STRING", [1]),
    )  # fmt: skip
    for name, (dtype, dims) in zip(names.DETECTIONS, shapes, strict=True):
        tensor(config.output.add(), name, dtype, dims)


def network_tensors(config: Any, release: Release) -> None:
    """The engine's own input and outputs."""
    engine = release.engine
    tensor(config.input.add(), engine.input.name, triton_type(engine.input), image_dims(release))
    for output in engine.outputs:
        tensor(config.output.add(), output.name, triton_type(output), free_dims(output))


def queue_timeout_us(objective: Objective) -> int:
    """How long a request may wait for its turn, microseconds; see `TIMEOUT_P95` and `TIMEOUT_FLOOR_US`."""
    return max(round(TIMEOUT_P95 * objective.p95_ms * 1000), TIMEOUT_FLOOR_US)


def batching(config: Any, release: Release, target: Target, *, waits: bool) -> None:
    """Dynamic batching, and in the container the queue policy. `waits`: this is the model at which requests wait for others.

    A queue policy of any kind makes the batcher of Triton 2.51 sleep half a second over requests that came while an instance
    was ending its last one (benchmarks/queue_policy.py). The embedded server has a gateway in front that bounds what waits; in
    the container nothing else may.
    """
    assert release.candidate.serving is not None
    serving = release.candidate.serving
    block = config.dynamic_batching
    block.SetInParent()
    block.max_queue_delay_microseconds = serving.queue_delay_us if waits else 0
    if target == "embedded":
        return
    policy = block.default_queue_policy
    policy.timeout_action = triton.ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = max(queue_timeout_us(release.objective), 2 * serving.queue_delay_us)
    policy.allow_timeout_override = True
    policy.max_queue_size = serving.queue_size


def preferred_batches(engine: EngineFacts, batch: int) -> tuple[int, ...]:
    """Batches worth building up: those that profiles of a TensorRT engine were optimized for, where they differ."""
    optima = sorted({profile.optimum[0] for profile in engine.profiles})
    return tuple(optimum for optimum in optima if optimum <= batch) if len(optima) > 1 else ()


def processes(config: Any, count: int) -> None:
    """`count` Python processes on the CPU."""
    group = config.instance_group.add()
    group.kind, group.count = triton.ModelInstanceGroup.KIND_CPU, count


def network_processes(config: Any, release: Release) -> None:
    """Python processes that run the network themselves: on the CPU, or some on each of the candidate's GPUs."""
    if release.candidate.gpus:
        _on_gpus(config.instance_group.add(), release.candidate)
    else:
        processes(config, release.candidate.concurrency)


def _on_gpus(group: Any, candidate: Candidate) -> None:
    """`count` is of each GPU; a candidate's inferences in flight are of all of them together."""
    group.kind = triton.ModelInstanceGroup.KIND_GPU
    group.count = -(-candidate.concurrency // len(candidate.gpus))
    group.gpus.extend(candidate.gpus)


def network_instances(config: Any, release: Release) -> None:
    """Instances of the network in the container: on the candidate's GPUs, or on the CPU if the release was measured there.

    An instance of a TensorRT engine gets every profile: Triton hands a request to any free instance, whatever its shape, and
    the instance takes the closest of its own profiles (GetMostOptimizedProfile in tensorrt_backend, src/instance_state.cc,
    r24.10). With one profile an instance, requests would meet an instance that cannot run them.
    """
    engine, candidate = release.engine, release.candidate
    if candidate.gpus:
        group = config.instance_group.add()
        _on_gpus(group, candidate)
        group.profile.extend(str(profile.index) for profile in engine.profiles)
    else:
        processes(config, candidate.concurrency)
        config.parameters["intra_op_thread_count"].string_value = str(candidate.threads)
        config.parameters["inter_op_thread_count"].string_value = "1"


def graph_batches(batch: int) -> tuple[tuple[int, int], ...]:
    """(lowest, captured) batches of CUDA graphs that together take every batch up to `batch`: powers of two and `batch` itself.

    A smaller batch runs in the next captured one, padded, so at most half of a graph's work is lost.
    """
    captured = sorted({1 << power for power in range(batch.bit_length()) if 1 << power <= batch} | {batch})
    return tuple(zip([1, *(size + 1 for size in captured[:-1])], captured, strict=True))


def cuda_graphs(config: Any, release: Release) -> None:
    """CUDA graphs for every size that is known beforehand (`warm_sizes`).

    The lower bound differs in the batch alone: a graph for a larger height or width would read rows of the wrong length.
    """
    engine, cuda = release.engine, config.optimization.cuda
    cuda.graphs = True
    for size in warm_sizes(release):
        for lowest, captured in graph_batches(config.max_batch_size):
            if not any(holds(profile, captured, size) for profile in engine.profiles):
                continue
            spec = cuda.graph_spec.add()
            spec.batch_size = captured
            spec.input[engine.input.name].dim.extend((3, *size))
            spec.graph_lower_bound.batch_size = lowest
            spec.graph_lower_bound.input[engine.input.name].dim.extend((3, *size))


def network_warmup(config: Any, release: Release, target: Target) -> None:
    """Zeros in every profile's best shape (TensorRT), else in every size that may come, alone and as a full batch."""
    engine = release.engine
    if target == "container" and engine.profiles:
        shapes = [(min(profile.optimum[0], config.max_batch_size), profile.optimum[1:]) for profile in engine.profiles]
    else:
        shapes = [(batch, (3, *size)) for size in warm_sizes(release) for batch in sorted({1, config.max_batch_size})]
    for batch, shape in dict.fromkeys(shapes):
        sample = _sample(config, "x".join(map(str, (batch, *shape))), batch)
        _zeros(sample, engine.input.name, triton_type(engine.input), shape)


def image_warmup(config: Any, release: Release) -> None:
    """Golden images, each alone, and the first as a full batch; see `ModelFiles.warmup` for the files."""
    for index, golden in enumerate(release.golden[:WARM_IMAGES]):
        for batch in sorted({1, config.max_batch_size}) if index == 0 else [1]:
            data = _sample(config, f"{golden.file} x{batch}", batch).inputs[names.IMAGE]
            data.data_type, data.input_data_file = triton.TYPE_STRING, image_file(golden.file)
            data.dims.append(1)


def tensor_warmup(config: Any, release: Release) -> None:
    """Zeros in every size that may come, lying in the input as they are; on a GPU as a full batch too, of which each shape has
    a CUDA graph of its own."""
    for height, width in warm_sizes(release):
        for batch in sorted({1, config.max_batch_size}) if release.engine.profiles else [1]:
            sample = _sample(config, f"{height}x{width}" if batch == 1 else f"{height}x{width} x{batch}", batch)
            _zeros(sample, names.IMAGES, "TYPE_FP32", (3, height, width))
            data = sample.inputs[names.PLACEMENT]
            data.data_type, data.input_data_file = triton.TYPE_FP64, placement_file(height, width)
            data.dims.append(names.PLACEMENT_NUMBERS)


def image_file(golden: str) -> str:
    """A golden image in Triton's form of a string tensor, in the model's warmup folder."""
    return f"{golden}.string"


def placement_file(height: int, width: int) -> str:
    return f"placement-{height}x{width}.f64"


def parameters(config: Any, role: Role, material: str) -> None:
    config.parameters["role"].string_value = role
    config.parameters["material"].string_value = material


def step(config: Any, model: str, version: int, inputs: Sequence[tuple[str, str]], outputs: Sequence[tuple[str, str]]) -> None:
    """One step of an ensemble; pairs are (the model's tensor, the ensemble's tensor)."""
    block = config.ensemble_scheduling.step.add()
    block.model_name, block.model_version = model, version
    for of_model, of_ensemble in inputs:
        block.input_map[of_model] = of_ensemble
    for of_model, of_ensemble in outputs:
        block.output_map[of_model] = of_ensemble


def _sample(config: Any, name: str, batch: int) -> Any:
    sample = config.model_warmup.add()
    sample.name, sample.batch_size = name, batch
    return sample


def _zeros(sample: Any, name: str, dtype: str, dims: Iterable[int]) -> None:
    data = sample.inputs[name]
    data.data_type, data.zero_data = triton.DataType.Value(dtype), True
    data.dims.extend(dims)
