"""A detector of bright blobs as a small ONNX file, its scenes, and a finished run to release: no torch, and answers in 2 ms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from redline.data import load_dataset, load_traffic
from redline.engine.onnxruntime_runner import OnnxRuntimeRunner
from redline.parity import ground_truth, observe
from redline.predict import Predictor
from redline.prepare import run_id
from redline.records import (
    SCHEMA_VERSION,
    BoxMatch,
    Candidate,
    Choice,
    DataFacts,
    Determinism,
    Environment,
    MapDrop,
    ModelFacts,
    OnnxModel,
    ParityReport,
    RunRecord,
    Serving,
    Spec,
    TensorFact,
    Trial,
    Verdict,
)
from redline.spec import load_spec
from redline.store import Store, dump
from redline.store.disk import write_file

SIZE = 128
STRIDES = (16,)
HEAD = 'head = { kind = "yolox", strides = [16] }'
SPEC = """
[model]
onnx = "blobs.onnx"
{head}
[model.preprocess]
size = [128, 128]
{preprocess}
[model.postprocess]
score = 0.05
iou = 0.5
max_detections = 50
[data]
evaluate = {{ images = "val", annotations = "val.json" }}
[objective]
p95_ms = {p95_ms}
throughput = {throughput}
[serve]
hold_s = {hold_s}
canary_requests = 40
{serve}
"""


def write_network(path: Path, *, gain: float = 1.0, poison: bool = False) -> None:
    """(N, 3, H, W) -> (N, A, 6): a cell of each stride fires where its red mean is high; `poison` puts a NaN in the weights."""
    nodes, initial, parts = [], [], []
    for stride in STRIDES:
        weight, bias = np.zeros((6, 3, 1, 1), np.float32), np.zeros(6, np.float32)
        bias[:4] = (0.5, 0.5, 0.0, 0.0)
        weight[4, 0], bias[4] = gain / 25.0, -5.0
        bias[5] = 3.0
        if poison:
            weight[5, 1] = np.nan
        names = [f"{name}{stride}" for name in ("pool", "conv", "raw", "obj", "map", "rows", "out")]
        pool, conv, raw, scores, joined, rows, out = names
        initial += [numpy_helper.from_array(weight, f"w{stride}"), numpy_helper.from_array(bias, f"b{stride}")]
        nodes += [
            helper.make_node("AveragePool", ["images"], [pool], kernel_shape=[stride] * 2, strides=[stride] * 2),
            helper.make_node("Conv", [pool, f"w{stride}", f"b{stride}"], [conv]),
            helper.make_node("Split", [conv, "split"], [raw, scores], axis=1),
            helper.make_node("Sigmoid", [scores], [f"s{stride}"]),
            helper.make_node("Concat", [raw, f"s{stride}"], [joined], axis=1),
            helper.make_node("Reshape", [joined, "flat"], [rows]),
            helper.make_node("Transpose", [rows], [out], perm=[0, 2, 1]),
        ]
        parts.append(out)
    nodes.append(helper.make_node("Concat", parts, ["raw"], axis=1))
    initial += [numpy_helper.from_array(np.array([4, 2]), "split"), numpy_helper.from_array(np.array([0, 6, -1]), "flat")]
    graph = helper.make_graph(
        nodes,
        "blobs",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["N", "A", 6])],
        initial,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_scenes(folder: Path, count: int = 12, seed: int = 5) -> None:
    """Dark noise with red blobs on the network's grid, JPEG, of several sizes; labels in COCO form."""
    side = STRIDES[0]
    rng, images, boxes = np.random.default_rng(seed), [], []
    (folder / "val").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        height, width = ((128, 96), (96, 128), (128, 128))[index % 3]
        pixels = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
        cells = rng.permutation((height // side) * (width // side))[: int(rng.integers(1, 6))]
        for cell in cells.tolist():
            y, x = side * (cell // (width // side)), side * (cell % (width // side))
            pixels[y : y + side, x : x + side, 0] = 250
            box = {"id": len(boxes) + 1, "image_id": index + 1, "category_id": 1, "bbox": [x, y, side, side]}
            boxes.append({**box, "area": side * side, "iscrowd": 0})
        Image.fromarray(pixels).save(folder / "val" / f"{index}.jpg", quality=95)
        images.append({"id": index + 1, "file_name": f"{index}.jpg", "height": height, "width": width})
    found = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "blob"}]}
    (folder / "val.json").write_text(json.dumps(found), encoding="utf-8")


