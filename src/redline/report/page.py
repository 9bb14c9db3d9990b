"""The page: every section's values gathered from the record, then one jinja2 template with autoescape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from redline.records import Load, ParityReport, PlanRecord, PredictionCheck, RunRecord, Trial
from redline.report import (
    chart_accuracy,
    chart_engines,
    chart_front,
    chart_latency,
    chart_plan,
    chart_steps,
    engines,
    facts,
    pictures,
    rounding,
    tables,
    through_server,
    words,
)
from redline.report.svg import NARROW, WIDE, el

Draw = Callable[[int, str], Markup | None]


@dataclass(frozen=True, slots=True)
class Tile:
    """One headline figure with its gauge: all positions are shares of the gauge's width in percent."""

    name: str
    value: str
    unit: str
    asked: str
    style: str
    also: str = ""
    fill: float | None = None
    band: tuple[float, float] | None = None
    point: float | None = None
    limit: float | None = None


def page(record: RunRecord, plan: PlanRecord | None = None, checks: Sequence[PredictionCheck] = ()) -> str:
    style = Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
    return _environment().get_template("page.html.j2").render(style=style, plan=_plan(plan, checks), **_context(record))


def _plan(plan: PlanRecord | None, checks: Sequence[PredictionCheck]) -> dict[str, Any] | None:
    if plan is None:
        return None
    chart = _drawn("plan", lambda width, key: chart_plan.ladder(plan, checks, width, key))
    return {"record": plan, "checks": checks, "chart": chart}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("redline", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ms": words.ms, "rate": words.rate, "percent": words.percent, "number": words.number, "fixed": words.fixed,
        "size": words.size, "many": words.many, "duration": words.duration, "moment": words.moment, "title_of": words.title,
        "plural": words.plural, "runner": words.runner, "plain": words.plain, "scientific": words.scientific,
    }  # fmt: skip
    return environment


def _context(record: RunRecord) -> dict[str, Any]:
    choice = facts.chosen(record)
    return {
        "record": record,
        "goal": record.spec.objective,
        "choice": choice,
        "headline": facts.HEADLINES[record.choice.verdict.answer],
        "sentence": facts.sentence(record),
        "environment": tables.environment_line(record),
        "tiles": tiles(record),
        "metric": facts.metric_name(choice.parity if choice else None),
        "same": choice is not None and choice.digest == record.baseline.digest,
        "steps": _steps(record),
        "front": _front(record),
        "latency": _latency(record, choice),
        "accuracy": _accuracy(record, choice),
        "pairs": [pictures.pair(picture, index, _images(record)) for index, picture in enumerate(record.pictures)],
        "shown_score": pictures.SHOWN_SCORE,
        "knee": _knee(record, choice),
        "rows": tables.trial_rows(record),
        "in_graph": any(trial.candidate.prepost != "host" for trial in facts.every_trial(record)),
        "traffic": _drawn("traffic", lambda width, key: chart_accuracy.shapes(record.data.traffic, width, key)),
        "side_by_side": through_server.side_by_side(record),
        **_engines(record),
        **_int8(record),
        "left_out": facts.left_out(record),
        "served_rows": through_server.rows(record.served) if record.served else [],
        "asked": tables.asked(record),
        "machine": tables.machine(record),
        "model": tables.model(record),
    }


def _engines(record: RunRecord) -> dict[str, Any]:
    rows = engines.engine_rows(record)
    named = [(f"{row.title}, {row.record.build.digest[:8]}", row.record) for row in rows]
    shown = engines.dissected(record)
    return {
        "engine_rows": rows,
        "anatomy": _drawn("anatomy", lambda width, key: chart_engines.anatomy(named, width, key)),
        "dissected": shown,
        "layer_rows": engines.layer_rows(shown) if shown is not None else [],
        "padding_rows": engines.padding_rows(record),
        "telemetry_rows": engines.telemetry_rows(record),
        "compiled": any(trial.candidate.runner == "torch-compile" for trial in facts.every_trial(record)),
    }


