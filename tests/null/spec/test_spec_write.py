"""The file that `redline init` writes is accepted, commented and relative; odd data is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redline.errors import BadInput, StoreError
from redline.spec import load_spec, write_spec

COCO = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "height": 2, "width": 2},
        {"id": 2, "file_name": "b.jpg", "height": 2, "width": 2},
    ],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}],
    "categories": [{"id": 1, "name": "bolt"}],
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    images = tmp_path / "val" / "images"
    images.mkdir(parents=True)
    for name in ("a.jpg", "b.jpg"):
        (images / name).write_bytes(b"")
    (tmp_path / "val" / "instances.json").write_text(json.dumps(COCO))
    (tmp_path / "w.pt").write_bytes(b"")
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


VAL = {"images": Path("val/images"), "annotations": Path("val/instances.json")}


@pytest.mark.parametrize("head", ["yolox", "retinanet", "detections", "my.pkg:decode"])
def test_what_is_written_is_accepted(project, head):
    written = write_spec(Path("detector.toml"), factory="pkg:fn", weights=Path("w.pt"), head=head, **VAL)
    assert load_spec("detector.toml") == written.spec
    assert written.notes == ("2 images, 1 boxes, 1 categories",)
    text = (project / "detector.toml").read_text()
    assert '"val/images"' in text
    assert '"w.pt"' in text
    assert str(project) not in text
    assert all(len(line) <= 150 for line in text.splitlines())
    assert text.count("#") > 25


def test_preprocessing_fits_the_head(project):
    found = {
        head: write_spec(Path("d.toml"), factory="p:f", head=head, force=True, **VAL).spec.model.preprocess
        for head in ("yolox", "retinanet", "detections")
    }
    assert (found["yolox"].resize, found["yolox"].channels, found["yolox"].fill[0]) == ("letterbox", "bgr", 114.0)
    retinanet = found["retinanet"]
    assert (retinanet.resize, retinanet.round_to_uint8, retinanet.size) == ("shortest-side", False, (800, 1333))
    for fill, mean in zip(retinanet.fill, retinanet.mean, strict=True):
        assert fill * retinanet.scale == pytest.approx(mean, abs=1e-12)
    assert found["detections"].resize == "stretch"


def test_onnx_and_an_assumed_head(project):
    written = write_spec(Path("d.toml"), onnx=Path("net.onnx"), images=Path("val/images"))
    assert written.spec.model.onnx == str(project / "net.onnx")
    assert "assumed" in written.notes[0]
    assert "without labels" in written.notes[1]


def test_a_file_elsewhere_still_finds_its_data(project):
    written = write_spec(Path("specs/deep/d.toml"), factory="p:f", **VAL)
    assert load_spec(written.path).data.evaluate.images == str(project / "val" / "images")
    assert '"../../val/images"' in Path(written.path).read_text()


def test_nothing_is_overwritten_without_force(project):
    Path("d.toml").write_text("mine")
    with pytest.raises(BadInput) as caught:
        write_spec(Path("d.toml"), factory="p:f", **VAL)
    assert caught.value.code == "init.exists"
    assert Path("d.toml").read_text() == "mine"
    write_spec(Path("d.toml"), factory="p:f", force=True, **VAL)
    assert "p:f" in Path("d.toml").read_text()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"factory": None}, "spec.origin"),
        ({"onnx": Path("net.onnx")}, "spec.origin"),
        ({"factory": "pkg"}, "spec.value"),
        ({"images": Path("none")}, "spec.path"),
        ({"head": "yolo"}, "init.head"),
        ({"head": "a:"}, "spec.value"),
        ({"images": Path("."), "annotations": None}, "init.images"),
        ({"images": Path("val")}, "init.images"),
        ({"annotations": Path("w.pt")}, "init.annotations"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(project, change, code):
    (project / "val" / "images" / "a.jpg").unlink() if change.get("annotations", 1) is None else None
    (project / "val" / "images" / "b.jpg").unlink() if change.get("annotations", 1) is None else None
    with pytest.raises(BadInput) as caught:
        write_spec(Path("d.toml"), **{"factory": "p:f", "head": "yolox", **VAL, **change})
    assert caught.value.code == code
    assert not Path("d.toml").exists()


@pytest.mark.parametrize("content", ["[]", '{"images": {}}', "{", '{"images": [], "categories": []}', "[" * 100_000])
def test_annotations_that_are_not_coco(project, content):
    (project / "val" / "instances.json").write_text(content)
    with pytest.raises(BadInput) as caught:
        write_spec(Path("d.toml"), factory="p:f", **VAL)
    assert caught.value.code == "init.annotations"


def test_missing_images_are_counted(project):
    (project / "val" / "images" / "b.jpg").unlink()
    written = write_spec(Path("d.toml"), factory="p:f", head="yolox", **VAL)
    assert "1 images of instances.json are not in" in written.notes[1]


def test_a_place_that_cannot_be_written(project):
    with pytest.raises(StoreError):
        write_spec(Path("w.pt/d.toml"), factory="p:f", **VAL)
