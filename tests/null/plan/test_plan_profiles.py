"""Profiles for a traffic: against every possible set on small cases, limits on number and memory, and what is promised."""

from __future__ import annotations

import itertools
from math import fsum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.errors import BadInput
from redline.plan.boundaries import boundary_shapes
from redline.plan.buckets import SWITCH_COST
from redline.plan.profiles import EXACT_MOST, choose_profiles
from redline.records import EngineProfile, Preprocess, ShapeShare, Traffic
from redline.vision import input_size, pixels

LETTERBOX = Preprocess(size=(256, 256))
SIDES = st.integers(1, 2000)


def traffic(*entries: tuple[int, int, float]) -> Traffic:
    total = fsum(share for _, _, share in entries)
    return Traffic(shapes=tuple(ShapeShare(height=h, width=w, share=s / total) for h, w, s in entries), origin="test")


TRAFFIC = st.lists(st.tuples(SIDES, SIDES, st.floats(0.05, 1)), min_size=1, max_size=8).map(lambda rows: traffic(*rows))
MIXED = traffic((480, 640, 0.5), (640, 480, 0.3), (640, 640, 0.1), (200, 640, 0.1))


def cost(seen: Traffic, preprocess: Preprocess, shapes: tuple[tuple[int, int], ...]) -> float:
    """Expected area in largest canvases, plus the price of each shape: from scratch, image by image."""
    area = 0.0
    for shape in seen.shapes:
        low = input_size((shape.height, shape.width), preprocess, "minimal")
        area += shape.share * min(h * w for h, w in shapes if h >= low[0] and w >= low[1])
    return area / (preprocess.size[0] * preprocess.size[1]) + SWITCH_COST * len(shapes)


@settings(max_examples=60, deadline=None)
@given(TRAFFIC, st.integers(1, 4))
def test_no_other_set_of_profiles_costs_less(seen: Traffic, most: int) -> None:
    chosen = choose_profiles(seen, LETTERBOX, "bucketed", batch=1, most=most)
    canvases = {input_size((shape.height, shape.width), LETTERBOX, "minimal") for shape in seen.shapes}
    grid = {*itertools.product({h for h, _ in canvases} | {256}, {w for _, w in canvases} | {256})} - {(256, 256)}
    sets = (s for count in range(most) for s in itertools.combinations(sorted(grid), count))
    least = min(cost(seen, LETTERBOX, (*shapes, (256, 256))) for shapes in sets)
    assert cost(seen, LETTERBOX, chosen.shapes) == pytest.approx(least, abs=1e-9)
    assert len(chosen.profiles) <= most


@settings(max_examples=60, deadline=None)
@given(TRAFFIC, st.sampled_from(["exact", "bucketed", "dynamic"]), st.integers(1, 8))
def test_every_image_fits_a_profile_and_the_waste_is_what_is_left(seen: Traffic, kind: str, batch: int) -> None:
    chosen = choose_profiles(seen, LETTERBOX, kind, batch=batch)  # type: ignore[arg-type]
    policy = tuple(sorted(chosen.shapes, key=lambda hw: hw[0] * hw[1])) if kind == "bucketed" else "minimal"
    own = whole = 0.0
    for shape in seen.shapes:
        source = (shape.height, shape.width)
        size = input_size(source, LETTERBOX, policy)
        for count in (1, batch):
            full = (count, 3, *size)
            assert any(
                all(low <= side <= high for low, side, high in zip(p.minimum, full, p.maximum, strict=True))
                for p in chosen.profiles
            )
        parts = pixels(source, LETTERBOX, policy)
        own, whole = own + shape.share * parts[0], whole + shape.share * parts[1]
    assert chosen.waste == pytest.approx(whole / own - 1)
    for p in chosen.profiles:
        assert all(low <= best <= high for low, best, high in zip(p.minimum, p.optimum, p.maximum, strict=True))
    assert [p.index for p in chosen.profiles] == list(range(len(chosen.profiles)))


