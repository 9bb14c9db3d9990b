"""Compiles the Triton preprocessing kernel for a GPU that is not here: prints its PTX's instructions, counted, as JSON.

In a process of its own: under the interpreter nothing is compiled. Arguments: sampling, output type, compute capability.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from redline.kernels.preprocess import TILE, _preprocess
from redline.kernels.table import ROW_WORDS


def main() -> None:
    sampling, dtype, capability = sys.argv[1:]
    fixed = {"sampling": sampling, "bgr": True, "row_words": ROW_WORDS, "rows": TILE.rows, "columns": TILE.columns}
    types = dict.fromkeys(_preprocess.arg_names, "fp32") | dict.fromkeys(fixed, "constexpr")
    types |= {"table": "*i64", "out": f"*{dtype}", "height": "i32", "width": "i32"}
    aligned = {(_preprocess.arg_names.index(name),): [["tt.divisibility", 16]] for name in ("table", "out", "height", "width")}
    made = compile(
        ASTSource(_preprocess, types, fixed, aligned),
        target=GPUTarget("cuda", int(capability), 32),
        options={"num_warps": TILE.warps, "enable_fp_fusion": False},
    )
    counted = Counter(re.findall(r"\b(?:ld|st)\.global[.\w]*|\bfma[.\w]*", made.asm["ptx"]))
    print(json.dumps({"instructions": counted, "cubin": len(made.asm["cubin"])}))


if __name__ == "__main__":
    main()
