"""What a spec file may say, and what is said of it if it says something else."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from redline.errors import BadInput
from redline.records import (
    Budget,
    DataRef,
    DataSpec,
    Head,
    ModelSpec,
    Objective,
    Postprocess,
    Preprocess,
    ServeSpec,
    Spec,
    TargetSpec,
    TensorRTSpec,
)
from redline.spec import load_spec
from redline.spec.tables import TABLES

MINIMAL = """\
[model]
factory = "pkg.mod:fn"
head = "yolox"
[data]
evaluate = { images = "val" }
[objective]
p95_ms = 20
throughput = 5.5
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val.json").write_text("{}")
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "net.pt").write_bytes(b"")
    return tmp_path


def load_text(folder: Path, text: str) -> Spec:
    (folder / "detector.toml").write_text(text)
    return load_spec(folder / "detector.toml")


def refused(folder: Path, text: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_text(folder, text)
    assert str(folder / "detector.toml") in str(caught.value)
    return caught.value


def with_line(table: str, line: str) -> str:
    """MINIMAL with one more line in a table, made if it is not there; a key that is there is replaced."""
    key = line.partition("=")[0].strip()
    text = re.sub(rf"(?m)^{re.escape(key)} =.*\n", "", MINIMAL)
    return text.replace(f"[{table}]\n", f"[{table}]\n{line}\n") if f"[{table}]\n" in text else f"{text}[{table}]\n{line}\n"


def test_defaults_are_those_of_the_records(folder):
    spec = load_text(folder, MINIMAL)
    assert spec == Spec(
        path=str(folder / "detector.toml"),
        model=ModelSpec(factory="pkg.mod:fn", head=Head(kind="yolox")),
        data=DataSpec(evaluate=DataRef(images=str(folder / "val"))),
        objective=Objective(p95_ms=20.0, throughput=5.5),
    )
    assert isinstance(spec.objective.p95_ms, float)


def test_the_form_of_the_design(folder):
    for name in ("w.safetensors", "traffic.csv"):
        (folder / name).write_bytes(b"")
    spec = load_text(
        folder,
        """
        [model]
        factory = "redline.zoo:yolox_nano"
        weights = "w.safetensors"
        head    = "yolox"
        [model.arguments]
        num_classes = 4
        name = "n"
        flag = true
        rate = 1.0
        [model.preprocess]
        resize = "letterbox"
        size = [640, 416]; anchor = "top-left"; interpolation = "bilinear"; antialias = false; stride = 32; fill = 114
        channels = "bgr"; scale = 1.0; mean = [0, 0, 0]; std = [1, 2, 3]
        [model.postprocess]
        score = 0.01; iou = 0.5; max_detections = 100; class_aware = false
        [data]
        evaluate  = { images = "val", annotations = "val.json" }
        calibrate = { images = "./val/../val" }
        traffic = "traffic.csv"
        [objective]
        p95_ms = 20.0; throughput = 2000; map_drop_pct = 0.25; map_evidence = "point"
        [target]
        devices = "cpu"; precisions = ["fp32", "int8"]
        [budget]
        minutes = 1.5
        """.replace("; ", "\n"),
    )
    assert spec.model.arguments == (("flag", True), ("name", "n"), ("num_classes", 4), ("rate", 1.0))
    assert [type(value) for _, value in spec.model.arguments] == [bool, str, int, float]
    assert spec.model.weights == str(folder / "w.safetensors")
    assert spec.model.preprocess == Preprocess(size=(640, 416), channels="bgr", std=(1.0, 2.0, 3.0))
    assert spec.model.postprocess == Postprocess(score=0.01, iou=0.5, max_detections=100, class_aware=False)
    assert spec.data == DataSpec(
        evaluate=DataRef(images=str(folder / "val"), annotations=str(folder / "val.json")),
        calibrate=DataRef(images=str(folder / "val")),
        traffic=str(folder / "traffic.csv"),
    )
    assert spec.objective.map_evidence == "point"
    assert spec.target == TargetSpec(devices="cpu", precisions=("fp32", "int8"))
    assert spec.budget == Budget(minutes=1.5)


@pytest.mark.parametrize("devices", ["auto", "cpu", "cuda:0", "cuda:1,0", "cuda:10"])
def test_devices_are_named_as_cuda_counts_them(folder, devices):
    assert load_text(folder, MINIMAL + f'[target]\ndevices = "{devices}"\n').target.devices == devices


@pytest.mark.parametrize("devices", ["cuda", "cuda:", "cuda:-1", "cuda:00", "gpu:0", "cuda:0,", "cuda:0,0", "CPU"])
def test_devices_of_another_form_are_refused_with_the_forms_there_are(folder, devices):
    with pytest.raises(BadInput, match="cuda:0,1"):
        load_text(folder, MINIMAL + f'[target]\ndevices = "{devices}"\n')


def test_one_number_stands_for_all(folder):
    spec = load_text(folder, MINIMAL + "[model.preprocess]\nsize = 416\nfill = 0\nmean = 0.5\nstd = 2\n")
    pre = spec.model.preprocess
    assert (pre.size, pre.fill, pre.mean, pre.std) == ((416, 416), (0.0,) * 3, (0.5,) * 3, (2.0,) * 3)
    assert all(isinstance(value, float) for value in (*pre.fill, *pre.mean, *pre.std))


def test_relative_paths_do_not_depend_on_where_one_stands(folder, monkeypatch):
    load_text(folder, MINIMAL)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load_spec(Path("../detector.toml")).data.evaluate.images == str(folder / "val")


def test_heads(folder):
    assert load_text(folder, with_line("model", 'head = "my.pkg:decode"')).model.head == Head(
        kind="custom", function="my.pkg:decode"
    )
    retinanet = load_text(folder, with_line("model", 'head = "retinanet"')).model.head
    assert retinanet.strides == (8, 16, 32, 64, 128)
    assert retinanet.activation == "sigmoid"
    # torchvision 0.26, models/detection/retinanet.py, _default_anchorgen: printed there
    assert retinanet.anchor_sizes == ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))
    assert retinanet.aspect_ratios == (0.5, 1.0, 2.0)
    table = (
        MINIMAL.replace('head = "yolox"\n', "")
        + '[model.head]\nkind = "detections"\nnormalized = true\nbox_format = "cxcywh"\n'
    )
    assert load_text(folder, table).model.head == Head(kind="detections", normalized=True, box_format="cxcywh")
    table = MINIMAL.replace('head = "yolox"\n', "") + '[model.head]\nkind = "retinanet"\nactivation = "none"\n'
    assert load_text(folder, table).model.head == dataclasses.replace(retinanet, activation="none")


