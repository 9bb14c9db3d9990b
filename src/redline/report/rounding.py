"""INT8 in a report: what it gained and lost against the fastest that is not INT8, why, and what it was calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redline.records import Bound, EngineRecord, MapDrop, RunRecord, Trial
from redline.records.quantize import Coverage, Int8Record
from redline.report import words

REASON_SHARE = 0.1
"""Of an engine's time, from which on something is a reason."""
SHORT_US = 5.0
"""A layer below this takes about what its launch takes, whatever its type."""
QDQ = ("QuantizeLinear", "DequantizeLinear")
MOST_GROUPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Row:
    title: str
    times: str
    """Capacity over that of the fastest candidate that is not INT8."""
    drop: str
    word: str
    style: str
    why: str


def rows(record: RunRecord) -> list[Int8Row]:
    """The fastest trial of each INT8 graph."""
    trials = [trial for trial in record.trials if trial.parity is not None]
    rounded = [trial for trial in trials if trial.candidate.precision == "int8"]
    passed = [trial for trial in trials if trial.parity and trial.parity.verdict.answer != "fail"]
    wide = [trial for trial in passed if trial.candidate.precision not in ("int8", "fp8")]
    rival = max(wide, key=_capacity, default=None)
    graphs = {(trial.candidate.runner, trial.candidate.wide): trial for trial in sorted(rounded, key=_capacity)}
    return [_row(trial, rival, record) for trial in graphs.values()]


def sentences(record: RunRecord) -> list[str]:
    """For the terminal."""
    return [f"{row.title}: {row.times}; {row.word}: {row.why}" for row in rows(record)]


def further_sentences(record: RunRecord) -> list[str]:
    """For the terminal: what was compared with FP32 on images that nothing was chosen on."""
    return [f"{words.title(one.candidate)}: {further_text(one)}" for one in record.bounds if one.further]


def further_text(found: Bound) -> str:
    return f"{_lost(found.drop)} on {found.drop.images:,} images that nothing was chosen on"


def class_rows(found: Bound) -> list[tuple[str, str, str, str]]:
    """(class or size of objects, AP of FP32, of the candidate, difference), classes by what they lose, the most first."""
    before = {one.name: one.ap for one in found.reference.per_class}
    pairs = [(one.name, before.get(one.name), one.ap) for one in found.accuracy.per_class]
    known = [(name, was, now) for name, was, now in pairs if was is not None and now is not None]
    known = sorted(known, key=lambda row: row[2] - row[1])[:MOST_GROUPS]
    for name in ("small", "medium", "large"):
        was, now = (getattr(side, f"ap_{name}") for side in (found.reference, found.accuracy))
        known += [(f"{name} objects", was, now)] if was is not None and now is not None else []
    return [(name, words.fixed(was, 3), words.fixed(now, 3), words.fixed(now - was, 3)) for name, was, now in known]


def worst_rows(found: Bound) -> list[tuple[str, str, str]]:
    """(image, divergence of its detections, boxes missing and extra)."""
    return [(Path(one.path).name, words.number(one.divergence), f"{one.missing} and {one.extra}") for one in found.worst]


def bound_text(found: Bound) -> str:
    """What the tables are of, and how the scores moved."""
    boxes, decide = found.boxes, found.drop.images_to_decide
    shift = found.score_shift
    moved = ""
    if shift is not None:
        low, middle, high = (words.fixed(one, 3) for one in shift)
        moved = f" Scores moved by {middle} [{low}, {high}] (median, and 90 % of them)."
    more = f" About {decide:,} images would decide." if decide else ""
    where = further_text(found) if found.further else f"{_lost(found.drop)} on {found.drop.images:,} images"
    paired = f"{boxes.matched:,} boxes are found again, {boxes.missing:,} are missing, {boxes.extra:,} more."
    return f"{words.title(found.candidate)}: {where}. {paired}{moved}{more}"


def coverage_rows(found: Int8Record) -> list[tuple[str, ...]]:
    """(selector, strata shown, and of each trait the distance of its shares from those of the whole set)."""
    return [_coverage(one) for one in (found.choice.coverage, *found.choice.others)]


def traits(found: Int8Record) -> list[str]:
    return [trait.trait for trait in found.choice.coverage.traits]


def loss_rows(found: Int8Record) -> list[tuple[str, str]]:
    return [(loss.method, words.number(loss.divergence)) for loss in found.losses]


