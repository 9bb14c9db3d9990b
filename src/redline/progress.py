"""Progress of long work on a rich console, or silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[], None]
Phases = Callable[[str, int, int], None]
"""(phase, step, steps) of a running build."""
SHOWN_S = 0.5


class Progress:
    """One line a stage while it runs, one line when it is done. `console` None prints nothing."""

    def __init__(self, console: Console | None) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """`total` steps are counted by calling what this yields; None shows a spinner."""
        if self._console is None:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        started = time.perf_counter()
        if not self._console.is_terminal:
            yield lambda: None
            self._done(name, started)
            return
        count = [BarColumn(bar_width=24), MofNCompleteColumn()] if total else []
        columns = [SpinnerColumn(), TextColumn("{task.description}"), *count, TimeElapsedColumn()]
        with Bar(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda: bar.advance(task)
        self._done(name, started)

    @contextmanager
    def build(self, name: str) -> Iterator[Phases]:
        """A build shows the phase that it says it is in, where it says so; what took no time at all shows nothing."""
        started = time.perf_counter()
        if self._console is None or not self._console.is_terminal:
            yield lambda phase, step, steps: None
        else:
            with self._console.status(name) as status:
                yield lambda phase, step, steps: status.update(f"{name}: {phase} {step}/{steps}")
        if time.perf_counter() - started > SHOWN_S:
            self._done(name, started)

    def note(self, text: str) -> None:
        if self._console is not None:
            self._console.print(f"  [yellow]·[/] {text}", highlight=False, markup=False)

    def _done(self, name: str, started: float) -> None:
        if self._console is not None:
            self._console.print(f"  [green]✓[/] {name} [dim]{time.perf_counter() - started:.1f} s[/]", highlight=False)
