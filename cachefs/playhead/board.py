"""The daemon that decides: all playheads, changed one at a time, told to whoever watches, kept across restarts.

How it works: a change is decided without awaiting anything, so changes have an order, and one counter numbers them
all. The counter is of the board, not of a record: a playhead that was forgotten and came back has a higher revision
than before. A watcher holds the latest value of each record that it hasn't taken yet, nothing older: a slow one skips
what is past, and needs no more memory than there are records.

The board is written behind: a change is told at once and is in `playheads.json` a moment later. What a crash loses is
the last moment's changes, and followers take what they are told when they connect again. On a disk that is full, say,
it is tried again and again, and at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import trio

from cachefs.catalog.files import read_text, replace_text
from cachefs.errors import CachefsError, CatalogError, PlayheadInvalid
from cachefs.playhead.model import Change, Playhead, changed, record_name

MAX_RECORDS = 10_000
"""The most playheads that are kept; the one that has been unchanged for longest is forgotten first."""

_SAVE_AGAIN = 10.0
"""Seconds after which what could not be written is tried again."""

log = logging.getLogger(__name__)


class Heads(Protocol):
    """Playheads, wherever they are decided: here (`Board`) or at another daemon (`RemoteBoard`)."""

    def utc(self) -> float:
        """The time by which anchors are meant, in seconds since 1970."""
        ...

    def get(self, record: str) -> Playhead:
        """A record's playhead as far as it is known here; revision 0 if nobody has touched it."""
        ...

    def heads(self) -> Mapping[str, Playhead]:
        """All playheads that somebody has touched; PlayheadUnreachable while it isn't known which those are."""
        ...

    async def change(self, record: str, change: Change) -> Playhead:
        """Make a change, and return the playhead after it; PlayheadConflict, PlayheadUnreachable."""
        ...

    def watch(self, record: str | None = None) -> contextlib.AbstractAsyncContextManager[Watch]:
        """The present playheads, of one record or of all, and then each change."""
        ...


class Watch:
    """What one watcher hasn't taken yet: the latest playhead of each record."""

    def __init__(self, record: str | None) -> None:
        self.record = record
        self._pending: dict[str, Playhead] = {}
        self._news = trio.Event()

    def put(self, head: Playhead) -> None:
        if self.record in (None, head.record):
            self._pending[head.record] = head
            self._news.set()

    async def next(self) -> Playhead:
        """The next playhead that is new to this watcher; waits for one."""
        while not self._pending:
            self._news = trio.Event()
            await self._news.wait()
        return self._pending.pop(next(iter(self._pending)))


class Watchers:
    """Those who watch, and what they are told first."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    def tell(self, head: Playhead) -> None:
        for watch in self._watches:
            watch.put(head)

    @asynccontextmanager
    async def watch(self, record: str | None, present: Iterable[Playhead]) -> AsyncIterator[Watch]:
        watch = Watch(record)
        for head in present:
            watch.put(head)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)


class Board:
    """The playheads that this daemon decides on. `utc` is its clock, in seconds since 1970."""

    def __init__(self, utc: Callable[[], float], path: Path | None = None) -> None:
        self.utc = utc
        self._path = path
        self._heads = _load(path)
        self._revision = max((head.revision for head in self._heads.values()), default=0)
        self._watchers = Watchers()
        self._unsaved = trio.Event()
        self.trouble = ""
        """What keeps changes from being written down; empty if nothing does."""

    def get(self, record: str) -> Playhead:
        return self._heads.get(record_name(record)) or Playhead(record)

    def heads(self) -> Mapping[str, Playhead]:
        return self._heads

    async def change(self, record: str, change: Change) -> Playhead:
        await trio.lowlevel.checkpoint()
        before = self.get(record)
        head = changed(before, change, self.utc(), self._revision + 1)
        if head is not before:
            self._set(head)
        return head

    def _set(self, head: Playhead) -> None:
        self._revision = head.revision
        self._heads.pop(head.record, None)  # so that the order is that of the changes
        self._heads[head.record] = head
        if len(self._heads) > MAX_RECORDS:
            del self._heads[next(iter(self._heads))]
        self._watchers.tell(head)
        self._unsaved.set()

    def watch(self, record: str | None = None) -> contextlib.AbstractAsyncContextManager[Watch]:
        return self._watchers.watch(record, list(self._heads.values()) if record is None else [self.get(record)])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write changes down behind their backs, for ever; at the end what is left of them."""
        task_status.started()
        try:
            while True:
                await self._unsaved.wait()
                self._unsaved = trio.Event()
                if not await trio.to_thread.run_sync(self._save, list(self._heads.values())):
                    self._unsaved.set()
                    await trio.sleep(_SAVE_AGAIN)
        finally:
            if self._unsaved.is_set():
                self._save(list(self._heads.values()))

    def _save(self, heads: list[Playhead]) -> bool:
        """Whether it could be done; what keeps it from being done is told once."""
        if self._path is None:
            return True
        trouble = ""
        try:
            replace_text(self._path, json.dumps([head.as_json() for head in heads], indent=1) + "\n")
        except CatalogError as error:
            trouble = str(error)
        if trouble and trouble != self.trouble:
            log.warning("playheads are not kept as long as this is so: %s", trouble)
        self.trouble = trouble
        return not trouble


def _load(path: Path | None) -> dict[str, Playhead]:
    """The playheads in a file, oldest change first. A broken file is told of and left: it is no reason not to start."""
    if path is None or not path.exists():
        return {}
    try:
        items = json.loads(read_text(path))
        if not isinstance(items, list):
            raise PlayheadInvalid("expected a list")
        heads = [Playhead.from_json(item) for item in items]
    except (CachefsError, ValueError, RecursionError) as error:
        log.warning("%s: not what was written there, begun anew: %s", path, error)
        return {}
    return {head.record: head for head in sorted(heads, key=lambda head: head.revision)}
