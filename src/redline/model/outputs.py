"""One shape of answer for every detector: a tuple of float32 tensors, in the order its head expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from redline.records.spec import HeadKind

ROLES: dict[HeadKind, tuple[tuple[str, ...], ...]] = {
    "retinanet": (("class_logits", "cls_logits"), ("box_deltas", "bbox_regression", "bbox_reg")),
    "detections": (
        ("boxes", "pred_boxes", "bboxes"),
        ("scores", "pred_scores"),
        ("labels", "pred_labels", "classes", "pred_classes"),
    ),
}
"""Keys under which networks return the outputs of a head, in the head's order."""


class TupleOutputs(nn.Module):
    """Wraps `net`: (N, 3, H, W) -> tuple of float32 tensors, whatever container `net` returns."""

    def __init__(self, net: nn.Module, head: HeadKind) -> None:
        super().__init__()
        self.net = net
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.float() for tensor in flat(self.net(images), self.head))


def flat(output: Any, head: HeadKind) -> Iterator[Tensor]:
    """The tensors of `output`, depth first; dictionaries by the keys of the head if they have them, else in their order.

    A list of one dictionary an image is padded to a batch with boxes of score 0. Raises TypeError for anything else.
    """
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in _by_role(output, head):
            yield from flat(value, head)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        if output and all(isinstance(item, Mapping) for item in output):
            yield from _padded(output, head)
        else:
            for item in output:
                yield from flat(item, head)
    else:
        raise TypeError(f"the network returned {type(output).__name__}, which holds no tensors redline can name")


def _by_role(output: Mapping[str, Any], head: HeadKind) -> list[Any]:
    found = [next((output[key] for key in keys if key in output), None) for keys in ROLES.get(head, ())]
    if found and all(value is not None for value in found):
        return found
    return list(output.values())


def _padded(images: Sequence[Mapping[str, Any]], head: HeadKind) -> list[Tensor]:
    columns = zip(*(_by_role(image, head) for image in images), strict=True)
    return [pad_sequence([torch.as_tensor(value) for value in column], batch_first=True) for column in columns]
