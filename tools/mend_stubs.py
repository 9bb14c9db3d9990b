"""Make the published stubs of TensorRT 10.13 readable and true where redline relies on them.

Five signatures are no Python; a data type named `bool` hides Python's; a module of libraries has no stubs; failures are
returned as None; `Dims` behaves as a tuple.

python tools/mend_stubs.py <folder that the stubs were installed to>
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MENDS = (
    (re.compile(r"^bool: \S*DataType.*\n", re.MULTILINE), ""),
    (re.compile(r"\bin: list\["), "in_: list["),
    (re.compile(r"(= None, channel_axis: int)\)"), r"\1 = ...)"),
    (re.compile(r"^import tensorrt_libs as tensorrt_libs\n", re.MULTILINE), ""),
    (
        re.compile(r"(    MAX_DIMS: typing\.ClassVar\[int\] = 8\n)(?!    def __iter__)"),
        r"\1    def __iter__(self) -> typing.Iterator[int]: ...\n",
    ),
    (
        re.compile(r"(def set_shape\(self, input: str, )min: Dims, opt: Dims, max: Dims\)"),
        r"\1min: Shape, opt: Shape, max: Shape)",
    ),
    (
        re.compile(r"(def (?:create_execution_context|deserialize_cuda_engine|build_serialized_network)\(.*\) -> \w+):"),
        r"\1 | None:",
    ),
    (re.compile(r"(?<!\]\]\n)^(class Dims:\n)", re.MULTILINE), r"Shape = typing.Union['Dims', tuple[int, ...]]\n\1"),
)


def mend(folder: Path) -> int:
    """Returns how many places were changed; mended stubs stay as they are."""
    changed = 0
    for path in sorted(folder.glob("tensorrt*/*.pyi")):
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in MENDS:
            text, count = pattern.subn(replacement, text)
            changed += count
        path.write_text(text, encoding="utf-8")
    return changed


if __name__ == "__main__":
    print(f"{mend(Path(sys.argv[1]))} places mended")