def _int8(record: RunRecord) -> dict[str, Any]:
    found = record.int8
    return {
        "int8_rows": rounding.rows(record),
        "int8_traits": rounding.traits(found) if found is not None else [],
        "int8_coverage": rounding.coverage_rows(found) if found is not None else [],
        "int8_losses": rounding.loss_rows(found) if found is not None else [],
        "int8_groups": rounding.group_rows(found) if found is not None else [],
        "bounds": [
            (one.candidate.precision.upper(), rounding.bound_text(one), rounding.class_rows(one), rounding.worst_rows(one))
            for one in record.bounds
        ],
    }


def _images(record: RunRecord) -> Path:
    return Path(record.spec.data.evaluate.images)


def _drawn(key: str, draw: Draw) -> Markup | None:
    """A chart twice: for half a page and for a phone; the style sheet shows one of them."""
    wide, narrow = draw(WIDE, f"{key}-wide"), draw(NARROW, f"{key}-narrow")
    if wide is None or narrow is None:
        return None
    return el("div", wide, class_="wide") + el("div", narrow, class_="narrow")


def tiles(record: RunRecord) -> list[Tile]:
    """The four figures of the head: P95, rate, accuracy, gain over the baseline; only those that were measured."""
    goal, trial = record.spec.objective, facts.chosen(record)
    found: list[Tile] = []
    if trial is None:
        return found
    reached = facts.p95(trial)
    if reached is not None:
        top = max(1.35 * goal.p95_ms, min(1.05 * reached, 4 * goal.p95_ms))
        style = _style(reached <= goal.p95_ms, trial.latency.answer if trial.latency else None)
        asked = f"of {words.plain(goal.p95_ms)} ms at {words.plain(goal.throughput)}/s"
        measured = facts.load(trial, "open")
        also = f"P50 {words.ms(measured.p50_ms)}, P99 {words.ms(measured.p99_ms)}" if measured else ""
        fill, limit = _share(reached, top), _share(goal.p95_ms, top)
        found.append(Tile("P95 latency", words.number(reached), "ms", asked, style, also, fill=fill, limit=limit))
    knee, capacity = facts.knee_rate(trial), facts.capacity(trial)
    held = knee if knee is not None else capacity
    if held is not None:
        top = max(1.35 * goal.throughput, min(1.05 * held, 4 * goal.throughput))
        name = "Rate within that P95" if knee is not None else "Closed-loop capacity"
        style = _style(held >= goal.throughput, None)
        asked = f"of {words.plain(goal.throughput)}/s asked"
        also = f"closed-loop capacity {words.rate(capacity)}" if knee is not None and capacity is not None else ""
        fill, limit = _share(held, top), _share(goal.throughput, top)
        found.append(Tile(name, words.number(held), "/s", asked, style, also, fill=fill, limit=limit))
    if trial.parity and words.known(trial.parity.drop.relative_pct):
        found.append(_drop_tile(trial.parity, goal.map_drop_pct))
    gain = _gain(record, trial)
    return [*found, gain] if gain else found


def _drop_tile(parity: ParityReport, budget: float) -> Tile:
    drop = parity.drop
    ends = [value for value in (drop.relative_low_pct, drop.relative_high_pct, drop.relative_pct) if words.known(value)]
    low, high = min(*ends, 0.0), max(*ends, budget)
    air = 0.08 * (high - low) or 1.0

    def at(value: float) -> float:
        return 100 * (value - low + air) / (high - low + 2 * air)

    known = words.known(drop.relative_low_pct) and words.known(drop.relative_high_pct)
    band = (at(drop.relative_low_pct), at(drop.relative_high_pct)) if known else None
    style = {"pass": "good", "fail": "bad", "inconclusive": "open"}[parity.verdict.answer]
    name = f"{facts.metric_name(parity)} drop"
    name = name[0].upper() + name[1:] if name.startswith("agreement") else name
    asked, also = f"of {words.plain(budget)} % allowed", f"95 % interval {words.interval(drop)}"
    point = at(drop.relative_pct)
    return Tile(name, words.fixed(drop.relative_pct, 2), "%", asked, style, also, band=band, point=point, limit=at(budget))


def _gain(record: RunRecord, trial: Trial) -> Tile | None:
    """Capacity, or the knee where both have one, over the baseline's."""
    for read, name in ((facts.knee_rate, "rate held"), (facts.capacity, "closed-loop capacity")):
        before, after = read(record.baseline), read(trial)
        if before and after and trial.digest != record.baseline.digest:
            metric = facts.shared_metric(record.baseline, trial)
            old, new = (facts.p95(record.baseline, metric), facts.p95(trial, metric)) if metric else (None, None)
            also = f"P95 {words.number(old)} → {words.ms(new)}" if metric else ""
            told = f"{name} {words.number(before)} → {words.rate(after)}"
            return Tile("Against the baseline", words.factor(after / before), "", told, "plain", also)
    return None


