"""Hosts that ask to be left alone for a while, by Retry-After (RFC 9110, 10.2.3), and that it is done.

How it works: the wish of a host is an error, `Busy`, for whoever asked for something, and is remembered: until it has
run out, whoever asks the same host gets the error without a request. It has no say on whether somebody waits: other
sources are tried first, and then a wait may be short enough to be worth it. A wish is kept to for an hour at most: it
may have been a slip.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time
from urllib.parse import urlsplit

import trio

from cachefs.errors import UrlFailed

_MOST = 3600.0


class Busy(UrlFailed):
    """A host that asks to be left alone until `until`, on trio's clock."""

    def __init__(self, url: str, why: str, until: float) -> None:
        super().__init__(url, f"{why}; asks to come back in {_in_words(until - trio.current_time())}")
        self.until = until


def soon(failed: Mapping[str, UrlFailed], seconds: float) -> dict[str, float]:
    """Of URLs that have failed those whose hosts asked to come back within so many seconds, and when."""
    most = trio.current_time() + seconds
    return {url: error.until for url, error in failed.items() if isinstance(error, Busy) and error.until <= most}


class Wishes:
    """What hosts have asked for."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def wish(self, url: str, why: str, seconds: float) -> Busy:
        """Take note of a wish; the error for who asked."""
        now = trio.current_time()
        self._until = {host: until for host, until in self._until.items() if until > now}
        until = self._until[_host(url)] = now + min(seconds, _MOST)
        return Busy(url, why, until)

    def respect(self, url: str) -> None:
        """Busy, if the host of this URL is to be left alone still."""
        until = self._until.get(_host(url), 0.0)
        if trio.current_time() < until:
            raise Busy(url, "left alone, as its host is busy", until)


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def seconds_until(value: str) -> float:
    """What a Retry-After says in seconds: a number or a date; 0 if it is neither."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
