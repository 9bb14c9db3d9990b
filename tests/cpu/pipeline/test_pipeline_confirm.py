"""`[data] confirm`: INT8 checked, after the search, on images that nothing was chosen on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from corridor_case import journal, project, shorten

from redline import api
from redline.calibrating import chosen_images
from redline.data import load_dataset
from redline.demo.scenes import write_dataset
from redline.errors import BadInput
from redline.prepare import load_subject
from redline.progress import Progress

MORE = 30


def with_int8(folder: Path, *, calibrate: str = "calib") -> Path:
    spec = project(folder, scenes=8)
    write_dataset(folder / "calib", 6, 8)
    write_dataset(folder / "more", MORE, 9)
    sets = [f'{name} = {{ images = "{at}/images", annotations = "{at}/instances.json" }}\n'
            for name, at in (("calibrate", calibrate), ("confirm", "more"))]  # fmt: skip
    text = spec.read_text(encoding="utf-8").replace("[objective]", f"{''.join(sets)}[objective]")
    spec.write_text(text.replace("[target]\n", '[target]\nprecisions = ["fp32", "int8"]\n'), encoding="utf-8")
    return spec


def test_the_fastest_int8_is_checked_on_more_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    spec = with_int8(tmp_path)
    record = api.run(spec, runs=tmp_path / "runs", progress=False)
    rounded = [trial for trial in record.trials if trial.candidate.precision == "int8" and trial.screen is not None]
    assert rounded
    found = next(one for one in record.bounds if one.candidate.precision == "int8")
    assert found.candidate in {trial.candidate for trial in rounded}
    assert found.further
    assert found.data == load_dataset(record.spec.data.confirm, role="confirm").digest if record.spec.data.confirm else False
    assert found.drop.images == found.accuracy.images == found.reference.images == MORE
    assert found.drop.reference_ap == found.reference.ap
    assert found.score_shift is not None
    assert found.score_shift[0] <= found.score_shift[1] <= found.score_shift[2]
    apart = [one.divergence for one in found.worst]
    assert apart == sorted(apart, reverse=True)
    assert all(Path(one.path).parent.parent.name == "more" for one in found.worst)
    assert found.drop.relative_low_pct < found.drop.relative_high_pct
    assert all(trial.parity is None or trial.parity.drop.images == 8 for trial in record.trials)
    run = tmp_path / "runs" / record.id
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"on {MORE} images that nothing was chosen on" in page
    assert Path(found.worst[0].path).name in page
    before = len(journal(run))
    again = api.run(spec, runs=tmp_path / "runs", progress=False)
    assert again.bounds == record.bounds
    assert not [line for line in journal(run)[before:] if (line["stage"], line["outcome"]) == ("detections", "computed")]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda more, val: shutil.copytree(val, more, dirs_exist_ok=True), "overlap"),
        (lambda more, val: _without(more, "annotations"), "no-boxes"),
        (lambda more, val: _reversed(more), "categories"),
    ],
)
def test_a_set_that_cannot_confirm_is_refused_before_anything_is_measured(tmp_path: Path, change: Any, code: str) -> None:
    spec = with_int8(tmp_path)
    change(tmp_path / "more", tmp_path / "val")
    with pytest.raises(BadInput) as caught:
        load_subject(api.load_spec(spec), Progress(None))
    assert code in caught.value.code
    assert "data.confirm" in caught.value.what or "more" in caught.value.what


def test_labels_on_one_side_only_are_refused(tmp_path: Path) -> None:
    spec = with_int8(tmp_path)
    text = spec.read_text(encoding="utf-8")
    spec.write_text(text.replace(', annotations = "more/instances.json"', ""), encoding="utf-8")
    with pytest.raises(BadInput, match="must be labelled") as caught:
        load_subject(api.load_spec(spec), Progress(None))
    assert caught.value.code == "data-confirm-labels"


def _without(folder: Path, section: str) -> None:
    held = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    (folder / "instances.json").write_text(json.dumps({**held, section: []}), encoding="utf-8")


def _reversed(folder: Path) -> None:
    held = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    names = [one["name"] for one in held["categories"]]
    held["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(reversed(names))]
    (folder / "instances.json").write_text(json.dumps(held), encoding="utf-8")


def test_what_is_calibrated_on_cannot_confirm_unless_it_is_allowed(tmp_path: Path) -> None:
    spec = with_int8(tmp_path, calibrate="more")
    with pytest.raises(BadInput, match="accuracy is measured on") as caught:
        api.run(spec, runs=tmp_path / "runs", progress=False)
    assert 'overlap = "allow"' in (caught.value.fix or "")
    spec.write_text(spec.read_text(encoding="utf-8").replace("[data]\n", '[data]\noverlap = "allow"\n'), encoding="utf-8")
    subject = load_subject(api.load_spec(spec), Progress(None))
    assert subject.spec.data.calibrate is not None
    choice = chosen_images(subject.spec.data.calibrate, subject, Progress(None))
    assert any("accuracy is measured on" in warning for warning in choice.warnings)
