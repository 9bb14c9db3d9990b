"""Remedies against what INT8 loses, each kept only if the detections come nearer to those of FP32 (docs/int8.md).

Joins the rooms quantize, export, engine and the store. Runs on ONNX Runtime on the CPU; a step that was computed is kept in the
store, and so is every graph that was weighed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from redline.engine.graph_facts import read_graph
from redline.engine.onnxruntime_runner import open_session
from redline.export.adjusted import adjust
from redline.export.quantized import export_int8
from redline.quantize.biases import PASSES, SHIFT, added, correctable, twin_graph
from redline.quantize.clipping import MOST, clip_units, search_clipping
from redline.quantize.equalise import equalised, joined, scalable, scaled_inputs
from redline.quantize.placement import place
from redline.quantize.ranges import channel_peaks, rounding_errors
from redline.quantizing import batches_of, calibrate, table_of, tensors_of
from redline.records.quantize import Equalisation, Fix, FixOutcome, QuantTable, Ranges
from redline.sensitivity import Scales, choose_calibrator
from redline.store import digest_of
from redline.store.tools import tool_versions

if TYPE_CHECKING:
    from redline.records import Detector
    from redline.records.detect import ShapePolicy, Tensor
    from redline.store import Journal, Store

T = TypeVar("T")
Step = Callable[[QuantTable], "tuple[QuantTable, FixOutcome]"]

NEGLIGIBLE = 2.0
"""Divergence for each part of AP that may be lost, at which nothing is tried: of YOLOX-Nano's placements with a divergence
below 0.3 the worst lost 0.38 of it (docs/int8.md: 9.5 % at 0.25), so that 2 x 0.5 % is expected to lose less than 0.5 %. An
expectation, no proof: the gate on AP decides."""
CLIPPING_S = 600.0
"""Longest clipping search. It is expected to take its `MOST` evaluations, of which one is timed."""
AVERAGED = 16
"""Images that means are of: each is over all places of a tensor, and needs none of the rare values that a range does."""
SAMPLED = 8
"""Images on which tensors are ranked by their rounding error: an order needs fewer than a range."""


def is_negligible(divergence: float, map_drop_pct: float) -> bool:
    """`map_drop_pct`: the relative drop of AP that is allowed, in percent."""
    return divergence <= NEGLIGIBLE * map_drop_pct / 100


class Fixing:
    """The remedies for one network: each takes a table and gives the one it would rather have, or the same."""

    def __init__(
        self,
        scales: Scales,
        detector: Detector,
        images: Sequence[Path],
        *,
        shapes: ShapePolicy = "fixed",
        threads: int = 0,
        store: Store | None = None,
        journal: Journal | None = None,
        selector: str = "all",
        seed: int = 0,
    ) -> None:
        """`scales` weighs; ranges and means are of `images`, which `selector` and `seed` chose."""
        self._scales, self._detector, self._paths = scales, detector, images
        self._shapes, self._threads, self._store, self._journal = shapes, threads, store, journal
        self._chosen: dict[str, Any] = {"selector": selector, "seed": seed}
        self._key: dict[str, object] | None = None

    def best(self, table: QuantTable, map_drop_pct: float) -> tuple[QuantTable, tuple[FixOutcome, ...]]:
        """All remedies in turn, each on top of those kept, until what is left is negligible."""
        steps: tuple[Step, ...] = (self.equalised, self.scaled, self.corrected, self.clipped)
        outcomes: list[FixOutcome] = []
        for step in steps:
            if is_negligible(self._scales.divergence(table), map_drop_pct):
                break
            table, outcome = step(table)
            outcomes.append(outcome)
        return table, tuple(outcomes)

    def equalised(self, table: QuantTable) -> tuple[QuantTable, FixOutcome]:
        """Weights of consecutive layers brought to equal ranges, ranges measured and the calibrator chosen anew."""
        found = self._once("equalise", {}, Equalisation, lambda: equalised(self._scales.model))
        return self._rescaled("equalised layers", table, found, found.factors)

    def scaled(self, table: QuantTable) -> tuple[QuantTable, FixOutcome]:
        """Inputs of depthwise layers divided by the peaks of their channels, on top of the table's own factors."""
        key = {"factors": table.factors}
        found = self._once("scale-inputs", key, Equalisation, lambda: self._scaled_inputs(table))
        return self._rescaled("scaled inputs", table, found, joined(table.factors, found.factors))

    def corrected(self, table: QuantTable) -> tuple[QuantTable, FixOutcome]:
        """What rounding shifts of each channel's mean taken off the biases."""
        start = replace(table, biases=())
        other = self._once("correct-biases", {"table": start}, QuantTable, lambda: self._with_biases(start))
        taken = len(other.biases)
        passed = (("no convolution with a constant bias", len(table.weights) - taken),) if taken < len(table.weights) else ()
        return self._weighed("bias correction", table, other, taken, passed, 1)

    def clipped(self, table: QuantTable) -> tuple[QuantTable, FixOutcome]:
        """Scales of single tensors searched on every other image that is weighed, and accepted on those between."""
        if self._scales.count < 2:
            return table, self._nothing("clipping search", table, note="one image cannot be divided")
        halves = self._scales.part(slice(0, None, 2)), self._scales.part(slice(1, None, 2))
        weighed = {"weighed": halves[0].count}
        seconds = self._once("weighing-seconds", weighed, float, lambda: _seconds(lambda: halves[0].detections(table)))
        if seconds * MOST > CLIPPING_S:
            note = f"left out: {MOST} evaluations at {seconds:.0f} s each would take more than {CLIPPING_S:.0f} s"
            return table, self._nothing("clipping search", table, note=note)
        graph = adjust(self._scales.model, table.factors)
        shared = place(graph, table.weights).shared
        errors = dict(
            self._once("rounding-errors", {"table": table}, tuple[tuple[str, float], ...], lambda: self._errors(table))
        )
        units = clip_units(table, shared, errors)
        found = search_clipping(table, units, halves[0].divergence, halves[1].divergence)
        tried = f"{len(units)} scales, of which those with most rounding error come first"
        return self._weighed("clipping search", table, found.table, len(found.changed), (), found.evaluations + 1, tried)

    def _rescaled(
        self, fix: Fix, table: QuantTable, found: Equalisation, factors: Sequence[Any]
    ) -> tuple[QuantTable, FixOutcome]:
        if not found.factors:
            return table, self._nothing(fix, table, passed=found.passed)
        ranges = self._once(
            "calibrate", {"factors": tuple(factors)}, Ranges,
            lambda: calibrate(
                self._scales.network, self._detector, self._paths,
                shapes=self._shapes, threads=self._threads, factors=factors, **self._chosen,
            ),
        )  # fmt: skip
        losses = choose_calibrator(self._scales, ranges, factors=factors)
        other = table_of(self._scales.network, ranges, losses[0].method, factors=factors)
        return self._weighed(fix, table, other, found.taken, found.passed, len(losses), f"ranges by {losses[0].method}")

    def _scaled_inputs(self, table: QuantTable) -> Equalisation:
        edges, passed = scalable(self._scales.model, table.factors)
        if not edges:
            return Equalisation(factors=(), taken=0, passed=passed)
        model = adjust(self._scales.model, table.factors)
        names = [edge.tensor for edge in edges]
        factors = scaled_inputs(edges, channel_peaks(self._inner(model, names), self._batches, names))
        alike = len(edges) - len(factors)
        passed = (*passed, ("channels alike", alike)) if alike else passed
        return Equalisation(factors=factors, taken=len(factors), passed=passed)

    def _with_biases(self, table: QuantTable) -> QuantTable:
        plain = adjust(self._scales.model, table.factors)
        layers = correctable(plain, table.weights)
        for _ in range(PASSES if layers else 0):
            with tempfile.TemporaryDirectory(prefix="redline-") as folder:
                narrow = read_graph(export_int8(self._scales.network, Path(folder), table).path)
            graph = twin_graph(plain, narrow, table.weights, layers)
            table = replace(table, biases=added(table.biases, self._shifts(graph.SerializeToString(), layers)))
        return table

    def _shifts(self, graph: bytes, layers: Sequence[str]) -> dict[str, Any]:
        session = open_session(graph, threads=self._threads, concurrent=True)
        names = [layer + SHIFT for layer in layers]
        sums: list[Any] = [0.0] * len(names)
        some = self._paths[:AVERAGED]
        for batch in batches_of(self._detector, some, self._shapes):
            means = session.run(names, {self._scales.network.input.name: batch})
            sums = [total + mean.astype(np.float64).reshape(-1) for total, mean in zip(sums, means, strict=True)]
        return {layer: total / len(some) for layer, total in zip(layers, sums, strict=True)}

    def _errors(self, table: QuantTable) -> tuple[tuple[str, float], ...]:
        model = adjust(self._scales.model, table.factors)
        scales = dict(table.scales)
        wanted: Mapping[str, float] = {point.tensor: scales[point.tensor] for point in table.points}
        some = partial(batches_of, self._detector, self._paths[:SAMPLED], self._shapes)
        return tuple(rounding_errors(self._inner(model, list(wanted)), some, wanted).items())

    def _inner(self, model: Any, names: Sequence[str]) -> Any:
        return tensors_of(self._scales.network, model, names, self._threads)

    def _batches(self) -> Iterable[Tensor]:
        return batches_of(self._detector, self._paths, self._shapes)

    def _weighed(
        self,
        fix: Fix,
        table: QuantTable,
        other: QuantTable,
        taken: int,
        passed: tuple[tuple[str, int], ...],
        evaluations: int,
        note: str = "",
    ) -> tuple[QuantTable, FixOutcome]:
        before, after = self._scales.divergence(table), self._scales.divergence(other)
        kept = after < before
        outcome = FixOutcome(
            fix=fix, before=before, after=after, kept=kept, taken=taken, passed=passed, evaluations=evaluations, note=note
        )
        return other if kept else table, outcome

    def _nothing(
        self, fix: Fix, table: QuantTable, *, passed: tuple[tuple[str, int], ...] = (), note: str = "nothing to change"
    ) -> FixOutcome:
        before = self._scales.divergence(table)
        return FixOutcome(fix=fix, before=before, after=None, kept=False, taken=0, passed=passed, note=note)

    def _once(self, stage: str, key: Mapping[str, object], type: type[T], compute: Callable[[], T]) -> T:
        if self._store is None:
            return compute()
        if self._key is None:
            images = [digest_of(path.read_bytes()) for path in self._paths]
            self._key = {"network": self._scales.network.digest, "images": images, "preprocess": self._detector.preprocess}
            self._key |= {"shapes": self._shapes, "tools": tool_versions(), **self._chosen}
        return self._store.once(
            stage=stage, key={**self._key, **key}, kind="fix", type=type, compute=compute, journal=self._journal,
            parents=(self._scales.network.digest,),
        )  # fmt: skip


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
