"""Images in device memory to detections through one CUDA graph, against numpy before and after the same engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline import api
from redline.engine.devices import tensorrt_facts
from redline.predict import Predictor
from redline.records import DeviceImage, EngineProfile

torch = pytest.importorskip("torch", reason="the kernels run on torch's streams")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU that this torch can use", allow_module_level=True)
pytest.importorskip("triton", reason="Triton compiles the kernels")
PROBLEM = tensorrt_facts().problem
pytestmark = [
    pytest.mark.skipif(PROBLEM is not None, reason=f"TensorRT cannot be used: {PROBLEM}"),
    pytest.mark.timeout(900),
]
SIZES = ((128, 96), (96, 128), (37, 201), (300, 300))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(detector, what opens its FP16 engine for batches of 1 to 4)."""
    from blob_net import project

    from redline.engine.tensorrt_runner import TensorRTRunner
    from redline.engine.tensorrt_store import build_engine
    from redline.engine.tensorrt_versions import find
    from redline.export import export_onnx
    from redline.export.half import export_half
    from redline.model.load import load_detector
    from redline.records import BuildOptions
    from redline.store import Store

    folder: Path = tmp_path_factory.mktemp("resident")
    detector = load_detector(api.load_spec(project(folder)).model)
    half = export_half(export_onnx(detector, folder, input_hw=(128, 128)), folder)
    profile = EngineProfile(index=0, minimum=(1, 3, 128, 128), optimum=(4, 3, 128, 128), maximum=(4, 3, 128, 128))
    library, store = find(), Store(folder / "store")
    sources = tuple(name for name in library.tactic_sources if name.endswith("CONVOLUTIONS"))
    build = build_engine(half, BuildOptions(precision="fp16", profiles=(profile,), tactic_sources=sources), library, store)
    plan = store.path(build.digest).read_bytes()
    names = [fact.name for fact in build.outputs]

    def opened(**how: Any) -> Any:
        return TensorRTRunner(plan, library, outputs=names, **how)

    return detector, opened


def on_device(pixels: Any) -> tuple[DeviceImage, Any]:
    held = torch.zeros(pixels.size + 64, dtype=torch.uint8, device="cuda")
    held[: pixels.size].copy_(torch.from_numpy(pixels.reshape(-1)))
    height, width, _ = pixels.shape
    return DeviceImage(pointer=held.data_ptr(), height=height, width=width, row_bytes=3 * width), held


@pytest.mark.parametrize("kernel", ["triton", "cuda"])
@pytest.mark.parametrize("images", [1, 4])
def test_detections_are_those_of_the_reference_path(parts: tuple[Any, Any], kernel: Any, images: int) -> None:
    from redline.resident import ResidentPipeline

    detector, opened = parts
    runner = opened()
    post = replace(detector.postprocess, score=0.05)
    pipe = ResidentPipeline(
        runner, detector.preprocess, detector.head, post, 1, input_hw=(128, 128), images=images, fewer=(1, 2), kernel=kernel
    )
    reference = Predictor(runner, detector.preprocess, detector.head, post, "fixed")
    rng = np.random.default_rng(3)
    for count in (*range(images, 0, -1), images):  # of 3 images the graph of 4, of 2 and 1 their own
        pixels = [rng.integers(0, 256, (*SIZES[index], 3), dtype=np.uint8) for index in range(count)]
        given = [on_device(one) for one in pixels]
        torch.cuda.synchronize()
        pipe.launch([image for image, _ in given])
        for found, wanted in zip(pipe.wait(count), reference(pixels), strict=True):
            assert len(wanted.scores) > 3
            np.testing.assert_array_equal(found.labels, wanted.labels)
            np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
            np.testing.assert_allclose(found.boxes, wanted.boxes, atol=0.05)
    del pipe
    runner.close()


def test_graphs_of_several_shapes_in_one_context_answer_as_plain_runs(parts: tuple[Any, Any]) -> None:
    """Each shape is captured in the context that the shape before was run in, and replayed after others were."""
    _, opened = parts
    graphed, plain = opened(), opened(graphs=False)
    rng = np.random.default_rng(5)
    for count in (4, 1, 3, 2, 4, 2, 1, 3, 1, 4):
        batch = rng.uniform(0, 255, (count, 3, 128, 128)).astype(np.float32)
        for one, other in zip(graphed.run(batch), plain.run(batch), strict=True):
            np.testing.assert_array_equal(one, other)
    with graphed.lane() as lane:
        assert len(lane.graphs) == 4
    graphed.close()
    plain.close()
