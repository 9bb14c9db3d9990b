"""Triton's Python backend calls this class; what it does depends on the role that the model's configuration names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from redline import vision
from redline.backend.answer import pack, placement_of
from redline.backend.material import Material, read_material
from redline.backend.network import Finite, ModelNetwork, finite, local_network
from redline.backend.steps import Entry, Fault, Tensors, prepare
from redline.errors import BadInput, RedlineError
from redline.records import Detections, Runner

INVALID, INTERNAL = pb.TritonError.INVALID_ARG, pb.TritonError.INTERNAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        import cv2

        parameters = {key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()}
        self._material = read_material((Path(args["model_repository"]) / parameters["material"]).resolve())
        self._role = parameters["role"]
        # Triton counts GPUs as this process does: both have its environment.
        self._gpu = int(args["model_instance_device_id"]) if args.get("model_instance_kind") == "GPU" else None
        cv2.setNumThreads(self._material.threads)
        if self._role in ("entry", "tensor"):
            network = Finite(self._network())
            self._entry, self._tensors = Entry(self._material, network), Tensors(self._material, network)
        elif self._role == "network":
            self._runner = local_network(self._material, self._gpu)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        if self._role == "entry":
            return self._joined(requests, "image", lambda images: self._entry([row[0] for row in images]))
        if self._role == "tensor":
            return self._joined(requests, "images", self._tensors, "placement")
        single = {"network": self._run, "prepare": self._prepare, "finish": self._finish}[self._role]
        # Only `prepare` sees what a client sent.
        return [_guarded(single, request, INVALID if self._role == "prepare" else INTERNAL) for request in requests]

    def _network(self) -> Runner:
        material = self._material
        if material.pipeline == "fused":
            return local_network(material, self._gpu)
        return ModelNetwork(material, f"{material.service}_r{material.number}_network")

    def _joined(self, requests: Sequence[Any], name: str, step: Any, *more: str) -> list[Any]:
        """All images of all requests in one step; each request gets its own rows back."""
        columns = [[_input(request, key) for request in requests] for key in (name, *more)]
        try:
            found = step(*[[row for array in column for row in array] for column in columns])
        except (RedlineError, ValueError, MemoryError) as error:
            text = f"{type(error).__name__}: {error}"
            return [pb.InferenceResponse(error=pb.TritonError(text, INTERNAL)) for _ in requests]
        ends = np.cumsum([len(array) for array in columns[0]])
        return [self._answer(found[end - len(array) : end]) for array, end in zip(columns[0], ends, strict=True)]

    def _answer(self, found: Sequence[Detections | Fault]) -> Any:
        faults = [one for one in found if isinstance(one, Fault)]
        broken = next((fault for fault in faults if not fault.client), None)
        if broken is not None or (faults and len(found) == 1):
            fault = broken or faults[0]
            return pb.InferenceResponse(error=pb.TritonError(fault.text, INVALID if fault.client else INTERNAL))
        arrays = pack([one.text if isinstance(one, Fault) else one for one in found], self._material.postprocess.max_detections)
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in arrays.items()])

    def _run(self, request: Any) -> Any:
        outputs = self._runner.run(np.ascontiguousarray(_input(request, self._material.input)))
        return pb.InferenceResponse(
            [pb.Tensor(name, output) for name, output in zip(self._material.outputs, outputs, strict=True)]
        )

    def _prepare(self, request: Any) -> Any:
        images, placements = prepare(self._material, [row[0] for row in _input(request, "image")])
        return pb.InferenceResponse([pb.Tensor("images", images), pb.Tensor("placement", placements)])

    def _finish(self, request: Any) -> Any:
        outputs = [_input(request, name) for name in self._material.outputs]
        if not all(finite(output) for output in outputs):
            return pb.InferenceResponse(error=pb.TritonError("the network gave NaN or infinite values", INTERNAL))
        numbers = _input(request, "placement")
        hw = (int(numbers[0][2]), int(numbers[0][3]))
        placements = [placement_of(row, hw) for row in numbers]
        found = vision.postprocess(outputs, self._material.head, self._material.postprocess, placements)
        return self._answer(found)


def _input(request: Any, name: str) -> Any:
    return pb.get_input_tensor_by_name(request, name).as_numpy()


def _guarded(step: Any, request: Any, bad_input: Any) -> Any:
    try:
        return step(request)
    except BadInput as error:
        return pb.InferenceResponse(error=pb.TritonError(error.text(), bad_input))
    except (RedlineError, ValueError, MemoryError) as error:
        return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}", INTERNAL))


__all__ = ["Material", "TritonPythonModel"]
