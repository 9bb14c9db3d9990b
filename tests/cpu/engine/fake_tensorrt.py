"""A TensorRT whose engines are ONNX Runtime's: the calls that redline makes, with the refusals and log lines of the real one.

Names of enums and classes are those of a public release (tests/null/engine/tensorrt_symbols.json).
"""

from __future__ import annotations

import ctypes
import json
import pickle
import time
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fake_inspector import Inspector
from onnx import numpy_helper, shape_inference

from redline.engine.tensorrt_versions import Library

SYMBOLS = json.loads((Path(__file__).parents[2] / "null/engine/tensorrt_symbols.json").read_text())
MAGIC = b"fake plan "
DTYPES = {1: ("FLOAT", np.float32), 10: ("HALF", np.float16), 6: ("INT32", np.int32), 7: ("INT64", np.int64)}


class FakeTensorRT:
    """One installed version. Knobs: what goes wrong in a build or a run, and how a build's tactics come out."""

    def __init__(self, version: str = "10.13.0", cuda: Any = None, *, ahead: bool = False) -> None:
        self.__version__, self.cuda = version, cuda
        known = SYMBOLS[version]
        for name, members in known.items():
            if members and members[0].isupper() and name != "Builder":
                setattr(self, name, IntEnum(name, members, start=0))
        self.fault: tuple[str, float] | None = None
        """(node, factor): the compiler's weights of this node are scaled."""
        self.narrow_fault: tuple[str, float] | None = None
        """The same, where those weights are float16."""
        self.wrong_at: tuple[int, ...] | None = None
        """Input shape at which every output is 0.5 too large."""
        self.build_error: str | None = None
        self.run_error: str | None = None
        self.tactic = "tactic_a"
        self.seconds = 0.0
        self.context_bytes = 64
        self.builds: list[bytes] = []
        """Timing cache that each build began with."""
        self.note: Path | None = None
        """A line is added to this file for every build, by whatever process."""
        self.ILogger, self.IBuilderConfig = _Logger, type("C", (_Config,), {})
        self.INetworkDefinition = _Network if "mark_debug" in known["INetworkDefinition"] else _OldNetwork
        self.ILogger.Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])  # type: ignore[attr-defined]
        self.IProfiler = type("IProfiler", (), {"__init__": lambda self: None})
        if "IDebugListener" in known:
            self.IDebugListener = type("IDebugListener", (), {"__init__": lambda self: None})
        if "IProgressMonitor" in known:
            self.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
        if ahead:
            self.IBuilderConfig.set_compute_capability = lambda self, kind, index: True  # type: ignore[attr-defined]
            self.ComputeCapability = IntEnum("ComputeCapability", ["SM80", "SM89"])
        self.Builder = lambda logger: _Builder(self, logger)
        self.OnnxParser = _Parser
        self.Runtime = lambda logger: _Runtime(self, logger)

    def library(self) -> Library:
        return Library(self, "tensorrt", self.__version__)  # type: ignore[arg-type]

    def nptype(self, kind: Any) -> Any:
        return next(dtype for name, dtype in DTYPES.values() if name == kind.name)

    def dtype(self, code: int) -> Any:
        return self.DataType[DTYPES[code][0]]  # type: ignore[attr-defined]


class _Logger:
    pass


class _Config:
    def __init__(self) -> None:
        self.profiles: list[Any] = []
        self.cache: Any = None
        self.progress_monitor: Any = None

    def add_optimization_profile(self, profile: Any) -> int:
        low, best, high = profile.shapes
        if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            return -1
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=bytes(data), serialize=lambda: bytes(data) or b"timings")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("set_", "clear_")) and name != "set_compute_capability":
            return lambda *arguments: True
        raise AttributeError(name)


class _Profile:
    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes = (tuple(low), tuple(best), tuple(high))


class _OldNetwork:
    """8.6's, without debug tensors."""

    def __init__(self) -> None:
        self.model: Any = None
        self.trt: Any = None
        self.marked: list[str] = []

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self.model.graph.node)

    def get_input(self, index: int) -> Any:
        return _tensor(self.trt, self.model.graph.input[index])

    def get_output(self, index: int) -> Any:
        return _tensor(self.trt, self.model.graph.output[index])

    def get_layer(self, index: int) -> Any:
        node = self.model.graph.node[index]
        tensors = [SimpleNamespace(name=name) for name in node.output]
        return SimpleNamespace(name=node.name, num_outputs=len(tensors), get_output=tensors.__getitem__)