def group_rows(found: Int8Record) -> list[tuple[str, str, str]]:
    """(group of layers, layers, divergence), the most first."""
    most = sorted(found.sensitivities, key=lambda one: -one.divergence)[:MOST_GROUPS]
    return [(one.group.name, str(len(one.group.nodes)), words.number(one.divergence)) for one in most]


def reasons(engine: EngineRecord | None, depthwise: frozenset[str] = frozenset()) -> list[str]:
    """What an INT8 engine's profile says against it, largest first. `depthwise`: names of such ONNX nodes."""
    if engine is None or not engine.layers:
        return []
    total = sum(layer.ms for layer in engine.layers)
    parts = {
        "layers that only change type or layout": [
            layer.ms for layer in engine.layers if not layer.nodes and "reformat" in layer.name.lower()
        ],
        "rounding that is fused into no layer": [
            layer.ms for layer in engine.layers if layer.nodes and all(node.endswith(QDQ) for node in layer.nodes)
        ],
        "depthwise layers, which INT8 seldom makes faster": [
            layer.ms for layer in engine.layers if depthwise.intersection(layer.nodes)
        ],
        f"layers below {SHORT_US:g} µs, which are bound by their launch": [
            layer.ms for layer in engine.layers if 1000 * layer.ms < SHORT_US
        ],
    }
    found = sorted(((sum(times) / total, what, len(times)) for what, times in parts.items()), reverse=True)
    said = [f"{100 * share:.0f} % of the time in {count} {what}" for share, what, count in found if share >= REASON_SHARE]
    wider = 1.0 - dict(engine.build.proof.shares).get("int8", 0.0)
    return [*said, f"{100 * wider:.0f} % of the operations are not in INT8"] if wider >= REASON_SHARE else said


def _row(trial: Trial, rival: Trial | None, record: RunRecord) -> Int8Row:
    assert trial.parity is not None
    drop, budget = trial.parity.drop, record.spec.objective.map_drop_pct
    ratio = _capacity(trial) / _capacity(rival) if rival is not None and _capacity(rival) > 0 else 0.0
    times = f"{ratio:.2f}× the capacity of {words.title(rival.candidate)}" if ratio and rival is not None else "not measured"
    lost = _lost(drop)
    decide = f"; about {drop.images_to_decide:,} images would decide" if drop.images_to_decide else ""
    noise = record.noise.relative if record.noise is not None else 0.0
    title = words.title(trial.candidate)
    again = [further_text(one) for one in record.bounds if one.further and one.candidate == trial.candidate]
    shown = "; ".join((lost, *again))
    answer = trial.parity.verdict.answer
    if trial.failure is not None:
        return Int8Row(title=title, times=times, drop=shown, word="failed", style="fail", why=trial.failure.message)
    if answer == "fail":
        why = f"it loses {lost} of the accuracy, {budget:g} % is allowed"
        return Int8Row(title=title, times=times, drop=shown, word="too much is lost", style="fail", why=why)
    if 0 < ratio <= 1 + noise:
        said = reasons(_engine(trial, record), _depthwise(record.int8))
        why = "; ".join(said) or "no profile of its layers says why"
        return Int8Row(title=title, times=times, drop=shown, word="does not pay", style="fail", why=why)
    proved = answer == "pass"
    why = f"it loses {lost}, {budget:g} % is allowed" + ("" if proved else decide)
    word = "pays" if proved else "undecided"
    return Int8Row(title=title, times=times, drop=shown, word=word, style="pass" if proved else "inconclusive", why=why)


def _lost(drop: MapDrop) -> str:
    low, high = words.fixed(drop.relative_low_pct, 2), words.fixed(drop.relative_high_pct, 2)
    return f"{words.fixed(drop.relative_pct, 2)} % [{low}, {high}]"


def _engine(trial: Trial, record: RunRecord) -> EngineRecord | None:
    return next((engine for engine in record.engines if engine.build.digest == trial.engine), None)


def _depthwise(found: Int8Record | None) -> frozenset[str]:
    groups: Sequence[tuple[str, tuple[str, ...]]] = (
        [(one.group.name, one.group.nodes) for one in found.sensitivities] if found is not None else ()
    )
    return frozenset(node for name, nodes in groups if name.endswith("depthwise") for node in nodes)


def _coverage(found: Coverage) -> tuple[str, ...]:
    shown = sum(trait.covered for trait in found.traits), sum(trait.strata for trait in found.traits)
    return (found.selector, f"{shown[0]} of {shown[1]}", *(words.fixed(trait.distance, 2) for trait in found.traits))


def _capacity(trial: Trial) -> float:
    return trial.screen.achieved_per_s if trial.screen is not None else 0.0
