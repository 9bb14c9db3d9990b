"""A plan of a made-up network, with nothing of a machine in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roof_cases import costs, gpu

from redline.records import DataRef, DataSpec, Head, ModelSpec, Objective, PlanRecord, Preprocess, Spec

NETWORK = costs(("big", "conv", "400000000*N", "20*N*H*W", 500_000), ("act", "pointwise", "0", "10*N*H*W", 0))


def spec_on_paper(folder: Path) -> Spec:
    """Its images are absent."""
    return Spec(
        path="detector.toml",
        model=ModelSpec(factory="shop:detector", head=Head(kind="yolox"), preprocess=Preprocess(size=(320, 320))),
        data=DataSpec(evaluate=DataRef(images=str(folder / "absent"))),
        objective=Objective(p95_ms=10.0, throughput=3000.0),
    )


def plan_on_paper(folder: Path, **asked: Any) -> PlanRecord:
    from redline.plan.efficiency import PUBLISHED
    from redline.planning import Asked, make_plan
    from redline.progress import Progress

    return make_plan(spec_on_paper(folder), NETWORK, gpu(), "asked for", Asked(**asked), PUBLISHED, Progress(None))
