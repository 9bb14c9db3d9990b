"""After the search: how far INT8, and a choice that is not in FP32, are from FP32; by class, by size, on which images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args

from redline.errors import BadInput, RedlineError, TrialError
from redline.parity import score_shift, worst_images
from redline.records import Bound, Candidate, Choice, Dataset, Trial
from redline.records.quantize import Number
from redline.served import plain

if TYPE_CHECKING:
    from redline.evaluate import Observer
    from redline.prepare import Subject
    from redline.workbench import Workbench

NARROW = get_args(Number)


def bounds(
    subject: Subject,
    bench: Workbench,
    trials: Sequence[Trial],
    choices: Sequence[Choice],
    note: Callable[[str], None],
) -> tuple[Bound, ...]:
    """Of the fastest INT8 or FP8 candidate, within its budget or not, and of each choice unless that is in FP32.

    On the images of `[data] confirm` where there are any. Nothing is chosen by it; what fails here is left out with a note.
    """
    dataset, further = subject.confirm or subject.dataset, subject.confirm is not None
    observer, found = bench.observer(dataset), []
    for candidate in candidates(trials, choices):
        made = _bound(observer, candidate, dataset, further=further)
        if isinstance(made, Bound):
            found.append(made)
        else:
            note(f"{candidate.name} was not compared with FP32 once more: {made.text()}")
    return tuple(found)


def _bound(observer: Observer, candidate: Candidate, dataset: Dataset, *, further: bool) -> Bound | RedlineError:
    try:
        report, seen = observer.parity(candidate), observer.detections(candidate)
        reference = observer.reference()
    except (BadInput, TrialError) as error:  # it ran before, and what was measured must not be lost
        return error
    return Bound(
        candidate=candidate,
        further=further,
        data=dataset.digest,
        drop=report.drop,
        reference=reference.evaluation.accuracy,
        accuracy=report.accuracy,
        boxes=report.boxes,
        score_shift=score_shift(reference.detections, seen),
        worst=worst_images([image.path for image in dataset.images], reference.detections, seen),
    )


def candidates(trials: Sequence[Trial], choices: Sequence[Choice]) -> list[Candidate]:
    narrow = [trial for trial in trials if trial.candidate.precision in NARROW and trial.screen is not None]
    fastest = max(narrow, key=lambda trial: trial.screen.achieved_per_s if trial.screen is not None else 0.0, default=None)
    wanted = [fastest.candidate] if fastest is not None else []
    chosen = [choice.candidate for choice in choices if choice.candidate is not None]
    wanted += [plain(candidate) for candidate in chosen if candidate.precision != "fp32"]
    return list(dict.fromkeys(wanted))
