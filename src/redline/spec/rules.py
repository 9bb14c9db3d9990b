"""What no single value shows: keys that exclude or need each other, and paths that must exist."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from redline.records import Preprocess
from redline.spec.problems import Problem, nearest, shown

TORCHVISION_ANCHORS = tuple(tuple(float(int(side * 2 ** (step / 3))) for step in range(3)) for side in (32, 64, 128, 256, 512))
"""torchvision's RetinaNet: x, x * 2^(1/3), x * 2^(2/3) of each level, cut to whole pixels."""

HEAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "retinanet": {
        "strides": (8, 16, 32, 64, 128),
        "activation": "sigmoid",
        "anchor_sizes": TORCHVISION_ANCHORS,
        "aspect_ratios": (0.5, 1.0, 2.0),
    },
}
"""Where a kind of head has other defaults than the record."""

HEAD_KEYS = {
    "yolox": {"strides", "activation"},
    "retinanet": {"strides", "activation", "anchor_sizes", "aspect_ratios"},
    "detections": {"box_format", "normalized"},
    "custom": {"function"},
}
"""The keys that each kind of head reads."""

PATHS = {
    "model.onnx": "file",
    "model.weights": "file",
    "data.evaluate.images": "folder",
    "data.evaluate.annotations": "file",
    "data.calibrate.images": "folder",
    "data.calibrate.annotations": "file",
    "data.confirm.images": "folder",
    "data.confirm.annotations": "file",
    "data.traffic": "file",
}

Get = Callable[[str], Any]
"""Value at a dotted place of the file, or None."""


def at(tree: Mapping[str, Any], place: str) -> Any:
    value: Any = tree
    for key in place.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def broken_rules(given: Mapping[str, Any], valid: Mapping[str, Any], folder: Path) -> list[Problem]:
    """`given`: the file as it is; `valid`: the same without the values that are wrong in themselves."""

    def get(place: str) -> Any:
        return at(valid, place)

    def said(place: str) -> Any:
        return at(given, place)

    return [*_origin(said), *_head(get, said), *_size(get), *_paths(get, folder)]


def _origin(get: Get) -> Iterator[Problem]:
    if not isinstance(get("model"), Mapping):
        return
    factory, onnx = get("model.factory"), get("model.onnx")
    if (factory is None) == (onnx is None):
        yield Problem(
            code="spec.origin",
            place="model",
            what="needs exactly one of `factory` and `onnx`",
            got="neither" if factory is None else "both",
            fix='factory = "package.module:callable" for a PyTorch model, onnx = "detector.onnx" for an exported one',
        )
    elif onnx is not None:
        for key in ("weights", "arguments"):
            if get(f"model.{key}") is not None:
                yield Problem(
                    code="spec.origin",
                    place=f"model.{key}",
                    what="has no effect with `onnx`: the file holds the weights",
                    fix="remove it",
                )


def _head(get: Get, said: Get) -> Iterator[Problem]:
    head = get("model.head")
    kind = get("model.head.kind")
    if kind is None:
        return
    for key in head:
        if key != "kind" and key not in HEAD_KEYS[kind]:
            allowed = ", ".join(sorted(HEAD_KEYS[kind]))
            what = f'has no effect with kind = "{kind}"'
            yield Problem(code="spec.head", place=f"model.head.{key}", what=what, allowed=allowed, fix="remove it")
    if kind == "custom" and said("model.head.function") is None:
        fix = 'function = "package.module:callable"'
        yield Problem(code="spec.head", place="model.head", what='kind = "custom" needs a `function`', fix=fix)
    if kind == "retinanet":
        whole = {**HEAD_DEFAULTS[kind], **head}
        counts = {len(level) for level in whole["anchor_sizes"]}
        if len(whole["anchor_sizes"]) != len(whole["strides"]) or len(counts) > 1:
            yield Problem(
                code="spec.head",
                place="model.head.anchor_sizes",
                what="needs one list of sizes for each of `strides`, all of the same length",
                got=f"{len(whole['anchor_sizes'])} lists for {len(whole['strides'])} strides",
            )


def _size(get: Get) -> Iterator[Problem]:
    defaults = Preprocess()
    place = "model.preprocess.size"
    resize = get("model.preprocess.resize") or defaults.resize
    size, stride = get(place), get("model.preprocess.stride") or defaults.stride
    if resize == "shortest-side":
        if not isinstance(size, list):
            what = 'resize = "shortest-side" needs [shortest side, longest side allowed]'
            yield Problem(code="spec.size", place=place, what=what, got=shown(size) if size else None, fix="size = [800, 1333]")
        elif size[0] > size[1]:
            what = "[shortest side, longest side allowed]: the first is larger"
            yield Problem(code="spec.size", place=place, what=what, got=shown(size), fix=f"size = [{size[1]}, {size[0]}]")
    elif resize == "letterbox":
        sides = (size, size) if isinstance(size, int) else tuple(size or defaults.size)
        if any(side % stride for side in sides):
            best = [max(1, round(side / stride)) * stride for side in sides]
            yield Problem(
                code="spec.size",
                place=place,
                what=f"a letterbox must be whole strides of {stride}",
                got=shown(list(sides)),
                fix=f"size = {best}, or set `stride` to what the network needs",
            )


def _paths(get: Get, folder: Path) -> Iterator[Problem]:
    for place, kind in PATHS.items():
        value = get(place)
        if value is None:
            continue
        path = Path(absolute(value, folder))
        try:
            found = path.is_file() if kind == "file" else path.is_dir()
        except (OSError, ValueError) as error:
            yield Problem(code="spec.path", place=place, what=f"cannot be looked at: {error}", got=shown(value))
            continue
        if not found:
            what = f"is not a {kind}" if path.exists() else f"no such {kind}"
            yield Problem(code="spec.path", place=place, what=what, got=path, fix=_similar(path))


def _similar(path: Path) -> str:
    try:
        close = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    except OSError:
        close = None
    return f"did you mean {close}?" if close and close != path.name else "paths are relative to the spec file"


def absolute(value: str, folder: Path) -> str:
    return os.path.abspath(folder / value)
