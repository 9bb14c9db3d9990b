"""What is where: KServe v2 below /v2, images at /detect, health and metrics."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import httptools

from redline.serve.gateway.call import Call, Page, Target
from redline.serve.gateway.metrics import Entry
from redline.serve.gateway.refusal import Refused

MODEL_PATH: Final = re.compile(r"/v2/models/([\w.-]{1,128})(?:/versions/([0-9]{1,9}))?(?:/(infer|ready))?", re.ASCII)


class Paths:
    """`entries`: public model names. `pages`: by path; those named "ready" and "model" are of each model."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        pages: Mapping[str, Callable[[Call], Awaitable[Page]]],
        ready: Callable[[Call], Awaitable[Page]],
        model: Callable[[Call], Awaitable[Page]],
    ) -> None:
        self._entries = entries
        self._ready, self._model = ready, model
        self._fixed: dict[bytes, Target] = {b"/detect": Target(b"POST", "bytes")}
        self._fixed |= {path.encode(): Target(b"GET", page=page) for path, page in pages.items()}
        self._fixed |= {
            f"/v2/models/{name}/infer".encode(): Target(b"POST", entry, kserve=True) for name, entry in entries.items()
        }

    def find(self, call: Call) -> Target:
        """Raises Refused 400 (query, URL), 404, 405. A URL with a host keeps its path alone in `call.url`."""
        target = self._fixed.get(call.url) or self._other(call)
        if call.method != target.method:
            allowed = target.method.decode()
            raise Refused(
                405, "method", "this path has another method", got=call.method.decode(), allowed=allowed, allow=(allowed,)
            )
        return target

    def _other(self, call: Call) -> Target:
        path, query = _parts(call.url)
        call.url = path
        if query:
            raise Refused(
                400, "query", "there are no query parameters", got=_text(query), fix="leave out the ? and what follows"
            )
        if (fixed := self._fixed.get(path)) is not None:
            return fixed
        if (match := MODEL_PATH.fullmatch(_text(path))) is None:
            raise Refused(
                404,
                "path-unknown",
                "there is nothing at this path",
                got=_text(path),
                fix="POST /detect, or KServe v2 below /v2",
            )
        name, version, action = match.groups()
        if (entry := self._entries.get(name)) is None:
            raise Refused(404, "model-unknown", "there is no such model", got=name, allowed=list(self._entries))
        number = None if version is None else int(version)
        if action == "infer":
            return Target(b"POST", entry, kserve=True, version=number)
        return Target(b"GET", entry, version=number, page=self._ready if action == "ready" else self._model)


def _parts(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of what stands in a request's first line."""
    if not url.startswith(b"/"):
        try:
            found = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            return url, b""
        return found.path or url, found.query or b""
    path, _, query = url.partition(b"#")[0].partition(b"?")
    return path, query


def _text(url: bytes) -> str:
    return url.decode("utf-8", "replace")
