"""The one file of version differences, run against modules that have exactly the symbols of each public release."""

from __future__ import annotations

import json
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from redline.engine.tensorrt_versions import Library
from redline.errors import TrialError
from redline.records import BuildOptions, EngineProfile, TensorRTSpec

SYMBOLS: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "tensorrt_symbols.json").read_text())
PROFILE = EngineProfile(index=0, minimum=(1, 3, 64, 64), optimum=(1, 3, 64, 64), maximum=(4, 3, 64, 64))
OLD, NEW = "8.6.1", "11.1"


class Strict:
    """An object of a TensorRT class that has the members its release lists and no others; it remembers what was done."""

    def __init__(self, kind: str, members: list[str], **made: Any) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "made", made)
        object.__setattr__(self, "done", [])

    def __getattr__(self, name: str) -> Any:
        if name not in self.members:
            raise AttributeError(f"{self.kind} of this release has no {name}")

        def call(*arguments: Any, **named: Any) -> Any:
            self.done.append((name, *arguments))
            return self.made.get(name)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.members:
            raise AttributeError(f"{self.kind} of this release has no {name}")
        self.done.append((name, value))


def release(version: str) -> Library:
    known = SYMBOLS[version]
    enums = {n: IntEnum(n, m, start=0) for n, m in known.items() if m and m[0].isupper() and n not in ("Builder",)}
    classes = {name: type(name, (), dict.fromkeys(known[name])) for name in known if name.startswith("I")}
    return Library(SimpleNamespace(__version__=version, **enums, **classes), "tensorrt", version)


def config_of(version: str) -> Strict:
    return Strict("IBuilderConfig", SYMBOLS[version]["IBuilderConfig"])


def builder_of(version: str) -> tuple[Strict, Strict]:
    config = config_of(version)
    return Strict("Builder", SYMBOLS[version]["Builder"], create_builder_config=config, create_network="network"), config


def options(**changed: Any) -> BuildOptions:
    return BuildOptions(**{"precision": "fp32", "profiles": (PROFILE,), **changed})


@pytest.mark.parametrize("version", SYMBOLS)
def test_every_release_has_every_member_that_a_plain_build_uses(version: str) -> None:
    library, (builder, config) = release(version), builder_of(version)
    library.create_network(builder)
    library.configure(builder, options(tactic_sources=("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"), version_compatible=True))
    done = {entry[0]: entry[1:] for entry in config.done}
    assert done["builder_optimization_level"] == (3,)
    assert done["set_memory_pool_limit"][1] == 4 << 30
    assert done["clear_flag"] == (library.module.BuilderFlag.TF32,)


@pytest.mark.parametrize("version", SYMBOLS)
def test_typing_is_strong_exactly_where_the_release_has_it(version: str) -> None:
    library, (builder, _) = release(version), builder_of(version)
    library.create_network(builder)
    kinds = library.module.NetworkDefinitionCreationFlag
    wanted = "EXPLICIT_BATCH" if version == OLD else "STRONGLY_TYPED"
    assert builder.done == [("create_network", 1 << int(kinds[wanted]))]
    assert library.strongly_typed == (version != OLD)


@pytest.mark.parametrize("version", SYMBOLS)
def test_fp8_is_for_strongly_typed_networks_on_gpus_that_have_it(version: str) -> None:
    library = release(version)
    if version == OLD:  # the enum's member is there, and nothing that reads such a graph
        assert hasattr(library.module.DataType, "FP8")
        assert library.no_fp8() == "tensorrt 8.6.1 reads no FP8 from a graph: TensorRT 10.2 or newer does, and TensorRT-RTX"
        return
    assert library.no_fp8() is None
    assert library.no_fp8(("8.9", "9.0", "10.0", "12.0")) is None
    assert library.no_fp8(("7.5", "8.9", "8.0")) == "compute capability 7.5, 8.0 has no FP8: it begins with 8.9 (Ada, Hopper)"


