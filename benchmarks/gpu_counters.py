"""Each kernel launched once at the sizes that docs/kernels.md speaks of, for ncu to count.

    ncu --profile-from-start off --clock-control none --set full --csv --page raw python benchmarks/gpu_counters.py --out DIR

ncu's rows come in the order of <out>/order.json; gpu_counters_read.py reads them. What a launch finds in the L2 cache is what
ncu leaves there: nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "cpu" / "kernels"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from preprocess_cases import Case  # noqa: E402

from gpu_postprocess import kernels  # noqa: E402
from gpu_postprocess_cases import cases  # noqa: E402
from gpu_preprocess_times import HD, RETINANET, VGA, YOLOX  # noqa: E402
from gpu_preprocess_values import Setup, kernel_for  # noqa: E402

PREPROCESSED = (("yolox 640", YOLOX, HD, 8), ("retinanet 800", RETINANET, HD, 8), ("yolox 640", YOLOX, VGA, 1))


def preprocessing() -> list[tuple[str, Callable[[], Any]]]:
    found: list[tuple[str, Callable[[], Any]]] = []
    for name, preprocess, size, batch in PREPROCESSED:
        shapes: Any = "minimal" if preprocess.resize == "shortest-side" else "fixed"
        setup = Setup(
            Case(name=name, preprocess=preprocess, sizes=(size,) * batch, shapes=shapes, dtype="fp16"), extra=0, packed=True
        )
        found += [
            (f"preprocess, {kind}, {name}, {size[0]} x {size[1]}, batch {batch}", partial(kernel_for(setup, kind), setup))
            for kind in ("cuda", "triton")
        ]
    return found


def postprocessing() -> list[tuple[str, Callable[[], Any]]]:
    case = cases(1)[0]
    outputs = case.outputs("cuda")
    return [(f"postprocess, {name}, {case.name}", stage) for name, stage in kernels(case, "cuda").stages(outputs)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    work = preprocessing() + postprocessing()
    for _, call in work:  # compiles, and makes what the later stages read
        call()
    torch.cuda.synchronize()
    (given.out / "order.json").write_text(json.dumps([name for name, _ in work], indent=1))
    torch.cuda.cudart().cudaProfilerStart()
    for _, call in work:
        call()
        torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main()
