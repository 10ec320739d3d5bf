"""What a request that failed says about its source.

How it works: a wrong block bans the source for that content, an unusable answer leaves the source alone for a while,
a file that isn't there is not asked for again for as long as failures are remembered; the words go to the ledger.
Nobody asks a source again before that is clear. Where rclone stood between, it told only half of it, and the host is
asked itself what the matter is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachefs.errors import (
    BlockInvalid,
    CachefsError,
    IgnoresRanges,
    NotAtSource,
    OtherContent,
    RcloneGone,
    SourceBusy,
    SourceFailed,
)
from cachefs.fetch.base import Item
from cachefs.fetch.http.reception import CutShort
from cachefs.fetch.rclone.diagnosis import diagnose
from cachefs.fetch.remote.remotes import RemoteSource

if TYPE_CHECKING:
    from cachefs.fetch.remote.fetcher import RemoteFetcher

_FORBIDDEN = frozenset({401, 403, 404, 410})
_FORBIDDEN_FOR = 60.0


class Judge:
    """Judges the sources of one file; `trouble` is what it found last, in words."""

    def __init__(self, fetcher: RemoteFetcher, item: Item) -> None:
        self.trouble = ""
        self._fetcher = fetcher
        self._item = item

    def blames(self, source: RemoteSource, error: CachefsError) -> bool:
        """Take note of how a request ended; False if that is no fault of the source or of the way to it."""
        match error:
            case RcloneGone():
                self._fetcher.child.suspect()
                self.trouble = str(error)
            case NotAtSource():
                self._refused(source, "does not have it", self._fetcher.memory)
            case OtherContent():
                self._refused(source, str(error), _FORBIDDEN_FOR)
            case BlockInvalid():
                self._lied(source, error)
            case IgnoresRanges():
                self._gives_whole_files(source)
            case SourceBusy(status=status) if status in _FORBIDDEN:
                self._refused(source, str(error), _FORBIDDEN_FOR)
            case SourceFailed():
                self._gave_nothing(source, error)
            case _:
                return False
        return True

    def failed(self, source: RemoteSource, why: str, retry_after: float = 0.0) -> None:
        """Leave a source alone for a while, or for as many seconds as it wishes."""
        source.health.breaker.failed(why, retry_after=retry_after)
        self._note(source, f"{why}; asked again in {retry_after:g} s, as it wishes" if retry_after else why)

    def _gave_nothing(self, source: RemoteSource, error: SourceFailed) -> None:
        self.failed(source, str(error), error.retry_after if isinstance(error, SourceBusy) else 0.0)
        if not source.direct and isinstance(error, SourceBusy | CutShort):
            self._fetcher.start(self._look_into, source, str(error), False)

    def _lied(self, source: RemoteSource, error: BlockInvalid) -> None:
        why = f"sent wrong bytes for {self._item.name}; banned for this file: {error}"
        source.health.refuse(self._item.content, "sent wrong bytes", float("inf"))
        if source.direct:
            self._note(source, why, lied=True)
        else:
            self._fetcher.start(self._look_into, source, why, True)

    async def _look_into(self, source: RemoteSource, why: str, lied: bool) -> None:
        """Ask the host itself, for rclone doesn't tell that it ignores ranges, or when to come back."""
        found = await diagnose(source.seed.urls(self._item.name)[0]) if source.seed is not None else None
        if found is not None and found.whole_only and source.health.ranges:
            source.health.forgive(self._item.content)
            self._gives_whole_files(source)
        elif found is not None and found.retry_after:
            self.failed(source, why, found.retry_after)
        elif lied:
            self._note(source, why, lied=True)
        self._fetcher.schedule()

    def _gives_whole_files(self, source: RemoteSource) -> None:
        source.health.ignored_a_range()
        self._note(source, "does not answer ranges: it is asked for whole files only, if nobody else can")

    def _refused(self, source: RemoteSource, why: str, seconds: float) -> None:
        source.health.refuse(self._item.content, why, seconds)
        self._note(source, f"{why}: {self._item.name}")

    def _note(self, source: RemoteSource, why: str, *, lied: bool = False) -> None:
        self.trouble = f"{source.name}: {why}"
        self._fetcher.ledger.failed(source.name, why, lied=lied)
