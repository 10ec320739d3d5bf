"""Keeping what is held right, while it is being read: verifying on demand, scrubbing on a schedule, mending.

How it works: a block that is found wrong has lost its bit already, so no reader gets it from the daemon. Three more
have to hear of it: the fetchers, which must not offer it to peers any more; the kernel, which may have pages of it
from before, under every inode the content was opened as; and a source, which is asked for it by reading it through
the cache, as a reader would, with no readahead. When it has landed the object is complete and sealed again.

The schedule takes the object that wasn't read for the longest time, if that is longer than the interval, reads it from
the disk at the set rate, and takes the next. When each was read is in the database, so that a restart goes on with
where the last one was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import trio

from cachefs.cache import Cache
from cachefs.catalog.tree import File
from cachefs.content import ContentId, Manifest, Span
from cachefs.errors import CachefsError
from cachefs.fetch.base import Item
from cachefs.layout import label
from cachefs.shelf import Shelf
from cachefs.store.objects import ObjectStore
from cachefs.store.scrub import Checker
from cachefs.store.state import State
from cachefs.verification import Outcome, Report, Verdict, Verification, matching

if TYPE_CHECKING:
    from cachefs.config import Scrub

log = logging.getLogger(__name__)

_AT_ONCE = 8
_PATIENCE = 10.0
"""Seconds that mending waits for the kernel: a read under way keeps its pages, and may be what waits for the block."""
_LOOK_EVERY = 3600.0


@dataclass(frozen=True, slots=True)
class UpkeepReport:
    """Since the start: bytes hashed, blocks found wrong, blocks mended; and what was found last, in words."""

    checked: int
    wrong: int
    mended: int
    last: str


class Upkeep:
    """Verifies, scrubs and mends for one mount. `files` gives what is shown, `forget_pages` tells the kernel."""

    def __init__(
        self,
        store: ObjectStore,
        state: State,
        cache: Cache,
        settings: Scrub,
        *,
        files: Callable[[], Iterable[File]],
        shelves: Mapping[str, Shelf],
        forget_pages: Callable[[ContentId, Sequence[Span]], Awaitable[None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._state = state
        self._cache = cache
        self._settings = settings
        self._files = files
        self._shelves = shelves
        self._forget_pages = forget_pages
        self._clock = clock
        self._checked = self._wrong = self._mended = 0
        self._last = ""

    def report(self) -> UpkeepReport:
        return UpkeepReport(self._checked, self._wrong, self._mended, self._last)

    # What the control socket offers

    async def verify(
        self, tell: Callable[[Any], None], names: Sequence[str] = (), fail_fast: bool = False, repair: bool = False
    ) -> Mapping[str, Any]:
        """Hash what is held of the names that match, or of all, as fast as the machine can; `repair` what is wrong."""
        files = matching(self._named(), names)
        outcome = await self._run(Checker(), files, _bytes_told(tell), fail_fast=fail_fast, repair=repair)
        return outcome.as_json()

    async def scrub(self, tell: Callable[[Any], None], rate: float | None = None) -> Mapping[str, Any]:
        """Read all that is held from the disk, at `rate` bytes per second (0: no limit), and repair what is wrong."""
        checker = Checker(from_disk=True, rate=self._settings.rate if rate is None else rate)
        files = self._named()
        outcome = await self._run(checker, files, _bytes_told(tell), repair=True)
        for content in (await self._store.inventory()).keys() & {file.content for file in files.values()}:
            self._state.save_scrubbed(content, self._clock())
        return outcome.as_json()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Scrub on the schedule, for ever."""
        task_status.started()
        checker = Checker(from_disk=True, rate=self._settings.rate)
        while self._settings.interval > 0:
            try:
                await self._scrub_next(checker)
                continue
            except CachefsError as error:  # a full disk, say
                log.error("the scrub pauses for an hour: %s", error)
            except Exception:  # a fault of ours too: reading goes on without it
                log.exception("the scrub pauses for an hour")
            await trio.sleep(_LOOK_EVERY)

    async def _scrub_next(self, checker: Checker) -> None:
        found = self._state.longest_unread()
        age = self._clock() - found[1] if found else 0.0
        if found is None or age < self._settings.interval:
            await trio.sleep(min(_LOOK_EVERY, self._settings.interval - age))
            return
        content = found[0]
        files = {name: file for name, file in self._named().items() if file.content == content}
        if files:
            await self._run(checker, files, lambda done, total: None, repair=True)
        await trio.lowlevel.checkpoint()
        # One that no name shows any more has nobody to read it.
        self._state.save_scrubbed(content, self._clock())

    # Verifying and mending

    async def _run(
        self, checker: Checker, files: Mapping[str, File], report: Report, *, repair: bool, fail_fast: bool = False
    ) -> Outcome:
        async def describe(name: str, content: ContentId) -> Manifest:
            return (await self._item(files[name])).manifest

        async def mend(verdict: Verdict) -> Verdict:
            return await self._mend(await self._item(files[verdict.name]), verdict, repair)

        verification = Verification(self._store, checker, describe, mend, report)
        outcome = await verification.run({name: file.content for name, file in files.items()}, fail_fast=fail_fast)
        self._checked += outcome.size
        return outcome

    def _named(self) -> dict[str, File]:
        """Every file by the name it has for its user: snapshots as in the lock, others with their folder."""
        return {label(file.catalogue, file.path): file for file in self._files()}

    async def _item(self, file: File) -> Item:
        return await self._shelves[file.catalogue].item(file)

    async def _mend(self, item: Item, verdict: Verdict, repair: bool) -> Verdict:
        if verdict.wrong:
            await self._have_forgotten(item, verdict)
        if not repair:
            return verdict
        mended, trouble = await self._fetch(item, verdict.missing)
        self._mended += mended
        if mended:
            self._tell(f"{item.name}: {mended} of {len(verdict.missing)} wrong blocks fetched again", logging.INFO)
        return replace(verdict, mended=mended, trouble=verdict.trouble or trouble)

    async def _have_forgotten(self, item: Item, verdict: Verdict) -> None:
        """Tell whoever may still have the bytes of the blocks that were found wrong."""
        self._wrong += len(verdict.wrong)
        self._tell(f"{item.name}: {_blocks(verdict.wrong)} wrong on disk, not served any more", logging.ERROR)
        with trio.move_on_after(_PATIENCE):
            await self._forget_pages(item.content, _spans(item.manifest, verdict.wrong))

    def _tell(self, what: str, level: int) -> None:
        self._last = what
        log.log(level, what)

    async def _fetch(self, item: Item, blocks: Sequence[int]) -> tuple[int, str]:
        """Read blocks through the cache until all are here or one can't be had: how many are here, and why not all."""
        trouble: list[str] = []
        reader = await self._cache.open(item)
        queue = iter(blocks)

        async def work() -> None:
            try:
                for index in queue:
                    await self._cache.read(reader, item.manifest.span(index).offset, 1)
            except CachefsError as error:
                trouble.append(str(error))
                nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(_AT_ONCE, len(blocks))):
                    nursery.start_soon(work)
            await reader.flow.stored.commit()
            verified = reader.flow.stored.verified
            return sum(index in verified for index in blocks), "".join(trouble[:1])
        finally:
            self._cache.close(reader)


def _bytes_told(tell: Callable[[Any], None]) -> Report:
    return lambda done, total: tell({"done": done, "total": total})


def _spans(manifest: Manifest, blocks: Sequence[int]) -> list[Span]:
    """Where sorted blocks lie in the file, neighbours together."""
    spans: list[Span] = []
    for span in map(manifest.span, blocks):
        if spans and spans[-1].end == span.offset:
            span = Span(spans[-1].offset, spans.pop().length + span.length)
        spans.append(span)
    return spans


def _blocks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f"{'block' if len(numbers) == 1 else 'blocks'} {shown}"
