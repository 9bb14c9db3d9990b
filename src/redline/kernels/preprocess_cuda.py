"""The preprocessing kernel in CUDA C++ (preprocess.cu): the same values as the Triton kernel, without torch or Triton."""

from __future__ import annotations

import numpy as np

from redline.errors import BadInput
from redline.kernels.nvrtc import Kernel, KernelFacts, compile_kernel
from redline.kernels.table import Constants
from redline.records import DeviceBatch, PreprocessTile
from redline.records.pixels import TensorType

TILE = PreprocessTile(columns=2, rows=2, warps=8)
FILE = "preprocess.cu"
SAMPLINGS = ("nearest", "linear-uint8", "linear-float", "antialias-uint8", "antialias-float")
"""By the number that the source has them under."""


class CudaPreprocess:
    """Preprocessing for one kind of input and width, compiled when it is made, in the current CUDA context."""

    def __init__(self, chosen: Constants, dtype: TensorType, width: int, tile: PreprocessTile = TILE) -> None:
        """`width`, pixels of the network input: a thread stores as many neighbours at once as divide it.

        Raises TrialError: kernels.compile, kernels.cuda.
        """
        self.dtype, self.width = dtype, width
        self.tile = fitting(tile, width, dtype)
        self.kernel: Kernel = compile_kernel(FILE, "preprocess", defines(chosen, dtype, self.tile))
        self._constants = np.array((*chosen.gain, *chosen.bias, *chosen.level), np.float32)

    def launch(self, table: int, batch: DeviceBatch, stream: int) -> None:
        """Enqueue on `stream`: nothing is allocated and nothing waits, so that a CUDA graph can capture it.

        `table`: device address of `batch.shape[0]` rows as `table.fill_rows` writes them. `batch` is written whole.
        Raises BadInput: kernels.batch (another width or type than this kernel's, or misaligned), TrialError: kernels.cuda.
        """
        count, _, height, width = batch.shape
        if (width, batch.dtype) != (self.width, self.dtype) or batch.pointer % 16:
            raise BadInput(
                "kernels.batch",
                "A preprocessing kernel is compiled for one width and type of its output",
                got=f"{batch.dtype}, width {width}, at {batch.pointer:#x}",
                allowed=f"{self.dtype}, width {self.width}, at a multiple of 16 bytes",
            )
        tile = self.tile
        grid = (-(-width // (32 * tile.columns)), -(-height // (tile.rows * tile.warps)), count)
        scalars = (np.uint64(table), np.uint64(batch.pointer), np.int32(height), np.int32(width))
        self.kernel.launch(grid, (32, tile.warps, 1), stream, [*(np.array(scalar) for scalar in scalars), self._constants])

    def facts(self) -> KernelFacts:
        return self.kernel.facts()


def fitting(tile: PreprocessTile, width: int, dtype: TensorType) -> PreprocessTile:
    """The tile with at most as many columns a thread: so many that they divide the width and fit a store of 16 bytes."""
    most = min(tile.columns, 8 if dtype == "fp16" else 4)
    columns = next(columns for columns in (8, 4, 2, 1) if columns <= most and width % columns == 0)
    return PreprocessTile(columns=columns, rows=tile.rows, warps=tile.warps)


def defines(chosen: Constants, dtype: TensorType, tile: PreprocessTile) -> tuple[str, ...]:
    """What preprocess.cu must be compiled with, "NAME=VALUE" each."""
    return (
        f"SAMPLING={SAMPLINGS.index(chosen.sampling)}",
        f"HALF={int(dtype == 'fp16')}",
        f"BGR={int(chosen.bgr)}",
        f"PIXELS={tile.columns}",
        f"ROWS={tile.rows}",
        f"WARPS={tile.warps}",
    )
