"""The stand-in's engine inspector."""

from __future__ import annotations

import json
from typing import Any


class Inspector:
    """As 8.6 was seen to answer: what has several shapes has a type only in a context that inferred them, several profiles'
    layer by layer.
    """

    def __init__(self, layers: list[dict[str, Any]], fixed: bool) -> None:
        self.layers, self.fixed = layers, fixed
        self.execution_context: Any = None

    def get_engine_information(self, form: Any) -> str:
        context = self.execution_context
        if context is not None and len(context.engine.profiles) > 1:
            return ""
        known = self.fixed or (context is not None and context.inferred)
        return json.dumps({"Layers": self.layers if known else [*map(self._untyped, self.layers)]})

    def get_layer_information(self, index: int, form: Any) -> str:
        context, layer = self.execution_context, self.layers[index]
        of = index * len(context.engine.profiles) // len(self.layers)
        return json.dumps(layer if context.inferred else self._untyped(layer)) if of == context.profile else ""

    def _untyped(self, layer: dict[str, Any]) -> dict[str, Any]:
        return {**layer, "Inputs": [{**one, "Format/Datatype": "N/A due to dynamic shapes"} for one in layer["Inputs"]]}