def test_tables_and_records_have_the_same_names():
    records = {
        "": Spec, "model": ModelSpec, "model.head": Head, "model.preprocess": Preprocess, "model.postprocess": Postprocess,
        "data": DataSpec, "data.evaluate": DataRef, "data.calibrate": DataRef, "data.confirm": DataRef,
        "objective": Objective, "target": TargetSpec,
        "target.tensorrt": TensorRTSpec, "budget": Budget, "serve": ServeSpec,
    }  # fmt: skip
    for name, table in TABLES.items():
        assert set(table.model_fields) == {field.name for field in dataclasses.fields(records[name])} - {"path"}


@pytest.mark.parametrize(
    ("table", "line", "place", "code"),
    [
        ("model", 'factory = "pkg.mod"', "model.factory", "spec.value"),
        ("model", 'factory = "pkg mod:fn"', "model.factory", "spec.value"),
        ("model", "factory = 3", "model.factory", "spec.type"),
        ("model", 'head = "yolo"', "model.head", "spec.head"),
        ("model", "head = 3", "model.head", "spec.type"),
        ("model", 'labels = "names"', "model.labels", "spec.value"),
        ("model", 'weights = "none.pt"', "model.weights", "spec.path"),
        ("model", 'weights = "val"', "model.weights", "spec.path"),
        ("model", 'onnx = "net.onnx"', "model", "spec.origin"),
        ("model.arguments", "depth = [1]", "model.arguments.depth", "spec.value"),
        ("model.arguments", "depth = inf", "model.arguments.depth", "spec.value"),
        ("model.arguments", '"a-b" = 1', "model.arguments.a-b", "spec.value"),
        ("model.preprocess", 'resize = "pad"', "model.preprocess.resize", "spec.value"),
        ("model.preprocess", "size = [640]", "model.preprocess.size", "spec.value"),
        ("model.preprocess", "size = [640, 640, 3]", "model.preprocess.size", "spec.value"),
        ("model.preprocess", "size = 0", "model.preprocess.size", "spec.value"),
        ("model.preprocess", "size = 640.0", "model.preprocess.size", "spec.type"),
        ("model.preprocess", "size = true", "model.preprocess.size", "spec.type"),
        ("model.preprocess", "size = [650, 640]", "model.preprocess.size", "spec.size"),
        ("model.preprocess", 'resize = "shortest-side"', "model.preprocess.size", "spec.size"),
        ("model.preprocess", 'resize = "shortest-side"\nsize = 800', "model.preprocess.size", "spec.size"),
        ("model.preprocess", 'resize = "shortest-side"\nsize = [1333, 800]', "model.preprocess.size", "spec.size"),
        ("model.preprocess", "stride = 0", "model.preprocess.stride", "spec.value"),
        ("model.preprocess", "fill = 256", "model.preprocess.fill", "spec.value"),
        ("model.preprocess", "fill = [1, 2, -3]", "model.preprocess.fill[2]", "spec.value"),
        ("model.preprocess", "std = [1, 0, 1]", "model.preprocess.std[1]", "spec.value"),
        ("model.preprocess", "mean = nan", "model.preprocess.mean", "spec.value"),
        ("model.preprocess", 'scale = "1/255"', "model.preprocess.scale", "spec.type"),
        ("model.preprocess", "antialias = 1", "model.preprocess.antialias", "spec.type"),
        ("model.postprocess", "score = 1.0", "model.postprocess.score", "spec.value"),
        ("model.postprocess", "score = nan", "model.postprocess.score", "spec.value"),
        ("model.postprocess", "iou = 0", "model.postprocess.iou", "spec.value"),
        ("model.postprocess", "max_detections = 0", "model.postprocess.max_detections", "spec.value"),
        ("data", 'evaluate = { images = "vall" }', "data.evaluate.images", "spec.path"),
        ("data", 'evaluate = { images = "val.json" }', "data.evaluate.images", "spec.path"),
        ("data", 'evaluate = { images = "a\\u0000b" }', "data.evaluate.images", "spec.path"),
        ("data", 'evaluate = { images = "val", annotations = "x.json" }', "data.evaluate.annotations", "spec.path"),
        ("data", 'evaluate = { annotations = "val.json" }', "data.evaluate.images", "spec.missing"),
        ("data", 'evaluate = "val"', "data.evaluate", "spec.type"),
        ("data", 'traffic = ""', "data.traffic", "spec.value"),
        ("objective", "p95_ms = 0", "objective.p95_ms", "spec.value"),
        ("objective", "p95_ms = inf", "objective.p95_ms", "spec.value"),
        ("objective", "p95_ms = nan", "objective.p95_ms", "spec.value"),
        ("objective", 'p95_ms = "20"', "objective.p95_ms", "spec.type"),
        ("objective", "throughput = -5", "objective.throughput", "spec.value"),
        ("objective", "throughput = true", "objective.throughput", "spec.type"),
        ("objective", "map_drop_pct = 0", "objective.map_drop_pct", "spec.value"),
        ("objective", "map_drop_pct = 100", "objective.map_drop_pct", "spec.value"),
        ("objective", 'map_evidence = "luck"', "objective.map_evidence", "spec.value"),
        ("target", 'devices = "cuda:0,0"', "target.devices", "spec.value"),
        ("target", 'server = "triton"', "target.server", "spec.value"),
        ("target", 'servers = "embedded"', "target.servers", "spec.unknown-key"),
        ("serve", 'name = "two words"', "serve.name", "spec.value"),
        ("serve", 'name = "a_b"', "serve.name", "spec.value"),
        ("serve", "port = 65536", "serve.port", "spec.value"),
        ("serve", "canary_pct = 51.0", "serve.canary_pct", "spec.value"),
        ("serve", "hold_s = -1.0", "serve.hold_s", "spec.value"),
        ("serve", "hold_s = inf", "serve.hold_s", "spec.value"),
        ("target", "precisions = []", "target.precisions", "spec.value"),
        ("target", 'precisions = ["fp32", "fp32"]', "target.precisions", "spec.value"),
        ("target", 'precisions = ["fp32", "fp4"]', "target.precisions[1]", "spec.value"),
        ("target.tensorrt", "optimization_level = 6", "target.tensorrt.optimization_level", "spec.value"),
        ("target.tensorrt", "optimization_level = 3.5", "target.tensorrt.optimization_level", "spec.type"),
        ("target.tensorrt", "workspace_gib = 0", "target.tensorrt.workspace_gib", "spec.value"),
        ("target.tensorrt", "workspace_gib = inf", "target.tensorrt.workspace_gib", "spec.value"),
        ("target.tensorrt", "tactic_sources = []", "target.tensorrt.tactic_sources", "spec.value"),
        ("target.tensorrt", 'tactic_sources = ["CUDNN", "CUDNN"]', "target.tensorrt.tactic_sources", "spec.value"),
        ("target.tensorrt", 'hardware = "any"', "target.tensorrt.hardware", "spec.value"),
        ("target.tensorrt", "timing_cache = 1", "target.tensorrt.timing_cache", "spec.type"),
        ("budget", "minutes = 0", "budget.minutes", "spec.value"),
    ],
)  # fmt: skip
def test_one_wrong_thing_is_named_by_its_place(folder, table, line, place, code):
    error = refused(folder, with_line(table, line))
    assert error.code == code
    assert f": {place}: " in error.what


