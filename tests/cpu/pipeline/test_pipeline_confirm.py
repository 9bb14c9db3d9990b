"""`[data] confirm`: INT8 checked, after the search, on images that nothing was chosen on."""

from __future__ import annotations

from pathlib import Path

import pytest
from corridor_case import journal, project, shorten

from redline import api
from redline.demo.scenes import write_dataset
from redline.errors import BadInput

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
    found = next(one for one in record.confirmed if one.candidate.precision == "int8")
    assert found.candidate in {trial.candidate for trial in rounded}
    assert found.drop.images == MORE
    assert found.drop.relative_low_pct < found.drop.relative_high_pct
    assert all(trial.parity is None or trial.parity.drop.images == 8 for trial in record.trials)
    run = tmp_path / "runs" / record.id
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"on {MORE} images that nothing was chosen on" in page
    before = len(journal(run))
    again = api.run(spec, runs=tmp_path / "runs", progress=False)
    assert again.confirmed == record.confirmed
    assert not [line for line in journal(run)[before:] if (line["stage"], line["outcome"]) == ("detections", "computed")]


def test_what_is_calibrated_on_cannot_confirm(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="evaluation set"):
        api.run(with_int8(tmp_path, calibrate="more"), runs=tmp_path / "runs", progress=False)
