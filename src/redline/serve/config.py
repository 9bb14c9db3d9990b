"""Model configurations of one release, for either target, built as protobuf messages."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from redline.errors import BadInput
from redline.records.serve import Release, Role, Target
from redline.serve import blocks, names
from redline.serve.shapes import image_dims, warm_sizes

SERVER_FILE = {"onnx": "model.onnx", "tensorrt": "model.plan"}
"""In the version folder of a network model that the server's own backend loads: the backends' default names."""
BACKENDS = {"onnx": "onnxruntime", "tensorrt": "tensorrt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """One Triton model of a repository: everything but the network and the code."""

    name: str
    version: int
    """Its only version."""
    role: Role | None
    """None: a stable name, which joins nothing."""
    text: str
    """config.pbtxt."""
    python: bool
    """Its version folder has the model.py."""
    network: str | None = None
    """File name of the network in its version folder, where the server's own backend loads it."""
    images: tuple[str, ...] = ()
    """Golden images that its warm-up reads."""
    placements: tuple[tuple[int, int], ...] = ()
    """Input sizes (height, width) whose identity placement its warm-up reads."""

    @property
    def config(self) -> Any:
        """The parsed protobuf. Raises google.protobuf.text_format.ParseError with line and column."""
        return text_format.Parse(self.text, triton.ModelConfig())

    def warmup(self, golden: Mapping[str, bytes]) -> dict[str, bytes]:
        """Files of the warmup folder by name; `golden` has the bytes of the golden images by name.

        A string tensor is a little-endian length of 4 bytes and the bytes; a placement is 8 doubles.
        """
        files = {blocks.image_file(name): struct.pack("<I", len(golden[name])) + golden[name] for name in self.images}
        for height, width in self.placements:
            identity = (height, width, height, width, 1.0, 1.0, 0.0, 0.0)
            files[blocks.placement_file(height, width)] = struct.pack("<8d", *identity)
        return files


def adapted(release: Release, target: Target) -> Release:
    """The release as this target serves it: fused becomes bls in the container, where the network is a model of its own.

    Raises BadInput: release-serving.
    """
    serving = release.candidate.serving
    if serving is None:
        raise BadInput(
            "release-serving",
            f"release {release.number} of {release.service} was not measured through a server",
            fix="run again with target.server = \"embedded\" or \"container\"",
        )  # fmt: skip
    if target == "embedded" or serving.pipeline != "fused":
        return release
    return replace(release, candidate=replace(release.candidate, serving=replace(serving, pipeline="bls")))


def material(release: Release) -> str:
    """Path of the release's material from any of its model folders: the version folder of its entry model."""
    return f"../{names.model_name(release.service, release.number, 'entry')}/{release.number}"


def render(release: Release, target: Target) -> tuple[ModelFiles, ...]:
    """Every model of the release, in the order in which a server can load them: what others call comes first.

    Pure, and unchecked: see `checks.problems`. Raises BadInput: release-serving, release-dtype.
    """
    release = adapted(release, target)
    assert release.candidate.serving is not None
    pipeline = release.candidate.serving.pipeline
    if pipeline == "fused":
        return (_tensor(release, target), _entry(release, target))
    network = _network(release, target)
    if pipeline == "bls":
        return (network, _tensor(release, target), _entry(release, target))
    steps = (_prepare(release, target), _finish(release, target))
    return (network, *steps, _tensor(release, target), _ensemble(release))


def render_stable(service: str, release: Release, target: Target) -> tuple[ModelFiles, ...]:
    """The names that clients use, as ensembles of one step each on this release; the same for both targets."""
    return tuple(_stable(service, adapted(release, target), role) for role in _STABLE)


_STABLE: tuple[Role, ...] = ("tensor", "entry")


def _start(release: Release, role: Role) -> Any:
    config = triton.ModelConfig(name=names.model_name(release.service, release.number, role))
    config.max_batch_size = release.candidate.batch
    config.version_policy.specific.versions.append(release.number)
    return config


def _python(release: Release, role: Role) -> Any:
    config = _start(release, role)
    config.backend = "python"
    blocks.parameters(config, role, material(release))
    return config


def _files(release: Release, role: Role | None, config: Any, **more: Any) -> ModelFiles:
    return ModelFiles(
        name=config.name,
        version=release.number,
        role=role,
        text=text_format.MessageToString(config),
        python=config.backend == "python",
        **more,
    )


def _entry(release: Release, target: Target) -> ModelFiles:
    config = _python(release, "entry")
    blocks.image_input(config)
    return _detecting(release, target, "entry", config)


def _tensor(release: Release, target: Target) -> ModelFiles:
    config = _python(release, "tensor")
    blocks.tensor(config.input.add(), names.IMAGES, "TYPE_FP32", image_dims(release))
    blocks.placement(config.input.add())
    return _detecting(release, target, "tensor", config)


