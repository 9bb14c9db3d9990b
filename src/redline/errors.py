"""The errors redline raises. Each says what was wrong, what was got, what is allowed and what to do next.

RedlineError
├── BadInput          exit 2: the user's file, model, weights or data
├── StoreError        exit 2: the run folder cannot be written or read
└── TrialError        one candidate failed; tune records it as a Failure and goes on
"""

from __future__ import annotations


class RedlineError(Exception):
    """`code` is stable (for tests, scripts and docs); the text is for people."""

    def __init__(self, code: str, what: str, *, got: object = None, allowed: object = None, fix: str | None = None) -> None:
        self.code = code
        self.what = what
        self.got = got
        self.allowed = allowed
        self.fix = fix
        super().__init__(self.text())

    def text(self) -> str:
        lines = [self.what]
        if self.got is not None:
            lines.append(f"  got:     {self.got}")
        if self.allowed is not None:
            lines.append(f"  allowed: {self.allowed}")
        if self.fix is not None:
            lines.append(f"  fix:     {self.fix}")
        return "\n".join(lines)

    def line(self) -> str:
        """The same in one line, for a table or a list of reasons."""
        return "; ".join(line.strip() for line in self.text().splitlines())


class BadInput(RedlineError):
    """The user's spec, model, weights or data cannot be used as given."""


class StoreError(RedlineError):
    """The store or the run folder cannot be read or written; what was stored before is intact."""


class TrialError(RedlineError):
    """One candidate cannot be built, checked or run."""
