"""Records that the limits would delete next, and that could not be had again: told while they can still be kept.

How it works: at the start and every hour the least recently used records are looked at, for they go first. Each URL of
theirs is asked for a single byte. A record none of whose URLs gives anything, and that has no swarm, is told in the
log, once a day, and in the status, by name and with the reason. Pinning it keeps it. It is only a warning: a limit is
a limit.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from cachefs import layout
from cachefs.catalog.records import Record
from cachefs.content import ContentId
from cachefs.errors import CachefsError, UrlFailed
from cachefs.fetch.http.busy import Busy
from cachefs.fetch.http.client import WebClient

LOOK_EVERY = 3600.0
"""Seconds between two looks."""

AT_A_LOOK = 10
"""How many records are asked after at a time: the next to go, and some more."""

_TELL_EVERY = 86_400.0
_SCHEMES = ("https://", "http://")

log = logging.getLogger(__name__)


class LastCopies:
    """`next_to_go` gives the contents of records that may be evicted, the first to go first, at most so many."""

    def __init__(
        self,
        web: WebClient,
        next_to_go: Callable[[int], Awaitable[Sequence[ContentId]]],
        records: Callable[[], Mapping[str, Record]],
    ) -> None:
        self._web = web
        self._next_to_go = next_to_go
        self._records = records
        self._found: dict[str, str] = {}
        self._told_at: dict[str, float] = {}

    def report(self) -> Mapping[str, str]:
        """By record, why it can't be had again; as of the last look."""
        return self._found

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            try:
                await self.look()
            except CachefsError as error:
                log.error("records that may be evicted soon can't be looked at: %s", error)
            except Exception:  # a fault of ours costs a look, not the mount
                log.exception("looking at records that may be evicted soon")
            await trio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Ask after the next to go, and tell which of them are last copies."""
        going = set(await self._next_to_go(AT_A_LOOK))
        asked = [record for record in self._records().values() if record.content in going and _only_by_url(record)]
        why = {record.name: await self._trouble(record) for record in asked}
        self._found = {name: told for name, told in why.items() if told}
        for name, told in self._found.items():
            self._tell(name, told)

    def _tell(self, name: str, why: str) -> None:
        now = trio.current_time()
        if now - self._told_at.get(name, float("-inf")) >= _TELL_EVERY:
            self._told_at[name] = now
            label = layout.label(layout.RECORDS, name)
            log.warning("%s may be evicted soon and can't be had again: %s; cachefs pin %r keeps it", label, why, label)

    async def _trouble(self, record: Record) -> str:
        """Why none of its URLs gives anything; "" if one does."""
        troubles = []
        for url in record.urls:
            try:
                async with self._web.get(url, {"Range": "bytes=0-0"}):
                    return ""
            except Busy:  # it is there
                return ""
            except UrlFailed as error:
                troubles.append(str(error))
        return "; ".join(troubles)


def _only_by_url(record: Record) -> bool:
    """Whether the web is where it comes from: of other sources a look tells nothing."""
    return record.swarm is None and all(url.startswith(_SCHEMES) for url in record.urls)
