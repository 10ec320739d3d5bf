"""Reading through: where the store and the fetchers meet.

How it works: a `Flow` stands for one content id that is open, however many readers have it: its object in
the store, its download, and a flight for each block that somebody waits for. A read of blocks that are here
goes straight to the store. A missing block joins its flight or starts one; all flights of a flow are its urgent
demand, and the windows of its readers are its readahead. The fetcher lands blocks, a landing ends the
flight, and everybody who waited reads from the store. So fifty readers of one block cause one fetch, and a
reader that gives up ends no fetch: its flight stays in the demand, behind those that are waited for.

Every read that waits has its place in `Waits`, which says how many may, and for how long.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from cachefs.callers import Caller
from cachefs.content import ContentId
from cachefs.errors import Abandoned, CachefsError, Stopping, Unavailable
from cachefs.fetch.base import Fetcher, Item, Job
from cachefs.flow import Admission, Flow, Forsaken, Reader, Unlimited
from cachefs.opening import Opening
from cachefs.reasons import Reasons
from cachefs.speculation import Accounts
from cachefs.store.objects import ObjectStore
from cachefs.store.stored import StoredObject
from cachefs.waits import Waiting, Waits

if TYPE_CHECKING:
    from cachefs.config import Read

log = logging.getLogger(__name__)

_LETTING_GO, _LOOK_AGAIN = 10.0, 0.1  # seconds
LOOK_AT_CALLER = 1.0
"""Seconds after which a read that waits looks up: whether its caller still lives, and whether all ends."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of some content: `held` bytes are here."""

    held: int
    sources: tuple[str, ...]
    error: str