def _style(met: bool, answer: str | None) -> str:
    return "open" if answer == "inconclusive" else "good" if met else "bad"


def _share(value: float, top: float) -> float:
    return 100 * min(max(value / top, 0.0), 1.0) if math.isfinite(value) else 100.0


def _steps(record: RunRecord) -> dict[str, Any] | None:
    chain = facts.chain(record)
    if not chain:
        return None
    goal = record.spec.objective
    metric = facts.shared_metric(record.baseline, chain[-1].trial) or "open"
    first, last = facts.p95(chain[0].trial, metric), facts.p95(chain[-1].trial, metric)
    overloaded = metric == "open" and (facts.capacity(record.baseline) or math.inf) < goal.throughput
    return {
        "metric": metric,
        "measured": max(len(chain) - 2, 0),
        "first": first,
        "last": last,
        "ratio": words.factor(first / last) if first and last and first > last and not overloaded else None,
        "overloaded": overloaded,
        "p95": _drawn("steps", lambda width, key: chart_steps.waterfall(chain, metric, goal.p95_ms, width, key)),
        "rates": _drawn("rates", lambda width, key: chart_steps.rates(chain, goal.throughput, width, key)),
        "rate_name": chart_steps.rate_values(chain)[1],
    }


def _front(record: RunRecord) -> dict[str, Any] | None:
    found = chart_front.points(record)
    if found is None:
        return None
    goal, choice = record.spec.objective, record.choice.trial

    def draw(width: int, key: str) -> Markup:
        return chart_front.pareto(found, goal, choice, record.baseline.digest, width, key)

    unjudged = any(facts.outcome(trial)[0] == "screened" for trial, _, _ in found.trials)
    shown = {"count": len(found.trials), "left_out": found.left_out, "metric": found.metric, "unjudged": unjudged}
    return {"chart": _drawn("front", draw), **shown}


def _latency(record: RunRecord, choice: Trial | None) -> dict[str, Any] | None:
    roles = [("Baseline", "baseline", record.baseline)]
    if choice is not None and choice.digest != record.baseline.digest:
        roles.append(("Choice", "choice", choice))
    loads: list[tuple[str, str, Load]] = []
    for name, style, trial in roles:
        found = facts.load(trial, "open") or facts.load(trial, "closed")
        if found:
            loads.append((name, style, found))
    curves = [made for name, style, found in loads if (made := chart_latency.curve(name, style, found))]
    if choice is not None and choice.confirmation is not None:
        loads.append(("Choice, confirmed", "confirmed", choice.confirmation))
    if not loads:
        return None
    limit = record.spec.objective.p95_ms
    chart = _drawn("latency", lambda width, key: chart_latency.distribution(curves, limit, width, key)) if curves else None
    return {"chart": chart, "curves": curves, "loads": loads}


def _accuracy(record: RunRecord, choice: Trial | None) -> dict[str, Any] | None:
    rows = chart_accuracy.drops(record)
    budget = record.spec.objective.map_drop_pct
    forest = _drawn("drops", lambda width, key: chart_accuracy.forest(rows, budget, width, key)) if rows else None
    if choice is None or choice.parity is None:
        return {"parity": None, "forest": forest} if forest else None
    parity = choice.parity
    reference = record.baseline.parity.accuracy if record.baseline.parity else None
    entries, skipped = chart_accuracy.class_rows(parity.accuracy, reference)
    bars = _drawn("classes", lambda width, key: chart_accuracy.classes(entries, skipped, width, key)) if entries else None
    return {
        "parity": parity,
        "forest": forest,
        "table": tables.accuracy(parity, reference),
        "classes": bars,
        "skipped": skipped,
        "with_reference": any(entry[2] is not None for entry in entries),
    }


def _knee(record: RunRecord, choice: Trial | None) -> Markup | None:
    knee = choice.knee if choice else None
    if knee is None:
        return None
    return _drawn("knee", lambda width, key: chart_front.knee_search(knee, record.spec.objective, width, key))
