"""TensorRT engines and GPUs in a report: builds with what they obtained, where an inference's time goes, telemetry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from redline.records import (
    Anatomy,
    BoundaryCheck,
    BuildOptions,
    Candidate,
    EngineBuild,
    EngineRecord,
    LayerParity,
    Load,
    RunRecord,
    Telemetry,
    Trial,
    Verdict,
)
from redline.report import facts, words

MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red"), "inconclusive": ("?", "yellow")}
CACHE = {"cold": "cold: every kernel was timed", "warm": "warm: earlier timings reused", "none": "none"}
TOP_LAYERS = 12
NODES = 4
PARTS = (("fill", "fill_ms"), ("upload", "upload_ms"), ("GPU", "gpu_ms"), ("download", "download_ms"), ("gaps", "gap_ms"))
"""Of an inference in order; the rest of its wall time is the gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    record: EngineRecord
    chosen: bool
    title: str
    obtained: str
    fallen: str
    profiles: str
    cache: str
    against_compile: str
    """Capacity over that of the fastest torch.compile, and whether the engine is worth it."""
    wide: str
    """Nodes that stay in FP32, and why."""
    boundaries: str
    boundaries_style: str
    layers: str
    """Where the error begins, if layers were compared."""
    word: str
    style: str


class ProvedLike(Protocol):
    @property
    def build(self) -> EngineBuild: ...
    @property
    def verdict(self) -> Verdict: ...


class BuiltLike(ProvedLike, Protocol):
    @property
    def boundaries(self) -> tuple[BoundaryCheck, ...]: ...
    @property
    def layers(self) -> LayerParity | None: ...


class ReplayLike(Protocol):
    @property
    def seconds(self) -> float: ...
    @property
    def changed(self) -> tuple[str, ...]: ...


class ReplayedLike(ProvedLike, Protocol):
    @property
    def found(self) -> ReplayLike: ...


def engine_rows(record: RunRecord) -> list[EngineRow]:
    """The chosen engine first, then in the order they were built."""
    choice = facts.chosen(record)
    rows = [_row(record, engine, choice) for engine in record.engines]
    return sorted(rows, key=lambda row: not row.chosen)


def _row(record: RunRecord, engine: EngineRecord, choice: Trial | None) -> EngineRow:
    build, proof = engine.build, engine.build.proof
    fell = bool(proof.fallen) and not proof.proved
    return EngineRow(
        record=engine,
        chosen=choice is not None and choice.engine == build.digest,
        title=f"{build.library} {build.version}, {proof.asked.upper()}",
        obtained=obtained(build),
        fallen=_few(proof.fallen, 3),
        profiles="; ".join(_profile(build, index) for index in range(len(build.options.profiles))),
        cache=build.timing_cache,
        against_compile=_against_compile(record, build.digest),
        wide=_held(record, build.digest),
        boundaries=boundaries_text(engine.boundaries),
        boundaries_style="fail" if any(not check.passed for check in engine.boundaries) else "pass",
        layers=layers_text(engine.layer_parity) if engine.layer_parity is not None else "",
        word="proved" if proof.proved else "fell back" if fell else "not proved",
        style="pass" if proof.proved else "fail" if fell else "inconclusive",
    )


def obtained(build: EngineBuild) -> str:
    """The share of the operations in each precision."""
    return ", ".join(f"{kind.upper()} {words.percent(100 * share, 1)}" for kind, share in build.proof.shares) or words.NONE


def _held(record: RunRecord, digest: str) -> str:
    trial = next((trial for trial in facts.every_trial(record) if trial.engine == digest and trial.held), None)
    if trial is None:
        return ""
    why = {held.why: _few(tuple(other.node for other in trial.held if other.why == held.why), NODES) for held in trial.held}
    return "; ".join(f"{nodes}: {reason}" for reason, nodes in why.items())


def boundaries_text(checks: tuple[BoundaryCheck, ...]) -> str:
    """How many boundary shapes there are and were right, or which were not."""
    if not checks:
        return words.NONE
    wrong = [check for check in checks if not check.passed]
    if not wrong:
        taken = [check for check in checks if check.taken]
        worst = max((check.max_rel for check in taken), default=0.0)
        refused = f", {len(checks) - len(taken)} beyond refused" if len(checks) > len(taken) else ""
        return f"{len(taken)} right (differ by {words.scientific(worst)} at most){refused}"
    return f"{len(wrong)} of {len(checks)} wrong: " + _few(tuple(_boundary(check) for check in wrong), 3)


