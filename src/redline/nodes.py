"""Where a node of an exported graph came from: the note that exports leave, and how it is read. Imports no onnx."""

from __future__ import annotations

from typing import Any

MODULE = "redline.module"
"""Key of a node's metadata: the module it came from."""


def module_of(node: Any) -> str:
    """Of an onnx.NodeProto: as the exporter noted it; else as the names of weights or the path in the node's own name say."""
    for entry in node.metadata_props:
        if entry.key == MODULE:
            return str(entry.value)
    for name in node.input:
        if name.endswith((".weight", ".bias")):
            return str(name.rsplit(".", 1)[0])
    return ".".join(node.name.strip("/").split("/")[:-1])
