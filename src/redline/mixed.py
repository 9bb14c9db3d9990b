"""Automatic mixed precision: which nodes of an FP16 graph stay in FP32, by what per-layer parity found (docs/layers.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

from redline.engine.cuts import Wiring, wire
from redline.engine.graph_facts import read_graph
from redline.engine.segments import run_segments
from redline.nodes import module_of
from redline.records import HeldNode, LayerFault, LayerParity, OnnxModel

if TYPE_CHECKING:
    import onnx

    from redline.records.detect import Tensor

LARGEST = 65504.0
"""float16's largest number."""
SHARE = 0.5
"""Where no node is wrong: the fewest segments that make this share of the summed squares of all segments' own errors."""


def nodes_to_hold(
    found: LayerParity, network: OnnxModel, batch: Tensor, held: Collection[str], *, threads: int = 0
) -> tuple[HeldNode, ...]:
    """Nodes of `network` (FP32) to keep in FP32 beside those `held` already, from what was `found` of the engine on `batch`.

    Nodes at fault, and those that read from them what float16 cannot hold. Where no node is at fault, those of the segments
    whose own errors are largest. Nodes without a name, or that make no floating-point tensor, cannot be held.
    Raises TrialError: engine-graph, engine-build, engine-run.
    """
    model = read_graph(network.path)
    wiring = wire(model)
    why: dict[int, str] = {}
    if found.faults:
        index = {node.name: place for place, node in enumerate(wiring.nodes)}
        for fault in found.faults:
            for name in fault.nodes:
                why.setdefault(index[name], _reason(fault))
        why |= _readers(model, wiring, why, batch, threads)
    else:
        why = _worst(found, wiring, held)
    floats = frozenset(wiring.floats)
    return tuple(
        HeldNode(node=node.name, module=module_of(node), why=why[place])
        for place, node in enumerate(wiring.nodes)
        if place in why and node.name and node.name not in held and floats.intersection(node.output)
    )


def _reason(fault: LayerFault) -> str:
    if not fault.finite:
        return "makes infinity or NaN of finite values"
    return f"its own error is {fault.local:.2g}, where {fault.explained:.2g} is explained"


def _readers(model: onnx.ModelProto, wiring: Wiring, nodes: Iterable[int], batch: Tensor, threads: int) -> dict[int, str]:
    """Who reads what these nodes make, as long as float16 cannot hold it: the cast before the reader would overflow."""
    found: dict[int, str] = {}
    known, waiting = set(nodes), list(nodes)
    floats = frozenset(wiring.floats)
    while waiting:
        made = [name for place in waiting for name in wiring.nodes[place].output if name in floats]
        values = run_segments(model, wiring, made, {}, batch, threads=threads)
        waiting = []
        for name in made:
            largest = float(np.abs(values[name]).max(initial=0.0))
            if not largest > LARGEST:
                continue
            for place in wiring.readers.get(name, ()):
                if place not in known:
                    known.add(place)
                    waiting.append(place)
                    found[place] = f"reads {name}, which reaches {largest:.3g}: more than float16 holds"
    return found


def _worst(found: LayerParity, wiring: Wiring, held: Collection[str]) -> dict[int, str]:
    ends = [point.tensor for point in found.points]
    floats = frozenset(wiring.floats)

    def free(tensor: str) -> list[int]:
        inside = wiring.segment(tensor, [end for end in ends if end != tensor])
        return [i for i in sorted(inside) if wiring.nodes[i].name not in held and floats.intersection(wiring.nodes[i].output)]

    ranked = sorted((p for p in found.points if np.isfinite(p.local) and free(p.tensor)), key=lambda p: -p.local)
    total, sum_ = sum(point.local**2 for point in ranked), 0.0
    why: dict[int, str] = {}
    for point in ranked:
        if sum_ >= SHARE * total:
            break
        sum_ += point.local**2
        reason = f"the stretch up to {point.tensor} adds an error of {point.local:.2g}, among the largest"
        why |= {place: reason for place in free(point.tensor) if place not in why}
    return why
