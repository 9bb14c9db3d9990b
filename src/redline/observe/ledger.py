"""Counters of one endpoint over time: increases over any window, whatever restarted in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from redline.observe.scrape import Sample, Scrape

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name and sorted labels."""


@dataclass(frozen=True, slots=True)
class Increase:
    """What the counters grew by over `seconds`."""

    seconds: float
    values: Mapping[Series, float]

    def total(self, name: str, **labels: str) -> float:
        """Sum over every series of that name whose labels include `labels`."""
        return sum(value for _, value in self.of(name, **labels))

    def of(self, name: str, **labels: str) -> Iterable[tuple[Mapping[str, str], float]]:
        wanted = labels.items()
        for (known, pairs), value in self.values.items():
            if known == name and wanted <= dict(pairs).items():
                yield dict(pairs), value

    def labels(self, name: str, label: str) -> list[str]:
        """Every value that `label` has in series of that name."""
        return sorted({found[label] for found, _ in self.of(name) if label in found})


@dataclass(frozen=True, slots=True)
class Moment:
    """Totals at one time of the scrapes' clock."""

    at_s: float
    totals: Mapping[Series, float]


@dataclass(slots=True)
class Ledger:
    """Counters since the first scrape, corrected for restarts.

    A counter that is smaller than before was started anew, and grew by its whole value, as Prometheus' `increase` has it; so
    were then all counters of the same release or model, since they belong to one process or one loading of a model.
    """

    keep_s: float
    """Longest window that will be asked for."""
    _last: dict[Series, float] = field(default_factory=dict)
    _moments: deque[Moment] = field(default_factory=deque)

    def add(self, scrape: Scrape) -> None:
        """A scrape without samples adds nothing: what happened meanwhile is in the next one."""
        if scrape.error is not None:
            return
        now = {series_of(sample): sample.value for sample in scrape.samples if sample.grows}
        if not self._moments:
            totals = dict.fromkeys(now, 0.0)
        else:
            anew = {_owner(series) for series, value in now.items() if value < self._last.get(series, 0.0)}
            totals = dict(self._moments[-1].totals)
            for series, value in now.items():
                before = 0.0 if _owner(series) in anew else self._last.get(series, 0.0)
                totals[series] = totals.get(series, 0.0) + value - before
        self._last |= now
        self._moments.append(Moment(scrape.at_s, totals))
        while len(self._moments) > 2 and self._moments[1].at_s <= scrape.at_s - self.keep_s:
            self._moments.popleft()

    def over(self, window_s: float) -> Increase:
        """The increase over the last `window_s` seconds up to the newest scrape, or over as much as was seen.

        It begins at a scrape: 0 is the time since the one before.
        """
        if not self._moments:
            return Increase(0.0, {})
        *before, newest = self._moments
        earlier = [moment for moment in before if moment.at_s <= newest.at_s - window_s]
        return _between(earlier[-1] if earlier else self._moments[0], newest)

    def mark(self) -> Moment:
        """The newest moment, to ask later for what grew `since`. Raises IndexError before the first scrape."""
        return self._moments[-1]

    def since(self, mark: Moment) -> Increase:
        return _between(mark, self._moments[-1])


def series_of(sample: Sample) -> Series:
    return sample.name, tuple(sorted(sample.labels.items()))


def _between(before: Moment, now: Moment) -> Increase:
    return Increase(now.at_s - before.at_s, {key: value - before.totals.get(key, 0.0) for key, value in now.totals.items()})


def _owner(series: Series) -> tuple[str | None, str | None, str | None]:
    labels = dict(series[1])
    return labels.get("release"), labels.get("model"), labels.get("version")
