"""Candidates whose images stay on the GPU from the encoded bytes to the boxes: one lane for each inference in flight.

Joins `resident`, the JPEG decoder and the engine's runner. What the decoder cannot take is decoded on the host and copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from redline.errors import TrialError
from redline.predict import decode_all
from redline.records import Candidate, Detections, Detector, DeviceImage, OnnxModel

if TYPE_CHECKING:
    from redline.engine.build import Order
    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.records.detect import Image

T = TypeVar("T")
ALIGNED = 256
"""Bytes; the first pixel of each image in a batch's memory, and what may be read behind the last one."""


class Lane(Protocol):
    """One inference in flight. For one thread at a time."""

    @property
    def images(self) -> int:
        """Most images of a call."""
        ...

    def pixels(self, images: Sequence[Image]) -> list[Detections]: ...
    def encoded(self, files: Sequence[bytes]) -> list[Detections]: ...
    def close(self) -> None: ...


class ResidentPredictor:
    """A `records.Predict`; thread-safe: a call takes a lane that is free, and waits for one if none is."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        """`lanes`: as many as inferences are in flight, of several GPUs in turns."""
        self._most = min(lane.images for lane in lanes)
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            self._free.put(lane)

    def __call__(self, images: Sequence[Image]) -> list[Detections]:
        """(H, W, 3) uint8 RGB images of any sizes -> their detections, in order."""
        return self._parts(images, lambda lane, part: lane.pixels(part))

    def from_bytes(self, encoded: Sequence[bytes]) -> list[Detections]:
        """Encoded images -> their detections, in order. Raises BadInput for the first that is none (see `vision.decode`)."""
        return self._parts(encoded, lambda lane, part: lane.encoded(part))

    def _parts(self, items: Sequence[T], act: Callable[[Lane, Sequence[T]], list[Detections]]) -> list[Detections]:
        found: list[Detections] = []
        for start in range(0, len(items), self._most):
            lane = self._free.get()
            try:
                found += act(lane, items[start : start + self._most])
            except RuntimeError as error:  # of torch and CUDA, whose errors share no other base
                got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise TrialError("engine-run", "The pipeline on the GPU failed on a batch", got=got) from error
            finally:
                self._free.put(lane)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class ResidentRunner:
    """What a resident candidate holds open."""

    name: str
    lanes: tuple[Lane, ...]
    runners: tuple[TensorRTRunner, ...]

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()
        for runner in self.runners:
            runner.close()


def open_resident(
    detector: Detector, onnx: OnnxModel | None, candidate: Candidate, order: Order | None, sizes: set[tuple[int, int]]
) -> tuple[ResidentRunner, ResidentPredictor]:
    """`sizes`: network input sizes (height, width) of the requests, of which there may be one.

    Raises TrialError: resident-shapes, resident-classes, and what building the engine or the pipelines raises.
    """
    from redline.engine.build import build_runner

    if len(sizes) != 1:
        what = "A pipeline on the GPU has one network input size"
        raise TrialError("resident-shapes", what, got=f"{len(sizes)} sizes", fix="letterbox or stretch to one size")
    classes = detector.facts.classes
    if classes is None:
        raise TrialError("resident-classes", "How many classes the network tells apart is unknown", got=detector.facts.name)
    runners: list[TensorRTRunner] = []
    lanes: list[Lane] = []
    (input_hw,) = sizes
    try:
        for device in candidate.gpus:
            alone = replace(candidate, device=f"cuda:{device}", concurrency=1, prepost="host")
            runner: Any = build_runner(detector, onnx, alone, order)
            runners.append(runner)
        for index in range(candidate.concurrency):
            lane = ResidentLane(runners[index % len(runners)], detector, classes, input_hw, candidate.batch)
            lanes.append(lane)
        predict = ResidentPredictor(lanes)
    except BaseException as error:
        ResidentRunner("", tuple(lanes), tuple(runners)).close()
        if isinstance(error, (ImportError, RuntimeError)):  # of torch, Triton and CUDA
            got = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise TrialError("resident-open", "The kernels around the engine cannot be made", got=got) from error
        raise
    return ResidentRunner(f"{runners[0].name}, images on the GPU", tuple(lanes), tuple(runners)), predict


class ResidentLane:
    """A pipeline with its decoder and the memory for pixels that come from the host."""

    def __init__(
        self, runner: TensorRTRunner, detector: Detector, classes: int, input_hw: tuple[int, int], images: int
    ) -> None:
        """Raises TrialError as `ResidentPipeline` does."""
        from redline.kernels.jpeg import JpegDecoder
        from redline.resident import ResidentPipeline

        self.images, self._device = images, runner.device
        parts = (detector.preprocess, detector.head, detector.postprocess, classes)
        self._pipe = ResidentPipeline(runner, *parts, input_hw=input_hw, images=images)
        try:
            self._decoder: JpegDecoder | None = JpegDecoder(runner.device)
        except TrialError:  # not installed: the host decodes
            self._decoder = None
        self._stage = PixelStage(self._pipe.stream)

    def pixels(self, images: Sequence[Image]) -> list[Detections]:
        _on(self._device)
        self._pipe.launch(self._stage.uploaded(images))
        return self._pipe.wait(len(images))

    def encoded(self, files: Sequence[bytes]) -> list[Detections]:
        if self._decoder is None:
            return self.pixels(decode_all(files, None))
        _on(self._device)
        decoded = self._decoder.decode(files, stream=self._pipe.stream.cuda_stream)
        for one in decoded:
            if one.failure is not None:
                raise one.failure
        self._pipe.launch([one.image for one in decoded if one.image is not None])
        return self._pipe.wait(len(files))

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None


class PixelStage:
    """Pinned and device memory for the pixels of one batch, grown to the largest seen; copied on `stream`, ahead of its work.

    A batch may be put in once the one before is done with on the stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._room = stream, 0
        self._host: Any = None
        self._held: Any = None

    def uploaded(self, images: Sequence[Image]) -> list[DeviceImage]:
        import torch

        starts, end = [], 0
        for image in images:
            starts.append(end)
            end += -(-(image.size + 4) // ALIGNED) * ALIGNED
        if end > self._room:
            self._room = end
            self._host = torch.empty(end, dtype=torch.uint8, pin_memory=True)
            self._held = torch.zeros(end, dtype=torch.uint8, device=self._stream.device)
        rows = self._host.numpy()
        for start, image in zip(starts, images, strict=True):
            rows[start : start + image.size] = image.reshape(-1)
        with torch.cuda.stream(self._stream):
            self._held[:end].copy_(self._host[:end], non_blocking=True)
        address = self._held.data_ptr()
        return [
            DeviceImage(pointer=address + start, height=image.shape[0], width=image.shape[1], row_bytes=3 * image.shape[1])
            for start, image in zip(starts, images, strict=True)
        ]


def _on(device: int) -> None:
    import torch

    torch.cuda.set_device(device)
