"""After the search: how far INT8, and a choice that is not in FP32, are from FP32; by class, by size, on which images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from redline.errors import TrialError
from redline.parity import score_shift, worst_images
from redline.records import Bound, Candidate, Choice, Trial
from redline.served import plain

if TYPE_CHECKING:
    from redline.evaluate import Observer
    from redline.prepare import Subject
    from redline.workbench import Workbench

NARROW = ("int8", "fp8")


def bounds(subject: Subject, bench: Workbench, trials: Sequence[Trial], choice: Choice) -> tuple[Bound, ...]:
    """Of the fastest INT8 or FP8 candidate, within its budget or not, and of the choice unless that is in FP32.

    On the images of `[data] confirm` where there are any. Nothing is chosen by it; a candidate that fails here is left out.
    """
    dataset, further = subject.confirm or subject.dataset, subject.confirm is not None
    observer, paths = bench.observer(dataset), [image.path for image in dataset.images]
    found = (_bound(observer, candidate, paths, further=further) for candidate in candidates(trials, choice))
    return tuple(one for one in found if one is not None)


def _bound(observer: Observer, candidate: Candidate, paths: Sequence[str], *, further: bool) -> Bound | None:
    try:
        report, seen = observer.parity(candidate), observer.detections(candidate)
        reference = observer.reference()
    except TrialError:  # it ran before: the report shows what the search found of it
        return None
    return Bound(
        candidate=candidate,
        further=further,
        drop=report.drop,
        reference=reference.evaluation.accuracy,
        accuracy=report.accuracy,
        boxes=report.boxes,
        score_shift=score_shift(reference.detections, seen),
        worst=worst_images(paths, reference.detections, seen),
    )


def candidates(trials: Sequence[Trial], choice: Choice) -> list[Candidate]:
    narrow = [trial for trial in trials if trial.candidate.precision in NARROW and trial.screen is not None]
    fastest = max(narrow, key=lambda trial: trial.screen.achieved_per_s if trial.screen is not None else 0.0, default=None)
    wanted = [fastest.candidate] if fastest is not None else []
    if choice.candidate is not None and choice.candidate.precision != "fp32":
        wanted.append(plain(choice.candidate))
    return list(dict.fromkeys(wanted))