@pytest.mark.parametrize(
    ("head", "place"),
    [
        ('kind = "yolox"\nanchor_sizes = [[1]]', "model.head.anchor_sizes"),
        ('kind = "detections"\nstrides = [8]', "model.head.strides"),
        ('kind = "custom"', "model.head"),
        ('kind = "custom"\nfunction = "decode"', "model.head.function"),
        ('kind = "retinanet"\nstrides = [8, 16]', "model.head.anchor_sizes"),
        ('kind = "retinanet"\nstrides = [8, 16]\nanchor_sizes = [[1, 2], [3]]', "model.head.anchor_sizes"),
        ('strides = [8]', "model.head.kind"),
        ('kind = "yolox"\nstrides = []', "model.head.strides"),
        ('kind = "yolox"\nstrides = [8, 8]', "model.head.strides"),
    ],
)  # fmt: skip
def test_heads_that_cannot_be(folder, head, place):
    error = refused(folder, MINIMAL.replace('head = "yolox"\n', "") + f"[model.head]\n{head}\n")
    assert f": {place}: " in error.what


def test_suggestions(folder):
    assert 'did you mean "retinanet"?' in str(refused(folder, with_line("model", 'head = "retina-net"')))
    assert "did you mean `p95_ms`?" in str(refused(folder, with_line("objective", "p95ms = 3")))
    assert "`p95_ms` belongs in [objective]" in str(refused(folder, "p95_ms = 3\n" + MINIMAL))
    assert "did you mean val?" in str(refused(folder, with_line("data", 'evaluate = { images = "vals" }')))
    assert "size = [640, 416]" in str(refused(folder, with_line("model.preprocess", "size = [650, 420]")))
    assert "[model.preprocess]" in str(refused(folder, with_line("model", "stride = 3")))
    table = "target.tensorrt"
    assert "did you mean `optimization_level`?" in str(refused(folder, with_line(table, "optimisation_level = 3")))
    assert "`workspace_gib` belongs in [target.tensorrt]" in str(refused(folder, with_line("target", "workspace_gib = 3")))
    sources = refused(folder, with_line(table, 'tactic_sources = ["CUDNN", "jit_convolution"]'))
    assert "target.tensorrt.tactic_sources[1]" in str(sources)
    assert 'did you mean "JIT_CONVOLUTIONS"?' in str(sources)
    assert 'did you mean "same-capability"?' in str(refused(folder, with_line(table, 'hardware = "same-capabilities"')))


