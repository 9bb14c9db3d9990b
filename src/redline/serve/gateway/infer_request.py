"""KServe v2 inference requests, judged whole before Triton sees anything, and written anew in one normal form."""

from __future__ import annotations

import functools
from collections.abc import KeysView, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json

from redline.serve.gateway.body import Body, Piece
from redline.serve.gateway.limits import Limits, ModelLimits, TensorLimit
from redline.serve.gateway.refusal import Refused
from redline.serve.gateway.strict_json import check_size, parse
from redline.serve.gateway.tensor_data import bad, check_binary, json_bytes

MOST_DIGITS = 12
# dict.fromkeys: sets that keep their order for messages.
TOP = dict.fromkeys(("id", "parameters", "inputs", "outputs")).keys()
PARAMETERS = dict.fromkeys(("binary_data_output",)).keys()
INPUT = dict.fromkeys(("name", "datatype", "shape", "parameters", "data")).keys()
INPUT_PARAMETERS = dict.fromkeys(("binary_data_size",)).keys()
OUTPUT = dict.fromkeys(("name", "parameters")).keys()
OUTPUT_PARAMETERS = dict.fromkeys(("binary_data",)).keys()
INTEGERS, OBJECTS = {int}, {dict}
"""What JSON's values are, exactly: a bool is no int here."""
SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")


class WantedOutput(NamedTuple):
    name: str
    binary: bool


class InferRequest(NamedTuple):
    """A sound request: `header` and the pieces after it are what Triton is sent; all outputs are asked for, binary."""

    header: bytes
    """JSON; empty for an image alone (Triton's raw-binary form)."""
    pieces: Sequence[Piece]
    wanted: tuple[WantedOutput, ...]
    batch: int
    id: str | None = None
    """Given back by the gateway itself: Triton's answers then have equal headers."""


def one_image(body: Body, model: ModelLimits) -> InferRequest:
    """A body that is one image and nothing else."""
    if not body.size:
        raise bad("body-empty", "there is no image in the body", got="0 bytes", fix="send the bytes of a JPEG or PNG file")
    return InferRequest(header=b"", pieces=body.pieces, wanted=_all_outputs(model.outputs, True), batch=1)


