"""ONNX graph -> TensorRT plan. The precision is the graph's; the options are explicit; failures name the ONNX node."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redline.engine.graph_facts import NodeFact, narrow_nodes, node_facts, read_graph, wide_nodes
from redline.engine.tensorrt_graph import portable
from redline.engine.tensorrt_lint import lint, require_clean
from redline.engine.tensorrt_log import make_logger
from redline.engine.tensorrt_proof import inspector_layers, layer_facts, profile_of, prove, typed_once
from redline.errors import TrialError
from redline.records import TensorFact

if TYPE_CHECKING:
    import onnx
    import tensorrt as trt

    from redline.engine.tensorrt_log import Log
    from redline.engine.tensorrt_versions import Library
    from redline.records import BuildOptions, EngineProfile, PrecisionProof

OnPhase = Callable[[str, int, int], None]
"""Told (phase, step, steps) of a running build."""
NO_KERNEL = re.compile(r"Could not find any implementation for node (.+?)(?: due to|\. ?$|\.$|$)")
MEMORY = re.compile(r"out of memory|OutOfMemory|insufficient (?:device )?memory|Requested amount of GPU memory", re.I)


@dataclass(frozen=True, slots=True)
class Plan:
    """A finished build: the serialised engine and what is known of it."""

    data: bytes
    timing_cache: bytes
    """Old and new timings together; empty where the version keeps none."""
    seconds: float
    nodes: tuple[NodeFact, ...]
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    log: Log


def build_plan(
    path: str,
    options: BuildOptions,
    library: Library,
    *,
    timing_cache: bytes = b"",
    on_phase: OnPhase | None = None,
    watched: Sequence[str] = (),
) -> Plan:
    """Build the engine of the ONNX graph at `path`. `watched`: tensors that it hands out while it runs, where the version can.

    Raises TrialError: engine-lint, engine-parse, engine-build (with the node), engine-memory, engine-ability, engine-cut.
    """
    model = portable(read_graph(path))
    require_clean(lint(model, library))
    nodes = node_facts(model, options.profiles[0].optimum)
    log, logger = make_logger(library.module)
    started = time.perf_counter()
    try:
        builder = library.module.Builder(logger)
    except (TypeError, RuntimeError) as error:  # how the bindings say that there is no usable GPU
        raise TrialError(
            "engine-build", "TensorRT's builder does not start", got=log.tail(), fix="see `redline doctor`"
        ) from error
    network = library.create_network(builder)
    parser = library.module.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise _parse_error(library, parser, model, log)
    if watched:
        library.mark_debug(network, watched)
    config = library.configure(builder, options)
    _add_profiles(builder, config, network, options)
    library.follow_graph(network, config, options.precision, wide_nodes(nodes), narrow=narrow_nodes(nodes))
    if not options.capabilities:  # nothing is timed where no GPU is
        config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
    monitor = library.watch(config, on_phase or _quiet)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(log)
    del monitor
    kept = None if options.capabilities else config.get_timing_cache()
    return Plan(
        data=bytes(plan),
        timing_cache=bytes(kept.serialize()) if kept is not None else b"",
        seconds=time.perf_counter() - started,
        nodes=nodes,
        inputs=tuple(_tensor(network.get_input(i)) for i in range(network.num_inputs)),
        outputs=tuple(_tensor(network.get_output(i)) for i in range(network.num_outputs)),
        log=log,
    )


def prove_precision(
    library: Library, engine: trt.ICudaEngine, options: BuildOptions, nodes: tuple[NodeFact, ...]
) -> PrecisionProof:
    """Read the inspector of a loaded engine; what can have several shapes has types only in a context that has one."""
    form = library.module.LayerInformationFormat.JSON
    whole = str(engine.create_engine_inspector().get_engine_information(form))
    read = [layer_facts(whole, nodes)]
    if len({shape for profile in options.profiles for shape in (profile.minimum, profile.maximum)}) > 1:
        names = [str(layer.get("Name", "")) for layer in inspector_layers(whole)]
        read += [layer_facts(_in_context(library, engine, profile, names), nodes) for profile in options.profiles]
    return prove(options.precision, typed_once(read), nodes)


def _in_context(library: Library, engine: trt.ICudaEngine, profile: EngineProfile, names: Sequence[str]) -> str:
    """The inspector's JSON of the layers of `profile`, at its optimum. `names`: of the whole engine's layers, in order.

    Layer by layer: asked for all at once, 8.6 trips over those of the other profiles and says nothing.
    """
    from redline.engine import cuda

    context = engine.create_execution_context()
    if context is None:
        return "[]"
    stream = cuda.Stream()
    context.set_optimization_profile_async(profile.index, stream.address)
    stream.wait()
    stream.close()
    tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    mode = library.module.TensorIOMode.INPUT
    context.set_input_shape(next(name for name in tensors if engine.get_tensor_mode(name) == mode), profile.optimum)
    context.infer_shapes()  # before it has, 8.6 gives no types in a profile of several shapes
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    own = [index for index, name in enumerate(names) if profile_of(name) == profile.index]
    texts = [str(inspector.get_layer_information(index, library.module.LayerInformationFormat.JSON)) for index in own]
    del inspector, context
    return f"[{','.join(text for text in texts if text)}]"


def _add_profiles(
    builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition, options: BuildOptions
) -> None:
    tensor = network.get_input(0)
    for wanted in options.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, wanted.minimum, wanted.optimum, wanted.maximum)
        if config.add_optimization_profile(profile) < 0:
            got = f"profile {wanted.index}: {wanted.minimum} to {wanted.maximum} for input {tuple(tensor.shape)}"
            fix = "minimum <= optimum <= maximum in every axis, and fixed axes as the graph has them"
            raise TrialError("engine-profile", "TensorRT refuses an optimisation profile", got=got, fix=fix)


def _tensor(tensor: trt.ITensor) -> TensorFact:
    names = {0: "N", 2: "H", 3: "W"}
    shape = tuple(int(size) if size >= 0 else names.get(axis, f"d{axis}") for axis, size in enumerate(tensor.shape))
    kind = str(tensor.dtype.name).lower()
    return TensorFact(name=tensor.name, dtype={"float": "float32", "half": "float16"}.get(kind, kind), shape=shape)


def _quiet(phase: str, step: int, steps: int) -> None:
    pass


def _parse_error(library: Library, parser: trt.OnnxParser, model: onnx.ModelProto, log: Log) -> TrialError:
    texts = []
    for index, name, what in library.parse_errors(parser):
        known = name or (model.graph.node[index].name if 0 <= index < len(model.graph.node) else "")
        operator = model.graph.node[index].op_type if 0 <= index < len(model.graph.node) else "?"
        texts.append(f"node {known or index} ({operator}): {' '.join(what.split())[:300]}")
    fix = "replace the operator in the network, or keep this part out of the graph"
    return TrialError("engine-parse", "TensorRT cannot read the graph", got="; ".join(texts) or log.tail(), fix=fix)


def _build_error(log: Log) -> TrialError:
    text = log.tail()
    if MEMORY.search(text):
        fix = "a smaller workspace, a lower optimisation level or smaller profiles; or free the GPU's memory"
        return TrialError("engine-memory", "The build ran out of GPU memory", got=text, fix=fix)
    found = NO_KERNEL.search(text)
    if found:
        fix = "a larger workspace, other tactic sources, or FP32 for this node"
        return TrialError("engine-build", f"No kernel for node {found[1]}", got=text, fix=fix)
    return TrialError("engine-build", "TensorRT did not build the engine", got=text, fix="see the log line above")