def project(
    folder: Path,
    *,
    head: str = HEAD,
    preprocess: str = "",
    p95_ms: float = 400,
    throughput: float = 30,
    hold_s: float = 2.0,
    serve: str = "",
    poison: bool = False,
) -> Spec:
    """Write a spec, scenes and network; read it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_scenes(folder)
    write_network(folder / "blobs.onnx", poison=poison)
    text = SPEC.format(head=head, preprocess=preprocess, p95_ms=p95_ms, throughput=throughput, hold_s=hold_s, serve=serve)
    (folder / "detector.toml").write_text(text, encoding="utf-8")
    return load_spec(folder / "detector.toml")


def candidate(**knobs: object) -> Candidate:
    plain = Candidate(runner="onnxruntime", threads=1, batch=4, concurrency=1, shapes="minimal", serving=Serving())
    return replace(plain, **knobs)  # type: ignore[arg-type]


def finished_run(spec: Spec, runs: Path, chosen: Candidate | None = None) -> RunRecord:
    """What `redline run` would have left: the network in the store, run.json, a choice that passed."""
    chosen = chosen or candidate()
    path = Path(str(spec.model.onnx))
    store = Store(runs / "store")
    digest = store.put_file(path, kind="onnx", stage="export")
    fact = TensorFact(name="images", dtype="float32", shape=("N", 3, "H", "W"))
    out = TensorFact(name="raw", dtype="float32", shape=("N", "A", 6))
    network = OnnxModel(
        path=str(path), digest=digest, exporter="given", opset=18, input=fact, outputs=(out,), dynamic=True, checks=()
    )
    dataset = load_dataset(spec.data.evaluate)
    traffic = load_traffic(None, dataset)
    trial = Trial(candidate=chosen, digest="a" * 64, seconds=0.0, parity=_parity(spec, path, chosen))
    environment = Environment(
        platform="", python="", cpu="", cores=2, memory_bytes=1, gpus=(), libraries=(), redline="", commit=None
    )
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        id=run_id(spec),
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        spec=spec,
        environment=environment,
        model=ModelFacts(
            name="blobs", digest=digest, parameters=1, weight_bytes=4, inputs=(fact,), outputs=(out,), classes=1, origin="onnx"
        ),
        data=DataFacts(name="val", images=len(dataset.images), boxes=None, digest=dataset.digest, traffic=traffic),
        onnx=network,
        noise=None,
        baseline=trial,
        trials=(trial,),
        refusals=(),
        choice=Choice(candidate=chosen, trial=trial.digest, verdict=Verdict(answer="pass", reason="met")),
    )
    write_file(runs / record.id / "run.json", dump(record), runs)
    return record


def _parity(spec: Spec, path: Path, chosen: Candidate) -> ParityReport:
    dataset, model = load_dataset(spec.data.evaluate), spec.model
    runner = OnnxRuntimeRunner(str(path), threads=1, concurrent=False)
    predict = Predictor(runner, model.preprocess, model.head, model.postprocess, chosen.shapes)
    try:
        found = [one for image in dataset.images for one in predict.from_bytes([Path(image.path).read_bytes()])]
    except Exception:  # a poisoned network has no accuracy, and a release of it must be refused for what it answers
        found = []
    finally:
        runner.close()
    accuracy = observe(ground_truth(dataset, found, model.labels), found).evaluation.accuracy
    nothing = MapDrop(
        reference_ap=accuracy.ap, candidate_ap=accuracy.ap, absolute=0, absolute_low=0, absolute_high=0, relative_pct=0,
        relative_low_pct=0, relative_high_pct=0, images=len(dataset.images), resamples=1, seed=0, images_to_decide=None,
    )  # fmt: skip
    same = BoxMatch(floor=0.05, matched=1, missing=0, extra=0, lowest_iou=1.0, largest_score_delta=0.0)
    return ParityReport(
        tensors=(),
        boxes=same,
        accuracy=accuracy,
        drop=nothing,
        determinism=Determinism(repeats=1, identical=True),
        verdict=Verdict(answer="pass", reason="the same network"),
    )
