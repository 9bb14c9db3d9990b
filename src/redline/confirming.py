"""After the search: what was chosen, compared with FP32 on images that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from redline.errors import TrialError
from redline.records import Candidate, Choice, Confirmed, Trial
from redline.served import plain

if TYPE_CHECKING:
    from redline.evaluate import Observer
    from redline.prepare import Subject
    from redline.workbench import Workbench

NARROW = ("int8", "fp8")


def confirm(subject: Subject, bench: Workbench, trials: Sequence[Trial], choice: Choice) -> tuple[Confirmed, ...]:
    """Of the fastest INT8 or FP8 candidate, within its budget or not, and of the choice unless that is in FP32.

    Nothing is chosen by it. Empty without `[data] confirm`; a candidate that fails here is left out.
    """
    if subject.confirm is None:
        return ()
    observer = bench.observer(subject.confirm)
    found = (_confirmed(observer, candidate) for candidate in candidates(trials, choice))
    return tuple(one for one in found if one is not None)


def _confirmed(observer: Observer, candidate: Candidate) -> Confirmed | None:
    try:
        return Confirmed(candidate=candidate, drop=observer.parity(candidate).drop)
    except TrialError:  # it ran before: the report shows what the search found of it
        return None


def candidates(trials: Sequence[Trial], choice: Choice) -> list[Candidate]:
    narrow = [trial for trial in trials if trial.candidate.precision in NARROW and trial.screen is not None]
    fastest = max(narrow, key=lambda trial: trial.screen.achieved_per_s if trial.screen is not None else 0.0, default=None)
    wanted = [fastest.candidate] if fastest is not None else []
    if choice.candidate is not None and choice.candidate.precision != "fp32":
        wanted.append(plain(choice.candidate))
    return list(dict.fromkeys(wanted))
