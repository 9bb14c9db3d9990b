"""Proof at every start that values come through the server's Python backend, and not empty outputs of the right shape."""

from __future__ import annotations

import json
import shutil
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from redline.errors import BadInput, StoreError
from redline.serve.control import Control

NAME = "redline_selftest"
VALUES = tuple(range(1, 9))

_CONFIG = {
    "name": NAME,
    "backend": "python",
    "max_batch_size": 0,
    "output": [
        {"name": "numbers", "data_type": "TYPE_FP32", "dims": [len(VALUES)]},
        {"name": "text", "data_type": "TYPE_STRING", "dims": [1]},
    ],
    "input": [{"name": "scale", "data_type": "TYPE_FP32", "dims": [1]}],
    "instance_group": [{"kind": "KIND_CPU", "count": 1}],
}
_MODEL = f"""
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(pb.get_input_tensor_by_name(request, "scale").as_numpy()) for request in requests]

    def answer(self, scale):
        numbers = scale[0] * np.array({VALUES}, np.float32)
        return pb.InferenceResponse([pb.Tensor("numbers", numbers), pb.Tensor("text", np.array([b"proof"], np.object_))])
"""


def prove_outputs(control: Control, repository: Path, port: int) -> None:
    """Load a small model, ask it, unload it. Raises BadInput (serve.empty-outputs) if its answer is not the one it gives."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    folder = repository / NAME
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(json_format.ParseDict(_CONFIG, ModelConfig())))
    (folder / "1" / "model.py").write_text(_MODEL)
    try:
        control.load(NAME)
        found = _ask(port)
        control.unload(NAME)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    expected = {"numbers": [2.0 * value for value in VALUES], "text": ["proof"]}
    if found != expected:
        raise BadInput(
            "serve.empty-outputs",
            "the server's Python backend gives wrong outputs",
            got=found,
            allowed=expected,
            fix="its Python needs numpy < 2: redline serve --install",
        )


def _ask(port: int) -> dict[str, object]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        question = {"inputs": [{"name": "scale", "shape": [1], "datatype": "FP32", "data": [2.0]}]}
        connection.request("POST", f"/v2/models/{NAME}/infer", json.dumps(question), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    except (OSError, HTTPException, ValueError) as error:
        raise StoreError("serve.unreachable", "the server died in its self-test", got=repr(error)) from error
    finally:
        connection.close()
    return {output["name"]: output.get("data") for output in answer.get("outputs", [])} or answer