def test_how_engines_are_built(folder):
    assert load_text(folder, MINIMAL).target.tensorrt == TensorRTSpec()
    lines = 'workspace_gib = 2\ntactic_sources = ["JIT_CONVOLUTIONS"]\nhardware = "ampere-plus"\ntiming_cache = false'
    found = load_text(folder, f'{MINIMAL}[target]\ndevices = "cuda:0"\n[target.tensorrt]\n{lines}\n').target
    wanted = TensorRTSpec(workspace_gib=2, tactic_sources=("JIT_CONVOLUTIONS",), hardware="ampere-plus", timing_cache=False)
    assert found == TargetSpec(devices="cuda:0", tensorrt=wanted)


def test_all_problems_are_reported_together(folder):
    text = MINIMAL.replace("p95_ms = 20", "p95_ms = -1").replace('"val"', '"vall"').replace('head = "yolox"', 'haed = "yolox"')
    error = refused(folder, text + '[target]\nserver = "triton"\n')
    assert error.code == "spec.problems"
    assert "5 problems" in error.what
    for place in ("model.haed", "model.head", "objective.p95_ms", "target.server", "data.evaluate.images"):
        assert f". {place}: " in error.what


def test_an_empty_file_says_what_is_needed(folder):
    error = refused(folder, "")
    for place in ("model", "data", "objective"):
        assert f". {place}: is missing" in error.what


