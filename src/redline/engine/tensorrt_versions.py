"""Every difference between TensorRT 8.6, 10.x, 11.x and TensorRT-RTX, in one place.

Capabilities are probed by name, never inferred from a version, and no enum's number is ever stored: 11 renumbered them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from redline.errors import BadInput, TrialError

if TYPE_CHECKING:
    import tensorrt as trt

    from redline.engine.tensorrt_api import Api
    from redline.records import BuildOptions, TensorRTSpec
    from redline.records.spec import Hardware

Name = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Name, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
HARDWARE: dict[Hardware, str] = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
DEAD_SOURCES = ("CUBLAS", "CUBLAS_LT", "CUDNN")
"""Tactic sources that 10 deprecates and 11 no longer has; convolution networks do not need them."""
FP8_CAPABILITY = (8, 9)
"""Least compute capability with E4M3 in its tensor cores: Ada, Hopper, Blackwell (TensorRT's and RTX's support matrices)."""


@dataclass(frozen=True, slots=True)
class Library:
    """A TensorRT that was found. `module` has the API of `tensorrt`; what may be absent is asked for by name."""

    module: Api
    name: Name
    version: str

    @property
    def strongly_typed(self) -> bool:
        """Types come from the graph (10 by choice, 11 and RTX always). False: 8.6, where flags follow the graph."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def ahead_of_time(self) -> bool:
        """Can build for a GPU that is not here."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability")

    @property
    def debug_tensors(self) -> bool:
        return hasattr(self.module.INetworkDefinition, "mark_debug")

    @property
    def reports_progress(self) -> bool:
        return hasattr(self.module, "IProgressMonitor")

    @property
    def tactic_sources(self) -> tuple[str, ...]:
        return tuple(self.module.TacticSource.__members__)

    def abilities(self) -> tuple[str, ...]:
        """For people: what this version can do that others cannot."""
        typed = "strongly typed networks" if self.strongly_typed else "types by flags that follow the graph"
        extras = [(self.ahead_of_time, "ahead-of-time builds"), (self.debug_tensors, "debug tensors")]
        extras += [(self.reports_progress, "build progress"), (self.has_hardware("same-capability"), "plans per capability")]
        return (typed, *(text for able, text in extras if able))

    def refuses(self, wanted: TensorRTSpec) -> str | None:
        """Why this version cannot build as `[target.tensorrt]` asks; None if it can."""
        lacking = [f'tactic_sources = ["{name}"]' for name in wanted.tactic_sources or () if name not in self.tactic_sources]
        if wanted.version_compatible and not self.version_compatible:
            lacking.append("version_compatible = true")
        if not self.has_hardware(wanted.hardware):
            lacking.append(f'hardware = "{wanted.hardware}"')
        if not lacking:
            return None
        sources = f"; its tactic sources are {', '.join(self.tactic_sources)}" if "tactic" in lacking[0] else ""
        return f"{self.name} {self.version} does not have [target.tensorrt] {', '.join(lacking)}{sources}"

    def no_fp8(self, capabilities: Iterable[str] = ()) -> str | None:
        """Why engines in FP8 cannot be built for GPUs of these compute capabilities ("8.9"); None if nothing speaks against it.

        8.6 has the enum's member and nothing that reads E4M3 from a graph: FP8 is for strongly typed networks. Kernels of
        convolutions came with 10.2 and cannot be asked for by name: before, a build ends with the node that has none.
        """
        if not self.strongly_typed or not hasattr(self.module.DataType, "FP8"):
            return f"{self.name} {self.version} reads no FP8 from a graph: TensorRT 10.2 or newer does, and TensorRT-RTX"
        numbers = {text: tuple(int(part) for part in text.split(".") if part.isdigit()) for text in capabilities}
        old = [text for text, number in numbers.items() if number and number < FP8_CAPABILITY]
        least = ".".join(map(str, FP8_CAPABILITY))
        return f"compute capability {', '.join(old)} has no FP8: it begins with {least} (Ada, Hopper)" if old else None

    def has_hardware(self, hardware: Hardware) -> bool:
        # RTX has the symbols and warns that it does not support them.
        known = self.name == "tensorrt" and hasattr(self.module.HardwareCompatibilityLevel, HARDWARE.get(hardware, ""))
        return hardware == "this" or known

    @property
    def version_compatible(self) -> bool:
        """RTX has the flag, and not the lean runtime that such a plan carries."""
        return self.name == "tensorrt" and hasattr(self.module.BuilderFlag, "VERSION_COMPATIBLE")

    def create_network(self, builder: trt.Builder) -> trt.INetworkDefinition:
        kinds = self.module.NetworkDefinitionCreationFlag
        # Strong typing is a flag on 10 and ignored on 11; explicit batch is needed on 8.6 and gone from 11's enum.
        wanted = "STRONGLY_TYPED" if self.strongly_typed else "EXPLICIT_BATCH"
        flag = getattr(kinds, wanted, None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def configure(self, builder: trt.Builder, options: BuildOptions) -> trt.IBuilderConfig:
        """A builder configuration without profiles and timing cache. Raises TrialError for what this version has not."""
        module, config = self.module, builder.create_builder_config()
        config.builder_optimization_level = options.optimization_level
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
        self._set(config, "TF32", options.precision != "fp32")  # it is on by default
        if options.version_compatible:
            if not self.version_compatible:
                raise self.lacks("version_compatible", "leave the option out")
            self._set(config, "VERSION_COMPATIBLE", True)
        if options.hardware != "this":
            if not self.has_hardware(options.hardware):
                raise self.lacks(f"hardware = {options.hardware!r}", "build on the GPU that will run the engine")
            config.hardware_compatibility_level = getattr(module.HardwareCompatibilityLevel, HARDWARE[options.hardware])
        if options.tactic_sources is not None:
            config.set_tactic_sources(self._sources(options.tactic_sources))
        if options.capabilities:
            self._capabilities(config, options.capabilities)
        shared = getattr(module.PreviewFeature, "PROFILE_SHARING_0806", None)
        if shared is not None:  # 8.6; later versions always let several contexts use one profile
            config.set_preview_feature(shared, True)
        return config

    def follow_graph(
        self, network: Any, config: Any, precision: str, wide: Iterable[str], *, narrow: Iterable[str] = ()
    ) -> None:
        """8.6: allow FP16, hold the layers of the ONNX nodes `wide` at FP32 and ask for FP16 in those of `narrow`.

        Elsewhere the network's types say it all. Asking, not obeying: a layer without an FP16 kernel falls back with a warning,
        and the proof names it. Kernels of other types are then not timed, which shortens the build.
        """
        if self.strongly_typed or precision not in ("fp16", "int8"):
            return
        flags, kinds = self.module.BuilderFlag, self.module.DataType
        keep, ask = set(wide), set(narrow) if precision == "fp16" else set()
        config.set_flag(flags.FP16)
        if precision == "int8":
            config.set_flag(flags.INT8)
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        held = [layer for layer in layers if layer.name in keep]
        asked = [layer for layer in layers if layer.name in ask - keep]
        for layer in held:
            layer.precision = kinds.FLOAT
            for index in range(layer.num_outputs):
                layer.set_output_type(index, kinds.FLOAT)
        for layer in asked:
            layer.precision = kinds.HALF
        if held or asked:
            config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS if asked else flags.OBEY_PRECISION_CONSTRAINTS)

    def watch(self, config: trt.IBuilderConfig, on_phase: Any) -> Any:
        """Report progress where the version can; keep what is returned alive during the build."""
        if not self.reports_progress:
            return None
        base = self.module.IProgressMonitor

        class Monitor(base):  # type: ignore[misc, valid-type, unused-ignore]
            def __init__(self) -> None:
                base.__init__(self)
                self.steps: dict[str, int] = {}

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                self.steps[phase_name] = num_steps

            def phase_finish(self, phase_name: str) -> None:
                self.steps.pop(phase_name, None)

            def step_complete(self, phase_name: str, step: int) -> bool:
                on_phase(phase_name, step + 1, self.steps.get(phase_name, 0))
                return True

        monitor = Monitor()
        config.progress_monitor = monitor
        return monitor

    def mark_debug(self, network: trt.INetworkDefinition, names: Sequence[str]) -> None:
        """The engine shall hand out tensors while it runs. Raises TrialError: engine-ability (8.6), engine-cut (not there)."""
        if not self.debug_tensors:
            raise self.lacks("debug tensors", "look into the engine by further outputs")
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        made = {tensor.name: tensor for layer in layers for tensor in map(layer.get_output, range(layer.num_outputs))}
        for name in names:
            if name not in made or not network.mark_debug(made[name]):
                raise TrialError("engine-cut", "TensorRT's network has no such tensor to look at", got=name)

    def listen(self, context: trt.IExecutionContext, receive: Any) -> Any:
        """Call `receive(name, address, on_host, type, shape, stream)` for each debug tensor; keep what is returned alive."""
        base, host = self.module.IDebugListener, self.module.TensorLocation.HOST

        class Listener(base):  # type: ignore[misc, valid-type, unused-ignore]
            def __init__(self) -> None:
                base.__init__(self)

            def process_debug_tensor(self, addr: int, location: Any, type: Any, shape: Any, name: str, stream: int) -> bool:
                receive(name, addr, location == host, type, tuple(shape), stream)
                return True

        listener = Listener()
        context.set_debug_listener(listener)
        context.set_all_tensors_debug_state(True)
        return listener

    def context_bytes(self, engine: trt.ICudaEngine) -> int:
        """Scratch memory of one context; `device_memory_size` was superseded in 10.1 and is gone from 11."""
        newer = getattr(engine, "device_memory_size_v2", None)
        return int(engine.device_memory_size if newer is None else newer)

    def context_on(self, engine: trt.ICudaEngine, scratch: int, size: int) -> Any:
        """A context that works in `size` bytes of GPU memory at `scratch`, which others may use as well while it does not run;
        None as TensorRT says it. 11 dropped the call of its own that 8.6 and 10 have for it.
        """
        context: Any
        own = getattr(engine, "create_execution_context_without_device_memory", None)
        if own is None:
            context = engine.create_execution_context(self.module.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = own()
        if context is None:
            return None
        if hasattr(context, "set_device_memory"):  # since 10.1
            context.set_device_memory(scratch, size)
        else:
            context.device_memory = scratch
        return context

    def parse_errors(self, parser: trt.OnnxParser) -> list[tuple[int, str, str]]:
        """(node index or -1, node name or "", what is wrong) of each; 8.6 gives the index only."""
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        named = [getattr(error, "node_name", None) for error in errors]
        texts = [name() if callable(name) else "" for name in named]
        return [(error.node(), text, error.desc()) for error, text in zip(errors, texts, strict=True)]

    def runtime(self, logger: trt.ILogger, *, host_code: bool) -> trt.Runtime:
        runtime = self.module.Runtime(logger)
        if host_code:  # a version-compatible plan carries code of its own
            runtime.engine_host_code_allowed = True
        return runtime

    def lacks(self, what: str, fix: str) -> TrialError:
        return TrialError("engine-ability", f"{self.name} {self.version} does not have this", got=what, fix=fix)

    def _set(self, config: trt.IBuilderConfig, flag: str, on: bool) -> None:
        member = getattr(self.module.BuilderFlag, flag, None)
        if member is None:
            if on:
                raise self.lacks(f"builder flag {flag}", "leave the option out")
            return
        (config.set_flag if on else config.clear_flag)(member)

    def _sources(self, names: Sequence[str]) -> int:
        known = self.module.TacticSource
        for name in names:
            if not hasattr(known, name):
                raise self.lacks(f"tactic source {name}", f"one of {', '.join(self.tactic_sources)}")
        return sum(1 << int(getattr(known, name)) for name in names)

    def _capabilities(self, config: Any, capabilities: Sequence[str]) -> None:
        if not self.ahead_of_time:
            raise self.lacks("an ahead-of-time build", "install tensorrt-rtx, or build on the GPU that will run the engine")
        kinds = self.module.ComputeCapability
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            kind = getattr(kinds, f"SM{capability.replace('.', '')}", None)
            if kind is None:
                known = [f"{m[2:-1]}.{m[-1]}" for m in kinds.__members__ if m.startswith("SM")]
                raise self.lacks(f"compute capability {capability}", f"one of {', '.join(known)}")
            config.set_compute_capability(kind, index)


def find(name: Name | None = None) -> Library:
    """The TensorRT that is installed; `tensorrt` before `tensorrt-rtx`. Raises BadInput (engine.no-tensorrt) if none loads."""
    why: list[str] = []
    for known in MODULES if name is None else (name,):
        try:
            module = importlib.import_module(MODULES[known])
        except (ImportError, OSError, RuntimeError) as error:
            why.append(f"{known}: {(str(error).splitlines() or [type(error).__name__])[0]}")
            continue
        if hasattr(module, "Builder"):
            return Library(module, known, str(module.__version__))
        why.append(f"{known}: the module has no Builder (its libraries are missing)")
    fix = "pip install tensorrt-cu12 (an NVIDIA GPU), or tensorrt-rtx for builds ahead of time"
    raise BadInput("engine.no-tensorrt", "No TensorRT can be loaded", got="; ".join(why), fix=fix)
