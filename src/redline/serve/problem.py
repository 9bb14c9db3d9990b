"""What is wrong with a rendered configuration, in the form that every error of redline has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redline.errors import BadInput


@dataclass(frozen=True, slots=True)
class Problem:
    code: str
    """Stable, for tests and scripts."""
    model: str
    """The Triton model, or the release as a whole ("release 3")."""
    what: str
    got: str
    allowed: str

    @property
    def line(self) -> str:
        return f"{self.model}: {self.what}: {self.got} (allowed: {self.allowed}) [{self.code}]"


def refuse(problems: Sequence[Problem], what: str) -> None:
    """Raises BadInput with all problems under the first one's code, if there are any."""
    if problems:
        raise BadInput(
            problems[0].code,
            what,
            got="\n           ".join(problem.line for problem in problems),
            allowed=problems[0].allowed,
            fix="choose a candidate and an engine that fit each other, or report this if redline chose both",
        )