@pytest.mark.parametrize(
    ("version", "wanted", "lacks"),
    [
        (OLD, TensorRTSpec(tactic_sources=("CUDNN",), version_compatible=True, hardware="ampere-plus"), None),
        (OLD, TensorRTSpec(hardware="same-capability"), 'hardware = "same-capability"'),
        (NEW, TensorRTSpec(hardware="same-capability", tactic_sources=("JIT_CONVOLUTIONS",)), None),
        (NEW, TensorRTSpec(tactic_sources=("CUDNN",)), 'tactic_sources = ["CUDNN"]; its tactic sources are EDGE_MASK'),
    ],
)
def test_what_a_version_cannot_build_is_refused_before_a_build(version: str, wanted: TensorRTSpec, lacks: str | None) -> None:
    found = release(version).refuses(wanted)
    assert (found is None) == (lacks is None)
    if lacks is not None:
        assert f"tensorrt {version} does not have [target.tensorrt] {lacks}" in str(found)


def test_rtx_has_symbols_for_what_it_does_not_support() -> None:
    rtx = replace(release(NEW), name="tensorrt-rtx")
    assert rtx.refuses(TensorRTSpec(optimization_level=5, tactic_sources=("JIT_CONVOLUTIONS",))) is None
    found = rtx.refuses(TensorRTSpec(version_compatible=True, hardware="ampere-plus"))
    assert found is not None
    assert found.endswith('does not have [target.tensorrt] version_compatible = true, hardware = "ampere-plus"')
    for wanted in ({"version_compatible": True}, {"hardware": "ampere-plus"}):
        with pytest.raises(TrialError, match="does not have this"):
            rtx.configure(builder_of(NEW)[0], options(**wanted))


def test_flags_follow_the_graph_on_the_release_without_types() -> None:
    library, config = release(OLD), config_of(OLD)
    layers = [Strict("ILayer", [*SYMBOLS[OLD]["ILayer"]]) for _ in range(2)]
    for layer, name in zip(layers, ("conv", "exp"), strict=True):
        object.__setattr__(layer, "name", name)
        object.__setattr__(layer, "num_outputs", 1)
    network = SimpleNamespace(num_layers=2, get_layer=lambda index: layers[index])
    library.follow_graph(network, config, "fp16", {"exp"})
    flags = library.module.BuilderFlag
    assert config.done == [("set_flag", flags.FP16), ("set_flag", flags.OBEY_PRECISION_CONSTRAINTS)]
    assert layers[0].done == []
    kind = library.module.DataType.FLOAT
    assert layers[1].done == [("precision", kind), ("set_output_type", 0, kind)]


def test_layers_that_carry_the_operations_are_asked_for_fp16_and_may_fall_back() -> None:
    library, config = release(OLD), config_of(OLD)
    layers = [Strict("ILayer", [*SYMBOLS[OLD]["ILayer"]]) for _ in range(3)]
    for layer, name in zip(layers, ("conv", "exp", "reshape"), strict=True):
        object.__setattr__(layer, "name", name)
        object.__setattr__(layer, "num_outputs", 1)
    network = SimpleNamespace(num_layers=3, get_layer=lambda index: layers[index])
    library.follow_graph(network, config, "fp16", {"exp"}, narrow={"conv", "exp"})
    flags, kinds = library.module.BuilderFlag, library.module.DataType
    assert config.done == [("set_flag", flags.FP16), ("set_flag", flags.PREFER_PRECISION_CONSTRAINTS)]
    assert layers[0].done == [("precision", kinds.HALF)]
    assert layers[1].done == [("precision", kinds.FLOAT), ("set_output_type", 0, kinds.FLOAT)]
    assert layers[2].done == []


@pytest.mark.parametrize("version", [version for version in SYMBOLS if version != OLD])
def test_no_precision_flag_is_touched_where_types_are_strong(version: str) -> None:
    config = config_of(version)
    release(version).follow_graph(None, config, "fp16", {"exp"})
    assert config.done == []


