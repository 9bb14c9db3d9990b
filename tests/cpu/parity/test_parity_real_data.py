"""mAP on real images and real detections; skipped where the shared files are not beside the checkout."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from redline import data, parity
from redline.records import DataRef, Detections, Determinism

SHARED = Path(__file__).parents[3].parent / "shared"
COCO = SHARED / "data" / "coco_val61"
BCCD = SHARED / "data" / "bccd"
RETINANET = SHARED / "models" / "retinanet_r50_bccd" / "test_detections_fp32.json"

pytestmark = pytest.mark.skipif(not (COCO.is_dir() and RETINANET.is_file()), reason=f"real data is not at {SHARED}")


@pytest.fixture(scope="module")
def coco():
    return data.load_dataset(DataRef(images=str(COCO / "images"), annotations=str(COCO / "instances.json")))


@pytest.fixture(scope="module")
def bccd():
    return data.load_dataset(DataRef(images=str(BCCD / "images"), annotations=str(BCCD / "instances_test.json")))


@pytest.fixture(scope="module")
def retinanet(bccd):
    found = json.loads(RETINANET.read_text())
    return [detections([entry for entry in found if entry["image_id"] == image.id]) for image in bccd.images]


def detections(entries):
    entries = sorted(entries, key=lambda entry: -entry["score"])
    boxes = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([entry["score"] for entry in entries], np.float32)
    return Detections(
        boxes=boxes.astype(np.float32), scores=scores, labels=np.array([e["category_id"] for e in entries], np.int64)
    )


def truth_as_detections(dataset, seed=0):
    """Every truth found exactly, with a random score; crowds are left out."""
    rng = np.random.default_rng(seed)
    entries = []
    for truth in dataset.truths:
        rows = zip(truth.boxes, truth.category_ids, truth.crowd, strict=True)
        own = [{"bbox": box, "category_id": category, "score": rng.uniform()} for box, category, crowd in rows if not crowd]
        entries.append(detections(own))
    return entries


def test_counts_of_the_sets(coco, bccd):
    assert (len(coco.images), sum(len(truth.boxes) for truth in coco.truths), len(coco.categories)) == (61, 457, 80)
    assert (len(bccd.images), sum(len(truth.boxes) for truth in bccd.truths)) == (72, 945)
    assert data.load_traffic(None, bccd).shapes[0].share == 1.0


def test_ground_truth_as_detections_has_ap_1_and_perturbations_lower_it(coco):
    found = truth_as_detections(coco)
    assert parity.evaluate(coco, found, "category-id").accuracy.ap == 1.0
    rng = np.random.default_rng(1)
    directions = [rng.normal(0, 1, one.boxes.shape).astype(np.float32) for one in found]
    aps = []
    for pixels in (0.5, 2.0, 8.0, 32.0):
        moved = [replace(one, boxes=one.boxes + pixels * step) for one, step in zip(found, directions, strict=True)]
        aps.append(parity.evaluate(coco, moved, "category-id").accuracy.ap)
    assert 1.0 > aps[0] > aps[1] > aps[2] > aps[3] > 0.0


def test_retinanet_on_bccd_has_its_published_accuracy(bccd, retinanet):
    accuracy = parity.evaluate(bccd, retinanet, "category-id").accuracy
    assert accuracy.ap == pytest.approx(0.6204, abs=1e-4)
    assert accuracy.ap50 == pytest.approx(0.9271, abs=1e-4)
    assert accuracy.ap75 == pytest.approx(0.7148, abs=1e-4)
    assert [entry.name for entry in accuracy.per_class] == ["RBC", "WBC", "Platelets"]
    assert [entry.ap for entry in accuracy.per_class] == pytest.approx([0.586, 0.792, 0.484], abs=6e-4)


def test_bootstrap_equals_coco_on_repeated_real_images(bccd, retinanet):
    evaluation = parity.evaluate(bccd, retinanet, "category-id")
    counts = parity.resample_counts(72, 2, seed=9)
    for row, ap in zip(counts, parity.resampled_ap(evaluation, counts), strict=True):
        which = np.repeat(np.arange(72), row)
        images = tuple(replace(bccd.images[i], id=number) for number, i in enumerate(which))
        copy = replace(bccd, images=images, truths=tuple(bccd.truths[i] for i in which))
        again = parity.evaluate(copy, [retinanet[i] for i in which], "category-id").accuracy.ap
        assert ap == pytest.approx(again, abs=1e-12)


def test_small_noise_is_inconclusive_on_few_images_and_gross_noise_fails(bccd, retinanet):
    """72 images cannot decide half a percent: the tool has to say so."""
    rng = np.random.default_rng(4)
    truth = parity.ground_truth(bccd, retinanet, "category-id")
    reference = parity.observe(truth, retinanet)
    answers = []
    for pixels in (0.0, 0.3, 6.0):
        moved = [replace(one, boxes=one.boxes + rng.normal(0, pixels, one.boxes.shape).astype(np.float32)) for one in retinanet]
        report = parity.compare(
            reference,
            parity.observe(truth, moved),
            names=[],
            precision="fp32",
            determinism=Determinism(repeats=1, identical=True),
            budget_pct=0.5,
            evidence="interval",
        )
        answers.append(report.verdict.answer)
    assert answers == ["pass", "inconclusive", "fail"]
