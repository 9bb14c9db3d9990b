"""`redline build` on the command line: exit codes, what is printed, and every question that cannot be asked."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli_verbs import SPEC, command

from redline import building
from redline.errors import TrialError
from redline.records import (
    BoundaryCheck,
    BuildOptions,
    EngineBuild,
    EngineProfile,
    LayerFact,
    LayerFault,
    LayerParity,
    PrecisionProof,
    Verdict,
)
from redline.store import Store, dump

PROFILE = EngineProfile(index=0, minimum=(1, 3, 64, 64), optimum=(8, 3, 64, 64), maximum=(8, 3, 64, 96))
LAYER = LayerFact(name="conv0 + act", kind="conv", precision="fp16", tactic="sm90", nodes=("conv0", "act"), flop=1.0)


def engine(digest: str = "b" * 64, fallen: tuple[str, ...] = (), note: str = "", layers=(LAYER,), **options) -> EngineBuild:
    share = 0.4 if fallen else 0.0
    proof = PrecisionProof(
        asked="fp16",
        shares=(("fp16", 1 - share), ("fp32", share)),
        layers=layers,
        fallen=fallen,
        fallen_share=share,
        allowed_share=0.02,
        proved=not (fallen or note),
        note=note,
    )
    return EngineBuild(
        digest=digest,
        plan_bytes=2_500_000,
        onnx="a" * 64,
        library="tensorrt",
        version="8.6.0",
        gpu="H100 9.0",
        driver="12.4",
        options=BuildOptions(precision="fp16", profiles=(PROFILE,), **options),
        seconds=41.0,
        timing_cache="cold",
        device_memory_bytes=3_000_000,
        inputs=(),
        outputs=(),
        proof=proof,
        warnings=("weights in INT64",),
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("d.toml").write_text(SPEC)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What was asked of `building.build`; `give` is what it makes, or raises."""
    calls = []

    class Made:
        give: object = engine()
        whole: building.Built | None = None

    def build(spec, wanted, *, runs, progress):
        calls.append((spec.path, wanted, runs))
        if isinstance(Made.give, Exception):
            raise Made.give
        return Made.whole or building.Built(build=Made.give, verdict=building.judge(Made.give))

    monkeypatch.setattr(building, "build", build)
    return calls, Made


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (engine(), 0, "100.0% FP16"),
        (engine(fallen=("conv1", "conv2")), 3, "conv1, conv2"),
        (engine(note="no type for 80 % of the FLOP"), 4, "no type for 80 %"),
        (engine(note="built ahead of time", layers=(), capabilities=("8.9",)), 0, "not proved: built ahead of time"),
    ],
    ids=["proved", "fell back", "not told", "ahead of time"],
)
def test_exit_code_is_the_verdict_on_the_precision(here, asked, capsys, given, code, says):
    asked[1].give = given
    assert command("build", "d.toml", "--quiet") == code
    shown = " ".join(capsys.readouterr().out.split())
    assert says in shown
    assert "--replay bbbbbbbbbbbb" in shown
    for text in ("H100 9.0, driver 12.4", "1–8 × 3 × 64 × 64–96", "41 s", "2.50 MB", "3.00 MB", "weights in INT64"):
        assert text in shown, text
    assert "level 3; workspace 4 GiB; tactic sources the version's own" in shown


def test_how_an_engine_was_built_is_shown(here, asked, capsys):
    options = {"optimization_level": 5, "workspace_bytes": 3 << 29, "tactic_sources": ("CUDNN", "JIT_CONVOLUTIONS")}
    asked[1].give = engine(**options, version_compatible=True, hardware="ampere-plus", timing_cache=False)
    assert command("build", "d.toml", "--quiet") == 0
    shown = " ".join(capsys.readouterr().out.split())
    built = "level 5; workspace 1.5 GiB; tactic sources CUDNN, JIT_CONVOLUTIONS; version-compatible; hardware ampere-plus"
    assert built in shown
    assert "timing cache off" in shown


def test_every_option_arrives(here, asked):
    options = ["--precision", "tf32", "--profiles", "dynamic", "--batched", "--level", "5", "--capability", "8.0"]
    assert command("build", "d.toml", "--runs", "out", *options, "--capability", "8.9", "--quiet") == 0
    path, wanted, runs = asked[0][0]
    assert (path, runs) == (str(here / "d.toml"), Path("out"))
    assert wanted == building.Wanted(precision="tf32", profiles="dynamic", batched=True, level=5, capabilities=("8.0", "8.9"))
    assert command("build", "d.toml", "--minimal", "--quiet") == 0
    assert asked[0][1][1] == building.Wanted(minimal=True)
    assert command("build", "d.toml", "--layers", "--wide", "conv0", "--wide", "act", "--quiet") == 0
    assert asked[0][2][1] == building.Wanted(wide=("conv0", "act"), layers=True)


