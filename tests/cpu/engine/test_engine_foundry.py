"""An engine without its precision is a failed trial that names its layers; which TensorRT can be used, and why not."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from redline.engine import devices, foundry
from redline.engine.tensorrt_store import Place
from redline.errors import TrialError
from redline.records import BuildOptions, EngineBuild, EngineProfile, OnnxModel, PrecisionProof, TensorFact
from redline.store import Store

PROFILE = EngineProfile(index=0, minimum=(1, 3, 64, 64), optimum=(1, 3, 64, 64), maximum=(1, 3, 64, 64))
IMAGES = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
GRAPH = OnnxModel(
    path="m.onnx", digest="a" * 64, exporter="torch.export", opset=18, input=IMAGES, outputs=(), dynamic=True, checks=()
)
LIBRARY = SimpleNamespace(name="tensorrt", version="8.6.0", tactic_sources=("CUBLAS", "CUDNN", "EDGE_MASK_CONVOLUTIONS"))


def proof(asked: str = "fp16", fallen: tuple[str, ...] = (), share: float = 0.0, note: str = "") -> PrecisionProof:
    return PrecisionProof(
        asked=asked,  # type: ignore[arg-type]
        shares=((asked, 1 - share),),
        layers=(),
        fallen=fallen,
        fallen_share=share,
        allowed_share=0.02,
        proved=not note and share <= 0.02,
        note=note,
    )


def made(found: PrecisionProof, **options: object) -> EngineBuild:
    return EngineBuild(
        digest="b" * 64,
        plan_bytes=4,
        onnx=GRAPH.digest,
        library="tensorrt",
        version="8.6.0",
        gpu="H100 9.0",
        driver="12.4",
        options=BuildOptions(precision=found.asked, profiles=(PROFILE,), **options),  # type: ignore[arg-type]
        seconds=1.0,
        timing_cache="cold",
        device_memory_bytes=None,
        inputs=(IMAGES,),
        outputs=(),
        proof=found,
    )


def test_layers_that_fell_back_are_named_with_their_share() -> None:
    fallen = tuple(f"conv{i}" for i in range(7))
    with pytest.raises(TrialError, match="conv0, conv1, conv2, conv3, conv4 and 2 more") as caught:
        foundry.require_proved(made(proof(fallen=fallen, share=0.34)))
    assert caught.value.code == "engine-precision"
    assert "34.0%" in str(caught.value.got)
    assert caught.value.allowed == "2%"


def test_what_no_inspector_tells_is_no_fp16_engine_and_says_why() -> None:
    with pytest.raises(TrialError, match="nothing proves") as caught:
        foundry.require_proved(made(proof(note="the inspector gives no type for 80 % of the FLOP")))
    assert "80 %" in str(caught.value.got)


@pytest.mark.parametrize("good", [
    made(proof()),
    made(proof(fallen=("stem",), share=0.01)),
    made(proof("fp32", note="the inspector names no layer")),
    made(proof("tf32", note="the inspector names no layer")),
    made(proof(note="built ahead of time"), capabilities=("8.9",)),
])  # fmt: skip
def test_what_obtained_its_precision_or_has_nothing_wider_is_taken(good: EngineBuild) -> None:
    foundry.require_proved(good)


def test_a_foundry_remembers_what_it_built_also_what_failed_its_proof(tmp_path, monkeypatch) -> None:
    given, phases = [], []

    def build(onnx, options, library, store, *, device, journal, on_phase):
        given.append((onnx.digest, options.precision, library.version, device))
        on_phase("tactics", 1, 2)
        return made(proof(options.precision, fallen=("stem",), share=0.5 if options.precision == "fp16" else 0.0))

    @contextmanager
    def watch(name):
        phases.append(name)
        yield lambda *told: phases.append(told)

    monkeypatch.setattr(foundry, "build_engine", build)
    here = foundry.Foundry(LIBRARY, Store(tmp_path), None, watch, device=1, place=Place("H100 9.0", "12.4"))  # type: ignore[arg-type]
    with pytest.raises(TrialError, match="stem"):
        here.engine(GRAPH, made(proof()).options, "the network")
    assert given == [(GRAPH.digest, "fp16", "8.6.0", 1)]
    assert phases == ["engine of the network", ("tactics", 1, 2)]
    assert list(here.builds) == ["b" * 64]
    assert here.engine(GRAPH, made(proof("fp32")).options, "x").proof.asked == "fp32"


def test_the_identity_of_an_engine_is_all_that_makes_two_differ(tmp_path) -> None:
    options = made(proof()).options

    here = Place("H100 9.0", "12.4")

    def identity(onnx=GRAPH, options=options, place=here, version="8.6.0") -> str:
        library = SimpleNamespace(name="tensorrt", version=version)
        return foundry.Foundry(library, Store(tmp_path), None, None, place=place).identity(onnx, options)  # type: ignore[arg-type]

    from dataclasses import replace

    others = [
        identity(onnx=replace(GRAPH, digest="c" * 64)),
        identity(options=replace(options, optimization_level=2)),
        identity(options=replace(options, profiles=(replace(PROFILE, maximum=(2, 3, 64, 64)),))),
        identity(place=Place("T4 7.5", "12.4")),
        identity(place=Place("H100 9.0", "12.5")),
        identity(version="10.13"),
    ]
    assert len({identity(), *others}) == 1 + len(others)
    assert identity(onnx=replace(GRAPH, path="elsewhere.onnx")) == identity()


def test_dead_tactic_sources_are_left_out_and_newer_libraries_keep_their_default() -> None:
    assert foundry.convolution_sources(LIBRARY) == ("EDGE_MASK_CONVOLUTIONS",)  # type: ignore[arg-type]
    newer = SimpleNamespace(tactic_sources=("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"))
    assert foundry.convolution_sources(newer) is None  # type: ignore[arg-type]


def module(version: str, **left_out: str):
    """A made-up tensorrt that has what is needed, but for `left_out`: member by owner."""
    classes = {
        owner: type(owner, (), {member: None} if left_out.get(owner) != member else {}) for owner, member in devices.NEEDED
    }
    kinds = SimpleNamespace(EXPLICIT_BATCH=0)
    hardware = type("HardwareCompatibilityLevel", (), {"AMPERE_PLUS": 1})
    return SimpleNamespace(
        __version__=version,
        Builder=object,
        INetworkDefinition=object,
        NetworkDefinitionCreationFlag=kinds,
        HardwareCompatibilityLevel=hardware,
        **classes,
    )


def test_a_version_without_what_every_build_uses_is_refused_by_the_member_it_lacks(monkeypatch) -> None:
    monkeypatch.setattr(devices, "_has_cuda_bindings", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt", module("8.5.3", IBuilderConfig="builder_optimization_level"))
    facts = devices.tensorrt_facts()
    assert (facts.library, facts.version) == ("tensorrt", "8.5.3")
    assert facts.problem == "tensorrt 8.5.3 has no IBuilderConfig.builder_optimization_level: 8.6 or newer is needed"
    monkeypatch.setitem(sys.modules, "tensorrt", module("8.6.1"))
    assert devices.tensorrt_facts().problem is None
    assert devices.tensorrt_facts().abilities == ("types by flags that follow the graph",)
    monkeypatch.setattr(devices, "_has_cuda_bindings", lambda: False)
    assert "redline[tensorrt]" in str(devices.tensorrt_facts().problem)


def test_no_tensorrt_is_refused_with_what_to_install(monkeypatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    facts = devices.tensorrt_facts()
    assert facts.library == ""
    assert "pip install" in str(facts.problem)


def test_compiling_on_a_gpu_needs_triton_and_a_c_compiler(monkeypatch) -> None:
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert "triton" in str(devices.no_compile())
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert "no C compiler" in str(devices.no_compile())
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert devices.no_compile() is None
