"""Sizes by hand-computed tables; boxes there and back by Hypothesis, to 1e-3 pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline import vision
from redline.errors import BadInput
from redline.records import Preprocess

LETTERBOX = Preprocess(resize="letterbox", size=(416, 416))
SHORTEST = Preprocess(resize="shortest-side", size=(640, 853))

SIZES = st.one_of(st.integers(1, 8000), st.sampled_from([1, 2, 8000]))
PREPROCESS = st.builds(
    Preprocess,
    resize=st.sampled_from(["letterbox", "shortest-side", "stretch", "none"]),
    size=st.tuples(st.integers(32, 1400), st.integers(32, 1400)),
    anchor=st.sampled_from(["top-left", "center"]),
    stride=st.sampled_from([1, 8, 32, 64]),
)
POLICY = st.sampled_from(["fixed", "minimal"])


@pytest.mark.parametrize(
    ("source", "preprocess", "shapes", "expected"),
    [
        ((480, 640), LETTERBOX, "fixed", (416, 416)),
        ((480, 640), LETTERBOX, "minimal", (320, 416)),  # 312 -> 320
        ((640, 480), LETTERBOX, "minimal", (416, 320)),
        ((1, 8000), LETTERBOX, "minimal", (32, 416)),
        ((480, 640), SHORTEST, "minimal", (640, 864)),  # 639 x 853
        ((480, 640), SHORTEST, "fixed", (640, 864)),
        ((640, 480), SHORTEST, "fixed", (864, 640)),
        ((500, 500), SHORTEST, "minimal", (640, 640)),
        ((500, 500), SHORTEST, "fixed", (640, 864)),
        ((100, 1000), SHORTEST, "minimal", (96, 864)),  # scale 0.853: 85 x 853
        ((100, 1000), SHORTEST, "fixed", (640, 864)),
        ((37, 91), Preprocess(resize="stretch", size=(320, 512)), "minimal", (320, 512)),
        ((37, 91), Preprocess(resize="none"), "fixed", (64, 96)),
        ((64, 96), Preprocess(resize="none"), "minimal", (64, 96)),
    ],
)
def test_input_size(source: tuple[int, int], preprocess: Preprocess, shapes: str, expected: tuple[int, int]) -> None:
    assert vision.input_size(source, preprocess, shapes) == expected  # type: ignore[arg-type]


def test_shortest_side_resizes_480_by_640_to_639_by_853() -> None:
    placement = vision.place((480, 640), SHORTEST, "minimal")
    assert placement.scale_yx == (639 / 480, 853 / 640)


def test_letterbox_resizes_to_whole_pixels_rounded_down() -> None:
    assert vision.place((427, 640), LETTERBOX, "fixed").scale_yx == (277 / 427, 416 / 640)  # 277.55
    assert vision.place((1, 8000), LETTERBOX, "fixed").scale_yx == (1.0, 416 / 8000)


def test_centred_image() -> None:
    centred = Preprocess(resize="letterbox", size=(416, 416), anchor="center")
    assert vision.place((480, 640), centred, "fixed").offset_yx == (52, 0)
    assert vision.place((427, 640), centred, "fixed").offset_yx == (69, 0)  # (416 - 277) // 2


BUCKETS = ((416, 416), (416, 320), (320, 416), (256, 416))


@pytest.mark.parametrize(
    ("source", "preprocess", "expected"),
    [
        ((240, 640), LETTERBOX, (256, 416)),  # 156 x 416 -> 160 x 416
        ((480, 640), LETTERBOX, (320, 416)),  # 312 x 416 -> 320 x 416
        ((640, 480), LETTERBOX, (416, 320)),
        ((640, 200), LETTERBOX, (416, 320)),  # narrower than any: the smallest that holds it
        ((500, 600), LETTERBOX, (416, 416)),  # 346 x 416 -> 352 x 416
        ((64, 64), Preprocess(resize="none"), (256, 416)),
        ((300, 400), Preprocess(resize="shortest-side", size=(256, 416)), (256, 416)),  # 256 x 341 -> 256 x 352
        ((300, 300), Preprocess(resize="stretch", size=(100, 100)), (100, 100)),
    ],
)
def test_the_smallest_bucket_that_holds_the_minimal_canvas(
    source: tuple[int, int], preprocess: Preprocess, expected: tuple[int, int]
) -> None:
    assert vision.input_size(source, preprocess, BUCKETS) == expected
    assert vision.input_size(source, preprocess, BUCKETS[::-1]) == expected


def test_of_buckets_of_equal_area_the_lower_one() -> None:
    for buckets in (((64, 128), (128, 64), (32, 256)), ((32, 256), (128, 64), (64, 128))):
        assert vision.input_size((32, 32), Preprocess(resize="none"), buckets) == (32, 256)
        assert vision.input_size((33, 33), Preprocess(resize="none"), buckets) == (64, 128)


@pytest.mark.parametrize(
    ("buckets", "allowed"), [(((256, 416), (320, 416)), "256 x 416, 320 x 416"), ((), "no buckets")], ids=["too small", "none"]
)
def test_no_bucket_holds_the_image(buckets: tuple[tuple[int, int], ...], allowed: str) -> None:
    with pytest.raises(BadInput) as error:
        vision.place((600, 640), LETTERBOX, buckets)
    assert error.value.code == "shape-bucket"
    assert error.value.got == "600 x 640, which needs a network input of 416 x 416"
    assert allowed in str(error.value.allowed)
    assert "416 x 416" in str(error.value.fix)


@given(
    source=st.tuples(SIZES, SIZES),
    preprocess=PREPROCESS,
    buckets=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), max_size=6),
)
def test_a_bucket_only_pads(source: tuple[int, int], preprocess: Preprocess, buckets: list[tuple[int, int]]) -> None:
    minimal = vision.place(source, preprocess, "minimal")
    height, width = minimal.input_hw
    policy = (*((32 * h, 32 * w) for h, w in buckets), (height + 64, width + 32))
    placement = vision.place(source, preprocess, policy)
    assert placement.scale_yx == minimal.scale_yx
    if preprocess.resize == "stretch":
        assert placement == minimal
        return
    assert placement.input_hw in policy
    assert placement.input_hw[0] >= height
    assert placement.input_hw[1] >= width
    holding = [b for b in policy if b[0] >= height and b[1] >= width]
    assert placement.input_hw[0] * placement.input_hw[1] == min(h * w for h, w in holding)
    if preprocess.anchor == "top-left":
        assert placement.offset_yx == (0, 0)


def test_padding_is_the_share_of_network_pixels_without_image() -> None:
    """312 x 416 of 320 x 416 and of 416 x 416; a square image has none."""
    sources = [(480, 640), (480, 640), (640, 640)]
    used = 2 * 312 * 416 + 416 * 416
    assert vision.padding_pct(sources, LETTERBOX, "fixed") == pytest.approx(100 * (1 - used / (3 * 416 * 416)))
    bucketed = 100 * (1 - used / (2 * 320 * 416 + 416 * 416))
    assert vision.padding_pct(sources, LETTERBOX, BUCKETS) == pytest.approx(bucketed)
    assert vision.padding_pct([(640, 640)], LETTERBOX, "minimal") == 0.0
    assert vision.padding_pct([], LETTERBOX, "fixed") == 0.0
    assert vision.pixels((480, 640), LETTERBOX, BUCKETS) == (312 * 416, 320 * 416)


@given(source=st.tuples(SIZES, SIZES), preprocess=PREPROCESS, shapes=POLICY)
def test_the_image_lies_inside_the_input(source: tuple[int, int], preprocess: Preprocess, shapes: str) -> None:
    placement = vision.place(source, preprocess, shapes)  # type: ignore[arg-type]
    for side, whole, scale, offset in zip(source, placement.input_hw, placement.scale_yx, placement.offset_yx, strict=True):
        resized = round(side * scale)
        assert math.isclose(resized, side * scale, rel_tol=1e-12)
        assert resized >= 1
        assert 0 <= offset <= whole - resized
        if shapes == "minimal" and preprocess.resize != "stretch":
            assert whole % preprocess.stride == 0
            assert whole - resized < preprocess.stride


@given(
    source=st.tuples(SIZES, SIZES),
    preprocess=PREPROCESS,
    shapes=POLICY,
    corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=8),
)
def test_boxes_there_and_back(
    source: tuple[int, int], preprocess: Preprocess, shapes: str, corners: list[tuple[float, float, float, float]]
) -> None:
    placement = vision.place(source, preprocess, shapes)  # type: ignore[arg-type]
    boxes = (np.array(corners) * (source[1], source[0], source[1], source[0])).astype(np.float32)
    inside = vision.to_network(boxes, placement)
    back = vision.to_source(inside, placement)
    # A float32 pixel of the input is worth 1 / scale pixels of the source: beyond 1e-3 only where that alone exceeds it.
    (scale_y, scale_x), (height, width) = placement.scale_yx, placement.input_hw
    grain = np.array([np.spacing(np.float32(width)) / scale_x, np.spacing(np.float32(height)) / scale_y] * 2)
    assert (np.abs(back - boxes) <= np.maximum(1e-3, grain)).all()


@given(
    source=st.tuples(SIZES, SIZES), shapes=POLICY, corners=st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=8)
)
def test_letterboxed_boxes_there_and_back_within_a_thousandth(
    source: tuple[int, int], shapes: str, corners: list[tuple[float, float, float, float]]
) -> None:
    placement = vision.place(source, LETTERBOX, shapes)  # type: ignore[arg-type]
    boxes = (np.array(corners) * (source[1], source[0], source[1], source[0])).astype(np.float32)
    assert np.abs(vision.to_source(vision.to_network(boxes, placement), placement) - boxes).max() <= 1e-3


def test_boxes_are_clipped_to_the_image() -> None:
    placement = vision.place((100, 200), Preprocess(size=(50, 100)), "fixed")
    boxes = np.array([[-5, -5, 1000, 1000], [10, 10, 20, 20]], np.float32)
    assert vision.to_source(boxes, placement).tolist() == [[0, 0, 200, 100], [20, 20, 40, 40]]
