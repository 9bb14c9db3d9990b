"""Why a request is not answered as asked: one exception, one JSON form, and upstream's texts made fit for strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from redline.errors import RedlineError

LONGEST_TEXT = 300
"""Characters of one field of an error; a client's own input may come back in it."""
TRACE = re.compile(r"\n\s*(?:At:|Traceback )|Traceback \(most recent call last\)")
PATH = re.compile(r"(?:/[\w.+@-]+){2,}/?")
TRITON_FRAME = re.compile(
    r"^(?:in ensemble '[^']*', )?Failed to process the request\(s\) for model instance '[^']*', message: "
)


class Refused(RedlineError):
    """A request ends with HTTP `status`. 4xx: the client's mistake; 5xx: ours, and counted against the release."""

    def __init__(
        self,
        status: int,
        code: str,
        what: str,
        *,
        got: object = None,
        allowed: object = None,
        fix: str | None = None,
        retry_after_s: int | None = None,
        allow: Sequence[str] = (),
        close: bool = False,
    ) -> None:
        super().__init__(code, what, got=got, allowed=allowed, fix=fix)
        self.status = status
        self.retry_after_s = retry_after_s
        self.allow = tuple(allow)
        """Methods, for 405."""
        self.close = close
        """The connection cannot be used again: unread bytes of this request may still come."""

    def body(self, request_id: str, *, kserve: bool) -> bytes:
        """{"error": {"code", "what", "got", "allowed", "fix"}, "request_id"}; absent fields are left out.

        `kserve`: the error as a text, as KServe v2 has it and its clients need it, and the fields under "reason".
        """
        fields = {"code": self.code, "what": self.what, "got": self.got, "allowed": self.allowed, "fix": self.fix}
        reason = {name: _short(value) for name, value in fields.items() if value is not None}
        if not kserve:
            return json.dumps({"error": reason, "request_id": request_id}).encode()
        details = "; ".join(f"{name}: {text}" for name, text in reason.items() if name not in ("code", "what"))
        text = f"{reason['what']} ({details})" if details else reason["what"]
        return json.dumps({"error": text, "reason": reason, "request_id": request_id}).encode()

    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return found | ({"Allow": ", ".join(self.allow)} if self.allow else {})


def clean(text: str) -> str:
    """A server's error without traceback, file paths and line breaks: what a stranger may read."""
    text = TRACE.split(text, maxsplit=1)[0]
    text = TRITON_FRAME.sub("", text)
    return _short(" ".join(PATH.sub("<path>", text).split())) or "no reason given"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
