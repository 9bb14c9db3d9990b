"""Measured ceilings without torch: the GPU's tasks on a stand-in, the files, the words, and the verb."""

from __future__ import annotations

import io
import json
import sys
import types

import pytest
from rich.console import Console

from redline import cli, doctor
from redline.doctor import ceilings as room
from redline.doctor.ceilings import Sizes, Task, gpu_tasks, measure_ceilings, read_ceilings, write_ceilings
from redline.errors import BadInput, StoreError
from redline.records import Ceiling, Ceilings
from redline.report.ceilings import ceilings_text

SIZES = Sizes(copy_bytes=4000, side=10, seconds=0.0)
FOUND = Ceilings(
    device="Some [CPU]",
    kind="cpu",
    threads=2,
    torch="2.13.0",
    started="2026-01-01T00:00:00+00:00",
    seconds=5.5,
    measured=(
        Ceiling(
            what="copy", value=32.19, unit="GB/s", kind="lower bound", why="by torch", slowest=26.0, fastest=33.6, repeats=50
        ),
        Ceiling(
            what="matmul-fp32", value=746.0, unit="TFLOP/s", kind="ceiling", why="MKL", slowest=1.0, fastest=2.0, repeats=9
        ),
    ),
    missing=(("matmul-int8", "no kernel for it"),),
)


class Tensor:
    """Remembers what was asked of it."""

    def __init__(self, log, **made):
        self.log, self.made = log, made

    def to(self, dtype):
        return Tensor(self.log, **{**self.made, "dtype": dtype})

    def t(self):
        return self

    def copy_(self, other, non_blocking):
        assert non_blocking
        self.log.append(("copy", other.made, self.made))


class Event:
    """A run takes a millisecond on this GPU."""

    def __init__(self, log):
        self.log, self.at = log, None

    def record(self):
        self.at = len(self.log)

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return float(end.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    """A torch that has one GPU of `capability` and runs nothing."""
    log: list[tuple] = []
    torch = types.ModuleType("torch")
    torch.__version__ = "2.99+cu130"
    torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8 = "f32", "f16", "bf16", "i8", "u8"
    torch.ones = lambda *shape, **made: Tensor(log, shape=shape, **made)
    torch.rand = lambda *shape, **made: Tensor(log, shape=shape, **made)
    torch.get_num_threads, torch.set_num_threads = lambda: 3, lambda count: log.append(("threads", count))
    matmul = types.SimpleNamespace(allow_tf32="before")
    torch.backends = types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=matmul))
    torch.mm = lambda left, right: log.append(("mm", left.made["dtype"], matmul.allow_tf32))
    torch._int_mm = lambda left, right: log.append(("int", left.made["dtype"], matmul.allow_tf32))
    torch.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        mem_get_info=lambda index: (1 << 20, 1 << 30),
        get_device_capability=lambda index: torch.capability,
        get_device_name=lambda index: "NVIDIA H100 80GB HBM3",
        Event=lambda enable_timing: Event(log),
    )
    torch.capability, torch.log = (9, 0), log
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


def test_a_gpu_is_measured_in_all_its_arithmetic(gpu):
    steps = []
    found = measure_ceilings(lambda what, step, steps_: steps.append((what, step, steps_)), SIZES)
    assert (found.device, found.kind, found.missing) == ("NVIDIA H100 80GB HBM3", "gpu", ())
    assert [c.what for c in found.measured] == [
        "copy", "matmul-fp32", "matmul-tf32", "matmul-fp16", "matmul-bf16", "matmul-int8", "h2d-pinned", "d2h-pinned",
        "h2d-pageable", "d2h-pageable",
    ]  # fmt: skip
    assert [step for _, step, _ in steps] == list(range(1, 11))
    assert {of for *_, of in steps} == {10}
    rates = {c.what: c.value for c in found.measured}
    assert rates["copy"] == pytest.approx(2 * 4000 / 1e-3 / 1e9)  # what it reads and what it writes, in a millisecond
    assert rates["h2d-pinned"] == pytest.approx(4000 / 1e-3 / 1e9)
    assert rates["matmul-fp16"] == pytest.approx(2 * 10**3 / 1e-3 / 1e12)
    assert {c.what for c in found.measured if c.kind == "lower bound"} == {"h2d-pageable", "d2h-pageable"}
    assert {c.unit for c in found.measured if "int8" in c.what} == {"TOP/s"}


