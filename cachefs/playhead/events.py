"""Server-sent events: a playhead as an event, and playheads out of a stream of bytes.

Format: the WHATWG HTML standard, section 9.2 "Server-sent events". An event is `field: value` lines and an empty one;
a line that begins with a colon is a comment, which keeps the connection alive. Only what the playhead API says is
read: `data` fields are joined by newlines, other fields don't matter here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from cachefs.errors import PlayheadInvalid
from cachefs.playhead.model import Playhead

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE = b": still here\n\n"
_LONGEST_EVENT = 65_536


def encode(head: Playhead) -> bytes:
    """One event, its id the revision."""
    return f"event: playhead\nid: {head.revision}\ndata: {json.dumps(head.as_json())}\n\n".encode()


class Decoder:
    """Playheads out of the bytes of a stream, however they are cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[Playhead]:
        """The playheads that `chunk` completes; PlayheadInvalid for an event that isn't one, or is too long."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not field and not value and self._data:
                yield _playhead(b"\n".join(self._data))
                self._data = []
        if len(self._rest) + sum(map(len, self._data)) > _LONGEST_EVENT:
            raise PlayheadInvalid(f"an event of more than {_LONGEST_EVENT} bytes")


def _playhead(text: bytes) -> Playhead:
    try:
        return Playhead.from_json(json.loads(text))
    except (ValueError, RecursionError):
        raise PlayheadInvalid(f"not JSON: {text[:80]!r}") from None
