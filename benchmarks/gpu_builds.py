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


class HalfOutputs(Library):
    """8.6: outputs in float16, as a graph of float16 has them where types come from the graph."""

    def follow_graph(self, network: Any, config: Any, precision: str, wide: Any, **more: Any) -> None:
        Library.follow_graph(self, network, config, precision, wide, **more)
        if not self.strongly_typed:
            for index in range(network.num_outputs):
                network.get_output(index).dtype = self.module.DataType.HALF


class Typed(Library):
    """Every layer that computes is asked for the types of an FP16 graph, not the convolutions alone."""

    def follow_graph(self, network: Any, config: Any, precision: str, wide: Any, **more: Any) -> None:
        Library.follow_graph(self, network, config, precision, wide, **more)
        if precision != "fp16":
            return
        kinds, half = self.module.LayerType, self.module.DataType.HALF
        compute = {getattr(kinds, name) for name in ("CONVOLUTION", "ACTIVATION", "ELEMENTWISE", "POOLING", "SCALE")}
        for layer in (network.get_layer(index) for index in range(network.num_layers)):
            if layer.type in compute and layer.name not in wide and layer.get_output(0).dtype == half:
                layer.precision = half
                layer.set_output_type(0, half)


class Few(Typed):
    """Of the pointwise kernels, each of which is compiled before it is timed, one for each layout that goes through unchanged.

    SiLU after each convolution makes YOLOX-Nano's build wait for some 150 such kernels a layer, nearly all of which turn one
    layout into another. Where no kernel keeps layout and type, one of each pair of layouts stays.
    """

    def configure(self, builder: Any, options: Any) -> Any:
        config = Typed.configure(self, builder, options)
        ALIVE.append(_selector(self.module))
        config.algorithm_selector = ALIVE[-1]
        return config


ALIVE: list[Any] = []
"""TensorRT holds no reference to a selector."""


def _selector(module: Any) -> Any:
    base = module.IAlgorithmSelector

    class Selector(base):  # type: ignore[misc, valid-type, unused-ignore]
        def __init__(self) -> None:
            base.__init__(self)
            self.offered, self.kept = 0, 0

        def select_algorithms(self, context: Any, choices: Any) -> list[int]:
            everything = list(range(len(choices)))
            if not str(context.name).startswith("PWN("):
                return everything
            try:
                first: dict[Any, int] = {}
                for index in everything:
                    first.setdefault(_layouts(choices[index], context.num_inputs + context.num_outputs), index)
                through = [index for layouts, index in first.items() if len(set(layouts)) == 1 and "HALF" in layouts[0][0]]
                kept = sorted(through or first.values())
                self.offered, self.kept = self.offered + len(everything), self.kept + len(kept)
                if self.offered == len(everything) or not through:
                    print("selector:", context.name, len(everything), "offered", len(kept), "kept", list(first)[:6], flush=True)
                return kept
            except Exception as error:  # nothing may leave a callback of the builder
                print("selector:", error, flush=True)
                return everything

        def report_algorithms(self, contexts: Any, choices: Any) -> None:
            print("selector:", self.offered, "pointwise kernels offered,", self.kept, "kept", flush=True)

    return Selector()


def _layouts(choice: Any, count: int) -> tuple[tuple[str, str, int], ...]:
    """(type, strides, components together) of each input and output."""
    infos = [choice.get_algorithm_io_info(index) for index in range(count)]
    return tuple((str(info.dtype), str(info.strides), info.components_per_element) for info in infos)


class Free(Library):
    """Types are left to the builder, as before layers were asked to be FP16."""

    def follow_graph(self, network: Any, config: Any, precision: str, wide: Any, **more: Any) -> None:
        Library.follow_graph(self, network, config, precision, wide)


LIBRARIES: dict[str, type[Library]] = {"free": Free, "asked": Library, "typed": Typed, "few": Few}
"""By the name of how types are asked for."""


def like(kind: type[Library], library: Library) -> Library:
    return kind(library.module, library.name, library.version)


SAY_S = 20.0


class BuildClock:
    """Time between the lines of TensorRT's verbose log, by what was being done. Installed for the builds of a process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.nodes: dict[str, float] = defaultdict(float)
        self.tactics: Counter[str] = Counter()
        self.lines, self.doing, self.node = 0, "start", ""
        self.last = self.began = self.said = time.perf_counter()

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
        if now - self.said > SAY_S:  # a build that is cut off has said where its time went
            self.said = now
            print(f"[{now - self.began:6.1f}] at {self.node or self.doing}:", self.summary(6)["by_work_s"], flush=True)
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