def _boundary(check: BoundaryCheck) -> str:
    shape = f"{' × '.join(map(str, check.shape))} of profile {check.profile}"
    if not check.taken:
        return f"{shape} is not refused"
    return f"{shape} differs by {words.scientific(check.max_rel)}" if check.finite else f"{shape} is not finite"


def layers_text(found: LayerParity) -> str:
    """The first node at fault and its module, or the stretch with the largest error of its own."""
    if found.faults:
        fault = found.faults[0]
        what = f"error {words.scientific(fault.local)}, explained {words.scientific(fault.explained)}"
        more = f"; {len(found.faults) - 1} more" if len(found.faults) > 1 else ""
        where = f" of {fault.module}" if fault.module else ""
        return f"{' + '.join(fault.nodes)}{where}: {what if fault.finite else 'not finite'}{more}"
    worst = max(found.points, key=lambda point: point.local)
    where = f" of {worst.module}" if worst.module else ""
    return f"no node beyond {found.precision.upper()}; up to {worst.node}{where} most: {words.scientific(worst.local)}"


def _against_compile(record: RunRecord, digest: str) -> str:
    trials = facts.every_trial(record)
    mine = [value for t in trials if t.engine == digest and (value := facts.capacity(t))]
    theirs = [value for t in trials if t.candidate.runner == "torch-compile" and (value := facts.capacity(t))]
    if not mine or not theirs:
        return words.NONE
    ratio, noise = max(mine) / max(theirs), record.noise.relative if record.noise is not None else 0.0
    return f"{words.factor(ratio)}, {'worth it' if ratio > 1 + noise else 'not worth it'}"


def _profile(build: EngineBuild, index: int) -> str:
    profile = build.options.profiles[index]
    pairs = zip(profile.minimum, profile.maximum, strict=True)
    return " × ".join(str(low) if low == high else f"{low}–{high}" for low, high in pairs)


def _few(names: tuple[str, ...], most: int) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def dissected(record: RunRecord) -> EngineRecord | None:
    """The engine whose layers are shown: the choice's, or the fastest that ran."""
    ran = [row.record for row in engine_rows(record) if row.record.anatomy is not None]
    chosen = [row.record for row in engine_rows(record) if row.chosen and row.record.anatomy is not None]
    return next(iter(chosen), min(ran, key=lambda engine: _wall(engine), default=None))


def _wall(engine: EngineRecord) -> float:
    return engine.anatomy.wall_ms if engine.anatomy is not None else float("inf")


def parts_of(anatomy: Anatomy) -> list[tuple[str, float]]:
    """(name, ms) of the stacked parts of one inference."""
    return [(name, max(0.0, getattr(anatomy, field))) for name, field in PARTS]


