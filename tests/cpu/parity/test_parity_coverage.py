"""Does the 95 % interval cover the true drop? Sets are drawn from a large simulated population whose drop is known."""

import numpy as np
import pytest

from redline import parity
from redline.parity.evaluation import IOU_THRESHOLDS
from redline.records import Accuracy

POPULATION, SET, SETS, RESAMPLES = 20_000, 100, 300, 200


class Population:
    """Images with 1 to 6 objects; both systems find an object with an IoU and a score that mostly come from the object, and
    report three false boxes an image. The candidate's IoU and score are noisier.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.truths = rng.integers(1, 7, POPULATION)
        self.image = np.repeat(np.arange(POPULATION), self.truths + 3)
        ease = rng.normal(0, 1, self.image.size)
        false = np.concatenate([np.arange(number + 3) >= number for number in self.truths])
        self.systems = []
        for noise in (0.15, 0.35):
            seen = ease + rng.normal(0, noise, ease.size)
            overlap = np.where(false, 0.0, 0.78 + 0.12 * seen)
            score = 1 / (1 + np.exp(-(seen + rng.normal(0, noise, ease.size) - 1.0 * false)))
            self.systems.append((score, overlap >= IOU_THRESHOLDS[:, None]))
        self.starts = np.concatenate([[0], np.cumsum(self.truths + 3)])

    def draw(self, images: np.ndarray) -> list[parity.Evaluation]:
        """Both systems' evaluations on a set of the population's images."""
        rows = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in images])
        place = np.repeat(np.arange(images.size), self.truths[images] + 3)
        evaluations = []
        for score, hits in self.systems:
            order = np.argsort(-score[rows], kind="stable")
            matches = parity.CategoryMatches(
                scores=score[rows][order],
                image=place[order].astype(np.int32),
                matched=hits[:, rows[order]],
                ignored=np.zeros((len(IOU_THRESHOLDS), rows.size), bool),
                truths=self.truths[images],
            )
            evaluations.append(self.evaluation(matches, images.size))
        return evaluations

    @staticmethod
    def evaluation(matches: parity.CategoryMatches, images: int) -> parity.Evaluation:
        def known(ap: float) -> parity.Evaluation:
            accuracy = Accuracy(
                kind="map", ap=ap, ap50=ap, ap75=ap, ap_small=None, ap_medium=None, ap_large=None, images=images, per_class=()
            )
            return parity.Evaluation(images=images, categories=(matches,), accuracy=accuracy)

        return known(float(parity.resampled_ap(known(0.0), np.ones((1, images), np.int64))[0]))


def test_interval_covers_the_true_drop():
    """Of 300 sets at 95 %, 92.5 to 97.5 % cover (two standard deviations); the band leaves room for small-sample bias."""
    population = Population(seed=11)
    before, after = population.draw(np.arange(POPULATION))
    true = before.accuracy.ap - after.accuracy.ap
    assert 0.005 < true < 0.1
    rng = np.random.default_rng(12)
    covered, widths = [], []
    for number in range(SETS):
        drop = parity.map_drop(*population.draw(rng.choice(POPULATION, SET, replace=False)), resamples=RESAMPLES, seed=number)
        covered.append(drop.absolute_low <= true <= drop.absolute_high)
        widths.append(drop.absolute_high - drop.absolute_low)
    assert 0.90 <= np.mean(covered) <= 0.99
    assert np.mean(widths) < 3 * true


def test_width_shrinks_as_the_square_root_of_the_images():
    """The rule behind images_to_decide: four times the images halve the interval."""
    population = Population(seed=13)
    rng = np.random.default_rng(14)
    widths = []
    for images in (100, 400):
        drops = [
            parity.map_drop(*population.draw(rng.choice(POPULATION, images, replace=False)), resamples=200) for _ in range(6)
        ]
        widths.append(np.mean([drop.absolute_high - drop.absolute_low for drop in drops]))
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.2)