def test_the_kinds_by_hand() -> None:
    exact = choose_profiles(MIXED, LETTERBOX, "exact", batch=2)
    assert exact.shapes == ((192, 256), (256, 192), (256, 256), (96, 256))
    assert {(p.minimum, p.optimum, p.maximum) for p in exact.profiles} == {
        ((1, 3, h, w), (2, 3, h, w), (2, 3, h, w)) for h, w in exact.shapes
    }
    dynamic = choose_profiles(MIXED, LETTERBOX, "dynamic", batch=2)
    assert [(p.minimum, p.optimum, p.maximum) for p in dynamic.profiles] == [
        ((1, 3, 96, 192), (2, 3, 192, 256), (2, 3, 256, 256))
    ]
    assert dynamic.waste == exact.waste
    bucketed = choose_profiles(MIXED, LETTERBOX, "bucketed", batch=2, most=2)
    assert set(bucketed.shapes) == {(192, 256), (256, 256)}
    assert bucketed.waste > exact.waste


def test_too_many_shapes_for_exact_profiles_are_refused() -> None:
    many = traffic(*((32 * i, 640, 1.0) for i in range(1, 40)))
    with pytest.raises(BadInput) as caught:
        choose_profiles(many, Preprocess(size=(640, 640)), "exact", batch=1)
    assert (caught.value.code, caught.value.allowed) == ("plan.profile-count", EXACT_MOST)


def test_memory_takes_profiles_first_and_then_the_batch() -> None:
    pixel, scratch = 12.0, 40.0
    area = 256 * 256

    def chosen(limit: float) -> tuple[int, int]:
        found = choose_profiles(
            MIXED, LETTERBOX, "bucketed", batch=4, most=4,
            bytes_per_pixel=pixel, scratch_per_pixel=scratch, memory_bytes=int(limit),
        )  # fmt: skip
        assert found.buffer_bytes <= limit
        assert found.buffer_bytes == found.profiles[0].maximum[0] * area * (pixel + scratch * len(found.profiles))
        return len(found.profiles), found.profiles[0].maximum[0]

    free = chosen(1e12)
    assert free[1] == 4
    assert free[0] > 2
    assert chosen(4 * area * (pixel + 2 * scratch)) == (2, 4)
    assert chosen(4 * area * (pixel + scratch)) == (1, 4)
    assert chosen(3 * area * (pixel + scratch)) == (1, 3)
    assert chosen(area * (pixel + scratch)) == (1, 1)
    with pytest.raises(BadInput) as caught:
        chosen(area * (pixel + scratch) - 1)
    assert caught.value.code == "plan.profile-memory"


def profile(index: int, low: tuple[int, ...], best: tuple[int, ...], high: tuple[int, ...]) -> EngineProfile:
    return EngineProfile(index=index, minimum=low, optimum=best, maximum=high)


def test_boundary_shapes_are_corners_optimum_and_both_sides_of_every_limit() -> None:
    pair = (
        profile(0, (1, 3, 64, 64), (1, 3, 64, 96), (2, 3, 64, 128)),
        profile(1, (1, 3, 64, 160), (1, 3, 96, 160), (1, 3, 96, 160)),
    )
    inside, beyond = boundary_shapes(pair, 32)
    assert set(inside) == {
        (1, 3, 64, 64), (1, 3, 64, 128), (2, 3, 64, 64), (2, 3, 64, 128), (1, 3, 64, 96), (2, 3, 64, 96),
        (1, 3, 64, 160), (1, 3, 96, 160),
    }  # fmt: skip
    assert set(beyond) == {
        (3, 3, 64, 96), (1, 3, 32, 96), (1, 3, 96, 96), (1, 3, 64, 32),  # around the first
        (2, 3, 96, 160), (1, 3, 32, 160), (1, 3, 128, 160), (1, 3, 96, 128), (1, 3, 96, 192),  # around the second
    }  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(TRAFFIC, st.sampled_from(["exact", "bucketed", "dynamic"]), st.integers(1, 4))
def test_no_boundary_shape_is_forgotten_or_misplaced(seen: Traffic, kind: str, batch: int) -> None:
    chosen = choose_profiles(seen, LETTERBOX, kind, batch=batch).profiles  # type: ignore[arg-type]
    inside, beyond = boundary_shapes(chosen, LETTERBOX.stride)

    def taken(shape: tuple[int, ...]) -> bool:
        return any(all(a <= s <= b for a, s, b in zip(p.minimum, shape, p.maximum, strict=True)) for p in chosen)

    assert all(map(taken, inside))
    assert not any(map(taken, beyond))
    assert {p.minimum for p in chosen} | {p.optimum for p in chosen} | {p.maximum for p in chosen} <= set(inside)
    assert (batch + 1, *chosen[0].optimum[1:]) in beyond
