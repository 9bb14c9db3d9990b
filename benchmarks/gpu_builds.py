"""How the GPU benchmark builds: types free or asked for, outputs in the kernels' own layout; where a build's time goes."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from typing import Any

from redline.engine import tensorrt_builder
from redline.engine.tensorrt_log import Log, make_logger
from redline.engine.tensorrt_versions import Library

RUNNER = re.compile(r"Timing Runner: (.*) \((\w+)")
TACTIC = re.compile(r"(?<!Fastest )Tactic: 0x\w+.* Time: ([0-9.eE+-]+|inf)")


class Native(Library):
    """Outputs of shape (N, C, h, w) in float16 are written as (N, h, w, C): the layout in which Hopper's kernels compute."""

    def follow_graph(self, network: Any, config: Any, precision: str, wide: Any, **more: Any) -> None:
        Library.follow_graph(self, network, config, precision, wide, **more)
        for index in range(network.num_outputs):
            network.get_output(index).allowed_formats = 1 << int(self.module.TensorFormat.HWC8)


class Free(Library):
    """Types are left to the builder, as before layers were asked to be FP16."""

    def follow_graph(self, network: Any, config: Any, precision: str, wide: Any, **more: Any) -> None:
        Library.follow_graph(self, network, config, precision, wide)


def like(kind: type[Library], library: Library) -> Library:
    return kind(library.module, library.name, library.version)


class BuildClock:
    """Time between the lines of TensorRT's verbose log, by what was being done. Installed for the builds of a process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.nodes: dict[str, float] = defaultdict(float)
        self.tactics: Counter[str] = Counter()
        self.lines, self.doing, self.node = 0, "start", ""
        self.last = self.began = time.perf_counter()

    def install(self) -> None:
        vars(tensorrt_builder)["make_logger"] = self.logger

    def logger(self, module: Any) -> tuple[Log, Any]:
        self.reset()
        log, plain = make_logger(module)
        clock, base = self, module.ILogger

        class Logger(base):  # type: ignore[misc, valid-type, unused-ignore]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                plain.log(severity, text)
                clock.line(text)

        return log, Logger()

    def line(self, text: str) -> None:
        now = time.perf_counter()
        gap, self.last = now - self.last, now
        self.lines += 1
        self.spent[self.doing] += gap
        if self.node:
            self.nodes[self.node] += gap
        found = RUNNER.search(text)
        if found:
            self.node, self.doing = found[1], f"timing {found[2]}"
        elif TACTIC.search(text):
            self.tactics[self.doing] += 1
        elif not self.node or "Tactic" not in text:
            self.doing, self.node = " ".join(re.sub(r"[^A-Za-z ]+", " ", text).split()[:4]) or "?", ""

    def summary(self, most: int = 14) -> dict[str, Any]:
        def top(found: dict[str, float]) -> dict[str, float]:
            return {k: round(v, 3) for k, v in sorted(found.items(), key=lambda item: -item[1])[:most]}

        return {
            "lines": self.lines,
            "seconds": round(self.last - self.began, 2),
            "by_work_s": top(self.spent),
            "by_layer_s": top(self.nodes),
            "tactics_timed": dict(self.tactics.most_common(most)),
        }
