"""Layers that are quantised or kept together: parts of the network by module, depthwise layers apart from the others."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from redline.nodes import module_of
from redline.quantize.placement import heavy_nodes
from redline.records.quantize import LayerGroup

if TYPE_CHECKING:
    import onnx

MOST = 20
"""Parts before small ones are joined. Each group is a measurement of sensitivity, and the search is over their subsets."""
SMALL = 3
"""Layers below which a part joins the next one of the same parent, except the network's first layer."""

Path = tuple[str, ...]


def layer_groups(model: onnx.ModelProto, most: int = MOST) -> tuple[LayerGroup, ...]:
    """In graph order: time and again the part with most layers is divided by the next name of its modules' paths.

    Depthwise layers of the network's outermost parts are groups of their own: they lose most to ranges of whole tensors and
    gain least.
    """
    nodes = {node.name: node for node in model.graph.node}
    names = heavy_nodes(model)
    paths: dict[str, Path] = {name: tuple(part for part in module_of(nodes[name]).split(".") if part) for name in names}
    dense = [name for name in names if not _depthwise(nodes[name])]
    deep: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        if name not in dense:
            deep[paths[name][:1]].append(name)
    groups = [(path, members, "") for path, members in _joined(_parts(dense, paths, most))]
    groups += [(path, members, ", depthwise") for path, members in deep.items()]
    order = {name: index for index, name in enumerate(names)}
    found = [LayerGroup(name=(".".join(path) or "network") + kind, nodes=tuple(members)) for path, members, kind in groups]
    return tuple(sorted(found, key=lambda group: order[group.nodes[0]]))


def _parts(names: list[str], paths: dict[str, Path], most: int) -> dict[Path, list[str]]:
    parts: dict[Path, list[str]] = {(): names} if names else {}
    fixed: set[Path] = set()
    while len(fixed) < len(parts):
        part = max((p for p in parts if p not in fixed), key=lambda p: len(parts[p]))
        inner: dict[Path, list[str]] = defaultdict(list)
        for name in parts[part]:
            inner[paths[name][: len(part) + 1]].append(name)
        if part in inner or len(parts) - 1 + len(inner) > most:
            fixed.add(part)
        else:
            del parts[part]
            parts |= inner
        if part in fixed and part not in inner:
            break  # the next largest would be divided where this one could not
    order = {name: index for index, name in enumerate(names)}
    return dict(sorted(parts.items(), key=lambda item: order[item[1][0]]))


def _joined(parts: dict[Path, list[str]]) -> list[tuple[Path, list[str]]]:
    found: list[tuple[Path, list[str]]] = []
    waiting: list[tuple[Path, list[str]]] = []
    for place, (path, members) in enumerate(parts.items()):
        held = [name for other, names in waiting if other[:-1] == path[:-1] for name in names]
        found += [one for one in waiting if one[0][:-1] != path[:-1]]
        waiting = []
        if place and len(held) + len(members) < SMALL:
            waiting = [(path, [*held, *members])]
        else:
            found.append((path, [*held, *members]))
    return [*found, *waiting]


def _depthwise(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
