"""Run the segments of a graph on what an engine had where each begins; and look into an engine by further outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from redline.engine.cuts import GIVEN, Wiring, cut_graph, split_graph
from redline.engine.onnxruntime_runner import run_named
from redline.errors import TrialError
from redline.records import OnnxModel, Runner, TensorFact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from redline.records.detect import Tensor

Arrays = Mapping[str, "NDArray[Any]"]
Look = Callable[[Sequence[str]], Arrays]
"""Tensors by name -> their values in the engine, with those of the graph's outputs."""


def run_segments(
    model: onnx.ModelProto, wiring: Wiring, ends: Sequence[str], given: Arrays, batch: Tensor, *, threads: int = 0
) -> dict[str, NDArray[Any]]:
    """ONNX Runtime's values of `ends`, each computed from the nearest of `given` or from `batch`.

    Raises TrialError: engine-build, engine-run.
    """
    inner = [name for name in given if name in wiring.maker]
    split = split_graph(model, wiring, ends, inner)
    feeds: dict[str, NDArray[Any]] = {}
    for value in split.graph.input:
        array = given[value.name.removesuffix(GIVEN)] if value.name.endswith(GIVEN) else batch
        feeds[value.name] = array.astype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    return run_named(split.SerializeToString(), feeds, threads=threads)


def look_by_outputs(
    asked: OnnxModel, model: onnx.ModelProto, wiring: Wiring, folder: Path, build: Callable[[OnnxModel], Runner], batch: Tensor
) -> Look:
    """Each look builds an engine of the graph with the tensors as further outputs, runs it once and closes it.

    The runner gives outputs in the graph's order, or says its own in `output_names`.
    """

    def look(cuts: Sequence[str]) -> dict[str, NDArray[Any]]:
        cut = cut_graph(model, wiring, cuts)
        data = cut.SerializeToString(deterministic=True)
        digest = hashlib.sha256(data).hexdigest()
        path = folder / f"cut_{digest[:16]}.onnx"
        path.write_bytes(data)
        names = tuple(value.name for value in cut.graph.output)
        facts = {fact.name: fact for fact in asked.outputs}
        outputs = tuple(facts.get(name, TensorFact(name=name, dtype=_dtype(wiring, name), shape=())) for name in names)
        runner = build(replace(asked, path=str(path), digest=digest, outputs=outputs))
        try:
            found = runner.run(batch)
            order = tuple(getattr(runner, "output_names", names))
        finally:
            runner.close()
            path.unlink(missing_ok=True)
        if len(order) != len(found) or set(order) != set(names):
            got = f"{len(found)} outputs: {', '.join(order[:8])}"
            raise TrialError(
                "engine-cut", "The engine does not give the tensors it was cut at", got=got, allowed=str(len(names))
            )
        return {name: np.asarray(array) for name, array in zip(order, found, strict=True)}

    return look


def _dtype(wiring: Wiring, name: str) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(wiring.kinds[name]))
