"""A plan of a made-up network, with nothing of a machine in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roof_cases import costs, gpu

from redline.records import DataRef, DataSpec, Head, ModelSpec, Objective, PlanRecord, Preprocess, Spec


def plan_on_paper(folder: Path, **asked: Any) -> PlanRecord:
    from redline.plan.efficiency import PUBLISHED
    from redline.planning import Asked, make_plan
    from redline.progress import Progress

    network = costs(("big", "conv", "400000000*N", "20*N*H*W", 500_000), ("act", "pointwise", "0", "10*N*H*W", 0))
    absent = folder / "absent"
    spec = Spec(
        path="detector.toml",
        model=ModelSpec(factory="shop:detector", head=Head(kind="yolox"), preprocess=Preprocess(size=(320, 320))),
        data=DataSpec(evaluate=DataRef(images=str(absent))),
        objective=Objective(p95_ms=10.0, throughput=3000.0),
    )
    return make_plan(spec, network, gpu(), "asked for", Asked(**asked), PUBLISHED, Progress(None))
