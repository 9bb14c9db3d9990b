"""The fast bootstrap against faster-coco-eval on physically repeated images: equal to 1e-12, ties and crowds included."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_cases import invented_detections, invented_set, make, perfect, repeated

from redline import parity


def check_against_repetition(dataset, found, counts):
    evaluation = parity.evaluate(dataset, found, "index")
    fast = parity.resampled_ap(evaluation, counts)
    for row, ap in zip(counts, fast, strict=True):
        copy, copies = repeated(dataset, found, row.tolist())
        if any(not all(truth.crowd) for truth in copy.truths):
            assert ap == pytest.approx(parity.evaluate(copy, copies, "index").accuracy.ap, abs=1e-12)
        else:
            assert np.isnan(ap)
    return fast


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("levels", [None, 40, 4, 1])
def test_equals_coco_on_repeated_images(levels, crowds):
    dataset = invented_set(5, images=14, crowds=crowds)
    found = invented_detections(dataset, 6, levels=levels)
    fast = check_against_repetition(dataset, found, parity.resample_counts(14, 6, seed=2))
    assert np.ptp(fast) > 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 3, 8, None]), crowds=st.booleans(), data=st.data())
def test_equals_coco_on_any_counts(seed, levels, crowds, data):
    dataset = invented_set(seed, images=5, categories=2, crowds=crowds)
    found = invented_detections(dataset, seed + 1, levels=levels)
    counts = data.draw(st.lists(st.integers(0, 5), min_size=5, max_size=5).filter(any))
    check_against_repetition(dataset, found, np.array([counts]))


def test_copies_of_tied_boxes_alternate():
    """A hit and a false box of one score in one image: the image twice is h f h f in COCO's order, not h h f f."""
    dataset = invented_set(0, images=1, categories=1)
    (x, y, w, h), *_ = invented_set(1, images=1, categories=1).truths[0].boxes
    truth = replace(dataset.truths[0], boxes=((x, y, w, h),), category_ids=(5,), areas=(w * h,), crowd=(False,))
    dataset = replace(dataset, truths=(truth,))
    hit, false = [x, y, x + w, y + h], [0, 0, 2, 2]
    first = parity.evaluate(dataset, [make([hit, false], [0.5, 0.5], [0, 0])], "index")
    last = parity.evaluate(dataset, [make([false, hit], [0.5, 0.5], [0, 0])], "index")
    counts = np.array([[1], [2], [3]])
    # twice: precision 1 up to recall 1/2 (51 of 101 thresholds), then 2/3
    np.testing.assert_allclose(
        parity.resampled_ap(first, counts), [1, (51 + 50 * 2 / 3) / 101, (34 + 33 * 2 / 3 + 34 * 3 / 5) / 101], atol=1e-12
    )
    np.testing.assert_allclose(parity.resampled_ap(last, counts), [0.5, 0.5, 0.5], atol=1e-12)


def test_counts_draw_every_image_equally_and_follow_the_seed():
    counts = parity.resample_counts(50, 2000, seed=3)
    assert (counts.sum(axis=1) == 50).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.1)
    assert (counts == parity.resample_counts(50, 2000, seed=3)).all()
    assert (counts != parity.resample_counts(50, 2000, seed=4)).any()


def test_drop_of_identical_detections_is_exactly_zero():
    dataset = invented_set(2, images=30)
    evaluation = parity.evaluate(dataset, invented_detections(dataset, 3), "index")
    drop = parity.map_drop(evaluation, evaluation, resamples=200, budget_pct=0.5)
    assert (drop.absolute_low, drop.absolute, drop.absolute_high) == (0, 0, 0)
    assert (drop.relative_low_pct, drop.relative_pct, drop.relative_high_pct, drop.images_to_decide) == (0, 0, 0, None)


def test_drop_is_paired_signed_and_relative():
    dataset = invented_set(2, images=40)
    better = parity.evaluate(dataset, invented_detections(dataset, 3, noise=2.0), "index")
    worse = parity.evaluate(dataset, invented_detections(dataset, 3, noise=5.0), "index")
    drop, gain = parity.map_drop(better, worse, resamples=300), parity.map_drop(worse, better, resamples=300)
    assert drop.absolute == pytest.approx(better.accuracy.ap - worse.accuracy.ap, abs=1e-12)
    assert drop.relative_pct == pytest.approx(100 * drop.absolute / better.accuracy.ap)
    assert 0 < drop.absolute_low < drop.absolute < drop.absolute_high
    assert drop.relative_low_pct < drop.relative_pct < drop.relative_high_pct
    assert gain.absolute_high == pytest.approx(-drop.absolute_low, abs=1e-12)
    counts = parity.resample_counts(40, 300, 0)
    differences = parity.resampled_ap(better, counts) - parity.resampled_ap(worse, counts)
    assert (drop.absolute_low, drop.absolute_high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))


def test_reference_that_finds_nothing_gives_zero_not_nan():
    dataset = invented_set(2)
    nothing = parity.evaluate(dataset, [make([], [], []) for _ in dataset.images], "index")
    drop = parity.map_drop(nothing, parity.evaluate(dataset, perfect(dataset), "category-id"), resamples=50)
    assert (drop.reference_ap, drop.absolute, drop.relative_pct, drop.relative_high_pct) == (0, -1, 0, 0)


def test_different_sets_are_refused():
    one, other = invented_set(1, images=5), invented_set(1, images=6)
    with pytest.raises(ValueError, match="5 against 6"):
        parity.map_drop(
            parity.evaluate(one, perfect(one), "category-id"), parity.evaluate(other, perfect(other), "category-id")
        )


@pytest.mark.parametrize(
    ("point", "high", "budget", "images"),
    [
        (0.1, 0.9, 0.5, 244),  # half width 0.8 must shrink to 0.4: 4 times 61
        (-0.5, 1.5, 0.5, 244),
        (0.6, 0.9, 0.5, None),  # failed already
        (0.1, 0.5, 0.5, None),  # passed already
        (0.5, 0.9, 0.5, None),  # no number would
        (0.499999, 0.9, 0.5, 61 * 400_001**2),
    ],
)
def test_images_to_decide(point, high, budget, images):
    got = parity.images_to_decide(point, high, budget, 61)
    assert got == (images if images is None else pytest.approx(images, rel=1e-4))
