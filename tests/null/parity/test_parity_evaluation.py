"""mAP and the kept matches against faster-coco-eval itself and against figures worked out by hand."""

import numpy as np
import pytest
from parity_cases import invented_detections, invented_set, make, perfect

from redline import parity
from redline.errors import BadInput
from redline.records import Category, Dataset, ImageRef, Truth


def one_image(*boxes, crowd=None):
    truth = Truth(
        boxes=boxes,
        category_ids=(1,) * len(boxes),
        areas=tuple(w * h for _, _, w, h in boxes),
        crowd=crowd or (False,) * len(boxes),
    )
    image = ImageRef(id=1, path="a.png", height=100, width=100, sha256="")
    return Dataset(name="one", images=(image,), truths=(truth,), categories=(Category(id=1, name="thing"),), digest="")


def library_stats(dataset, found):
    from faster_coco_eval import COCO, COCOeval_faster

    truths, results = [], []
    for image, truth, one in zip(dataset.images, dataset.truths, found, strict=True):
        for box, category, area, crowd in zip(truth.boxes, truth.category_ids, truth.areas, truth.crowd, strict=True):
            truths.append(
                {"id": len(truths) + 1, "image_id": image.id, "category_id": category, "bbox": list(box), "area": area}
            )
            truths[-1]["iscrowd"] = int(crowd)
        for (x1, y1, x2, y2), score, label in zip(one.boxes.astype(float), one.scores, one.labels, strict=True):
            entry = {"image_id": image.id, "category_id": dataset.categories[label].id, "score": float(score)}
            results.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    images = [{"id": image.id, "height": image.height, "width": image.width} for image in dataset.images]
    categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
    coco = COCO({"images": images, "annotations": truths, "categories": categories})
    evaluator = COCOeval_faster(coco, coco.loadRes(results), "bbox")
    evaluator.run()
    return evaluator.stats


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 5])
def test_accuracy_equals_the_library(seed, levels):
    dataset = invented_set(seed, images=20, crowds=True)
    found = invented_detections(dataset, seed + 100, noise=3.0, levels=levels)
    accuracy = parity.accuracy(parity.evaluate(dataset, found, "index"))
    stats = library_stats(dataset, found)
    got = [accuracy.ap, accuracy.ap50, accuracy.ap75, accuracy.ap_small, accuracy.ap_medium, accuracy.ap_large]
    assert 0.05 < accuracy.ap < 0.95
    np.testing.assert_allclose([-1 if value is None else value for value in got], stats[:6], rtol=0, atol=1e-9)
    present = [entry.ap for entry in accuracy.per_class if entry.ap is not None]
    assert np.mean(present) == pytest.approx(accuracy.ap, abs=1e-9)


def test_more_than_a_hundred_boxes_of_a_class_are_cut_as_coco_cuts_them():
    dataset = invented_set(3, images=2)
    found = invented_detections(dataset, 4, false=500)
    assert parity.evaluate(dataset, found, "index").accuracy.ap == pytest.approx(library_stats(dataset, found)[0], abs=1e-9)


def test_ap_by_hand():
    """Two truths; found: a hit at IoU 1, a miss, a hit at IoU 0.6. Precision 1 to recall 0.5, then 2/3 at IoU <= 0.6."""
    dataset = one_image((0, 0, 10, 10), (50, 50, 10, 10))
    found = [make([[0, 0, 10, 10], [80, 80, 90, 90], [50, 50, 56, 60]], [0.9, 0.8, 0.7], [0, 0, 0])]
    accuracy = parity.evaluate(dataset, found, "index").accuracy
    full, half = (51 * 1 + 50 * 2 / 3) / 101, 51 / 101
    assert accuracy.ap50 == pytest.approx(full, abs=1e-9)
    assert accuracy.ap75 == pytest.approx(half, abs=1e-9)
    assert accuracy.ap == pytest.approx((3 * full + 7 * half) / 10, abs=1e-9)
    assert accuracy.per_class[0].truths == 2


def test_truth_as_detections_is_perfect():
    dataset = invented_set(1)
    assert parity.evaluate(dataset, perfect(dataset), "category-id").accuracy.ap == 1.0


def test_a_box_in_a_crowd_counts_neither_way():
    dataset = one_image((0, 0, 10, 10), (40, 40, 60, 60), crowd=(False, True))
    inside = make([[50, 50, 60, 60], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])
    beside = make([[20, 0, 30, 10], [0, 0, 10, 10]], [0.9, 0.8], [0, 0])
    assert parity.evaluate(dataset, [inside], "index").accuracy.ap == 1.0
    assert parity.evaluate(dataset, [beside], "index").accuracy.ap == pytest.approx(0.5)


def test_nothing_found_and_nothing_to_find():
    dataset = invented_set(1)
    nothing = [make([], [], []) for _ in dataset.images]
    assert parity.evaluate(dataset, nothing, "index").accuracy.ap == 0.0
    empty = one_image()
    accuracy = parity.evaluate(empty, [make([[0, 0, 9, 9]], [0.5], [0])], "index").accuracy
    assert (accuracy.ap, accuracy.per_class[0].ap) == (0.0, None)


def test_nan_infinite_and_inverted_boxes_are_false_positives_not_crashes():
    dataset = one_image((0, 0, 10, 10))
    odd = [[np.nan] * 4, [0, 0, np.inf, 10], [10, 0, 0, 10], [0, 0, 1e9, 1e9]]
    bad = make([*odd, [0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8, 0.7, 0.6, np.nan, 0.5], [0] * 6)
    assert parity.evaluate(dataset, [bad], "index").accuracy.ap == pytest.approx(1 / 5)


def test_label_outside_the_categories_explains_the_label_map():
    dataset = one_image((0, 0, 10, 10))
    with pytest.raises(BadInput) as caught:
        parity.evaluate(dataset, [make([[0, 0, 10, 10]], [0.9], [1])], "index")
    assert caught.value.code == "labels-outside"
    assert "class 1" in caught.value.text()
    assert "category-id" in caught.value.text()
    assert parity.evaluate(dataset, [make([[0, 0, 10, 10]], [0.9], [1])], "category-id").accuracy.ap == 1.0
    with pytest.raises(BadInput, match="index"):
        parity.evaluate(dataset, [make([[0, 0, 10, 10]], [0.9], [0])], "category-id")


def test_faint_detections_in_gaps_of_the_category_numbering_are_left_out():
    dataset = one_image((0, 0, 10, 10))
    found = make([[0, 0, 10, 10], [5, 5, 20, 20]], [0.2, 0.1], [1, 0])
    assert parity.evaluate(dataset, [found], "category-id").accuracy.ap == 1.0


def test_unlabelled_set_is_refused():
    from dataclasses import replace

    with pytest.raises(BadInput) as caught:
        parity.evaluate(replace(one_image(), truths=None), [make([], [], [])], "index")
    assert caught.value.code == "data-unlabelled"