def padding_rows(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """(kind of profiles, padding expected from the traffic, padding of the measured requests, trials) of every kind tried."""
    kinds: dict[str, list[Trial]] = {}
    for trial in record.trials:
        if trial.candidate.profiles is not None:
            kinds.setdefault(_kind(trial.candidate), []).append(trial)
    return [
        (
            kind,
            words.percent(next((t.expected_padding_pct for t in trials if t.expected_padding_pct is not None), None), 1),
            words.percent(next((t.padding_pct for t in trials if t.padding_pct is not None), None), 1),
            f"{sum(t.padding_pct is not None for t in trials)} of {len(trials)}",
        )
        for kind, trials in kinds.items()
    ]


def _kind(candidate: Candidate) -> str:
    if candidate.profiles == "bucketed":
        return f"bucketed letterbox: {candidate.shape_name}"
    if candidate.profiles == "dynamic":
        return "fully dynamic: one profile over all shapes"
    return "exact: the letterbox" if candidate.shapes == "fixed" else "exact: a profile for each shape"


def layer_rows(engine: EngineRecord) -> list[tuple[str, str, str, str]]:
    """(layer, microseconds, share, ONNX nodes) of the slowest; the share is of all layers' time that was kept."""
    total = sum(layer.ms for layer in engine.layers)
    return [
        (
            layer.name,
            words.number(1000 * layer.ms),
            words.percent(100 * layer.ms / total, 1),
            _few(layer.nodes, NODES) or "of TensorRT's own",
        )
        for layer in engine.layers[:TOP_LAYERS]
    ]


def telemetry_rows(record: RunRecord) -> list[tuple[str, Telemetry]]:
    """(what was measured, GPU meanwhile) for the loads that verdicts rest on."""
    choice = facts.chosen(record)
    loads: list[tuple[str, Load | None]] = [("Baseline", facts.load(record.baseline, "open") or record.baseline.screen)]
    if choice is not None and choice.digest != record.baseline.digest:
        loads += [("Choice", choice.objective_load or choice.screen), ("Choice, confirmed", choice.confirmation)]
    for trial in facts.every_trial(record):
        shown = choice is not None and trial.digest == choice.digest
        if trial.objective_load is not None and trial.objective_load.throttled and not shown:
            loads.append((words.title(trial.candidate), trial.objective_load))
    return [(name, gpu) for name, load in loads if load is not None for gpu in load.gpus]


def built_text(built: BuiltLike) -> RenderableType:
    """An engine with its proof, for the terminal."""
    build, (mark, style) = built.build, MARKS[built.verdict.answer]
    head = Text.assemble((mark, style), f" engine {build.digest[:12]}  ", (f"{build.library} {build.version}", "bold"))
    rows = [
        ("precision", f"{build.proof.asked.upper()} asked for; {_obtained_or_why(built)}"),
        ("for", f"{build.gpu}, driver {build.driver}" if build.gpu else f"compute capability {_capabilities(build)}"),
        ("profiles", "\n".join(_profile(build, index) for index in range(len(build.options.profiles)))),
        ("options", _options(build.options)),
        ("built in", f"{words.duration(build.seconds)}, timing cache {_cache(build)}"),
        ("size", _size(build)),
        ("layers", str(len(build.proof.layers)) if build.proof.layers else "not read"),
    ]
    rows += [("boundaries", boundaries_text(built.boundaries))] if built.boundaries else []
    if built.layers is not None:
        rows.append(("layers", layers_text(built.layers)))
    rows += [("fell back", "\n".join(build.proof.fallen))] if build.proof.fallen else []
    rows += [("warnings", "\n".join(build.warnings[:3]))] if build.warnings else []
    rows.append(("again", f"redline build --replay {build.digest[:12]}"))
    return Group(head, _grid(rows))


def _obtained_or_why(built: BuiltLike) -> str:
    wrong = (built.layers is not None and built.layers.faults) or any(not check.passed for check in built.boundaries)
    return f"{obtained(built.build)} obtained" if wrong else built.verdict.reason


def replayed_text(again: ReplayedLike) -> RenderableType:
    mark, style = MARKS[again.verdict.answer]
    rows = [("found", again.verdict.reason)]
    rows.append(("built in", f"{words.duration(again.found.seconds)}, the first time {words.duration(again.build.seconds)}"))
    rows += [("changed", _few(again.found.changed, 8))] if again.found.changed else []
    return Group(Text.assemble((mark, style), f" engine {again.build.digest[:12]} built again"), _grid(rows))


def _options(options: BuildOptions) -> str:
    """How it was built, as `[target.tensorrt]` has it."""
    sources = "the version's own" if options.tactic_sources is None else ", ".join(options.tactic_sources)
    parts = [f"level {options.optimization_level}", f"workspace {options.workspace_bytes / (1 << 30):g} GiB"]
    parts += [f"tactic sources {sources}"]
    parts += ["version-compatible"] if options.version_compatible else []
    parts += [f"hardware {options.hardware}"] if options.hardware != "this" else []
    return "; ".join(parts)


def _cache(build: EngineBuild) -> str:
    if not build.options.timing_cache:
        return "off"
    return "not used: nothing is timed ahead of time" if build.options.capabilities else CACHE[build.timing_cache]


def _capabilities(build: EngineBuild) -> str:
    return ", ".join(build.options.capabilities)


def _size(build: EngineBuild) -> str:
    memory = build.device_memory_bytes
    return words.size(build.plan_bytes) + (f"; {words.size(memory)} on the GPU for each inference in flight" if memory else "")


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(f"  {name}", Text(value))
    return grid
