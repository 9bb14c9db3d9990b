"""Which sizes a release can send to its network, against `vision.place` itself and against brute force."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release_cases import onnx_engine, profile, release, tensorrt_engine

from redline.records import Preprocess
from redline.serve.blocks import graph_batches
from redline.serve.shapes import Sizes, holds, image_dims, largest_batch, sent_sizes, uncovered, warm_sizes
from redline.vision import input_size

SIDES = st.integers(1, 400)
PREPROCESS = st.builds(
    Preprocess,
    resize=st.sampled_from(["letterbox", "shortest-side", "stretch"]),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    stride=st.sampled_from([1, 8, 32]),
)


def within(size: tuple[int, int], ranges: tuple[Sizes, ...]) -> bool:
    return any(
        one.height[0] <= size[0] <= one.height[1]
        and one.width[0] <= size[1] <= one.width[1]
        and (one.exact is not None or (size[0] % one.step == 0 and size[1] % one.step == 0))
        for one in ranges
    )


@settings(max_examples=300, deadline=None)
@given(preprocess=PREPROCESS, shapes=st.sampled_from(["fixed", "minimal"]), source=st.tuples(SIDES, SIDES))
def test_every_size_that_an_image_gets_is_foreseen(preprocess, shapes, source):
    ranges = sent_sizes(preprocess, shapes)
    assert ranges is not None
    assert within(input_size(source, preprocess, shapes), ranges)


def test_foreseen_sizes_are_not_more_than_needed():
    """Letterbox to 64 x 96 in steps of 32: of the six sizes up to it, the image touches a side in four."""
    preprocess = Preprocess(size=(64, 96), stride=32)
    ranges = sent_sizes(preprocess, "minimal")
    grid = {size for size in product((32, 64), (32, 64, 96)) if within(size, ranges)}
    seen = {input_size(source, preprocess, "minimal") for source in product(range(1, 300, 7), repeat=2)}
    assert grid == seen == {(64, 32), (64, 64), (64, 96), (32, 96)}


def test_buckets_are_the_sizes_and_an_unresized_image_has_no_bound():
    assert [one.exact for one in sent_sizes(Preprocess(), ((64, 96), (96, 64)))] == [(64, 96), (96, 64)]
    assert sent_sizes(Preprocess(resize="none"), "minimal") is None
    assert sent_sizes(Preprocess(resize="none"), ((64, 64),))[0].exact == (64, 64)


BOXES = st.lists(st.tuples(*[st.tuples(st.integers(1, 6), st.integers(0, 9))] * 3), max_size=3)
"""Profiles as (first, more) along batch, height and width."""


@settings(max_examples=400, deadline=None)
@given(
    boxes=BOXES,
    batch=st.integers(1, 5),
    start=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    span=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    step=st.integers(1, 3),
)
def test_uncovered_agrees_with_brute_force(boxes, batch, start, span, step):
    """Small profiles against every shape of a small range."""
    height, width = ((first * step, (first + more) * step) for first, more in zip(start, span, strict=True))
    sizes = Sizes(height=height, width=width, step=step)
    profiles = tuple(
        profile(index, tuple(first for first, _ in box), tuple(first for first, _ in box), tuple(map(sum, box)))
        for index, box in enumerate(boxes)
    )
    every = product(
        range(1, batch + 1),
        range(sizes.height[0], sizes.height[1] + 1, step),
        range(sizes.width[0], sizes.width[1] + 1, step),
    )
    missing = [(n, h, w) for n, h, w in every if not any(holds(one, n, (h, w)) for one in profiles)]
    found = uncovered(profiles, (sizes,), batch)
    assert (found is None) == (not missing)
    assert found is None or found in missing


@pytest.mark.parametrize(
    ("changes", "dims"),
    [
        ({}, (3, 96, 96)),
        ({"shapes": "minimal"}, (3, -1, -1)),
        ({"shapes": ((64, 96), (96, 96))}, (3, -1, 96)),
        ({"engine": onnx_engine(shape=(1, 3, 96, "W")), "shapes": "minimal"}, (3, 96, -1)),
    ],
)
def test_dims_are_fixed_where_every_request_has_them(changes, dims):
    assert image_dims(release(**changes)) == dims


def test_warm_sizes_are_all_that_come_or_the_largest():
    assert warm_sizes(release()) == ((96, 96),)
    assert warm_sizes(release(shapes=((64, 96), (96, 64)))) == ((64, 96), (96, 64))
    assert warm_sizes(release(shapes="minimal", preprocess=Preprocess(size=(90, 60), stride=32))) == ((96, 64),)
    assert warm_sizes(release(shapes="minimal", preprocess=Preprocess(resize="none"))) == ()


@pytest.mark.parametrize("batch", range(1, 40))
def test_graphs_cover_every_batch_once_and_waste_less_than_half(batch):
    taken = {size: captured for lowest, captured in graph_batches(batch) for size in range(lowest, captured + 1)}
    assert sorted(taken) == list(range(1, batch + 1))
    assert sum(captured - lowest + 1 for lowest, captured in graph_batches(batch)) == batch
    assert all(captured < 2 * size for size, captured in taken.items())


def test_the_largest_batch_is_the_engines():
    assert largest_batch(onnx_engine()) is None
    assert largest_batch(onnx_engine(shape=(1, 3, 96, 96))) == 1
    two = (profile(0, (1, 96, 96), (1, 96, 96), (2, 96, 96)), profile(1, (1, 96, 96), (8, 96, 96), (16, 96, 96)))
    assert largest_batch(tensorrt_engine(*two)) == 16
