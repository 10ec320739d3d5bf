"""What is the matter with a web host: one small request of our own, after something went wrong.

How it works: rclone, where it stands between, says that an answer was unusable, but not when to come back, nor that a
host ignores ranges and sends every file from its start. One request for a single byte, whose body isn't read, tells
both.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import trio

from cachefs.fetch.http.body import answered
from cachefs.fetch.http.busy import seconds_until

_WITHIN = 5.0
_ONE_BYTE = {"Range": "bytes=1-1", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a host answered; `retry_after` in seconds, 0 if it asked for none."""

    status: int
    retry_after: float

    @property
    def whole_only(self) -> bool:
        """Whether it has the file, and ignored that a part of it was asked for."""
        return self.status == 200


async def diagnose(url: str) -> Diagnosis | None:
    """Ask for the second byte of `url`; None if no answer comes."""
    try:
        with trio.fail_after(_WITHIN):
            async with httpx.AsyncClient(timeout=_WITHIN) as client, answered(client, url, _ONE_BYTE) as response:
                return Diagnosis(response.status_code, retry_after(response))
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, trio.TooSlowError):  # UnicodeError: no host, by IDNA
        return None


def retry_after(response: httpx.Response) -> float:
    """For how many seconds an answer asks to be left alone, else 0."""
    return seconds_until(response.headers.get("retry-after", ""))
