"""Runs the Triton kernel in Triton's interpreter, in a process of its own: the choice is made when Triton is first imported.

Reads pickled cases from the file of the first argument, and writes their outputs, pickled, to that of the second.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from numpy.typing import NDArray
from preprocess_cases import outcome

from redline.kernels.preprocess import launch
from redline.kernels.table import Constants
from redline.records import PreprocessTile


def main() -> None:
    tile, cases = pickle.loads(Path(sys.argv[1]).read_bytes())

    def run(rows: NDArray[Any], out: NDArray[Any], chosen: Constants) -> None:
        launch(torch.from_numpy(rows), torch.from_numpy(out), chosen, PreprocessTile(**tile))

    Path(sys.argv[2]).write_bytes(pickle.dumps([outcome(case, run) for case in cases]))


if __name__ == "__main__":
    main()
