"""The section of engines and GPUs: what was obtained, where the time goes, what is worth it; and nothing of it on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_fixture import make_load, make_parity, make_record, make_trial

from redline.records import (
    Anatomy,
    BoundaryCheck,
    BuildOptions,
    Candidate,
    Choice,
    EngineBuild,
    EngineProfile,
    EngineRecord,
    Failure,
    HeldNode,
    LayerFault,
    LayerParity,
    LayerPoint,
    LayerTime,
    PrecisionProof,
    RunRecord,
    Telemetry,
    Trial,
    Verdict,
)
from redline.report import engines, facts, render_html
from redline.store import dump, load

FP16, TF32 = "f" * 64, "7" * 64
PROFILE = EngineProfile(index=0, minimum=(1, 3, 64, 64), optimum=(8, 3, 64, 64), maximum=(8, 3, 64, 64))
COOL = Telemetry(
    gpu="H100 <80GB>", samples=9, sm_mhz=(1755, 1980), memory_mhz=(2619, 2619), temperature_c=(41, 55), power_w=(210.0, 512.5),
    throttle=("power cap",), processes=1, throttled=False,
)  # fmt: skip
HOT = replace(COOL, throttle=("thermal (hardware)",), throttled=True, processes=None)


def build(digest: str, fallen: tuple[str, ...] = ()) -> EngineBuild:
    proof = PrecisionProof(
        asked="fp16" if digest == FP16 else "tf32",
        shares=(("fp16", 0.6), ("fp32", 0.4)),
        layers=(),
        fallen=fallen,
        fallen_share=0.4 if fallen else 0.0,
        allowed_share=0.02,
        proved=not fallen,
    )
    return EngineBuild(
        digest=digest,
        plan_bytes=3_100_000,
        onnx="a" * 64,
        library="tensorrt",
        version="8.6.0",
        gpu="H100 9.0",
        driver="12.4",
        options=BuildOptions(precision=proof.asked, profiles=(PROFILE,)),
        seconds=41.2,
        timing_cache="cold",
        device_memory_bytes=None,
        inputs=(),
        outputs=(),
        proof=proof,
    )


def engine(name: str, capacity: float, digest: str | None = None, **more: object) -> Trial:
    knobs = {
        "tensorrt": {"profiles": "exact", "cuda_graphs": True, "precision": "fp16"},
        "torch-compile": {"precision": "fp16"},
    }
    candidate = Candidate(runner=name, device="cuda:0", **knobs.get(name, {}))  # type: ignore[arg-type]
    load = replace(make_load(9.0, 0.1), gpus=(COOL,))
    return make_trial(candidate, 9.0, capacity, 100.0, engine=digest, objective_load=load, **more)


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    base = make_record(tmp_path)
    baseline = engine("torch-eager", 50.0)
    chosen = engine("tensorrt", 240.0, FP16)
    parts = Anatomy(
        fill_ms=0.2, enqueue_ms=0.05, upload_ms=0.1, gpu_ms=0.8, download_ms=0.15, gap_ms=0.05, wall_ms=1.3, repeats=200
    )
    layers = (
        LayerTime(name="stem + act", ms=0.3, nodes=("stem", "act<1>")),
        LayerTime(name="Reformat 7", ms=0.1, nodes=()),
    )
    return replace(
        base,
        baseline=baseline,
        trials=(baseline, engine("torch-compile", 100.0), chosen),
        choice=Choice(candidate=chosen.candidate, trial=chosen.digest, verdict=Verdict(answer="pass", reason="good")),
        engines=(
            EngineRecord(build=build(TF32, fallen=("conv1", "conv2", "conv3", "conv4"))),
            EngineRecord(build=build(FP16), shape=(1, 3, 64, 64), anatomy=parts, layers=layers),
        ),
    )


def test_a_run_on_the_cpu_has_no_such_section(tmp_path: Path) -> None:
    html = render_html(make_record(tmp_path))
    assert 'id="engines"' not in html
    assert 'href="#engines"' not in html


def test_the_chosen_engine_comes_first_with_what_it_obtained(record: RunRecord) -> None:
    rows = engines.engine_rows(record)
    assert [row.record.build.digest for row in rows] == [FP16, TF32]
    assert [row.chosen for row in rows] == [True, False]
    assert rows[0].obtained == "FP16 60.0 %, FP32 40.0 %"
    assert rows[0].profiles == "1–8 × 3 × 64 × 64"
    assert [(row.word, row.style) for row in rows] == [("proved", "pass"), ("fell back", "fail")]
    assert rows[1].fallen == "conv1, conv2, conv3 and 1 more"
    html = render_html(record)
    for text in ("3.10 MB", "41 s", "cold", "fell back: conv1, conv2, conv3 and 1 more", FP16[:12]):
        assert text in html, text


@pytest.mark.parametrize(
    ("compiled", "says"), [(100.0, "2.4×, worth it"), (230.0, "1.0×, not worth it"), (480.0, "0.50×, not worth it")]
)
def test_an_engine_that_does_not_beat_torch_compile_beyond_the_noise_is_not_worth_it(
    record: RunRecord, compiled: float, says: str
) -> None:
    assert record.noise is not None
    noisy = replace(record, noise=replace(record.noise, relative=0.05))
    trials = (record.trials[0], engine("torch-compile", compiled), record.trials[2])
    assert engines.engine_rows(replace(noisy, trials=trials))[0].against_compile == says
    assert engines.engine_rows(replace(noisy, trials=(record.trials[0], record.trials[2])))[0].against_compile == "–"


def test_nodes_in_fp32_boundary_shapes_and_the_first_bad_layer_are_told(record: RunRecord) -> None:
    right = BoundaryCheck(shape=(1, 3, 64, 64), profile=0, taken=True, max_rel=0.001, tolerance=0.02, finite=True, passed=True)
    wrong = replace(right, shape=(8, 3, 64, 64), finite=False, passed=False)
    point = LayerPoint(
        tensor="y",
        node="act",
        operator="Relu",
        module="stem",
        layers=1,
        nodes=2,
        total=0.2,
        local=0.1,
        explained=0.2,
        finite=True,
    )
    found = LayerParity(
        engine="e", precision="fp16", shape=(1, 3, 8, 8), points=(point,), faults=(), unconfirmed=(), looks=1, most_cuts=48
    )
    held = tuple(HeldNode(node=f"conv<{i}>", module="", why="overflows" if i else "reads it") for i in range(6))
    candidate = replace(record.trials[2].candidate, wide=tuple(node.node for node in held))
    trial = replace(record.trials[2], candidate=candidate, held=held)
    fell, good = record.engines
    looked = replace(
        record,
        trials=(*record.trials[:2], trial),
        engines=(replace(fell, boundaries=(right, wrong)), replace(good, boundaries=(right,), layer_parity=found)),
    )
    mixed, narrow = engines.engine_rows(looked)
    assert mixed.wide == "conv<0>: reads it; conv<1>, conv<2>, conv<3>, conv<4> and 1 more: overflows"
    assert (narrow.wide, narrow.layers) == ("", "")
    assert (mixed.boundaries, mixed.boundaries_style) == ("1 right (differ by 1.0e−03 at most)", "pass")
    assert narrow.boundaries == "1 of 2 wrong: 8 × 3 × 64 × 64 of profile 0 is not finite"
    assert mixed.layers == "no node beyond FP16; up to act of stem most: 1.0e−01"
    html = render_html(looked)
    for text in ("in FP32: conv&lt;0&gt;", f'class="bad-text">{narrow.boundaries}', f"layer by layer: {mixed.layers}"):
        assert text in html, text
    assert "FP16 with 6 nodes in FP32" in html
    assert facts.changes(record.trials[2], trial) == ("nodes in FP32 0 → 6",)
    fault = LayerFault(
        nodes=("a", "b"), operators=("Conv", "Relu"), module="", tensor="x", local=1.0, explained=0.1, finite=False
    )
    assert engines.layers_text(replace(found, faults=(fault, fault))) == "a + b: not finite; 1 more"


def test_a_parity_that_layers_explain_is_a_failed_accuracy_and_not_a_failed_run(record: RunRecord) -> None:
    parity = make_parity(0.3, 6.6, 0.4, "fail")
    told = Failure(stage="parity", code="parity-layers", message="drop exceeds; the first bad layer is conv")
    trial = replace(record.trials[2], parity=parity, failure=told)
    assert facts.outcome(trial) == ("fail", told.message)
    assert facts.outcome(replace(trial, parity=None))[0] == "error"


def test_a_record_of_before_nodes_were_held_still_loads(record: RunRecord) -> None:
    whole = json.loads(dump(record))
    for trial in (whole["baseline"], *whole["trials"]):
        del trial["held"], trial["candidate"]["wide"]
    for old in whole["engines"]:
        del old["boundaries"], old["layer_parity"]
    assert load(RunRecord, json.dumps(whole).encode()).trials[2].candidate.wide == ()


def test_the_parts_of_an_inference_are_stacked_in_order(record: RunRecord) -> None:
    html = render_html(record)
    shown = [part for part in ("fill", "upload", "gpu", "download", "gaps") if f'class="part-{part}"' in html]
    assert shown == ["fill", "upload", "gpu", "download", "gaps"]
    assert "GPU 0.800 ms" in html
    assert "1.30 ms, enqueue 0.0500 ms" in html


def test_layers_are_named_by_their_onnx_nodes(record: RunRecord) -> None:
    shown = engines.dissected(record)
    assert shown is not None
    assert engines.layer_rows(shown) == [
        ("stem + act", "300", "75.0 %", "stem, act<1>"),
        ("Reformat 7", "100", "25.0 %", "of TensorRT&#39;s own".replace("&#39;", "'")),
    ]
    assert "act&lt;1&gt;" in render_html(record)


def test_each_kind_of_profiles_shows_its_expected_padding_beside_the_measured(record: RunRecord) -> None:
    chosen = record.trials[2]
    kinds = [
        (replace(chosen.candidate, profiles="exact", shapes="minimal"), 3.2, 3.31),
        (replace(chosen.candidate, profiles="bucketed", shapes=((64, 64), (64, 96))), 6.25, 6.0),
        (replace(chosen.candidate, profiles="dynamic", shapes="minimal"), 3.2, None),
    ]
    more = [
        replace(chosen, candidate=candidate, expected_padding_pct=expected, padding_pct=seen)
        for candidate, expected, seen in kinds
    ]
    fixed = replace(chosen, expected_padding_pct=25.0, padding_pct=24.5)
    again = replace(fixed, candidate=replace(fixed.candidate, batch=8))
    shown = replace(record, trials=(*record.trials[:2], fixed, again, *more))
    assert engines.padding_rows(shown) == [
        ("exact: the letterbox", "25.0 %", "24.5 %", "2 of 2"),
        ("exact: a profile for each shape", "3.2 %", "3.3 %", "1 of 1"),
        ("bucketed letterbox: 2 buckets", "6.2 %", "6.0 %", "1 of 1"),
        ("fully dynamic: one profile over all shapes", "3.2 %", "–", "0 of 1"),
    ]
    html = render_html(shown)
    assert "Padding by kind of profiles" in html
    assert "bucketed letterbox: 2 buckets</th><td>6.2 %</td><td>6.0 %</td>" in html
    assert "Padding by kind" not in render_html(replace(record, trials=record.trials[:2]))


def test_telemetry_stands_beside_what_was_judged_and_throttling_is_marked(record: RunRecord) -> None:
    rows = engines.telemetry_rows(record)
    assert [name for name, _ in rows] == ["Baseline", "Choice"]
    html = render_html(record)
    assert "H100 &lt;80GB&gt;" in html
    assert "1755 to 1980" in html
    other = record.trials[1]
    assert other.objective_load is not None
    hot = replace(other, objective_load=replace(other.objective_load, gpus=(HOT,)))
    marked = replace(record, trials=(record.trials[0], hot, record.trials[2]))
    assert len(engines.telemetry_rows(marked)) == 3
    html = render_html(marked)
    assert '<td class="bad-text">thermal (hardware)</td><td>not told</td>' in html


def test_a_gpu_without_engines_has_its_telemetry(record: RunRecord) -> None:
    html = render_html(replace(record, engines=()))
    assert "<h2>GPU</h2>" in html
    assert "1755 to 1980" in html


def test_a_candidate_on_a_gpu_reads_as_one(record: RunRecord) -> None:
    from redline.report import words

    chosen = facts.chosen(record)
    assert chosen is not None
    assert words.title(chosen.candidate) == "TensorRT, FP16, fixed shapes, exact profiles, batch 1, 1 in flight, on cuda:0"
    plain = replace(chosen.candidate, cuda_graphs=False)
    assert "no CUDA graphs" in words.title(plain)
    assert facts.changes(chosen, replace(chosen, candidate=plain)) == ("CUDA graphs on → off",)
    assert "exact profiles" in render_html(record)
