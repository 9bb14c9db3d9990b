"""Which release answers a request, and which one gets a copy of it to compare."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from redline.records import Routes
from redline.serve.gateway.refusal import Refused

FINEST_SHARE = 1_000_000
"""A canary's share is taken as the nearest fraction with at most this denominator: 0.1 is exactly every tenth request."""


class RouteTable:
    """Holds the routes. Assigning `routes` swaps them all at once; a request keeps what it read when it came."""

    __slots__ = ("routes",)

    def __init__(self, routes: Routes | None = None) -> None:
        self.routes = routes or Routes()


class Route(NamedTuple):
    release: int
    shadow: int | None = None
    """Gets a copy after the answer was sent."""
    on_trial: int | None = None
    """The one of the two that the comparison judges: the newer."""


class _Spread:
    """A share of the requests, evenly: by counting and not by chance."""

    __slots__ = ("_owed", "_share")

    def __init__(self, share: float) -> None:
        self._share, self._owed = Fraction(share).limit_denominator(FINEST_SHARE), Fraction(0)

    def turn(self) -> bool:
        self._owed += self._share
        if self._owed < 1:
            return False
        self._owed -= 1
        return True


class Router:
    """Decides by a `RouteTable`."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self._counted: Routes | None = None
        self._canary, self._shadow = _Spread(0.0), _Spread(0.0)

    def pick(self, version: int | None = None) -> Route:
        """The route of the next request; `version` is a release that the client names. Raises Refused 404, 503."""
        routes = self.table.routes
        release = self.named(version)
        if routes is not self._counted:
            self._counted = routes
            self._canary, self._shadow = _Spread(routes.canary_share), _Spread(routes.shadow_share)
        if version is None and routes.canary is not None and self._canary.turn():
            release = routes.canary
        if routes.shadow and release == routes.active and self._shadow.turn():
            if routes.canary is not None:
                return Route(release=release, shadow=routes.canary, on_trial=routes.canary)
            if routes.previous is not None:
                return Route(release=release, shadow=routes.previous, on_trial=release)
        return Route(release=release)

    def named(self, version: int | None) -> int:
        """The release that `version` names, the active one if None; no canary. Raises Refused 404, 503."""
        routes = self.table.routes
        if version is None:
            if routes.active is None:
                raise Refused(503, "no-release", "nothing is released yet", fix="ask again later", retry_after_s=5)
            return routes.active
        loaded = {number for number in (routes.active, routes.previous, routes.canary) if number is not None}
        if version not in loaded:
            raise Refused(404, "version-unknown", "there is no such version", got=version, allowed=sorted(loaded) or "none yet")
        return version
