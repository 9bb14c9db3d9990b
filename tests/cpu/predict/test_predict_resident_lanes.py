"""Lanes of pipelines whose images stay on the GPU: who gets which lane, what a failure is, and what may be opened. No GPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redline import resident_lanes
from redline.errors import TrialError
from redline.records import Candidate, Detections
from redline.resident_lanes import ALIGNED, PixelStage, ResidentPredictor, open_resident

CANDIDATE = Candidate(
    runner="tensorrt", precision="fp16", device="cuda:0,1", profiles="exact", cuda_graphs=True, prepost="kernel", concurrency=3
)


def found(number: int) -> Detections:
    return Detections(boxes=np.zeros((1, 4), np.float32), scores=np.zeros(1, np.float32), labels=np.array([number]))


class FakeLane:
    """Answers with the number in each item; `busy` counts calls that overlap in it."""

    def __init__(self, images: int, error: Exception | None = None) -> None:
        self.images, self.error, self.parts = images, error, list[int]()
        self.inside, self.overlapped, self.closed = threading.Lock(), False, False

    def pixels(self, images: Sequence[Any]) -> list[Detections]:
        return self.encoded([bytes([int(image[0, 0, 0])]) for image in images])

    def encoded(self, files: Sequence[bytes]) -> list[Detections]:
        self.overlapped |= not self.inside.acquire(blocking=False)
        try:
            if self.error is not None:
                raise self.error
            self.parts.append(len(files))
            return [found(data[0]) for data in files]
        finally:
            if self.inside.locked():
                self.inside.release()

    def close(self) -> None:
        self.closed = True


def labels(detections: list[Detections]) -> list[int]:
    return [int(one.labels[0]) for one in detections]


def test_a_call_is_cut_into_batches_of_a_lane_and_answered_in_order() -> None:
    lane = FakeLane(3)
    predict = ResidentPredictor([lane])
    assert labels(predict.from_bytes([bytes([n]) for n in range(7)])) == list(range(7))
    assert lane.parts == [3, 3, 1]
    images = [np.full((2, 2, 3), n, np.uint8) for n in (5, 9)]
    assert labels(predict(images)) == [5, 9]


def test_no_two_calls_share_a_lane_and_all_lanes_are_used() -> None:
    lanes = [FakeLane(2) for _ in range(3)]
    predict = ResidentPredictor(lanes)
    errors: list[BaseException] = []

    def call(start: int) -> None:
        try:
            for _ in range(60):
                assert labels(predict.from_bytes([bytes([start]), bytes([start + 1])])) == [start, start + 1]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(10 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert not any(lane.overlapped for lane in lanes)
    assert sum(sum(lane.parts) for lane in lanes) == 6 * 60 * 2
    assert all(lane.parts for lane in lanes)


def test_a_failure_of_the_gpu_is_a_failed_trial_and_the_lane_is_given_back() -> None:
    lane = FakeLane(2, RuntimeError("CUDA error:\n  out of memory"))
    predict = ResidentPredictor([lane])
    with pytest.raises(TrialError) as caught:
        predict.from_bytes([b"\x01"])
    assert (caught.value.code, caught.value.got) == ("engine-run", "RuntimeError: CUDA error: out of memory")
    lane.error = None
    assert labels(predict.from_bytes([b"\x07"])) == [7]


def detector(classes: int | None = 3) -> Any:
    return SimpleNamespace(facts=SimpleNamespace(classes=classes, name="blobs"))


def test_lanes_lie_on_the_gpus_in_turns_and_everything_is_closed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Candidate] = []
    made: list[tuple[str, FakeLane]] = []
    closed: list[str] = []

    def runner(_: Any, __: Any, candidate: Candidate, ___: Any) -> Any:
        built.append(candidate)
        return SimpleNamespace(name=f"runner {candidate.device}", close=lambda: closed.append(candidate.device))

    def lane(owner: Any, _: Any, classes: int, input_hw: tuple[int, int], images: int) -> FakeLane:
        assert (classes, input_hw, images) == (3, (64, 96), 1)
        made.append((owner.name, FakeLane(images)))
        return made[-1][1]

    monkeypatch.setattr("redline.engine.build.build_runner", runner)
    monkeypatch.setattr(resident_lanes, "ResidentLane", lane)
    held, predict = open_resident(detector(), None, CANDIDATE, None, {(64, 96)})
    alone = replace(CANDIDATE, concurrency=1, prepost="host")
    assert built == [replace(alone, device="cuda:0"), replace(alone, device="cuda:1")]
    assert [name for name, _ in made] == ["runner cuda:0", "runner cuda:1", "runner cuda:0"]
    assert labels(predict.from_bytes([b"\x02"])) == [2]
    held.close()
    assert closed == ["cuda:0", "cuda:1"]
    assert all(lane.closed for _, lane in made)


def test_what_fails_while_lanes_are_opened_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def runner(_: Any, __: Any, candidate: Candidate, ___: Any) -> Any:
        return SimpleNamespace(name="runner", close=lambda: closed.append(candidate.device))

    def lane(*_: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("redline.engine.build.build_runner", runner)
    monkeypatch.setattr(resident_lanes, "ResidentLane", lane)
    with pytest.raises(TrialError) as caught:
        open_resident(detector(), None, CANDIDATE, None, {(64, 96)})
    assert caught.value.code == "resident-open"
    assert closed == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("classes", "sizes", "code"),
    [(3, {(64, 64), (96, 64)}, "resident-shapes"), (None, {(64, 64)}, "resident-classes")],
)
def test_several_input_sizes_and_unknown_classes_are_failed_trials(
    classes: int | None, sizes: set[tuple[int, int]], code: str
) -> None:
    with pytest.raises(TrialError) as caught:
        open_resident(detector(classes), None, CANDIDATE, None, sizes)
    assert caught.value.code == code


def test_pixels_lie_aligned_behind_each_other_with_room_to_read_past_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: real(*a, **k))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    stage = PixelStage(SimpleNamespace(device="cpu"))
    rng = np.random.default_rng(0)
    first = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((5, 7), (16, 16), (1, 1))]
    for images in (first, first[::-1], first[:1]):
        placed = stage.uploaded(images)
        memory = stage._held.numpy()
        base = stage._held.data_ptr()
        for image, where in zip(images, placed, strict=True):
            start = where.pointer - base
            assert start % ALIGNED == 0
            assert (where.height, where.width, where.row_bytes) == (image.shape[0], image.shape[1], 3 * image.shape[1])
            np.testing.assert_array_equal(memory[start : start + image.size], image.reshape(-1))
        last = placed[-1].pointer - base + images[-1].size
        assert last + 4 <= len(memory)
