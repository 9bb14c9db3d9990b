"""Node limits: the most images a second that each resource of a server allows, the lowest first.

Each is bandwidth or capacity divided by what one image takes of it, times the GPUs that have it; nothing is taken off for
queueing or for sharing with others, so a node stays below the lowest. A resource of which a number is missing is listed as
unknown: it may be the lowest. Copies run at the rate that was measured, where `ceilings` has it, else at the data sheet's,
which no copy reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from redline.errors import BadInput
from redline.records import Ceilings, DeviceFacts, Node, NodeLimit, NodeLimits, Resource

GIGA = 1e9
BITS = 8


def node_limits(device: DeviceFacts, node: Node, ceilings: Ceilings | None = None) -> NodeLimits:
    """What each resource of `node`, a server with GPUs of kind `device`, allows. `ceilings`: measured on such a GPU.

    Raises BadInput (plan.node) for counts and rates that are not positive, and for bytes over an NVLink that is not there.
    """
    _check(device, node)
    limits = (*_compute(node), *_links(device, node, ceilings), *_decode(device, node), _nic(node))
    known = sorted((limit for limit in limits if limit.per_s is not None), key=lambda limit: limit.per_s or 0.0)
    unknown = tuple(limit for limit in limits if limit.per_s is None)
    return NodeLimits(device=device.name, node=node, known=tuple(known), unknown=unknown)


def _compute(node: Node) -> Iterator[NodeLimit]:
    title, rate = "the network itself", node.network_per_s
    if rate is None:
        yield _unknown("network", title, "the network's images a second on one GPU")
    else:
        yield _known("network", title, node.gpus * rate, f"{_gpus(node)} x {rate:,.0f}/s")


def _links(device: DeviceFacts, node: Node, ceilings: Ceilings | None) -> Iterator[NodeLimit]:
    """PCIe in both directions, its switches, and NVLink; a CPU has none of them."""
    if device.kind == "cpu":
        return
    ways: tuple[tuple[Resource, str, str, float], ...] = (
        ("h2d", "host to GPU over PCIe", "h2d-pinned", _sent_to_gpu(node)),
        ("d2h", "GPU to host over PCIe", "d2h-pinned", node.output_bytes),
    )
    for resource, title, what, size in ways:
        rate, origin = _link_rate(device, ceilings, what)
        if size > 0 and rate is None:
            yield _unknown(resource, title, f"the link's GB/s ({origin})")
        elif size > 0 and rate is not None:
            per_s = node.gpus * rate * GIGA / size
            yield _known(resource, title, per_s, f"{_gpus(node)} x {rate:g} GB/s ({origin}) / {_size(size)}")
    yield _switch(device, node, ceilings)
    if node.nvlink_bytes > 0:
        yield _nvlink(device, node)


def _switch(device: DeviceFacts, node: Node, ceilings: Ceilings | None) -> NodeLimit:
    """GPUs behind one switch share its link to the root; the busier direction counts, as they are separate lanes."""
    resource: Resource = "pcie-switch"
    title, size = "PCIe switch shared by GPUs", max(_sent_to_gpu(node), node.output_bytes)
    rate, origin = _link_rate(device, ceilings, "h2d-pinned")
    if node.switch_gb_s is not None:
        rate, origin = node.switch_gb_s, "as given"
    if node.gpus_per_switch is None:
        return _unknown(resource, title, "how many GPUs share a switch")
    if rate is None:
        return _unknown(resource, title, f"the GB/s of a switch's link to the root ({origin})")
    sharing = min(node.gpus_per_switch, node.gpus)
    per_s = node.gpus * rate * GIGA / (sharing * size)
    return _known(resource, title, per_s, f"{_gpus(node)} x {rate:g} GB/s ({origin}) / ({sharing} sharing x {_size(size)})")


def _nvlink(device: DeviceFacts, node: Node) -> NodeLimit:
    title, rate = "NVLink between GPUs", device.nvlink_gb_s.value
    if rate is None:
        return _unknown("nvlink", title, f"NVLink's GB/s ({device.nvlink_gb_s.source})")
    per_s = node.gpus * rate / 2 * GIGA / node.nvlink_bytes
    return _known("nvlink", title, per_s, f"{_gpus(node)} x {rate:g} / 2 GB/s (data sheet) / {_size(node.nvlink_bytes)}")


def _decode(device: DeviceFacts, node: Node) -> Iterator[NodeLimit]:
    if node.decode == "gpu":
        yield _on_gpu(device, node)
    elif node.decode == "host":
        title = "JPEG decode on host cores"
        if node.host_cores is None or node.decode_ms is None:
            missing = [
                text
                for text, value in (("the cores that decode", node.host_cores), ("decode ms of one image", node.decode_ms))
                if value is None
            ]
            yield _unknown("jpeg-host", title, " and ".join(missing))
        else:
            per_s = node.host_cores * 1000 / node.decode_ms
            yield _known("jpeg-host", title, per_s, f"{node.host_cores} cores x 1000 / {node.decode_ms:g} ms")


def _on_gpu(device: DeviceFacts, node: Node) -> NodeLimit:
    title, engines = "JPEG decode on the GPU", device.jpeg_engines.value
    has = "an unknown number of" if engines is None else f"{engines:g}"
    if node.jpeg_per_s is None:
        return _unknown("jpeg-gpu", title, f"images/s that one GPU decodes (it has {has} JPEG engines)")
    return _known("jpeg-gpu", title, node.gpus * node.jpeg_per_s, f"{_gpus(node)} x {node.jpeg_per_s:,.0f}/s")


def _nic(node: Node) -> NodeLimit:
    """Requests in and answers out are separate directions: the busier one counts."""
    answer = node.output_bytes if node.answer_bytes is None else node.answer_bytes
    title, size = "network card", max(node.request_bytes, answer)
    if node.nic_gbit_s is None:
        return _unknown("nic", title, "the network card's Gbit/s")
    way = "in" if node.request_bytes >= answer else "out"
    per_s = node.nic_gbit_s * GIGA / BITS / size
    return _known("nic", title, per_s, f"{node.nic_gbit_s:g} Gbit/s / 8 / {_size(size)} {way}")


def _sent_to_gpu(node: Node) -> float:
    return node.request_bytes if node.decode == "gpu" else node.input_bytes


def _link_rate(device: DeviceFacts, ceilings: Ceilings | None, what: str) -> tuple[float | None, str]:
    measured = ceilings.rate(what) if ceilings is not None and ceilings.kind == "gpu" else None
    if measured is not None:
        return measured, "measured"
    rate = device.pcie_gb_s
    return rate.value, rate.source if rate.value is None else "data sheet"


def _known(resource: Resource, title: str, per_s: float, formula: str) -> NodeLimit:
    return NodeLimit(resource=resource, title=title, per_s=per_s, formula=f"{formula} = {per_s:,.0f}/s")


def _unknown(resource: Resource, title: str, missing: str) -> NodeLimit:
    return NodeLimit(resource=resource, title=title, per_s=None, formula=f"needs {missing}")


def _gpus(node: Node) -> str:
    return f"{node.gpus} GPU{'s' if node.gpus > 1 else ''}"


def _size(count: float) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB" if count >= 1e3 else f"{count:g} B"


def _check(device: DeviceFacts, node: Node) -> None:
    for name in ("gpus", "request_bytes", "input_bytes"):
        _positive(name, getattr(node, name))
    for name in ("network_per_s", "host_cores", "decode_ms", "jpeg_per_s", "nic_gbit_s", "gpus_per_switch", "switch_gb_s"):
        if getattr(node, name) is not None:
            _positive(name, getattr(node, name))
    for name in ("output_bytes", "answer_bytes", "nvlink_bytes"):
        value = getattr(node, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise BadInput("plan.node", f"{name} is not a size", got=value, allowed="0 or more")
    if node.nvlink_bytes > 0 and device.nvlink_gb_s.value == 0:
        what = f"{device.name} has no NVLink"
        raise BadInput("plan.node", what, got=f"nvlink_bytes {node.nvlink_bytes:g}", fix="send them through the host over PCIe")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise BadInput("plan.node", f"{name} has to be positive", got=value, allowed="more than 0")