class Cache:
    """Opens content and reads it, fetching what is missing."""

    def __init__(
        self,
        store: ObjectStore,
        fetcher: Fetcher,
        settings: Read,
        evidence: Callable[[], str],
        room: Admission | None = None,
    ) -> None:
        self._store = store
        self._room = room or Unlimited()
        self._fetcher = fetcher
        self._settings = settings
        self._evidence = evidence
        self._flows: dict[ContentId, Flow] = {}
        self._closing: dict[ContentId, Flow] = {}
        self._forsaken = Forsaken()
        self._nursery: trio.Nursery | None = None
        self._waits = Waits(settings)
        self._accounts = Accounts(settings.speculation)
        self._reasons = Reasons()
        self.last_error = ""
        self.failed_reads = 0

    def waiting(self) -> list[Waiting]:
        """The reads that wait now, longest first."""
        return self._waits.waiting()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after flows that ended, and after what readers who gave up have left, for ever."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await self._forsaken.run()

    async def open(self, item: Item, caller: Caller | None = None) -> Reader:
        """A new reader of this content, opened by `caller`; close it."""
        try:
            flow = await self._flow(item)
        except CachefsError as error:
            self._reasons.note(item.content, error)
            raise
        if flow.stored.complete:
            self._reasons.forget(item.content)
        reader = Reader(flow, caller or Caller(), self._accounts)
        flow.readers.add(reader)
        flow.stored.use()
        if flow.download is not None:
            flow.download.open()
        return reader

    async def begin(self, reader: Reader) -> None:
        """Return when the first block is here; the reader is closed if it can't be had."""
        try:
            await self.read(reader, 0, 1)
        except BaseException:
            self.close(reader)
            raise

    async def seed(self, item: Item) -> None:
        """Offer content to others without anybody reading it here, if all of it is here."""
        flow = await self._flow(item)
        if flow.stored.complete and flow.download is None:
            self._start(flow)
        if flow.readers:
            return
        if flow.download is not None:
            flow.download.close()
        else:
            self._drop_if_unused(flow)

    async def _flow(self, item: Item) -> Flow:
        while (flow := self._flows.get(item.content)) is None:
            stored = await self._opened(item)
            if item.content not in self._flows:
                self._flows[item.content] = Flow(stored, item, self._room, self._drop_if_unused)
            else:
                await stored.release()
        return flow

    async def _opened(self, item: Item) -> StoredObject:
        assert self._nursery is not None
        opening = Opening(self._store, item.manifest)
        self._nursery.start_soon(opening.run)
        try:
            with trio.fail_after(self._settings.deadline):
                return await opening.wait()
        except trio.TooSlowError:
            why = "what is on disk is being checked after an unclean end; it goes on, try again in a while"
            raise Unavailable(item.name, self._settings.deadline, why) from None

    def close(self, reader: Reader) -> None:
        """Give the reader up; with the last one the download ends, or goes on seeding."""
        flow = reader.flow
        if reader not in flow.readers:
            return
        flow.readers.remove(reader)
        reader.close()
        flow.stored.use()
        if not flow.readers:
            flow.forget_flights()
        flow.demand(self._settings.readahead_blocks)
        if flow.readers:
            return
        if flow.download is not None:
            flow.download.close()
        else:
            self._drop_if_unused(flow)

    def _drop_if_unused(self, flow: Flow) -> None:
        # The object stays open as long as anything may land in it, not only as long as it is read.
        if not flow.readers and self._nursery is not None:
            self._flows.pop(flow.item.content, None)
            self._closing[flow.item.content] = flow
            self._nursery.start_soon(self._release, flow)

    async def _release(self, flow: Flow) -> None:
        await flow.stored.release()
        flow.closed.set()
        if self._closing.get(flow.item.content) is flow:
            del self._closing[flow.item.content]

    def known(self, content: ContentId) -> Known:
        """What is here of some content, who gave it, and why a read of it failed last."""
        flow = self._flows.get(content)
        error = self._reasons.of(content)
        if flow is None:
            return Known(self._store.held(content), (), error)
        sources = flow.download.sources() if flow.download is not None else []
        return Known(flow.stored.held, tuple(sources), error)

    def reads(self, content: ContentId) -> bool:
        """Whether anybody has it open."""
        flow = self._flows.get(content)
        return flow is not None and bool(flow.readers)

    async def let_go(self, content: ContentId) -> bool:
        """Close content that is open to be seeded, or from an earlier read; False if it is being read."""
        flow = self._flows.get(content) or self._closing.get(content)
        if flow is None or flow.readers:
            return flow is None
        if flow.download is not None:
            flow.download.leave()
        end = trio.current_time() + _LETTING_GO
        while not flow.readers and not flow.closed.is_set() and trio.current_time() < end:
            with trio.move_on_after(_LOOK_AGAIN):
                await flow.closed.wait()
        return flow.closed.is_set()

    def read_now(self, reader: Reader, offset: int, size: int) -> memoryview | None:
        """The bytes, if they are in memory; None if `read` has to wait for them. NobodyAsked: nothing is waited for.

        To be called for each request, in the order in which they come: it is what tells a pattern. The view is valid
        until the next call on any reader: answer before the next await.
        """
        flow = reader.flow
        if not flow.stored.complete:
            missing = flow.stored.verified.missing(flow.stored.manifest.covering(offset, size))
            if missing:
                reader.guesses.refuse(offset, size)
            reader.saw(offset, size)
            if missing:
                return None
            if reader.window_moved():
                self._start(flow)
        return flow.stored.read_now(offset, size)

    async def read(self, reader: Reader, offset: int, size: int, thread: int = 0) -> bytes | memoryview:
        """The bytes at `offset`, less only what lies past the end. Unavailable after the deadline.

        Abandoned if `thread`, which reads, or who opened the file is killed. A view is valid until the next call on
        any reader: answer before the next await.
        """
        flow, stored = reader.flow, reader.flow.stored
        blocks = stored.manifest.covering(offset, size)
        while True:  # what was here may be doubted while it is being read
            arrived = False
            while missing := stored.verified.missing(blocks):
                await self._arrival(reader, missing, thread)
                arrived = True
            with self._noted(flow):
                if arrived and (ready := stored.read_now(offset, size)) is not None:
                    return ready
                if (data := await stored.read(offset, size)) is not None:
                    return data

    async def fetch(self, reader: Reader, block: int) -> None:
        """Return when a block is here; what readers wait for goes first.

        Unavailable when nothing of the file came for as long as a read would wait; StoreFull.
        """
        flow, deadline = reader.flow, self._settings.deadline
        self._forsaken.watch(flow)
        while block not in flow.stored.verified:
            self._waits.require_running()
            if flow.stored.condemned is not None:
                raise flow.stored.condemned
            await self._ready(flow, trio.current_time())
            with trio.move_on_after(deadline) as waiting:
                await flow.wait([block], self._settings.readahead_blocks)
            if waiting.cancelled_caught and flow.idle_for() >= deadline:
                raise self._unavailable(flow, deadline)

    async def complete(self, reader: Reader) -> None:
        """Return when all of it is here and durable, waiting as a read does. Unavailable, StoreFull, StoreFailed."""
        stored = reader.flow.stored
        while True:
            if missing := stored.verified.missing(range(stored.manifest.blocks)):
                await self._arrival(reader, missing)
            await stored.commit()
            if stored.complete:  # the whole may have been found wrong, or a block been doubted
                return

    async def _arrival(self, reader: Reader, missing: list[int], thread: int = 0) -> None:
        flow = reader.flow
        self._waits.require_running()
        with self._noted(flow):
            refusal = flow.stored.condemned or flow.refusal(missing)
            if refusal is not None:
                raise refusal
            with self._waits.place(flow.item.name, missing) as since:
                await self._fetch(reader, missing, since, thread)

    @contextlib.contextmanager
    def _noted(self, flow: Flow) -> Iterator[None]:
        """Keep why a read fails, for the status and the file's attribute."""
        try:
            yield
        except CachefsError as error:
            if not isinstance(error, Abandoned):
                self.last_error = str(error)
                self.failed_reads += 1
                self._reasons.note(flow.item.content, error)
            raise

    async def _fetch(self, reader: Reader, missing: list[int], since: float, thread: int) -> None:
        flow, asker = reader.flow, Caller(thread)
        self._forsaken.watch(flow)
        await self._ready(flow, since)
        while (until := self._patience(flow, since)) > trio.current_time():
            self._waits.require_running()  # the end may have begun while this one looked up: nobody would let it go
            anew = max(since, flow.tried_anew_at) + self._settings.deadline / 2
            with trio.move_on_at(min(until, anew, trio.current_time() + LOOK_AT_CALLER)) as slice_of_it:
                await flow.wait(missing, self._settings.readahead_blocks, reader)
            if not slice_of_it.cancelled_caught:
                self._reasons.forget(flow.item.content)
                return
            # Past the page cache, a thread may end before what it asked for comes.
            if reader.abandoned(since) or asker.killed() or (asker.gone() and not reader.caller.direct):
                raise Abandoned(f"{flow.item.name}: who waited was killed")
            if trio.current_time() >= anew:  # sources that lied or died may be mended by now
                self._try_anew(flow)
        error = self._unavailable(flow, trio.current_time() - since)
        flow.refuse(missing, error)
        raise error

    def _patience(self, flow: Flow, since: float) -> float:
        """Until when a read that waits `since` then goes on waiting, as things stand."""
        moved_at = None if flow.download is None else flow.download.moved_at()
        return self._waits.until(f"{flow.item.catalogue}/{flow.item.name}", since, moved_at)

    def _unavailable(self, flow: Flow, waited: float) -> Unavailable:
        reason = self._evidence()
        if flow.download is not None:
            reason = "; ".join(filter(None, (flow.download.trouble(), reason)))
            self._try_anew(flow)
        return Unavailable(flow.item.name, waited, reason or "no source delivered it")

    def _try_anew(self, flow: Flow) -> None:
        """Have sources that were given up tried again, if nothing has come for a deadline; once for many readers."""
        now, deadline = trio.current_time(), self._settings.deadline
        if now - flow.tried_anew_at < deadline / 4:
            return
        flow.tried_anew_at = now
        if flow.download is not None and flow.idle_for() >= deadline:
            flow.download.restart()

    def _start(self, flow: Flow) -> None:
        """Have the flow's demand fetched, from the first time something is missing."""
        if not flow.stored.unfit:
            self._prepare(flow)
            flow.demand(self._settings.readahead_blocks)

    async def _ready(self, flow: Flow, since: float) -> None:
        """Return when what is missing may be fetched, with a download that is told nothing yet.

        StoreFull, StoreFailed; Unavailable where a file is mended for longer than a read waits.
        """
        with trio.move_on_at(since + self._settings.deadline) as waiting:
            while flow.download is None or flow.stored.unfit:
                if flow.download is None:
                    await flow.stored.look()
                await flow.stored.fit()
                self._prepare(flow)
        if waiting.cancelled_caught:
            why = "its file is being copied, so that what is wrong in it can be mended"
            raise Unavailable(flow.item.name, self._settings.deadline, why)

    def _prepare(self, flow: Flow) -> None:
        """Have a download to tell demands to, and tell none: whoever is about to wait does that, with its blocks."""
        # Without them, what is on its way as readahead would be ended just when its reader comes to it.
        if flow.download is None:
            job = Job(flow.item, lambda: flow.stored.bytes_path, flow.stored.verified)
            flow.download = self._fetcher.download(job, flow)

    async def stop(self) -> None:
        """Let every waiting read go, with Stopping, refuse new waits, and return when nobody waits."""
        self._waits.stop()
        for flow in self.flows():
            flow.failed(Stopping())
        await self._waits.over()

    def flow(self, content: ContentId) -> Flow | None:
        """What stands for this content, if it is open now."""
        return self._flows.get(content)

    def flows(self) -> list[Flow]:
        """What is open now."""
        return list(self._flows.values())
