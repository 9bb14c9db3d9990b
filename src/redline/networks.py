"""The network that a release serves: its file, there and whole, what is known of it, and the runner that opens it here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from redline.data import load_dataset
from redline.errors import BadInput, TrialError
from redline.live import rebuild_command
from redline.records import EngineFacts, PlanOrigin
from redline.serve.shapes import sent_sizes, uncovered
from redline.store import Store
from redline.vision import input_size

if TYPE_CHECKING:
    from redline.progress import Progress
    from redline.records import Candidate, EngineBuild, OnnxModel, Runner, RunRecord, Spec, Trial
    from redline.records.spec import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    path: Path
    engine: EngineFacts
    anew: bool = False
    """The plan that was measured is gone, and this one was built in its place: other bytes, maybe other kernels."""


def network_of(spec: Spec, record: RunRecord, candidate: Candidate, trial: Trial, runs: Path, progress: Progress) -> Network:
    """What the candidate runs. A plan that is gone or damaged is built anew from its graph.

    Raises BadInput: release.engine (it is gone, and so is what it is made from), release.gpu (none that may run it is here),
    engine-place (another GPU or TensorRT); TrialError if it cannot be built anew.
    """
    if candidate.runner != "tensorrt":
        return graph_network(record, runs, candidate)
    build = next((engine.build for engine in record.engines if engine.build.digest == trial.engine), None)
    if build is None:
        raise _gone(f"the run has no record of the engine of {candidate.name}")
    store, origin = Store(runs / "store", on_wait=progress.note), _origin(build, rebuild_command(spec, candidate))
    _require_gpus(origin, candidate)
    anew = not store.intact(build.digest)
    if anew:
        progress.note(f"the engine {build.digest[:12]} is gone: it is built anew")
        build = _built_anew(record, build, candidate, store, progress)
    return Network(path=store.path(build.digest), engine=_plan_facts(build, origin), anew=anew)


def graph_network(record: RunRecord, runs: Path, candidate: Candidate) -> Network:
    """The graph, exported or rounded to INT8, which ONNX Runtime runs. Raises BadInput: release.engine."""
    store, onnx = Store(runs / "store"), _graph(record, candidate)
    if onnx is None or not store.intact(onnx.digest):
        got = "no graph was exported" if onnx is None else f"{onnx.digest[:12]} is not in {store.root}"
        raise _gone(got)
    return Network(path=store.path(onnx.digest), engine=graph_facts(onnx, candidate.precision))


def _graph(record: RunRecord, candidate: Candidate) -> OnnxModel | None:
    if candidate.precision != "int8":
        return record.onnx
    graphs = record.int8.graphs if record.int8 is not None else ()
    return next((graph.onnx for graph in graphs if graph.wide == candidate.wide), None)


def graph_facts(onnx: OnnxModel, precision: Precision = "fp32") -> EngineFacts:
    return EngineFacts(format="onnx", digest=onnx.digest, input=onnx.input, outputs=onnx.outputs, precision=precision)


def open_network(network: Network, candidate: Candidate) -> Runner:
    """For one inference at a time, on the first of the candidate's GPUs. Raises as `open_plan` does."""
    engine = network.engine
    if engine.origin is None:
        from redline.engine.onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(str(network.path), threads=candidate.threads, concurrent=False)
    from redline.engine.tensorrt_place import open_plan

    outputs = [output.name for output in engine.outputs]
    device, graphs = candidate.gpus[0], candidate.cuda_graphs
    return open_plan(network.path.read_bytes(), engine.origin, device=device, lanes=1, graphs=graphs, outputs=outputs)


def require_server(network: Network) -> None:
    """The embedded server's Python can open the network as this one does. Raises BadInput: serve.no-server, serve.tensorrt."""
    if network.engine.origin is None:
        return
    from redline.engine.devices import tensorrt_facts
    from redline.serve.environment import find_environment, require_tensorrt

    facts = tensorrt_facts()
    require_tensorrt(find_environment(), facts.library, facts.version)


def _origin(build: EngineBuild, rebuild: str) -> PlanOrigin:
    return PlanOrigin(
        graph=build.onnx,
        library=build.library,
        version=build.version,
        gpu=build.gpu,
        hardware=build.options.hardware,
        version_compatible=build.options.version_compatible,
        rebuild=rebuild,
    )


def _plan_facts(build: EngineBuild, origin: PlanOrigin) -> EngineFacts:
    return EngineFacts(
        format="tensorrt",
        digest=build.digest,
        input=build.inputs[0],
        outputs=build.outputs,
        profiles=build.options.profiles,
        precision=build.options.precision,
        origin=origin,
    )


def _require_gpus(origin: PlanOrigin, candidate: Candidate) -> None:
    """Every GPU of the candidate may run the plan with the TensorRT that is here."""
    from redline.engine.devices import tensorrt_facts
    from redline.engine.tensorrt_place import require_here

    facts = tensorrt_facts()
    if facts.problem is not None:
        raise BadInput("release.gpu", "the choice is a TensorRT engine, which cannot be opened here", got=facts.problem)
    from redline.engine import cuda

    try:
        for device in candidate.gpus:
            name, capability, _ = cuda.describe(device)
            require_here(origin, facts.library, facts.version, f"{name} {capability}")
    except TrialError as error:
        code = "engine-place" if error.code == "engine-place" else "release.gpu"
        fix = f"{error.fix}; then redline run measures it" if error.code == "engine-place" else error.fix
        raise BadInput(code, error.what, got=error.got, allowed=error.allowed or candidate.device, fix=fix) from error


def _built_anew(record: RunRecord, build: EngineBuild, candidate: Candidate, store: Store, progress: Progress) -> EngineBuild:
    from redline.engine.foundry import Foundry
    from redline.engine.tensorrt_versions import find

    if record.onnx is None or not store.intact(build.onnx):
        raise _gone(f"neither the engine {build.digest[:12]} nor its graph {build.onnx[:12]} is in {store.root}")
    library = find("tensorrt-rtx" if build.library == "tensorrt-rtx" else "tensorrt")
    foundry = Foundry(library, store, None, progress.build, device=candidate.gpus[0])
    graph = replace(record.onnx, digest=build.onnx, path=str(store.path(build.onnx)))
    return foundry.engine(graph, build.options, candidate.name)


def _gone(got: str) -> BadInput:
    return BadInput("release.engine", "the network of this run is gone", got=got, fix="redline run makes it again")


def with_engine_shapes(candidate: Candidate, engine: EngineFacts, spec: Spec, record: RunRecord) -> Candidate:
    """The candidate with shapes that its engine takes, whatever image comes.

    An image of another form than all of the traffic and the evaluation set may have a shape outside every profile. With the
    shapes that they had as buckets, they get what they got, and others the smallest that holds them.
    """
    sizes = sent_sizes(spec.model.preprocess, candidate.shapes)
    if engine.origin is None or (sizes is not None and uncovered(engine.profiles, sizes, candidate.batch) is None):
        return candidate
    buckets = {(profile.maximum[2], profile.maximum[3]) for profile in engine.profiles}
    if candidate.profiles == "dynamic":
        seen = [(shape.height, shape.width) for shape in record.data.traffic.shapes]
        seen += [(image.height, image.width) for image in load_dataset(spec.data.evaluate).images]
        buckets |= {input_size(hw, spec.model.preprocess, candidate.shapes) for hw in seen}
    return replace(candidate, shapes=tuple(sorted(buckets, key=lambda hw: (hw[0] * hw[1], hw))))
