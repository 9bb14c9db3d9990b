"""The model.py of every Python model of a release: hands Triton's calls to the code that the release carries.

A release's repository has a copy of this file in each version folder; it needs nothing but the standard library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Triton takes any newer file in a model's folder for a changed model, and the release's code lies in one. (The cache of this
# file itself, written before it runs, is kept out by a file in its folder's place.)
sys.dont_write_bytecode = True


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        model_folder = Path(__file__).resolve().parent.parent
        material = (model_folder / parameters["material"]["string_value"]).resolve()
        sys.path.insert(0, str(material / "code"))
        from redline.backend.model import TritonPythonModel as Model

        self._model = Model()
        self._model.initialize(args)

    def execute(self, requests: Any) -> Any:
        return self._model.execute(requests)

    def finalize(self) -> None:
        end = getattr(self._model, "finalize", None)
        if end is not None:
            end()
