"""What redline touches of TensorRT's Python module, for the type checker alone: the published stubs of 10.13 say the rest.

8.6, 11 and RTX differ from it; where they do, `tensorrt_versions` asks by name. Without stubs everything here is Any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tensorrt as trt


class Api(Protocol):
    """The module `tensorrt`, or `tensorrt_rtx`, which has its names."""

    __version__: str
    Builder: type[trt.Builder]
    BuilderFlag: type[trt.BuilderFlag]
    DataType: type[trt.DataType]
    HardwareCompatibilityLevel: type[trt.HardwareCompatibilityLevel]
    IBuilderConfig: type[trt.IBuilderConfig]
    IDebugListener: type[trt.IDebugListener]
    ILogger: type[trt.ILogger]
    INetworkDefinition: type[trt.INetworkDefinition]
    IProfiler: type[trt.IProfiler]
    IProgressMonitor: type[trt.IProgressMonitor]
    LayerInformationFormat: type[trt.LayerInformationFormat]
    MemoryPoolType: type[trt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    PreviewFeature: type[trt.PreviewFeature]
    ProfilingVerbosity: type[trt.ProfilingVerbosity]
    Runtime: type[trt.Runtime]
    TacticSource: type[trt.TacticSource]
    TensorIOMode: type[trt.TensorIOMode]
    TensorLocation: type[trt.TensorLocation]
    ExecutionContextAllocationStrategy: type[trt.ExecutionContextAllocationStrategy]
    ComputeCapability: Any
    """TensorRT-RTX alone."""

    def nptype(self, trt_type: trt.DataType) -> Any: ...
