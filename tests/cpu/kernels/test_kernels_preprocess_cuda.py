"""The CUDA C++ preprocessing kernel: its source run as C++ on the host against the numpy reference, and compiled by nvcc."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from preprocess_cases import CASES, Case, compare, outcome, random_case

from redline.kernels.nvrtc import OPTIONS, source
from redline.kernels.preprocess_cuda import FILE, SAMPLINGS, TILE, defines, fitting
from redline.kernels.table import Constants, constants
from redline.records import Preprocess, PreprocessTile
from redline.records.pixels import TensorType

HERE = Path(__file__).parent
TILES = (TILE, PreprocessTile(columns=8, rows=1, warps=4), PreprocessTile(columns=1, rows=4, warps=2))
Run = Callable[[NDArray[np.int64], NDArray[Any], Constants], None]


def on_the_host(folder: Path, tile: PreprocessTile) -> Run:
    compiled: dict[tuple[str, ...], Any] = {}

    def run(rows: NDArray[np.int64], out: NDArray[Any], chosen: Constants) -> None:
        dtype: TensorType = "fp16" if out.dtype == np.float16 else "fp32"
        options = defines(chosen, dtype, fitting(tile, out.shape[3], dtype))
        if options not in compiled:
            compiled[options] = build(folder / f"kernel{len(compiled)}.so", options)
        values = np.array((*chosen.gain, *chosen.bias, *chosen.level), np.float32)
        count, _, height, width = out.shape
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (rows, out))
        compiled[options].run(*pointers, count, height, width, ctypes.c_void_p(values.ctypes.data))

    return run


def build(path: Path, options: tuple[str, ...]) -> ctypes.CDLL:
    text = "\n".join(((HERE / "host_cuda.h").read_text(), source(FILE), (HERE / "host_main.inc").read_text()))
    command = ["g++", "-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC", "-o", str(path), "-"]
    subprocess.run([*command, *(f"-D{option}" for option in options)], input=text, text=True, check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module", params=TILES, ids=lambda tile: f"{tile.columns}x{tile.rows}")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if shutil.which("g++") is None:
        pytest.skip("no g++ to run the kernel's source on the host")
    return on_the_host(tmp_path_factory.mktemp("cuda"), request.param)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_the_references(case: Case, run: Run) -> None:
    compare(case, outcome(case, run))


def test_values_of_random_sizes_are_the_references(run: Run) -> None:
    for seed in range(40):
        case = random_case(seed)
        compare(case, outcome(case, run))


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_it_compiles_without_spilling_for(architecture: str, dtype: TensorType, tmp_path: Path) -> None:
    """Registers of the default tile leave room for two blocks at least; interpolation by two taps spills nothing."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    for preprocess in (Preprocess(), Preprocess(round_to_uint8=False), Preprocess(interpolation="nearest")):
        options = defines(constants(preprocess), dtype, TILE)
        registers, spilled = compiler_report(tmp_path, architecture, options)
        assert spilled == 0, options
        assert registers * 32 * TILE.warps * 2 <= 65_536, options


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_sampling_compiles(sampling: str, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    options = (f"SAMPLING={SAMPLINGS.index(sampling)}", "HALF=1", "BGR=1", "PIXELS=4", "ROWS=1", "WARPS=4")
    registers, _ = compiler_report(tmp_path, "sm_90", options)
    assert 16 < registers <= 128


def compiler_report(folder: Path, architecture: str, options: tuple[str, ...]) -> tuple[int, int]:
    """(registers of a thread, bytes spilled), as ptxas says them."""
    path = folder / FILE
    path.write_text(source(FILE))
    command = ["nvcc", "-cubin", f"-arch={architecture}", "--resource-usage", *OPTIONS, *(f"-D{option}" for option in options)]
    done = subprocess.run([*command, "-o", str(folder / "out.cubin"), str(path)], capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    return int(re.findall(r"Used (\d+) registers", said)[0]), sum(spilled)
