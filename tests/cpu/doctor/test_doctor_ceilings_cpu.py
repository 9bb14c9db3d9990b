"""The CPU's ceilings with real torch, at sizes that take no time: they are figures, not speeds to rely on."""

from __future__ import annotations

import torch

from redline.doctor import ceilings as room
from redline.doctor.ceilings import Sizes, measure_ceilings
from redline.doctor.machine import usable_cores

SIZES = Sizes(copy_bytes=1 << 20, side=64, seconds=0.01)


def test_a_cpu_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    found = measure_ceilings(sizes=SIZES)
    assert (found.kind, found.threads, found.missing) == ("cpu", usable_cores(), ())
    assert [c.what for c in found.measured] == ["copy", "copy-one-thread", "matmul-fp32"]
    for each in found.measured:
        assert 0 < each.slowest <= each.value <= each.fastest
        assert each.repeats >= room.LEAST_REPEATS
    assert 0.01 < found.rate("copy") < 10_000
    assert 1e-5 < found.rate("matmul-fp32") < 100
    assert torch.get_num_threads() == before


def test_the_copies_copy_and_the_product_multiplies():
    """What is timed does the work that is counted."""
    tasks = {task.what: task for task in room.cpu_tasks(torch, SIZES)}
    assert tasks["copy"].amount == 2 * (1 << 20)
    assert tasks["matmul-fp32"].amount == 2 * 64**3
    copied = tasks["copy"].prepare()()
    assert (copied == 1).all()
    assert copied.numel() * 4 == 1 << 20
    assert tasks["matmul-fp32"].prepare()().shape == (64, 64)


def test_a_product_is_a_ceiling_only_by_a_library_tuned_for_the_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(room, "cpu_model", lambda: "Intel(R) Xeon(R) Platinum 8480C")
    assert room._cpu_library(torch) == ("ceiling", "MKL")
    monkeypatch.setattr(room, "cpu_model", lambda: "AMD EPYC")
    kind, why = room._cpu_library(torch)
    assert (kind, "Intel" in why) == ("lower bound", True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert room._cpu_library(torch)[0] == "lower bound"
