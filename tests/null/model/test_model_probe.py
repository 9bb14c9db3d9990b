"""Which raw outputs fit which head; numpy only."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.errors import BadInput
from redline.model import probe
from redline.records import Head, Preprocess, TensorFact

YOLOX = Head(kind="yolox")
RETINANET = Head(
    kind="retinanet",
    strides=(8, 16),
    anchor_sizes=((32.0, 40.0), (64.0, 80.0)),
    aspect_ratios=(0.5, 1.0, 2.0),
    activation="sigmoid",
)
DETECTIONS = Head(kind="detections")
HW = (128, 192)


def outputs(*shapes: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    return [np.zeros(shape, np.float32) for shape in shapes]


def test_loading_the_room_loads_no_torch() -> None:
    code = (
        "import sys, redline.model.load, redline.model.probe, redline.zoo; print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_fitting_outputs_say_their_classes() -> None:
    cells = 16 * 24 + 8 * 12
    assert probe.fit(outputs((1, cells + 4 * 6, 8)), YOLOX, HW) == 3
    assert probe.fit(outputs((1, cells * 6, 7), (1, cells * 6, 4)), RETINANET, HW) == 7
    assert probe.fit(outputs((1, 300, 4), (1, 300), (1, 300)), DETECTIONS, HW) is None


@pytest.mark.parametrize(
    ("head", "shapes", "said"),
    [
        (YOLOX, [(1, 504, 8), (1, 504, 8)], "2 outputs"),
        (YOLOX, [(1, 503, 8)], "(N, 504, 5 + classes)"),
        (YOLOX, [(1, 504, 5)], "(1, 504, 5)"),
        (YOLOX, [(504, 8)], "not the batch"),
        (YOLOX, [()], "not the batch"),
        (YOLOX, [], "0 outputs"),
        (RETINANET, [(1, 2880, 4), (1, 2880, 5)], "(1, 2880, 5)"),
        (RETINANET, [(1, 100, 4), (1, 100, 4)], "(N, 2880, classes)"),
        (DETECTIONS, [(1, 300, 4), (1, 300), (1, 299)], "(1, 299)"),
        (DETECTIONS, [(1, 300, 5), (1, 300), (1, 300)], "boxes (N, K, 4)"),
    ],
)
def test_other_outputs_are_refused_with_what_each_head_reads(head: Head, shapes: list[tuple[int, ...]], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        probe.fit(outputs(*shapes), head, HW)
    assert caught.value.code == "head-outputs"
    assert "fit no head" in caught.value.what
    assert said in str(caught.value.got)
    for kind in ("yolox:", "retinanet:", "detections:", "custom:"):
        assert kind in str(caught.value.allowed)


def test_a_custom_head_is_asked(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe_custom_head.py").write_text(
        "import numpy as np\n"
        "def decode(outputs, hw):\n    n = len(outputs[0])\n    return np.zeros((n, 7, 4)), np.zeros((n, 7, 5))\n"
        "def broken(outputs, hw):\n    raise KeyError('no such map')\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert probe.fit(outputs((1, 3)), Head(kind="custom", function="probe_custom_head:decode"), HW) == 5
    with pytest.raises(BadInput, match="no such map"):
        probe.fit(outputs((1, 3)), Head(kind="custom", function="probe_custom_head:broken"), HW)
    assert sys.path == path


@given(
    stride=st.sampled_from([8, 16, 32, 64]),
    size=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    fixed=st.one_of(
        st.just(()), st.tuples(st.one_of(st.integers(32, 900), st.just("H")), st.one_of(st.integers(32, 900), st.just("W")))
    ),
)
def test_probed_sizes_are_lawful(stride: int, size: tuple[int, int], fixed: tuple[int | str, ...]) -> None:
    sizes = probe.sizes(Preprocess(size=size, stride=stride), fixed)
    assert 1 <= len(sizes) <= 3
    for hw in sizes:
        for axis, length in enumerate(hw):
            held = fixed[axis] if fixed else "any"
            assert length == held if isinstance(held, int) else length % stride == 0
    if not fixed:
        assert all(0 <= full - wanted < stride for full, wanted in zip(sizes[-1], size, strict=True))


def test_axes_that_follow_the_input_are_named() -> None:
    facts = [TensorFact(name=name, dtype="float32", shape=()) for name in ("predictions", "maps")]
    small, large = outputs((1, 504, 8), (1, 8, 16, 24)), outputs((1, 630, 8), (1, 8, 24, 20))
    assert probe.symbolic(facts, [small, large], "N", "A") == [("N", "A", 8), ("N", 8, "maps_2", "maps_3")]
    assert probe.symbolic(facts, [small], 1, "A") == [(1, 504, 8), (1, 8, 16, 24)]
