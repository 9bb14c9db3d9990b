"""Rows of the page's and the terminal's tables: trials, accuracy, machine, model and what was asked."""

from __future__ import annotations

from dataclasses import dataclass

from redline.records import Accuracy, ParityReport, RunRecord, Trial
from redline.report import facts, words
from redline.report.facts import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    trial: Trial
    role: str
    """"baseline", "choice" or empty."""
    capacity: float | None
    p50_ms: float | None
    p95_ms: float | None
    knee: float | None
    drop: str
    interval: str
    outcome: Outcome
    word: str
    why: str


def trial_rows(record: RunRecord) -> list[TrialRow]:
    """Baseline, choice, then the others: sound before failed, fastest first."""
    order = {"pass": 0, "inconclusive": 1, "fail": 2, "screened": 3, "error": 4}
    rows = [_row(record, trial) for trial in facts.every_trial(record)]

    def rank(row: TrialRow) -> tuple[float, ...]:
        head = 0 if row.role.startswith("baseline") else 1 if row.role else 2
        return (head, order[row.outcome], -(row.knee or 0.0), row.p95_ms or float("inf"), -(row.capacity or 0.0))

    return sorted(rows, key=rank)


def _row(record: RunRecord, trial: Trial) -> TrialRow:
    kind, why = facts.outcome(trial)
    found = facts.load(trial, "open")
    baseline, choice = trial.digest == record.baseline.digest, trial.digest == record.choice.trial
    drop = trial.parity.drop if trial.parity else None
    return TrialRow(
        trial=trial,
        role="baseline, choice" if baseline and choice else "baseline" if baseline else "choice" if choice else "",
        capacity=facts.capacity(trial),
        p50_ms=found.p50_ms if found else None,
        p95_ms=found.p95_ms if found else None,
        knee=facts.knee_rate(trial),
        drop="reference" if baseline else words.fixed(drop.relative_pct, 2) if drop else words.NONE,
        interval=f"{words.fixed(drop.relative_low_pct, 2)} to {words.fixed(drop.relative_high_pct, 2)}"
        if drop and not baseline
        else "",
        outcome=kind,
        word="reference" if baseline and kind == "screened" else facts.OUTCOMES[kind],
        why=why,
    )


def accuracy(parity: ParityReport, reference: Accuracy | None) -> list[tuple[str, str, str, str]]:
    """(metric, reference, choice, difference) as text."""
    names = {
        "ap": "AP @[.50:.95]",
        "ap50": "AP50",
        "ap75": "AP75",
        "ap_small": "AP small",
        "ap_medium": "AP medium",
        "ap_large": "AP large",
    }
    rows = []
    for field, name in names.items():
        after: float | None = getattr(parity.accuracy, field)
        before: float | None = getattr(reference, field) if reference else parity.drop.reference_ap if field == "ap" else None
        gap = after - before if after is not None and before is not None else None
        sign = "+" if gap is not None and round(gap, 4) > 0 else ""
        rows.append((name, words.fixed(before), words.fixed(after), sign + words.fixed(gap, 4)))
    return rows


def environment_line(record: RunRecord) -> str:
    found = record.environment
    versions = {library.name: library.version for library in found.libraries}
    engines = [f"{name} {versions[name]}" for name in ("torch", "onnxruntime") if versions.get(name)]
    gpus = list(found.gpus) or [f"{found.cpu}, {words.plural(found.cores, 'core')}"]
    return " · ".join([*gpus, *engines, f"Python {found.python}", f"redline {found.redline}"])


def machine(record: RunRecord) -> list[tuple[str, str]]:
    found = record.environment
    rows = [("Platform", found.platform), ("Processor", f"{found.cpu}, {words.plural(found.cores, 'core')}")]
    rows += [("Memory", words.size(found.memory_bytes)), ("GPU", ", ".join(found.gpus) or "none")]
    rows += [("Python", found.python), ("redline", found.redline + (f" ({found.commit[:12]})" if found.commit else ""))]
    return rows + [(library.name, library.version or "not installed") for library in found.libraries]


def model(record: RunRecord) -> list[tuple[str, str]]:
    found, graph = record.model, record.onnx
    rows = [
        ("Name", found.name),
        ("Parameters", f"{words.many(found.parameters)} ({words.size(found.weight_bytes)})"),
        ("Classes", str(found.classes) if found.classes is not None else "as the head returns them"),
        ("Digest", found.digest[:16]),
    ]
    for role, tensors in (("Input", found.inputs), ("Output", found.outputs)):
        rows += [(role, f"{tensor.name}: {tensor.dtype} ({', '.join(map(str, tensor.shape))})") for tensor in tensors]
    if graph is not None:
        axes = "dynamic N, H, W" if graph.dynamic else "fixed axes"
        rows.append(("ONNX", f"opset {graph.opset}, {axes}, {graph.exporter}, {graph.digest[:16]}"))
        if graph.fallback_reason:
            rows.append(("Exporter fallback", graph.fallback_reason))
        if graph.checks:
            worst = max(graph.checks, key=lambda check: check.max_abs)
            at = " × ".join(map(str, worst.shape))
            rows.append(
                ("Export check", f"{len(graph.checks)} shapes, largest difference {words.scientific(worst.max_abs)} at {at}")
            )
    return rows


def asked(record: RunRecord) -> list[tuple[str, str]]:
    goal, spec, data = record.spec.objective, record.spec, record.data
    evidence = "its 95 % interval" if goal.map_evidence == "interval" else "its point estimate alone"
    boxes = words.plural(data.boxes, "box", "boxes") if data.boxes is not None else "unlabelled"
    rows = [
        ("P95", f"at most {words.plain(goal.p95_ms)} ms"),
        ("Throughput", f"at least {words.plain(goal.throughput)}/s per node"),
        ("mAP drop", f"at most {words.plain(goal.map_drop_pct)} % of the FP32 value, judged on {evidence}"),
        ("Evaluation data", f"{data.name}: {words.plural(data.images, 'image')}, {boxes}, {data.digest[:16]}"),
        ("Traffic", f"{words.plural(len(data.traffic.shapes), 'source size')} from {data.traffic.origin}"),
        *_buckets(record),
        ("Precisions", ", ".join(precision.upper() for precision in spec.target.precisions)),
        ("Budget", f"{words.plain(spec.budget.minutes)} min; the run took {words.duration(record.seconds)}"),
        ("Spec", spec.path),
    ]
    if record.noise is not None:
        seen = ", ".join(words.number(value) for value in record.noise.p95_ms)
        rows.append(
            ("Noise floor", f"±{words.percent(100 * record.noise.relative, 1)} on P95, from the same load repeated: {seen} ms")
        )
    return rows


def _buckets(record: RunRecord) -> list[tuple[str, str]]:
    """The shape buckets, the share of requests in each, and their padding as expected from the traffic and as measured."""
    found = record.buckets
    if found is None:
        return []
    sizes = ", ".join(f"{b.height} × {b.width} ({words.percent(100 * b.share, 0)})" for b in found.buckets)
    seen = [trial.padding_pct for trial in facts.every_trial(record) if trial.candidate.shapes == found.policy]
    measured = next((f", {words.percent(value, 1)} measured" for value in seen if value is not None), "")
    expected, fixed, minimal = (
        words.percent(100 * waste / (1 + waste), 1) for waste in (found.waste, found.waste_fixed, found.waste_minimal)
    )
    padding = f"padding {expected} of the network's pixels expected{measured} (fixed {fixed}, minimal {minimal})"
    return [("Shape buckets", f"{sizes}; {padding}")]