def test_boundary_shapes_and_the_first_bad_layer_are_shown(here, asked, capsys):
    right = BoundaryCheck(shape=(1, 3, 64, 64), profile=0, taken=True, max_rel=0.001, tolerance=0.02, finite=True, passed=True)
    beyond = replace(right, shape=(9, 3, 64, 64), taken=False, max_rel=0.0)
    fault = LayerFault(
        nodes=("conv0",), operators=("Conv",), module="stem", tensor="x", local=0.05, explained=0.002, finite=True
    )
    layers = LayerParity(
        engine="e", precision="fp16", shape=(1, 3, 64, 64), points=(), faults=(fault,), unconfirmed=(), looks=2, most_cuts=48
    )
    verdict = Verdict(answer="fail", reason="the first bad layer is conv0")
    asked[1].whole = building.Built(build=engine(), verdict=verdict, boundaries=(right, beyond), layers=layers)
    assert command("build", "d.toml", "--quiet") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "boundaries 1 right (differ by 1.0e−03 at most), 1 beyond refused" in shown
    assert "FP16 asked for; FP16 100.0 %, FP32 0.0 % obtained" in shown
    assert "layers conv0 of stem: error 5.0e−02, explained 2.0e−03" in shown
    wrong = (replace(right, passed=False, max_rel=0.5), replace(beyond, passed=False))
    asked[1].whole = replace(asked[1].whole, boundaries=wrong, layers=None)
    assert command("build", "d.toml", "--quiet") == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 wrong: 1 × 3 × 64 × 64 of profile 0 differs by 5.0e−01, 9 × 3 × 64 × 64 of profile 0 is not refused" in shown


def test_as_json_it_is_the_record(here, asked, capsys):
    assert command("build", "d.toml", "--json", "--quiet") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["build"] == json.loads(dump(engine()))
    assert shown["verdict"]["answer"] == "pass"


def test_an_engine_that_cannot_be_built_is_exit_2_with_its_node(here, asked, capsys):
    asked[1].give = TrialError(
        "engine-parse", "TensorRT cannot read the graph", got="node nms (NonMaxSuppression): no", fix="x"
    )
    assert command("build", "d.toml", "--quiet") == 2
    shown = capsys.readouterr().err
    assert "node nms" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the spec file is missing"),
        (["d.toml", "--precision", "fp4"], "fp32, tf32, fp16, int8, fp8"),
        (["d.toml", "--precision", "int8"], "give [data] calibrate"),
        (["d.toml", "--precision", "fp8"], "FP8 needs images to calibrate on"),
        (["d.toml", "--profiles", "all"], "exact, bucketed, dynamic"),
        (["d.toml", "--profiles", "bucketed", "--minimal"], "--minimal goes with exact profiles"),
        (["d.toml", "--level", "6"], "0 (fastest build) to 5"),
        (["d.toml", "--replay", "abcdef"], "--replay needs no spec file"),
        (["absent.toml"], "no spec file absent.toml"),
    ],
)
def test_what_cannot_be_asked_is_exit_2_and_says_what_can(here, capsys, arguments, says):
    assert command("build", *arguments) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU here")
def test_without_a_gpu_the_way_to_build_ahead_of_time_is_told(here, capsys):
    assert command("build", "d.toml") == 2
    assert "--capability 8.9" in capsys.readouterr().err


def stored(here: Path) -> str:
    """An engine in the store of runs/, with its record; the plan's digest."""
    store = Store(here / "runs" / "store")
    digest = store.put_bytes(b"plan", kind="plan", suffix=".plan", stage="engine")
    store.put_record(engine(digest), kind="engine", stage="engine")
    return digest


@pytest.mark.parametrize(
    ("found", "code", "says"),
    [
        ({}, 0, "the same bytes"),
        ({"same_bytes": False}, 0, "the same layers, tactics and types"),
        ({"same_bytes": False, "same_tactics": False, "changed": ("conv0",)}, 3, "conv0"),
    ],
)
def test_a_replay_finds_the_record_of_a_plan_and_says_what_differs(here, capsys, monkeypatch, found, code, says):
    replay = pytest.importorskip("redline.engine.tensorrt_store", reason="needs onnx")
    from redline.engine import tensorrt_versions

    given = []
    made = replay.Replay(
        **{"seconds": 2.0, "first_seconds": 41.0, "same_bytes": True, "same_tactics": True, "changed": (), **found}
    )
    monkeypatch.setattr(tensorrt_versions, "find", lambda name: name)
    monkeypatch.setattr(replay, "replay", lambda record, library, store, on_phase: given.append((record, library)) or made)
    digest = stored(here)
    assert command("build", "--replay", digest[:8], "--quiet") == code
    assert given == [(engine(digest), "tensorrt")]
    shown = " ".join(capsys.readouterr().out.split())
    assert says in shown
    assert "2.0 s, the first time 41 s" in shown


def test_a_replay_of_what_is_no_engine_says_what_it_is(here, capsys):
    store = Store(here / "runs" / "store")
    other = store.put_bytes(b"graph", kind="onnx")
    lost = store.put_bytes(b"plan", kind="plan")
    assert command("build", "--replay", other) == 2
    assert "got:     onnx" in capsys.readouterr().err
    assert command("build", "--replay", lost) == 2
    assert "no record says" in capsys.readouterr().err
    assert command("build", "--replay", "zz") == 2
    assert "not the start of a digest" in capsys.readouterr().err


def test_other_bytes_of_a_plan_that_nothing_here_can_read_are_inconclusive():
    from types import SimpleNamespace

    ahead = engine(layers=(), capabilities=("8.9",))
    again = SimpleNamespace(same_bytes=False, same_tactics=True, changed=())
    assert building._compared(ahead, again) == Verdict(
        answer="inconclusive", reason="other bytes, and the layers of a plan built ahead of time cannot be read here"
    )
    assert building._compared(replace(ahead), SimpleNamespace(same_bytes=True)).answer == "pass"
