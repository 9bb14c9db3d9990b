"""One request on its way: what was asked, its body as it comes, and what its metrics and its answer need."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from redline.records.serve import Role
from redline.serve.gateway.body import Piece
from redline.serve.gateway.metrics import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from redline.serve.gateway.connection import Connection

ROLES: Final[Mapping[Entry, Role]] = {"bytes": "entry", "tensor": "tensor"}
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Page(NamedTuple):
    """An answer that is not about detections."""

    body: bytes
    status: int = 200
    kind: bytes = b"application/json"


class Target(NamedTuple):
    """What a path stands for: a request for detections, or a page."""

    method: bytes
    entry: Entry | None = None
    """The model that is meant."""
    kserve: bool = False
    """A KServe v2 request, not an image alone."""
    version: int | None = None
    page: Callable[[Call], Awaitable[Page]] | None = None


class Call:
    """`fields`: headers by their names in lower case; the values of one that came twice are joined by ", "."""

    __slots__ = (
        "answered",
        "begun",
        "connection",
        "fields",
        "id",
        "keeps",
        "method",
        "pieces",
        "release",
        "size",
        "started_s",
        "target",
        "url",
        "wanted",
        "whole",
    )

    def __init__(
        self, connection: Connection, method: bytes, url: bytes, fields: Mapping[bytes, bytes], *, keeps: bool
    ) -> None:
        self.connection = connection
        self.method = method
        self.url = url
        self.fields = fields
        self.keeps = keeps
        """The connection takes another request after this one's answer."""
        given = fields.get(b"x-request-id")
        # Told apart in logs, not secret: a system call for each would cost more than it is worth.
        self.id = given.decode() if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        self.target: Target | None = None
        """None: not known yet, or nothing at this path."""
        self.release: int | None = None
        self.started_s = 0.0
        """Of the end of the body: a client's slow upload is not the release's latency."""
        self.pieces: list[Piece] = []
        self.size = 0
        """Bytes of the body that are held."""
        self.wanted = True
        """What comes of the body is kept."""
        self.whole = False
        """Nothing more of it will come."""
        self.begun = False
        """It counts as being answered."""
        self.answered = False

    @property
    def entry(self) -> Entry | None:
        """None: not a request for detections, so not counted."""
        target = self.target
        return None if target is None or target.page is not None else target.entry
