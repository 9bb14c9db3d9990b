"""TensorRT's log, kept: its own lines are the best explanation of a failure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

LINES = 200


@dataclass(slots=True)
class Log:
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=LINES))

    def tail(self, lines: int = 3) -> str:
        """The last errors, or warnings if there are none."""
        last = list(self.errors or self.warnings)[-lines:]
        return " | ".join(" ".join(line.split())[:400] for line in last) or "TensorRT's log is empty"

    def distinct_warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(" ".join(line.split()) for line in self.warnings))


def make_logger(module: Any) -> tuple[Log, Any]:
    """What is logged, and a logger for TensorRT's factories; they hold no reference to it, so the caller does."""
    log, base = Log(), module.ILogger

    class Logger(base):  # type: ignore[misc, valid-type, unused-ignore]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            # Called from TensorRT's threads: deque.append is atomic, and nothing here may raise.
            if severity in (base.Severity.INTERNAL_ERROR, base.Severity.ERROR):
                log.errors.append(text)
            elif severity == base.Severity.WARNING:
                log.warnings.append(text)

    return log, Logger()
