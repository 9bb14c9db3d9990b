"""What engine inspectors of each major version say, read into layers, shares and a verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from redline.engine.tensorrt_proof import ALLOWED_SHARE, inspector_layers, layer_facts, prove, typed_once, untyped


@dataclass
class Node:
    """What `graph_facts.NodeFact` has that the proof reads."""

    name: str
    type: str
    flop: float


NODES: Any = (Node("stem", "fp16", 980.0), Node("act", "fp16", 0.0), Node("head", "fp16", 20.0), Node("exp", "fp32", 0.0))


def old(name: str, kind: str, metadata: str | None = None) -> dict[str, Any]:
    """8.6: format and type in one sentence, names joined by " + ", metadata separated by a control character."""
    words = {"fp16": "Channel major FP16 format where channel % 8 == 0", "fp32": "Row major linear FP32", "": "who knows"}[kind]
    tensor = {"Name": "t", "Location": "Device", "Dimensions": [1, 8], "Format/Datatype": words}
    extra = {} if metadata is None else {"Metadata": metadata}
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "TacticName": "sm80_a",
        **extra,
    }


def middle(name: str, kind: str) -> dict[str, Any]:
    """10: the same field, other words, metadata always there."""
    words = {
        "fp16": "Row major linear FP16 format",
        "fp32": "Row major linear FP32",
        "int8": "Row major Int8 format",
        "fp8": "Row major linear FP8 format",
    }[kind]
    tensor = {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": words}
    metadata = "\x1e".join(f"[ONNX Layer: {part}]" for part in name.split("+"))
    return {"Name": f"{name}_myl0", "LayerType": "kgen", "Inputs": [tensor], "Outputs": [tensor], "Metadata": metadata}


def new(name: str, kind: str) -> dict[str, Any]:
    """11: format and type in fields of their own."""
    words = {"fp16": "Half", "fp32": "Float", "bf16": "BFloat16", "fp8": "FP8"}[kind]
    tensor = {"Name": "t", "Dimensions": [1, 8], "Format": "Linear", "Datatype": words}
    metadata = "\x1e".join(f"[ONNX Layer: {part}]" for part in name.split("+"))
    return {"Name": f"{name}_x", "LayerType": "kgen", "Inputs": [tensor], "Outputs": [tensor], "Metadata": metadata}


def text(*layers: Any, **more: Any) -> str:
    return json.dumps({"Layers": list(layers), **more})


@pytest.mark.parametrize(
    "said",
    [
        text(old("stem + act", "fp16"), old("head", "fp32"), Bindings=["images", "out"]),
        text(old("stem + act", "fp16", "[ONNX Layer: stem]\x1e[ONNX Layer: act]"), old("head", "fp32")),
        text(middle("stem+act", "fp16"), middle("head", "fp32"), Bindings=["images", "out"]),
        text(new("stem+act", "fp16"), new("head", "fp32"), **{"I/O Tensors": {"images": {}}}),
    ],
    ids=["8.6 by names", "8.6 by metadata", "10", "11"],
)
def test_all_schemas_give_the_same_layers_and_shares(said: str) -> None:
    layers = layer_facts(said, NODES)
    assert [(layer.nodes, layer.precision, layer.flop) for layer in layers] == [
        (("stem", "act"), "fp16", 980.0),
        (("head",), "fp32", 20.0),
    ]
    proof = prove("fp16", layers, NODES)
    assert dict(proof.shares) == {"fp16": 0.98, "fp32": 0.02}
    assert (proof.fallen, proof.fallen_share, proof.proved) == ((layers[1].name,), 0.02, True)  # just what is allowed


def test_more_than_the_allowed_share_is_no_proof_and_the_largest_layer_comes_first() -> None:
    layers = layer_facts(text(new("stem+act", "fp32"), new("head", "fp32")), NODES)
    proof = prove("fp16", layers, NODES)
    assert (proof.proved, proof.fallen, proof.fallen_share) == (False, ("stem+act_x", "head_x"), 1.0)
    assert proof.allowed_share == ALLOWED_SHARE
    assert prove("fp32", layers, NODES).proved


def test_what_the_graph_holds_wide_has_not_fallen() -> None:
    nodes: Any = (Node("stem", "fp16", 500.0), Node("wide", "fp32", 500.0))
    proof = prove("fp16", layer_facts(text(new("stem", "fp16"), new("wide", "fp32")), nodes), nodes)
    assert (proof.fallen, proof.proved, dict(proof.shares)) == ((), True, {"fp16": 0.5, "fp32": 0.5})


@pytest.mark.parametrize("form", [middle, new], ids=["10", "11"])
def test_fp8_is_read_from_the_inspector_and_what_the_graph_holds_in_fp16_has_not_fallen(form: Any) -> None:
    nodes: Any = (Node("stem", "fp8", 900.0), Node("act", "fp16", 0.0), Node("head", "fp16", 100.0))
    proof = prove("fp8", layer_facts(text(form("stem+act", "fp8"), form("head", "fp16")), nodes), nodes)
    assert (dict(proof.shares), proof.fallen, proof.proved) == ({"fp8": 0.9, "fp16": 0.1}, (), True)
    fell = prove("fp8", layer_facts(text(form("stem+act", "fp16"), form("head", "fp16")), nodes), nodes)
    assert (len(fell.fallen), fell.fallen_share, fell.proved) == (1, 0.9, False)


def test_a_layer_that_reads_half_and_writes_float_computes_in_half() -> None:
    layer = new("head", "fp16")
    layer["Outputs"] = [{"Name": "out", "Format": "Linear", "Datatype": "Float"}]
    assert layer_facts(text(layer), NODES)[0].precision == "fp16"
    layer["Inputs"] = []
    assert layer_facts(text(layer), NODES)[0].precision == "fp32"


@pytest.mark.parametrize(
    ("said", "note"),
    [
        (text("stem", "head"), "gives no type for 100%"),
        (text(), "names no layer"),
        (text(old("stem", ""), old("head", "fp16")), "gives no type for 98%"),
        (text(old("Reformatting CopyNode", "fp16")), "names no layer"),
    ],
)
def test_an_inspector_that_does_not_say_proves_nothing(said: str, note: str) -> None:
    proof = prove("fp16", layer_facts(said, NODES), NODES)
    assert not proof.proved
    assert note in proof.note


def test_raw_control_characters_and_bare_lists_are_read() -> None:
    raw = '[{"Name": "a", "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: act]"}]'
    assert [layer["Name"] for layer in inspector_layers(raw)] == ["a"]
    assert layer_facts(raw, NODES)[0].nodes == ("stem", "act")


def test_ahead_of_time_the_graphs_own_types_stand_and_prove_nothing() -> None:
    proof = untyped("fp16", NODES, "no GPU")
    assert (dict(proof.shares), proof.proved, proof.layers) == ({"fp16": 1.0}, False, ())
    assert proof.note.startswith("no GPU;")


def test_a_layer_takes_its_type_from_the_reading_that_knows_it() -> None:
    def reading(**types: str) -> tuple[Any, ...]:
        told = [{"Name": name, "Inputs": [{"Format/Datatype": kind}] if kind else []} for name, kind in types.items()]
        return layer_facts(json.dumps({"Layers": told}), ())

    found = typed_once([reading(a="FP16", b="", c=""), reading(a="FP32", b="FP16"), reading(b="FP32", d="INT8")])
    assert [(layer.name, layer.precision) for layer in found] == [("a", "fp16"), ("b", "fp16"), ("c", "unknown"), ("d", "int8")]