def read_request(body: Body, header_length: Sequence[str], model: ModelLimits, limits: Limits) -> InferRequest:
    """`header_length`: values of Inference-Header-Content-Length, none for a request in JSON alone. Raises Refused 400, 413."""
    length = _header_length(body, header_length)
    if length == 0:
        if len(model.inputs) == 1 and model.inputs[0].datatype == "BYTES":
            return one_image(body, model)
        raise bad(
            "raw-binary", "a body without JSON needs a model with one input of bytes", allowed=[t.name for t in model.inputs]
        )
    size = body.size if length is None else length
    check_size(size, limits)
    fields = parse(body.read(0, size), limits)
    if not fields.keys() <= TOP:
        raise _unknown(fields, TOP, "request")
    identity = None if fields.get("id") is None else _identity(fields["id"], limits)
    binary_default = "parameters" in fields and _request_parameters(fields["parameters"])
    wanted = _outputs(fields.get("outputs"), model, binary_default)
    inputs, pieces, batch = _inputs(fields.get("inputs"), model, body, None if length is None else size)
    header = to_json({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return InferRequest(header, pieces, wanted, batch, identity)


def _header_length(body: Body, values: Sequence[str]) -> int | None:
    if not values:
        return None
    name = "Inference-Header-Content-Length"
    text = values[0]
    if len(values) > 1 or len(text) > MOST_DIGITS or not (text.isascii() and text.isdigit()):
        raise bad("header-length", f"{name} must be one whole number", got=", ".join(values))
    length = int(text)
    if length > body.size:
        raise bad("header-length", f"{name} is beyond the body", got=length, allowed=f"0 to {body.size}, the bytes received")
    return length


def _identity(value: object, limits: Limits) -> str:
    if not isinstance(value, str) or len(value) > limits.id_characters or not value.isprintable():
        raise bad("request-id", "id must be a short printable text", got=value, allowed=f"{limits.id_characters} characters")
    return value


def _request_parameters(value: object) -> bool:
    """Whether outputs are binary where the request does not say."""
    parameters = _object(value, "parameters of the request")
    if not parameters.keys() <= PARAMETERS:
        for name in parameters:
            if name.startswith("sequence"):
                raise bad("sequence", "there are no sequences: every image is on its own", got=name)
        raise _unknown(parameters, PARAMETERS, "request parameter")
    return _flag(parameters, "binary_data_output", False)


def _outputs(value: object, model: ModelLimits, binary: bool) -> tuple[WantedOutput, ...]:
    if value is None:
        return _all_outputs(model.outputs, binary)
    found: dict[str, WantedOutput] = {}
    for fields in _list(value, "outputs"):
        if not fields.keys() <= OUTPUT:
            raise _unknown(fields, OUTPUT, "output field")
        name = fields.get("name")
        if not isinstance(name, str) or name not in model.outputs:
            raise bad("output-unknown", "there is no such output", got=name, allowed=list(model.outputs))
        if name in found:
            raise bad("output-duplicate", "an output is asked for twice", got=name)
        parameters = _object(fields.get("parameters"), "parameters of an output")
        if "classification" in parameters:
            raise bad(
                "classification",
                "the classification extension does not fit detections",
                fix="leave it out; labels are an output",
            )
        if not parameters.keys() <= OUTPUT_PARAMETERS:
            _no_shared_memory(parameters)
            raise _unknown(parameters, OUTPUT_PARAMETERS, "output parameter")
        found[name] = WantedOutput(name=name, binary=_flag(parameters, "binary_data", binary))
    return tuple(found.values()) or _all_outputs(model.outputs, binary)


@functools.cache
def _all_outputs(names: tuple[str, ...], binary: bool) -> tuple[WantedOutput, ...]:
    return tuple(WantedOutput(name, binary) for name in names)


def _inputs(
    value: object, model: ModelLimits, body: Body, json_size: int | None
) -> tuple[list[dict[str, Any]], list[Piece], int]:
    """Normal JSON of each input, binary data in that order, and the batch. `json_size`: None if nothing follows the JSON."""
    known = model.by_name
    normal: dict[str, dict[str, Any]] = {}
    converted: list[Piece] = []
    batches: set[int] = set()
    start = json_size if json_size is not None else body.size
    for fields in _list(value, "inputs"):
        if not fields.keys() <= INPUT:
            raise _unknown(fields, INPUT, "input field")
        name = fields.get("name")
        if not isinstance(name, str) or name not in known:
            raise bad("input-unknown", "there is no such input", got=name, allowed=list(known))
        if name in normal:
            raise bad("input-duplicate", "an input is given twice", got=name)
        tensor = known[name]
        shape = _shape(fields, tensor, model)
        size = _binary_size(fields, tensor)
        if size is None:
            data = json_bytes(fields.get("data"), shape, tensor)
            size = len(data)
            converted.append(data)
        elif json_size is None:
            raise bad("binary-size", "binary_data_size needs Inference-Header-Content-Length", got=f"{name}: {size}")
        else:
            check_binary(body, start, size, shape, tensor)
            converted += body.views(start, size)
            start += size
        batches.add(shape[0])
        normal[name] = {"name": name, "datatype": tensor.datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    if len(normal) < len(known):
        raise bad(
            "input-missing",
            "an input is missing",
            got=list(normal) or "no inputs",
            allowed=f"all of {list(known)}",
            fix=f"add {next(name for name in known if name not in normal)}",
        )
    if start != body.size:
        raise bad("binary-size", "there are bytes that belong to no input", got=f"{body.size - start:,} bytes too many")
    if len(batches) > 1:
        raise bad("batch-differs", "all inputs must have the same first dimension", got=sorted(batches))
    return list(normal.values()), converted, batches.pop()


def _shape(fields: dict[str, Any], tensor: TensorLimit, model: ModelLimits) -> list[int]:
    if fields.get("datatype") != tensor.datatype:
        raise bad("datatype", f"{tensor.name} has another datatype", got=fields.get("datatype"), allowed=tensor.datatype)
    shape, dims = fields.get("shape"), tensor.dims
    if not isinstance(shape, list) or len(shape) != 1 + len(dims) or not set(map(type, shape)) <= INTEGERS:
        what = f"the shape of {tensor.name} must be a list of {1 + len(dims)} whole numbers"
        raise bad("shape", what, got=shape, allowed=_allowed(tensor))
    if not 1 <= shape[0] <= model.max_batch:
        raise bad(
            "batch",
            "the batch is too large or empty",
            got=shape[0],
            allowed=f"1 to {model.max_batch}",
            fix="send several requests",
        )
    for index, limit in enumerate(dims, 1):
        if shape[index] != limit if limit > 0 else shape[index] <= 0:
            raise bad("shape", f"{tensor.name} has another shape", got=shape, allowed=_allowed(tensor))
    return shape


def _allowed(tensor: TensorLimit) -> str:
    return f"[batch, {', '.join(str(size) if size > 0 else 'any' for size in tensor.dims)}]"


def _binary_size(fields: dict[str, Any], tensor: TensorLimit) -> int | None:
    """None: the data is in the JSON."""
    parameters = _object(fields.get("parameters"), "parameters of an input")
    if not parameters:
        return None
    if not parameters.keys() <= INPUT_PARAMETERS:
        _no_shared_memory(parameters)
        raise _unknown(parameters, INPUT_PARAMETERS, "input parameter")
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise bad("binary-size", f"binary_data_size of {tensor.name} must be a whole number", got=size)
    if "data" in fields:
        raise bad("data-twice", f"{tensor.name} has data in the JSON and binary data", fix="leave one of them out")
    return size


def _no_shared_memory(parameters: dict[str, Any]) -> None:
    for name in parameters:
        if name in SHARED_MEMORY:
            raise bad(
                "shared-memory",
                "there is no shared memory through the gateway",
                got=name,
                fix="on the server's own machine ask Triton itself",
            )


def _unknown(fields: dict[str, Any], names: KeysView[str], what: str) -> Refused:
    got = next(name for name in fields if name not in names)
    return bad("field-unknown", f"there is no such {what}", got=got, allowed=list(names))


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise bad("parameter", f"{name} must be true or false", got=value)
    return value


def _object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if value is None:
        return {}
    raise bad("field-type", f"the {what} must be an object", got=type(value).__name__)


def _list(value: object, what: str) -> list[dict[str, Any]]:
    """A list of objects; none at all counts as an empty one."""
    if value is None:
        return []
    if not isinstance(value, list) or not set(map(type, value)) <= OBJECTS:
        raise bad("field-type", f"{what} must be a list of objects", got=type(value).__name__)
    return value
