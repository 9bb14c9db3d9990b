"""Proof of precision: what the engine inspector says each layer computes with, against what the graph asked for."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from redline.records import LayerFact, PrecisionProof

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redline.engine.graph_facts import NodeFact
    from redline.records.spec import Precision

ALLOWED_SHARE = 0.02
"""Share of the FLOP that may fall back to a wider type: a stem or a last layer whose fastest kernel is FP32."""
# Formats are sentences in 8.6 ("Channel major FP16 format where channel % 8 == 0") and in 10 ("Row major linear FP16 format");
# 11 and RTX have fields of their own (Datatype: "Half" or "FP16").
WORDS = (
    ("fp8", re.compile(r"\bFP8\b|Float8", re.I)),
    ("int8", re.compile(r"\bINT8\b", re.I)),
    ("fp16", re.compile(r"\bFP16\b|\bHalf\b|Float16", re.I)),
    ("bf16", re.compile(r"\bBF16\b|BFloat16", re.I)),
    ("fp32", re.compile(r"\bFP32\b|\bFloat\b|Float32", re.I)),
    ("int32", re.compile(r"\bINT32\b", re.I)),
    ("int64", re.compile(r"\bINT64\b", re.I)),
    ("bool", re.compile(r"\bBool", re.I)),
)
BITS = {"fp8": 8, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
NARROW = {"fp32": 32, "tf32": 32, "fp16": 16, "int8": 8, "fp8": 8}
PROFILE = re.compile(r" \[profile (\d+)\]$")
COPY = "Reformatting CopyNode"
"""How the name of a layer begins that changes the layout for another, whose nodes its name has: it computes nothing."""
METADATA = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def inspector_layers(text: str) -> list[dict[str, Any]]:
    """The layers in an inspector's JSON. With names alone (not built with detailed verbosity) each is {"Name": ...}."""
    found = json.loads(text, strict=False)  # 8.6 separates metadata by raw control characters
    layers = found.get("Layers", []) if isinstance(found, dict) else found
    return [{"Name": layer} if isinstance(layer, str) else layer for layer in layers]


def profile_of(name: str) -> int:
    """The optimization profile that a layer of this name was built for; the first one's names are bare."""
    found = PROFILE.search(name)
    return int(found[1]) if found else 0


def layer_facts(text: str, nodes: tuple[NodeFact, ...]) -> tuple[LayerFact, ...]:
    """Layers of an inspector's JSON with the ONNX nodes fused into each and their operations.

    Nodes come from the layer's metadata, or, where there is none, from its name (8.6 joins node names by " + ").
    """
    flop = {node.name: node.flop for node in nodes}
    return tuple(_layer(layer, flop) for layer in inspector_layers(text))


def typed_once(readings: Sequence[tuple[LayerFact, ...]]) -> tuple[LayerFact, ...]:
    """Each layer of several readings of one engine once: as the first reading that gives its type has it."""
    found: dict[str, LayerFact] = {}
    for layer in (layer for layers in readings for layer in layers):
        known = found.get(layer.name)
        if known is None or (known.precision == "unknown" and layer.precision != "unknown"):
            found[layer.name] = layer
    return tuple(found.values())


def prove(asked: Precision, layers: tuple[LayerFact, ...], nodes: tuple[NodeFact, ...]) -> PrecisionProof:
    """Only nodes that the graph makes narrow can fall back; FP32 held in the graph on purpose counts as obtained."""
    shares: dict[str, float] = defaultdict(float)
    total = math.fsum(layer.flop for layer in layers)
    types = {node.name: node.type for node in nodes}
    fallen: list[LayerFact] = []
    for layer in layers:
        if layer.flop:
            shares[layer.precision] += layer.flop / total
            heavy = {types.get(name, "unknown") for name in layer.nodes}
            wanted = min((BITS[kind] for kind in heavy if kind in BITS), default=NARROW[asked])
            if BITS.get(layer.precision, 0) > max(wanted, NARROW[asked]):
                fallen.append(layer)
    fallen.sort(key=lambda layer: -layer.flop)
    share = math.fsum(layer.flop for layer in fallen) / total if total else 0.0
    unknown = shares.get("unknown", 0.0)
    if not total:
        note = "the inspector names no layer of the graph: nothing is proved"
    elif unknown > ALLOWED_SHARE:
        note = f"the inspector gives no type for {unknown:.0%} of the FLOP"
    else:
        note = ""
    return PrecisionProof(
        asked=asked,
        shares=tuple(sorted(shares.items(), key=lambda item: -item[1])),
        layers=layers,
        fallen=tuple(layer.name for layer in fallen),
        fallen_share=share,
        allowed_share=ALLOWED_SHARE,
        proved=not note and share <= ALLOWED_SHARE,
        note=note,
    )


def untyped(asked: Precision, nodes: tuple[NodeFact, ...], why: str) -> PrecisionProof:
    """What a strongly typed graph demands, where no inspector can say what was obtained. Never a proof."""
    total = math.fsum(node.flop for node in nodes)
    shares: dict[str, float] = defaultdict(float)
    for node in nodes:
        if node.flop:
            shares[node.type] += node.flop / total
    return PrecisionProof(
        asked=asked,
        shares=tuple(sorted(shares.items(), key=lambda item: -item[1])),
        layers=(),
        fallen=(),
        fallen_share=0.0,
        allowed_share=ALLOWED_SHARE,
        proved=False,
        note=f"{why}; the shares are the graph's own types, which a strongly typed network must keep",
    )


def _layer(layer: dict[str, Any], flop: dict[str, float]) -> LayerFact:
    name = str(layer.get("Name", ""))
    nodes = _nodes(name, str(layer.get("Metadata", "")), flop)
    return LayerFact(
        name=name,
        kind=str(layer.get("ParameterType", layer.get("LayerType", ""))) or "unknown",
        precision=_precision(layer),
        tactic=str(layer.get("TacticName", layer.get("TacticValue", ""))),
        nodes=nodes,
        flop=0.0 if name.startswith(COPY) else math.fsum(flop.get(node, 0.0) for node in nodes),
    )


def _nodes(name: str, metadata: str, flop: dict[str, float]) -> tuple[str, ...]:
    found = METADATA.findall(metadata)
    if not found:
        bare = re.sub(r"^\w*\{|\}$|^PWN\(|\)$|^fusion\(", "", PROFILE.sub("", name))
        found = [part.strip() for part in re.split(r" \+ |\|\||,", bare)]
    return tuple(dict.fromkeys(node for node in found if node in flop))


def _precision(layer: dict[str, Any]) -> str:
    """The type of what the layer reads; of what it writes where it reads nothing or does not say.

    A convolution that reads FP16 and writes FP32 computes with FP16 operands: that is what the last layers of a mixed graph do.
    """
    for side in ("Inputs", "Outputs"):
        kinds = [kind for tensor in layer.get(side) or [] if isinstance(tensor, dict) and (kind := _type(tensor)) in BITS]
        if kinds:
            return min(kinds, key=lambda kind: BITS[kind])
    return "unknown"


def _type(tensor: dict[str, Any]) -> str:
    for key in ("Datatype", "DataType", "Data Type", "Type", "Format/Datatype", "Format"):
        text = str(tensor.get(key, ""))
        for kind, word in WORDS:
            if text and word.search(text):
                return kind
    return "unknown"
