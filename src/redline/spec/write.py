"""A commented spec file to start from."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from redline.errors import BadInput, StoreError
from redline.records import (
    Budget,
    DataRef,
    DataSpec,
    Head,
    ModelSpec,
    Objective,
    Postprocess,
    Preprocess,
    ServeSpec,
    Spec,
    TargetSpec,
    TensorRTSpec,
)
from redline.spec.comments import COMMENTS, HEADER, INTRODUCTIONS, OPTIONAL
from redline.spec.read import BUILT_IN_HEADS, parse_spec
from redline.spec.rules import HEAD_DEFAULTS, HEAD_KEYS
from redline.spec.sanity import look_at

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNIT = 1 / 255

PREPROCESS = {
    "yolox": Preprocess(channels="bgr"),
    "retinanet": Preprocess(
        resize="shortest-side",
        size=(800, 1333),
        round_to_uint8=False,
        fill=(123.675, 116.28, 103.53),
        scale=UNIT,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    "detections": Preprocess(resize="stretch", fill=(0.0, 0.0, 0.0), scale=UNIT),
    "custom": Preprocess(scale=UNIT),
}
"""What the published models of each head expect: Megvii's YOLOX, torchvision's RetinaNet, DETR-style models."""

POSTPROCESS = {"retinanet": Postprocess(score=0.05, iou=0.5, candidates_per_level=1000)}
"""torchvision's RetinaNet."""

STARTING_OBJECTIVE = Objective(p95_ms=50.0, throughput=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A spec file that was written, what it says, and what was noticed on the way."""

    path: str
    spec: Spec
    notes: tuple[str, ...]


def write_spec(
    path: Path,
    *,
    images: Path,
    factory: str | None = None,
    onnx: Path | None = None,
    annotations: Path | None = None,
    calibrate: DataRef | None = None,
    confirm: DataRef | None = None,
    weights: Path | None = None,
    head: str | None = None,
    preprocess: Preprocess | None = None,
    objective: Objective = STARTING_OBJECTIVE,
    target: TargetSpec | None = None,
    budget: Budget | None = None,
    serve: ServeSpec | None = None,
    force: bool = False,
) -> Written:
    """Write a spec that `load_spec` accepts.

    Raises BadInput if it would not be accepted or if `path` exists (unless `force`), StoreError if it cannot be written.
    """
    file = Path(os.path.abspath(path))
    if file.exists() and not force:
        raise BadInput("init.exists", f"{path} is there already", fix="--force replaces it; --output names another file")
    word = head or BUILT_IN_HEADS[0]
    kind: Any = "custom" if ":" in word else word if word in BUILT_IN_HEADS else None
    if kind is None:
        allowed = ", ".join(BUILT_IN_HEADS) + ", package.module:callable"
        raise BadInput("init.head", "no such head", got=repr(word), allowed=allowed)
    model = ModelSpec(
        factory=factory,
        onnx=_text(onnx),
        weights=_text(weights),
        head=Head(kind=kind, function=word if kind == "custom" else None, **HEAD_DEFAULTS.get(kind, {})),
        labels="category-id" if kind == "retinanet" else "index",
        preprocess=preprocess or PREPROCESS[kind],
        postprocess=POSTPROCESS.get(kind, Postprocess()),
    )
    evaluate = DataRef(images=os.path.abspath(images), annotations=_text(annotations))
    data = DataSpec(evaluate=evaluate, calibrate=calibrate, confirm=confirm)
    draft = Spec(
        path=str(file),
        model=model,
        data=data,
        objective=objective,
        target=target or TargetSpec(),
        budget=budget or Budget(),
        serve=serve or ServeSpec(),
    )
    text = to_toml(draft)
    spec = parse_spec(text, file)
    notes = look_at(spec)
    if head is None:
        notes = (f'no head was given: "{word}" is assumed; change [model] head if that is wrong', *notes)
    _write(file, text)
    return Written(path=str(file), spec=spec, notes=notes)


def to_toml(spec: Spec) -> str:
    """The commented file of a spec: every key with its value, paths relative to the file where they share a folder with it."""
    folder = Path(spec.path).parent
    model = _table(spec.model)
    head = spec.model.head
    for key in ("onnx", "weights"):
        if model.get(key):
            model[key] = _relative(model[key], folder)
    default = Head(kind=head.kind, function=head.function, **HEAD_DEFAULTS.get(head.kind, {}))
    origin = ("onnx",) if spec.model.onnx and not (spec.model.factory or spec.model.weights) else ("factory", "onnx", "weights")
    plain = {key: model[key] for key in origin}
    plain |= {"head": (head.function or head.kind) if head == default else None, "labels": model["labels"]}
    data = {key: value if key == "overlap" else _ref(value, folder) for key, value in _table(spec.data).items()}
    sections = [_section("model", plain)]
    if spec.model.arguments:
        sections.append(_section("model.arguments", dict(spec.model.arguments)))
    if head != default:
        used = {"kind", *HEAD_KEYS[head.kind]}
        sections.append(_section("model.head", {key: value for key, value in _table(head).items() if key in used}))
    sections += [
        _section("model.preprocess", _table(spec.model.preprocess)),
        _section("model.postprocess", _table(spec.model.postprocess)),
        _section("data", data),
        _section("objective", _table(spec.objective)),
        _section("target", {key: value for key, value in _table(spec.target).items() if key != "tensorrt"}),
        *([_section("target.tensorrt", _table(spec.target.tensorrt))] if spec.target.tensorrt != TensorRTSpec() else []),
        _section("budget", _table(spec.budget)),
        _section("serve", _table(spec.serve)),
    ]
    return "\n".join([HEADER, *sections])


def _table(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _section(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"[{name}]", *(f"# {line}" for line in INTRODUCTIONS.get(name, ()))]
    shown = {key: f"{_key(key)} = {_value(value)}" for key, value in values.items() if value is not None}
    width = max((len(text) for text in shown.values() if len(text) <= 48), default=0)
    for key in values:
        comment = COMMENTS.get(f"{name}.{key}")
        if key in shown:
            lines.append(f"{shown[key]:<{width}}  # {comment}" if comment else shown[key])
        elif f"{name}.{key}" in OPTIONAL:
            lines.append(f"# {OPTIONAL[f'{name}.{key}']}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # TOML takes JSON's texts, numbers and words; only DEL must be written as an escape there.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if key.isascii() and key.isidentifier() else _value(key)


def _ref(value: Any, folder: Path) -> Any:
    if isinstance(value, DataRef):
        inside = {"images": value.images, "annotations": value.annotations}
        return {key: _relative(path, folder) for key, path in inside.items() if path is not None}
    return None if value is None else _relative(value, folder)


def _relative(path: str, folder: Path) -> str:
    return path if os.path.commonpath([path, folder]) == "/" else os.path.relpath(path, folder)


def _text(path: Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text.encode())
        os.replace(temporary, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StoreError(
            "init.write", f"cannot write {file}", got=error.strerror, fix="name another file with --output"
        ) from error
