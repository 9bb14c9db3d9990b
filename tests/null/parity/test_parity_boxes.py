import numpy as np
import pytest
from parity_cases import invented_detections, invented_set, make

from redline import parity


def test_identical_detections_all_pair():
    found = invented_detections(invented_set(1), 2)
    match = parity.match_boxes(found, found)
    total = sum(int((one.scores > 0.05).sum()) for one in found)
    assert total > 30
    assert (match.matched, match.missing, match.extra, match.largest_score_delta) == (total, 0, 0, 0.0)
    assert match.lowest_iou == pytest.approx(1.0)


def test_by_hand():
    reference = make([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], [0.9, 0.8, 0.7, 0.04], [0, 0, 1, 0])
    candidate = make([[0, 0, 10, 8], [20, 0, 30, 4], [40, 0, 50, 10], [40, 0, 50, 9]], [0.6, 0.8, 0.7, 0.65], [0, 0, 0, 1])
    match = parity.match_boxes([reference], [candidate])
    # pairs: first (IoU 0.8, score 0.3 apart) and third (0.9); second has IoU 0.4 only; faint ones stay out
    assert (match.matched, match.missing, match.extra) == (2, 1, 2)
    assert match.lowest_iou == pytest.approx(0.8)
    assert match.largest_score_delta == pytest.approx(0.3)


def test_pairs_are_one_to_one_and_best_scores_choose_first():
    reference = make([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.8], [0, 0])
    candidate = make([[0, 0, 10, 10]], [0.9], [0])
    match = parity.match_boxes([reference], [candidate])
    assert (match.matched, match.missing, match.extra, match.lowest_iou) == (1, 1, 0, 1.0)


@pytest.mark.parametrize(("reference", "lowest"), [([], 1.0), ([[0, 0, 9, 9]], 0.0)])
def test_no_pairs(reference, lowest):
    match = parity.match_boxes([make(reference, [0.9] * len(reference), [0] * len(reference))], [make([], [], [])])
    assert (match.matched, match.missing, match.lowest_iou) == (0, len(reference), lowest)


def test_boxes_that_are_not_finite_or_empty_do_not_pair():
    odd = make([[np.nan] * 4, [5, 5, 5, 5], [0, 0, np.inf, np.inf]], [0.9, 0.8, 0.7], [0, 0, 0])
    assert parity.match_boxes([odd], [odd]).matched == 0