class _Network(_OldNetwork):
    def mark_debug(self, tensor: Any) -> bool:
        self.marked.append(tensor.name)
        return True


def _tensor(trt: Any, value: Any) -> Any:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value or -1 for dim in kind.shape.dim)
    return SimpleNamespace(name=value.name, shape=shape, dtype=trt.dtype(kind.elem_type))


class _Parser:
    def __init__(self, network: _OldNetwork, logger: Any) -> None:
        self.network, self.errors = network, list[Any]()

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return self.errors[index]

    def parse(self, data: bytes) -> bool:
        self.network.model = onnx.load_from_string(data)
        for index, node in enumerate(self.network.model.graph.node):
            if node.op_type == "Celu":
                self.errors.append(
                    SimpleNamespace(
                        node=lambda i=index: i,
                        desc=lambda: "No importer registered for op: Celu",
                        node_name=lambda n=node.name: n,
                    )
                )
        return not self.errors


class _Builder:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def create_network(self, flags: int) -> _OldNetwork:
        network = self.trt.INetworkDefinition()
        network.trt = self.trt
        return network

    def create_builder_config(self) -> Any:
        return self.trt.IBuilderConfig()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _OldNetwork, config: Any) -> bytes | None:
        trt = self.trt
        trt.builds.append(b"" if config.cache is None else config.cache.data)
        if trt.note is not None:
            with trt.note.open("a") as file:
                file.write("built\n")
        time.sleep(trt.seconds)
        if config.progress_monitor is not None:
            config.progress_monitor.phase_start("Tactics", None, 2)
            config.progress_monitor.step_complete("Tactics", 0)
            config.progress_monitor.phase_finish("Tactics")
        if trt.build_error is not None:
            self.logger.log(trt.ILogger.Severity.ERROR, trt.build_error)  # type: ignore[attr-defined]
            return None
        self.logger.log(trt.ILogger.Severity.WARNING, "weights were rounded")  # type: ignore[attr-defined]
        model = network.model
        if trt.fault is not None:
            _scale(model, *trt.fault)
        if trt.narrow_fault is not None:
            _scale(model, *trt.narrow_fault, only=np.float16)
        plan = {"model": model.SerializeToString(), "profiles": config.profiles, "marked": network.marked, "tactic": trt.tactic}
        return MAGIC + trt.__version__.encode() + b"\n" + pickle.dumps(plan)


def _scale(model: Any, name: str, factor: float, only: Any = None) -> None:
    node = next(entry for entry in model.graph.node if entry.name == name)
    weights = {weight.name: weight for weight in model.graph.initializer}
    weight = next(weights[entry] for entry in node.input if entry in weights)
    array = numpy_helper.to_array(weight)
    if only is not None and array.dtype != only:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        weight.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), weight.name))


class _Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self.trt, self.logger = trt, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        error = self.trt.ILogger.Severity.ERROR  # type: ignore[attr-defined]
        if not plan.startswith(MAGIC):
            self.logger.log(error, "Error Code 1: Serialization (magicTag does not match)")
            return None
        version, _, data = plan.removeprefix(MAGIC).partition(b"\n")
        if version.decode() != self.trt.__version__:
            self.logger.log(
                error, f"The engine plan file is not compatible: expecting {self.trt.__version__} got {version.decode()}"
            )
            return None
        try:
            return Engine(self.trt, self.logger, pickle.loads(data))
        except (EOFError, pickle.UnpicklingError):
            self.logger.log(error, "Error Code 1: Serialization (Unexpected end of data)")
            return None


