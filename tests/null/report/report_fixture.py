"""A realistic run record made from a seed: about twelve trials, histograms, refusals and pictures drawn on the fly."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

from hdrh.histogram import HdrHistogram
from PIL import Image, ImageDraw

from redline.records import (
    SCHEMA_VERSION,
    Accuracy,
    BoxMatch,
    Buckets,
    Candidate,
    Choice,
    ClassAccuracy,
    DataFacts,
    DataRef,
    DataSpec,
    Determinism,
    Environment,
    Failure,
    Head,
    Knee,
    Library,
    Load,
    LoadMode,
    MapDrop,
    ModelFacts,
    ModelSpec,
    Noise,
    Objective,
    OnnxModel,
    ParityReport,
    Picture,
    PictureBox,
    Refusal,
    RunRecord,
    ShapeCheck,
    ShapePolicy,
    ShapeShare,
    Spec,
    TensorDelta,
    TensorFact,
    Traffic,
    Trial,
    Verdict,
)

GOAL = Objective(p95_ms=150.0, throughput=20.0)
CLASSES = ["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "bench", "bird", "cat", "dog"]
CLASSES += ["horse", "sheep", "cow", "elephant", "zebra", "giraffe", "umbrella"]


@cache
def make_load(median_ms: float, spread: float, requests: int = 1200, mode: LoadMode = "poisson", rate: float = 20.0) -> Load:
    """Log-normal latencies; the record's percentiles are the histogram's own."""
    dice = random.Random(f"{median_ms} {spread} {requests}")
    histogram = HdrHistogram(1, 600_000_000, 3)
    for _ in range(requests):
        histogram.record_value(int(1000 * median_ms * dice.lognormvariate(0, spread)))

    at = histogram.get_percentile_to_value_dict([50, 90, 95, 99, 100])
    return Load(
        mode=mode,
        offered_per_s=None if mode == "closed" else rate,
        achieved_per_s=rate * (1.0 if mode == "closed" else 0.997),
        seconds=requests / rate,
        requests=requests,
        errors=0,
        mean_ms=median_ms * math.exp(spread**2 / 2),
        p50_ms=at[50] / 1000,
        p90_ms=at[90] / 1000,
        p95_ms=at[95] / 1000,
        p99_ms=at[99] / 1000,
        max_ms=at[100] / 1000,
        slip_p99_ms=0.31,
        mean_batch=1.0,
        histogram=histogram.encode().decode(),
    )


def make_parity(ap: float, drop: float, half: float, answer: str = "pass", *, finite: bool = True) -> ParityReport:
    dice = random.Random(7)
    shift = random.Random(ap)
    classes = [
        ClassAccuracy(name=name, ap=dice.betavariate(2.4, 3.2) * shift.uniform(0.97, 1.03), truths=dice.randint(3, 120))
        for name in CLASSES
    ]
    reference = 0.3214
    budget = {
        "pass": "within 0.5 %",
        "inconclusive": "the interval's upper end is above 0.5 %",
        "fail": "the drop exceeds 0.5 %",
    }[answer]
    return ParityReport(
        tensors=(
            TensorDelta(
                name="output",
                max_abs=2.1e-4,
                max_rel=8.7e-6 if finite else float("nan"),
                mean_abs=1.1e-6,
                finite=finite,
                tolerance=1e-3,
            ),
        ),
        boxes=BoxMatch(floor=0.05, matched=1841, missing=0, extra=0, lowest_iou=0.9991, largest_score_delta=3.4e-5),
        accuracy=Accuracy(
            kind="map",
            ap=ap,
            ap50=ap * 1.52,
            ap75=ap * 1.04,
            ap_small=0.118,
            ap_medium=0.341,
            ap_large=None,
            images=61,
            per_class=(*classes, ClassAccuracy(name="toaster", ap=None, truths=0)),
        ),
        drop=MapDrop(
            reference_ap=reference,
            candidate_ap=ap,
            absolute=reference - ap,
            absolute_low=(drop - half) * reference / 100,
            absolute_high=(drop + half) * reference / 100,
            relative_pct=drop,
            relative_low_pct=drop - half,
            relative_high_pct=drop + half,
            images=61,
            resamples=2000,
            seed=0,
            images_to_decide=340 if answer == "inconclusive" else None,
        ),
        determinism=Determinism(repeats=3, identical=True),
        verdict=Verdict(answer=answer, reason=f"drop {drop:.2f} %, {budget}"),  # type: ignore[arg-type]
    )


def make_knee(rate: float) -> Knee:
    """A bracketing search whose P95 climbs through the objective at the knee."""
    rates = (20.0, 2 * rate, 1.4 * rate, 1.15 * rate, 1.06 * rate, rate)
    steps = [make_load(100.0 * (value / rate) ** (2 if value <= rate else 9), 0.24, 120, rate=value) for value in rates]
    return Knee(rate_per_s=rate, steps=tuple(steps))


def make_trial(
    candidate: Candidate, median_ms: float | None, capacity: float, knee: float | None = None, **more: object
) -> Trial:
    digest = hashlib.sha256(candidate.name.encode()).hexdigest()
    judged = make_load(median_ms, 0.24) if median_ms else None
    latency = None
    if judged:
        answer = "pass" if judged.p95_ms <= 140 else "fail" if judged.p95_ms > 160 else "inconclusive"
        latency = Verdict(answer=answer, reason=f"P95 {judged.p95_ms:.1f} ms of 150 ms")  # type: ignore[arg-type]
    trial = Trial(
        candidate=candidate,
        digest=digest,
        seconds=31.0,
        build_seconds=0.4,
        screen=make_load(1000 * candidate.concurrency / capacity, 0.08, 120, "closed", capacity),
        objective_load=judged,
        knee=make_knee(knee) if knee else None,
        latency=latency,
        parity=make_parity(0.3213, 0.03, 0.31),
        padding_pct={"fixed": 28.6, "minimal": 3.7}.get(str(candidate.shapes), 9.14),
    )
    return replace(trial, **more)  # type: ignore[arg-type]


def make_buckets() -> Buckets:
    shapes = (ShapeShare(height=320, width=416, share=0.75), ShapeShare(height=416, width=416, share=0.25))
    return Buckets(buckets=shapes, waste=0.1, waste_fixed=0.4, waste_minimal=0.0384, exact=True)


@cache
def make_trials() -> tuple[Trial, tuple[Trial, ...]]:
    def ort(threads: int, batch: int, concurrency: int, shapes: ShapePolicy = "fixed", prepost: str = "host") -> Candidate:
        knobs = {"threads": threads, "batch": batch, "concurrency": concurrency, "shapes": shapes, "prepost": prepost}
        return Candidate(runner="onnxruntime", **knobs)  # type: ignore[arg-type]

    baseline = make_trial(Candidate(runner="torch-eager", threads=2), 212.0, 9.4, 7.9, parity=make_parity(0.3214, 0.0, 0.0))
    trials = (
        make_trial(Candidate(runner="torch-compile", threads=2), 121.0, 14.1, 12.2),
        make_trial(ort(2, 1, 1), 74.0, 21.7, 21.0),
        make_trial(ort(2, 1, 1, "minimal"), 58.0, 26.9, 25.8),
        make_trial(ort(1, 1, 2, "minimal"), 66.0, 31.2, 28.9),
        make_trial(ort(1, 1, 2), 84.0, 24.4, 23.2),
        make_trial(ort(2, 2, 1, "minimal"), 97.0, 27.8, 24.1),
        make_trial(ort(1, 2, 2, "minimal"), 112.0, 31.6, 22.7),
        make_trial(ort(1, 4, 2, make_buckets().policy), 171.0, 32.4, 16.0),
        make_trial(ort(2, 4, 1), None, 22.5),
        make_trial(ort(2, 8, 1, "minimal"), None, 27.1),
        make_trial(ort(2, 1, 1, "minimal", "graph"), 69.0, 23.0, 22.6, parity=make_parity(0.3206, 0.25, 0.62, "inconclusive")),
        make_trial(
            ort(2, 1, 1, "fixed", "graph"),
            None,
            20.0,
            screen=None,
            parity=None,
            failure=Failure(stage="engine", code="ort-session", message="Resize: antialias is not implemented for opset 17"),
        ),
    )
    return baseline, trials


def make_pictures(folder: Path) -> tuple[Picture, ...]:
    """Two painted scenes on disk, and a third whose file is missing."""
    pictures = []
    for index, (width, height) in enumerate(((640, 427), (500, 375), (333, 500))):
        path = folder / f"scene-{index}.png"
        dice = random.Random(index)
        image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        image = Image.blend(image, Image.new("RGB", (width, height), (90 + 40 * index, 130, 160)), 0.6)
        pen, truth, found = ImageDraw.Draw(image), [], []
        for _ in range(4):
            x, y, wide, high = (
                dice.randint(10, width - 150),
                dice.randint(20, height - 130),
                dice.randint(50, 140),
                dice.randint(40, 120),
            )
            pen.ellipse((x, y, x + wide, y + high), fill=tuple(dice.randint(40, 220) for _ in range(3)))
            label = dice.choice(CLASSES)
            truth.append(PictureBox(xyxy=(x, y, x + wide, y + high), label=label, score=None))
            found.append(
                PictureBox(xyxy=(x + 3, y - 2, x + wide + 1, y + high + 4), label=label, score=dice.uniform(0.45, 0.95))
            )
        found.append(PictureBox(xyxy=(5, 5, 60, 60), label="bench", score=0.04))
        if index < 2:
            image.save(path)
        credit = "Photo: A. Example, CC BY 2.0" if index == 0 else None
        pictures.append(
            Picture(path=str(path), height=height, width=width, truth=tuple(truth), found=tuple(found), credit=credit)
        )
    return tuple(pictures)


def make_spec(folder: Path) -> Spec:
    model = ModelSpec(factory="redline.zoo:yolox_nano", arguments=(("classes", 80),), head=Head(kind="yolox"))
    data = DataSpec(evaluate=DataRef(images=str(folder), annotations=str(folder / "instances.json")))
    return Spec(path=str(folder / "detector.toml"), model=model, data=data, objective=GOAL)


def make_model() -> ModelFacts:
    return ModelFacts(
        name="yolox_nano",
        digest="9f2c41d07be8aa315d6e",
        parameters=910_000,
        weight_bytes=3_640_000,
        inputs=(TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W")),),
        outputs=(TensorFact(name="output", dtype="float32", shape=("N", "A", 85)),),
        classes=80,
        origin="torch",
    )


def make_onnx() -> OnnxModel:
    facts = make_model()
    checks = (ShapeCheck(shape=(1, 3, 416, 416), max_abs=1.9e-5), ShapeCheck(shape=(4, 3, 320, 608), max_abs=3.1e-5))
    return OnnxModel(
        path="model.onnx",
        digest="41aa0c77de10b2c9",
        exporter="torch.export",
        opset=18,
        input=facts.inputs[0],
        outputs=facts.outputs,
        dynamic=True,
        checks=checks,
    )


def make_environment() -> Environment:
    libraries = (("torch", "2.13.0"), ("onnxruntime", "1.23.2"), ("onnx", "1.20.0"), ("numpy", "2.4.0"), ("tensorrt", None))
    return Environment(
        platform="Linux 6.12 x86-64, glibc 2.36",
        python="3.11.9",
        cpu="Example CPU 3.0 GHz",
        cores=2,
        memory_bytes=8_200_000_000,
        gpus=(),
        libraries=tuple(Library(name=name, version=version) for name, version in libraries),
        redline="0.1.0",
        commit="bbcc356f00aa",
    )


def make_record(folder: Path) -> RunRecord:
    baseline, trials = make_trials()
    choice = trials[3]
    sizes = ((480, 640, 0.42), (640, 480, 0.18), (427, 640, 0.15), (500, 375, 0.12), (375, 500, 0.08), (360, 640, 0.05))
    traffic = Traffic(
        shapes=tuple(ShapeShare(height=h, width=w, share=share) for h, w, share in sizes), origin="evaluation images"
    )
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        id="20250314-092653-4f1c",
        started="2025-03-14T09:26:53+00:00",
        seconds=557.0,
        spec=make_spec(folder),
        environment=make_environment(),
        model=make_model(),
        data=DataFacts(name="street_val", images=61, boxes=457, digest="c0ffee00c0ffee00", traffic=traffic),
        onnx=make_onnx(),
        noise=Noise(p95_ms=(94.1, 96.8, 95.2), relative=0.0142),
        baseline=baseline,
        trials=trials,
        refusals=(
            Refusal(
                what="FP16", reason="this CPU has no FP16 arithmetic: ONNX Runtime would compute in FP32 and convert twice"
            ),
            Refusal(what="TensorRT", reason="no NVIDIA GPU was found"),
            Refusal(
                what="batch > 4 with fixed shapes",
                reason="the wait for a full batch at 20/s alone is longer than half the objective",
            ),
        ),
        choice=Choice(
            candidate=choice.candidate,
            trial=choice.digest,
            verdict=Verdict(
                answer="pass", reason="P95 and accuracy hold; of the candidates that hold, this one sustains the highest rate"
            ),
            notes=("Two single-threaded inferences in flight use both cores better than one inference on two threads.",),
        ),
        pictures=make_pictures(folder),
        notes=("Figures measured on this CPU compare with each other, not with other machines.",),
        buckets=make_buckets(),
    )