def _detecting(release: Release, target: Target, role: Role, config: Any) -> ModelFiles:
    """An entry or tensor process. Unless fused it calls another model, which may not be there while it loads: no warm-up."""
    candidate = release.candidate
    assert candidate.serving is not None
    blocks.detections(config, release.postprocess.max_detections)
    fused = candidate.serving.pipeline == "fused"
    if fused:
        blocks.network_processes(config, release)
    else:
        blocks.processes(config, candidate.serving.workers)
    blocks.batching(config, release, target, waits=candidate.serving.pipeline != "ensemble")
    if not fused:
        return _files(release, role, config)
    if role == "tensor":
        blocks.tensor_warmup(config, release)
        return _files(release, role, config, placements=warm_sizes(release))
    blocks.image_warmup(config, release)
    return _files(release, role, config, images=_warm_images(release))


def _network(release: Release, target: Target) -> ModelFiles:
    """The network alone: a Python process around a runner, or in the container the server's own backend."""
    assert release.candidate.serving is not None
    waits = release.candidate.serving.pipeline == "ensemble"
    engine = release.engine
    config = _python(release, "network") if target == "embedded" else _start(release, "network")
    blocks.network_tensors(config, release)
    blocks.batching(config, release, target, waits=waits)
    blocks.network_warmup(config, release, target)
    if target == "embedded":
        blocks.network_processes(config, release)
        return _files(release, "network", config)
    config.backend = BACKENDS[engine.format]
    blocks.network_instances(config, release)
    config.dynamic_batching.preferred_batch_size.extend(blocks.preferred_batches(engine, config.max_batch_size))
    config.optimization.input_pinned_memory.enable = True
    config.optimization.output_pinned_memory.enable = True
    if engine.format == "tensorrt" and release.candidate.cuda_graphs:
        blocks.cuda_graphs(config, release)
    return _files(release, "network", config, network=SERVER_FILE[engine.format])


def _prepare(release: Release, target: Target) -> ModelFiles:
    config = _python(release, "prepare")
    assert release.candidate.serving is not None
    blocks.image_input(config)
    blocks.tensor(config.output.add(), names.IMAGES, "TYPE_FP32", image_dims(release))
    blocks.placement(config.output.add())
    blocks.processes(config, release.candidate.serving.workers)
    blocks.batching(config, release, target, waits=False)
    blocks.image_warmup(config, release)
    return _files(release, "prepare", config, images=_warm_images(release))


def _finish(release: Release, target: Target) -> ModelFiles:
    config = _python(release, "finish")
    assert release.candidate.serving is not None
    for output in release.engine.outputs:
        blocks.tensor(config.input.add(), output.name, blocks.triton_type(output), blocks.free_dims(output))
    blocks.placement(config.input.add())
    blocks.detections(config, release.postprocess.max_detections)
    blocks.processes(config, release.candidate.serving.workers)
    blocks.batching(config, release, target, waits=False)
    return _files(release, "finish", config)


def _ensemble(release: Release) -> ModelFiles:
    """The entry as an ensemble: prepare, network, finish. Tensors have a process of their own all the same (`_tensor`): only
    there is a tensor held against its placement, and a client's mistake told from the release's."""
    config = _start(release, "entry")
    config.platform = "ensemble"
    engine, number = release.engine, release.number
    placed = (names.PLACEMENT, names.PLACEMENT)
    blocks.image_input(config)
    prepare = names.model_name(release.service, number, "prepare")
    blocks.step(config, prepare, number, [(names.IMAGE, names.IMAGE)], [(names.IMAGES, names.IMAGES), placed])
    # An engine may name an output as an answer is named ("boxes"): inside the ensemble raw outputs have names of their own.
    raw = [(output.name, f"raw_{index}") for index, output in enumerate(engine.outputs)]
    network = names.model_name(release.service, number, "network")
    blocks.step(config, network, number, [(engine.input.name, names.IMAGES)], raw)
    finish = names.model_name(release.service, number, "finish")
    blocks.step(config, finish, number, [*raw, placed], [(name, name) for name in names.DETECTIONS])
    blocks.detections(config, release.postprocess.max_detections)
    return _files(release, "entry", config)


def _stable(service: str, release: Release, role: Role) -> ModelFiles:
    config = _start(release, role)
    member, config.name = config.name, names.stable_name(service, role)
    config.platform = "ensemble"
    inputs = [names.IMAGE] if role == "entry" else [names.IMAGES, names.PLACEMENT]
    if role == "entry":
        blocks.image_input(config)
    else:
        blocks.tensor(config.input.add(), names.IMAGES, "TYPE_FP32", image_dims(release))
        blocks.placement(config.input.add())
    blocks.detections(config, release.postprocess.max_detections)
    same = [(name, name) for name in names.DETECTIONS]
    blocks.step(config, member, release.number, [(name, name) for name in inputs], same)
    return _files(release, None, config)


def _warm_images(release: Release) -> tuple[str, ...]:
    return tuple(golden.file for golden in release.golden[: blocks.WARM_IMAGES])