@pytest.mark.parametrize("table", ["model", "data", "objective", "target"])
def test_a_table_that_is_a_number(folder, table):
    text = f"{table} = 3\n" + re.sub(rf"(?ms)^\[{table}\].*?(?=^\[|\Z)", "", MINIMAL)
    assert f"{table}: wrong type" in str(refused(folder, text))


def test_onnx_excludes_weights_and_arguments(folder):
    onnx = MINIMAL.replace('factory = "pkg.mod:fn"', 'onnx = "net.onnx"')
    assert load_text(folder, onnx).model.onnx == str(folder / "net.onnx")
    error = refused(folder, onnx.replace("[data]", 'weights = "net.pt"\n[model.arguments]\na = 1\n[data]'))
    assert "model.weights" in error.what
    assert "model.arguments" in error.what
    assert refused(folder, MINIMAL.replace('factory = "pkg.mod:fn"\n', "")).got == "neither"


@pytest.mark.parametrize(
    "text", ["[model", "a = ", 'a = "x\n', "a = 1\na = 2\n", "\n\n[objective]\np95_ms = 20 ms\n", "a = " + "[" * 5000]
)
def test_syntax_errors(folder, text):
    assert refused(folder, text).code == "spec.syntax"


def test_a_syntax_error_has_its_line_and_column(folder):
    assert "line 4, column 13" in str(refused(folder, "\n\n[objective]\np95_ms = 20 ms\n"))


def test_files_that_are_none(folder):
    with pytest.raises(BadInput) as caught:
        load_spec(folder / "none.toml")
    assert caught.value.code == "spec.absent"
    with pytest.raises(BadInput) as caught:
        load_spec(folder)
    assert caught.value.code == "spec.unreadable"
    (folder / "latin.toml").write_bytes(b"a = '\xe9'")
    with pytest.raises(BadInput) as caught:
        load_spec(folder / "latin.toml")
    assert caught.value.code == "spec.syntax"