class Engine:
    def __init__(self, trt: FakeTensorRT, logger: Any, plan: dict[str, Any]) -> None:
        self.trt, self.logger, self.profiles, self.tactic = trt, logger, plan["profiles"], plan["tactic"]
        self.model = onnx.load_from_string(plan["model"])
        self.io = [*self.model.graph.input, *self.model.graph.output]
        watched = onnx.ModelProto()
        watched.CopyFrom(self.model)
        kinds = {v.name: v for v in shape_inference.infer_shapes(self.model).graph.value_info}
        self.marked = [name for name in plan["marked"] if name in kinds]
        watched.graph.output.extend(kinds[name] for name in self.marked)
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.session = ort.InferenceSession(watched.SerializeToString(), options)
        self.num_io_tensors, self.num_optimization_profiles = len(self.io), len(self.profiles)
        self.device_memory_size = self.device_memory_size_v2 = trt.context_bytes

    def get_tensor_name(self, index: int) -> str:
        return str(self.io[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode  # type: ignore[attr-defined]
        return modes.INPUT if name == self.io[0].name else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.dtype(next(v.type.tensor_type.elem_type for v in self.io if v.name == name))

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.profiles[index]

    def create_execution_context(self) -> Any:
        error, address = self.trt.cuda.cudaMalloc(self.trt.context_bytes)
        if error:
            self.logger.log(self.trt.ILogger.Severity.ERROR, "Requested amount of GPU memory could not be allocated")  # type: ignore[attr-defined]
            return None
        return Context(self, address)

    def create_execution_context_without_device_memory(self) -> Any:
        return Context(self, 0)  # the memory is the caller's

    def create_engine_inspector(self) -> Any:
        layers = [
            {
                "Name": node.name + (f" [profile {profile}]" if profile else ""),
                "LayerType": "fake",
                "TacticName": self.tactic,
                "Metadata": f"[ONNX Layer: {node.name}]",
                "Inputs": [{"Name": node.input[0], "Format/Datatype": "Row major linear FP32"}],
                "Outputs": [],
            }
            for profile in range(len(self.profiles))
            for node in self.model.graph.node
            if node.input
        ]
        return Inspector(layers, len({shape for low, _, high in self.profiles for shape in (tuple(low), tuple(high))}) == 1)


class Context:
    def __init__(self, engine: Engine, memory: int) -> None:
        self.engine, self.memory = engine, memory
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.profile, self.inferred = -1, False
        self.listener: Any = None
        self.profiler: Any = None
        self._shapes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}

    def __del__(self) -> None:
        if self.memory:
            self.engine.trt.cuda.cudaFree(self.memory)

    def set_device_memory(self, address: int, size: int) -> None:
        assert address
        assert size == self.engine.device_memory_size

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        low, _, high = self.engine.profiles[self.profile]
        self.shape = tuple(shape)
        return all(a <= s <= b for a, s, b in zip(low, self.shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        self.inferred = True
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == self.engine.io[0].name:
            return self.shape
        if self.shape not in self._shapes:
            found = self._compute(np.zeros(self.shape, np.float32))
            self._shapes[self.shape] = {key: value.shape for key, value in found.items()}
        return self._shapes[self.shape][name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_debug_listener(self, listener: Any) -> bool:
        self.listener = listener
        return True

    def set_all_tensors_debug_state(self, on: bool) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        trt = self.engine.trt
        if trt.run_error is not None:
            self.engine.logger.log(trt.ILogger.Severity.ERROR, trt.run_error)  # type: ignore[attr-defined]
            return False
        shape, addresses = self.shape, dict(self.addresses)
        trt.cuda.submit(stream, lambda: self._execute(shape, addresses, stream))
        if self.profiler is not None:
            for node in self.engine.model.graph.node:
                self.profiler.report_layer_time(node.name, 0.5)
        return True

    def _execute(self, shape: tuple[int, ...], addresses: dict[str, int], stream: int) -> None:
        trt, first = self.engine.trt, self.engine.io[0]
        dtype = np.dtype(DTYPES[first.type.tensor_type.elem_type][1])
        data = ctypes.string_at(addresses[first.name], int(np.prod(shape)) * dtype.itemsize)
        for name, array in self._compute(np.frombuffer(data, dtype).reshape(shape)).items():
            kept = np.ascontiguousarray(array) + array.dtype.type(0.5 if shape == trt.wrong_at else 0)
            if name in addresses:
                ctypes.memmove(addresses[name], kept.ctypes.data, kept.nbytes)
            elif self.listener is not None:
                kind = trt.DataType[next(k for k, t in DTYPES.values() if t == kept.dtype)]  # type: ignore[attr-defined]
                place = trt.TensorLocation.DEVICE  # type: ignore[attr-defined]
                self.listener.process_debug_tensor(kept.ctypes.data, place, kind, kept.shape, name, stream)

    def _compute(self, batch: Any) -> dict[str, Any]:
        names = [output.name for output in self.engine.session.get_outputs()]
        return dict(zip(names, self.engine.session.run(names, {self.engine.io[0].name: batch}), strict=True))