def test_what_a_release_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(TrialError, match=r"8\.6\.1 does not have this") as caught:
        release(OLD).configure(builder_of(OLD)[0], options(hardware="same-capability"))
    assert caught.value.code == "engine-ability"
    with pytest.raises(TrialError, match="CUBLAS") as caught:
        release(NEW).configure(builder_of(NEW)[0], options(tactic_sources=("CUBLAS",)))
    assert "EDGE_MASK_CONVOLUTIONS" in str(caught.value.fix)
    with pytest.raises(TrialError, match="ahead-of-time"):
        release(NEW).configure(builder_of(NEW)[0], options(capabilities=("8.9",)))


@pytest.mark.parametrize("version", SYMBOLS)
def test_a_context_on_lent_memory_is_made_by_the_calls_that_exist(version: str) -> None:
    context = Strict("IExecutionContext", SYMBOLS[version]["IExecutionContext"])
    makers = dict.fromkeys(("create_execution_context_without_device_memory", "create_execution_context"), context)
    engine = Strict("ICudaEngine", SYMBOLS[version]["ICudaEngine"], **makers)
    library = release(version)
    library.module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="lent")  # type: ignore[attr-defined]
    assert library.context_on(engine, 4096, 64) is context
    old = "create_execution_context_without_device_memory" in SYMBOLS[version]["ICudaEngine"]
    assert engine.done == [(next(iter(makers)),) if old else ("create_execution_context", "lent")]
    sized = "set_device_memory" in SYMBOLS[version]["IExecutionContext"]
    assert (("set_device_memory", 4096, 64) in context.done) == sized
    assert sized or ("device_memory", 4096) in context.done


def test_memory_of_a_context_is_read_from_the_member_that_exists() -> None:
    assert release(OLD).context_bytes(SimpleNamespace(device_memory_size=7)) == 7
    assert release(NEW).context_bytes(SimpleNamespace(device_memory_size_v2=9)) == 9
    assert "device_memory_size_v2" not in SYMBOLS[OLD]["ICudaEngine"]
    assert "device_memory_size" not in SYMBOLS[NEW]["ICudaEngine"]


def test_parser_errors_name_the_node_or_its_index() -> None:
    old = SimpleNamespace(node=lambda: 4, desc=lambda: "no importer")
    new = SimpleNamespace(node=lambda: 4, desc=lambda: "no importer", node_name=lambda: "exp")
    for version, error, name in ((OLD, old, ""), (NEW, new, "exp")):
        parser = SimpleNamespace(num_errors=1, get_error=lambda index, error=error: error)
        assert release(version).parse_errors(parser) == [(4, name, "no importer")]


@pytest.mark.parametrize(("version", "reports"), [(OLD, False), ("10.0.1", True), (NEW, True)])
def test_progress_is_reported_where_the_release_can(version: str, reports: bool) -> None:
    assert release(version).reports_progress == reports


RUNNER = {
    "ICudaEngine": ("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_profile_shape",
                    "num_optimization_profiles", "create_execution_context", "create_engine_inspector"),
    "IExecutionContext": ("set_optimization_profile_async", "set_input_shape", "get_tensor_shape", "set_tensor_address",
                          "execute_async_v3", "profiler"),
    "Runtime": ("deserialize_cuda_engine",),
    "ITimingCache": ("serialize",),
    "IOptimizationProfile": ("set_shape",),
}  # fmt: skip


@pytest.mark.parametrize("version", SYMBOLS)
def test_the_runner_uses_only_what_every_release_has(version: str) -> None:
    source = "".join(
        (Path(__file__).parents[3] / "src/redline/engine" / name).read_text()
        for name in ("tensorrt_runner.py", "tensorrt_builder.py", "tensorrt_anatomy.py")
    )
    for owner, members in RUNNER.items():
        for member in members:
            assert member in source, f"{member} is no longer used: take it out of this list"
            assert member in SYMBOLS[version][owner], f"{owner}.{member} is not in {version}"
    for gone in ("binding", "execute_async_v2", "max_workspace_size", "build_engine("):
        assert gone not in source.replace("bindings", "")