def test_each_arithmetic_is_what_it_says(gpu):
    measure_ceilings(sizes=SIZES)
    products = list(dict.fromkeys(entry for entry in gpu.log if entry[0] in ("mm", "int")))
    assert products == [
        ("mm", "f32", False),
        ("mm", "f32", True),
        ("mm", "f16", False),
        ("mm", "bf16", False),
        ("int", "i8", False),
    ]
    pairs = [entry[1:] for entry in gpu.log if entry[0] == "copy"]
    ends = [(source["device"], source["pin_memory"], to["device"], to["pin_memory"]) for source, to in pairs]
    copies = list(dict.fromkeys(ends))
    assert copies == [
        ("cuda:0", False, "cuda:0", False),
        ("cpu", True, "cuda:0", False),
        ("cuda:0", False, "cpu", True),
        ("cpu", False, "cuda:0", False),
        ("cuda:0", False, "cpu", False),
    ]


def test_what_was_set_is_set_back(gpu):
    measure_ceilings(sizes=SIZES)
    assert gpu.backends.cuda.matmul.allow_tf32 == "before"
    assert [entry for entry in gpu.log if entry[0] == "threads"][-1] == ("threads", 3)


@pytest.mark.parametrize(
    ("capability", "lacking"),
    [((7, 5), {"matmul-tf32", "matmul-bf16"}), ((7, 0), {"matmul-tf32", "matmul-bf16", "matmul-int8"})],
)
def test_an_older_gpu_is_not_asked_for_what_it_lacks(gpu, capability, lacking):
    gpu.capability = capability
    every = {"matmul-fp32", "matmul-tf32", "matmul-fp16", "matmul-bf16", "matmul-int8"}
    assert {task.what for task in gpu_tasks(gpu, SIZES) if task.what.startswith("matmul")} == every - lacking


def test_buffers_take_a_part_of_what_is_free(gpu):
    copy = next(task for task in gpu_tasks(gpu, Sizes(copy_bytes=1 << 30, side=8, seconds=0)) if task.what == "copy")
    assert copy.amount == 2 * (1 << 20) / 8


def test_what_fails_is_missing_with_its_reason(gpu):
    def broken(left, right):
        raise RuntimeError("CUDA out of memory. Tried\nto allocate")

    gpu._int_mm = broken
    found = measure_ceilings(sizes=SIZES)
    assert found.missing == (("matmul-int8", "CUDA out of memory. Tried"),)
    assert found.rate("matmul-int8") is None
    assert found.rate("copy") > 0


def test_a_figure_is_the_median_with_its_spread():
    seconds = iter([9.0, 1.0, 2.0, 4.0, 5.0, 10.0])
    task = Task(what="w", unit="GB/s", amount=8e9, kind="ceiling", why="y", prepare=lambda: lambda: None)
    found = room._measure(task, lambda run: next(seconds), 0.0)
    assert (found.value, found.slowest, found.fastest, found.repeats) == (2.0, 0.8, 8.0, 5)  # the first run only warms


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput) as caught:
        measure_ceilings()
    assert caught.value.code == "doctor.no-torch"
    assert "redline[torch]" in caught.value.fix


def test_the_file_gives_the_record_back(tmp_path):
    path = tmp_path / "ceilings.json"
    write_ceilings(FOUND, path)
    assert read_ceilings(path) == FOUND
    assert json.loads(path.read_text())["measured"][0]["unit"] == "GB/s"
    with pytest.raises(BadInput) as caught:
        read_ceilings(tmp_path / "absent.json")
    assert caught.value.code == "doctor.no-ceilings"
    path.write_text('{"device": 1}')
    with pytest.raises(StoreError):
        read_ceilings(path)


def test_the_table_fits_a_terminal_and_says_what_a_figure_is():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(ceilings_text(FOUND))
    text = console.export_text()
    assert "Some [CPU], 2 threads" in text
    assert "32.2 GB/s  26 to 33.6          50  lower bound" in text
    assert "746 TFLOP/s" in text
    assert "copy: by torch" in text
    assert "not measured: matmul-int8: no kernel for it" in text


def test_the_verb_measures_only_when_asked(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "measure_ceilings", lambda phases: FOUND)
    monkeypatch.chdir(tmp_path)

    def told(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["doctor", *arguments])
        return stop.value.code, capsys.readouterr()

    code, said = told()
    assert (code, "lower bound" in said.out, list(tmp_path.iterdir())) == (0, False, [])
    code, said = told("--measure")
    assert code == 0
    assert "lower bound" in said.out
    assert read_ceilings(tmp_path / "ceilings.json") == FOUND
    code, said = told("--measure", "--json", "--output", "other.json", "--quiet")
    assert json.loads(said.out)["ceilings"]["device"] == "Some [CPU]"
    assert said.err == ""
    assert (tmp_path / "other.json").is_file()
    code, said = told("--measure", "--quiet", "--output", "other.json/x.json")
    assert code == 2
    assert "other.json" in said.err
