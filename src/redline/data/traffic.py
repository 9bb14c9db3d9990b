"""Which image sizes arrive, in which shares, and a request order that follows them."""

from __future__ import annotations

import csv
import io
import math
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from redline.errors import BadInput
from redline.records import Dataset, ShapeShare, Traffic

_HEADER = ["height", "width", "share"]
_LONGEST_PX = 65_535
"""JPEG's longest side."""


def load_traffic(path: str | None, dataset: Dataset) -> Traffic:
    """Read a CSV with the header height,width,share, or take the histogram of the data set's own shapes if path is None.

    Lines of one shape are added up; shares are normalised to sum 1.
    Raises BadInput: traffic-not-found, traffic-unreadable, traffic-header, traffic-line (with the line number), traffic-empty.
    """
    if path is None:
        shapes = Counter((image.height, image.width) for image in dataset.images)
        return _traffic(shapes, "evaluation images")
    return _traffic(_read(Path(path)), str(path))


def request_order(dataset: Dataset, traffic: Traffic, count: int, seed: int) -> tuple[int, ...]:
    """`count` indices into `dataset.images` whose shapes follow the histogram; the same for the same arguments.

    Each shape gets its share of the requests rounded by largest remainder. It is stood for by the images of the
    nearest shape of the set (smallest sum of |log ratio| of heights and widths), taken in turn; see `unseen_shapes`.
    """
    by_shape = _indices(dataset)
    exact = [entry.share * count for entry in traffic.shapes]
    quota = [math.floor(value) for value in exact]
    remainders = sorted(range(len(quota)), key=lambda index: (quota[index] - exact[index], index))
    for index in remainders[: count - sum(quota)]:
        quota[index] += 1
    generator = random.Random(seed)
    order: list[int] = []
    for entry, requests in zip(traffic.shapes, quota, strict=True):
        indices = list(by_shape[_nearest((entry.height, entry.width), by_shape)])
        generator.shuffle(indices)
        order.extend(indices[turn % len(indices)] for turn in range(requests))
    generator.shuffle(order)
    return tuple(order)


def unseen_shapes(dataset: Dataset, traffic: Traffic) -> tuple[ShapeShare, ...]:
    """Shapes of the traffic that no image of the set has, so that `request_order` stands another shape in for them."""
    seen = _indices(dataset)
    return tuple(entry for entry in traffic.shapes if (entry.height, entry.width) not in seen)


def _indices(dataset: Dataset) -> dict[tuple[int, int], list[int]]:
    by_shape: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(dataset.images):
        by_shape.setdefault((image.height, image.width), []).append(index)
    return by_shape


def _nearest(shape: tuple[int, int], by_shape: Mapping[tuple[int, int], list[int]]) -> tuple[int, int]:
    def distance(other: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        return abs(math.log(other[0] / shape[0])) + abs(math.log(other[1] / shape[1])), other

    return min(by_shape, key=distance)


def _traffic(weights: Mapping[tuple[int, int], float], origin: str) -> Traffic:
    total = math.fsum(weights.values())
    ordered = sorted((item for item in weights.items() if item[1] > 0), key=lambda item: (-item[1], item[0]))
    shapes = tuple(ShapeShare(height=height, width=width, share=weight / total) for (height, width), weight in ordered)
    return Traffic(shapes=shapes, origin=origin)


def _read(path: Path) -> dict[tuple[int, int], float]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BadInput("traffic-not-found", "the traffic file does not exist", got=path, fix="correct data.traffic") from error
    except OSError as error:
        raise BadInput("traffic-unreadable", f"cannot read {path}", got=error.strerror or error) from error
    except UnicodeDecodeError as error:
        raise BadInput("traffic-unreadable", f"{path} is not UTF-8 text", got=f"byte {error.start}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    weights: dict[tuple[int, int], float] = {}
    header = False
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if not header:
                _check_header(cells, path, reader.line_num)
                header = True
                continue
            height, width, share = _line(cells, path, reader.line_num)
            weights[height, width] = weights.get((height, width), 0.0) + share
    except csv.Error as error:
        raise BadInput("traffic-line", f"{path}, line {reader.line_num}: not CSV", got=error) from error
    if not math.isfinite(math.fsum(weights.values())) or math.fsum(weights.values()) <= 0:
        got = f"{len(weights)} shapes with a sum of shares of {math.fsum(weights.values()):g}"
        raise BadInput("traffic-empty", f"{path} describes no traffic", got=got, allowed="at least one share above 0")
    return weights


def _check_header(cells: list[str], path: Path, line: int) -> None:
    if [cell.lower() for cell in cells] != _HEADER:
        raise BadInput(
            "traffic-header", f"{path}, line {line}: wrong header", got=",".join(cells)[:200], allowed=",".join(_HEADER)
        )


def _line(cells: list[str], path: Path, line: int) -> tuple[int, int, float]:
    got = ",".join(cells)[:200]
    try:
        height, width, share = int(cells[0]), int(cells[1]), float(cells[2])
    except (ValueError, IndexError) as error:
        what = f"{path}, line {line}: cannot be read"
        raise BadInput("traffic-line", what, got=got, allowed="whole pixels, whole pixels, number") from error
    if len(cells) != 3:
        raise BadInput("traffic-line", f"{path}, line {line}: {len(cells)} cells", got=got, allowed="3 cells")
    if not (0 < height <= _LONGEST_PX and 0 < width <= _LONGEST_PX and 0 <= share < math.inf):
        allowed = f"height and width 1 to {_LONGEST_PX:,}, share >= 0 and finite"
        raise BadInput("traffic-line", f"{path}, line {line}: out of range", got=got, allowed=allowed)
    return height, width, share
