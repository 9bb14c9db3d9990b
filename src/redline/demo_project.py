"""The demo project: generated scenes, and a spec for the bundled detector that a laptop without a GPU meets in minutes."""

from __future__ import annotations

import os
from pathlib import Path

from redline import spec
from redline.demo import scenes
from redline.errors import BadInput, StoreError
from redline.records import Budget, DataRef, Objective, Preprocess, ServeSpec, TargetSpec
from redline.spec import Written

SCENES = 150
SEED = 2_000_000
"""A series of scenes of its own, apart from those the demo detector was trained and chosen on."""
FACTORY = "redline.zoo:demo"
SIZE = (320, 320)
P95_MS = 300.0
"""Some twenty times what a quiet laptop needs: a newcomer's is seldom quiet."""
THROUGHPUT = 40.0
CALIBRATION = 32
CALIBRATION_SEED = 6_000_000
CONFIRM_SEED = 9_000_000
MAP_DROP_PCT = 0.5
MINUTES = 0.5
HOLD_S = 3.0
CANARY_REQUESTS = 60


def make(folder: Path, *, force: bool = False, confirm: int = 0) -> Written:
    """See `api.init_demo`. Raises BadInput for a project that is there already, StoreError if it cannot be written."""
    output, data, calibration, more = folder / "detector.toml", folder / "val", folder / "calib", folder / "more"
    if output.exists() and not force:
        raise BadInput("init.exists", f"{output} is there already", fix="--force replaces it and the scenes")
    try:
        scenes.write_dataset(data, SCENES, SEED)
        scenes.write_dataset(calibration, CALIBRATION, CALIBRATION_SEED)
        if confirm:
            scenes.write_dataset(more, confirm, CONFIRM_SEED)
    except OSError as error:
        raise StoreError("init.write", f"cannot write {data}", got=error.strerror, fix="name another folder") from error
    return spec.write_spec(
        output,
        factory=FACTORY,
        head="yolox",
        images=data / "images",
        annotations=data / "instances.json",
        calibrate=_reference(calibration),
        confirm=_reference(more) if confirm else None,
        target=TargetSpec(precisions=("fp32", "int8")),
        preprocess=Preprocess(size=SIZE, channels="rgb", scale=1.0),
        objective=Objective(p95_ms=P95_MS, throughput=THROUGHPUT, map_drop_pct=MAP_DROP_PCT),
        budget=Budget(minutes=MINUTES),
        serve=ServeSpec(name="demo", hold_s=HOLD_S, canary_requests=CANARY_REQUESTS),
        force=force,
    )


def _reference(folder: Path) -> DataRef:
    return DataRef(images=os.path.abspath(folder / "images"), annotations=os.path.abspath(folder / "instances.json"))
