"""One content id that is open: its readers, its download, and a flight for each block that is waited for.

How it works: the flights of a flow are its urgent demand, the windows of its readers its readahead; both go to the
download as sets. A flight ends when its block lands or when the fetcher says that it can't go on, and wakes
everybody who waited. A reader that gives up leaves its flight behind: it is asked for after those that are
waited for, so one reader's impatience ends nobody's fetch. Only when nothing comes for a while does it end: where no
source can be reached, a node would leave thousands behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import product
from typing import Protocol

import trio

from cachefs import window
from cachefs.callers import Caller
from cachefs.fetch.base import Claim, Download, Item
from cachefs.guesses import Guesses
from cachefs.speculation import Account, Accounts
from cachefs.store.stored import StoredObject

_METER_SPAN = 2.0
_LEFT_FOR = 2.0
"""For how many seconds a reader's jump goes before what it left behind."""

_ECHO = 0.5
"""For how many seconds after a read in vain the kernel's second try is expected."""

_LOOK_AT_FORSAKEN, _FORSAKEN = 1.0, 10.0
"""How often it is looked after what readers left behind who gave up, and for how long that is wanted, in seconds."""


class _Flight:
    """A missing block on its way: who waits for it, and how it ended."""

    __slots__ = ("done", "error", "left_at", "waiters", "waits")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: Exception | None = None
        self.waiters: list[Reader] = []
        self.waits = 0
        """How many wait for it, those without a reader among them."""
        self.left_at = float("inf")

    def urgent(self, index: int) -> bool:
        """Whether somebody needs block `index`, which this is the flight of, before what is only read ahead."""
        return any(not reader.has_left(index) for reader in self.waiters)


class _Meter:
    """Bytes per second over the last moments."""

    def __init__(self) -> None:
        self._landings: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, size: int) -> None:
        now = trio.current_time()
        self._landings.append((now, size))
        self._total += size
        while self._landings[0][0] < now - _METER_SPAN:
            self._total -= self._landings.popleft()[1]

    def rate(self) -> float:
        if len(self._landings) < 2:
            return 0.0
        return self._total / max(trio.current_time() - self._landings[0][0], 0.001)


class Admission(Protocol):
    """Who says which blocks there is room for."""

    def admit(self, flow: Flow, must: Collection[int], may: Sequence[int]) -> set[int]:
        """Which of these may be fetched now; for `must` that isn't granted, `grow` or `refused` is called later."""

    def spare(self, flow: Flow, index: int) -> bool:
        """Whether a block that comes without having been asked for may be kept."""


class Unlimited:
    """Room for everything."""

    def admit(self, flow: Flow, must: Collection[int], may: Sequence[int]) -> set[int]:
        return {*must, *may}

    def spare(self, flow: Flow, index: int) -> bool:
        return True


class Flow:
    """One open content id. It is the fetcher's `Taker`."""

    def __init__(self, stored: StoredObject, item: Item, room: Admission, ended: Callable[[Flow], None]) -> None:
        self.stored = stored
        self.item = item
        self.readers: set[Reader] = set()
        self.download: Download | None = None
        self.tried_anew_at = float("-inf")
        self.closed = trio.Event()
        self._room = room
        self._most = 0
        self._ended = ended
        self._flights: dict[int, _Flight] = {}
        self._meter = _Meter()
        self._landed_at = trio.current_time()
        self._refusals: dict[int, list[tuple[float, Exception]]] = {}
        stored.watcher = self

    def landed(self, index: int) -> None:
        self._landed_at = trio.current_time()
        self.stored.land(index)
        if index not in self.stored.verified:  # it came to a file that isn't the object's any more
            self.doubted()
            self.grow()
            return
        self._meter.add(self.stored.manifest.span(index).length)
        flight = self._flights.pop(index, None)
        if flight is not None:
            flight.done.set()

    async def deliver(self, index: int, data: memoryview) -> None:
        await trio.to_thread.run_sync(self.stored.put, index, data)
        self.landed(index)

    def claim(self, blocks: range) -> Claim:
        return Claim(blocks)  # whoever fetches alone is in nobody's way

    def has_room(self, index: int) -> bool:
        return self._room.spare(self, index)

    def write(self, index: int, data: memoryview) -> None:
        self.stored.put(index, data)

    def release(self, claim: Claim) -> None:
        """Nobody else waits for it."""

    def doubted(self) -> None:
        """Some of what was here isn't any more, or everything is: the object's own word, as a `Watcher`."""
        for index in [index for index in self._flights if index in self.stored.verified]:
            self._flights.pop(index).done.set()
        if self.download is not None:
            self.download.doubted()

    def mended(self) -> None:
        """What is missing may be written now: ask for what is waited for."""
        self.grow()

    def failed(self, error: Exception) -> None:
        self.refused(list(self._flights), error)

    def refused(self, blocks: Collection[int], error: Exception) -> None:
        """Let everybody go who waits for one of these."""
        for flight in [self._flights.pop(index) for index in blocks if index in self._flights]:
            flight.error = error
            flight.done.set()

    def grow(self) -> None:
        """There may be more room than when the demand was last told."""
        self.demand(self._most)

    def refuse(self, blocks: list[int], error: Exception) -> None:
        """Remember for a moment that a read of these was in vain."""
        for index in blocks:
            self._refusals.setdefault(index, []).append((trio.current_time() + _ECHO, error))

    def refusal(self, blocks: list[int]) -> Exception | None:
        """Why a read of these is refused at once, once for each that was in vain a moment ago.

        The kernel asks again, for the page alone, as soon as its readahead has failed; nobody should wait twice.
        """
        for index in blocks:
            refusals = self._refusals.pop(index, [])
            until, error = refusals.pop() if refusals else (0.0, None)
            if error is not None and trio.current_time() < until:
                self._refusals[index] = refusals
                return error
        return None

    def end_forsaken(self, now: float) -> bool:
        """Put what nobody waits for any more behind, and end it after a while in which nothing came; whether all ended.

        To be called every `_LOOK_AT_FORSAKEN` seconds.
        """
        left = {index: now - flight.left_at for index, flight in self._flights.items() if not flight.waits}
        quiet = self.download is None or now - self.download.moved_at() >= _FORSAKEN
        ended = [index for index, age in left.items() if quiet and age >= _FORSAKEN]
        for index in ended:
            del self._flights[index]
        if ended or any(age <= _LOOK_AT_FORSAKEN for age in left.values()):
            self.grow()
        return not self._flights

    def forget_flights(self) -> None:
        """Nobody reads this content any more: what was given up on need not come."""
        self._flights.clear()

    def idle_for(self) -> float:
        """Seconds since a block last landed, or since this began if none did."""
        return trio.current_time() - self._landed_at

    def ended(self) -> None:
        self.download = None
        self._ended(self)

    def demand(self, most: int) -> None:
        """Tell the download what is waited for and what to read ahead."""
        self._most = most
        if self.download is None or self.stored.unfit:
            return
        limit = window.limit(self._meter.rate(), self.stored.manifest.block_length, most)
        verified, flights = self.stored.verified, self._flights
        end = self._end()
        windows = [*end, *(index for reader in self.readers for index in reader.ahead(limit))]
        ahead = [index for index in dict.fromkeys(windows) if index not in verified and index not in flights]
        granted = self._room.admit(self, flights.keys(), ahead)
        urgent = {index for index, flight in flights.items() if flight.urgent(index)} | end
        self.download.demand(urgent & granted, granted - urgent)

    def _end(self) -> set[int]:
        """The last block of a record that is being played: whoever seeks in one looks there first, and then it is here.

        It goes before readahead, which on a slow link leaves nothing to what comes after it.
        """
        played = self.item.frugal and any(reader.window.begun for reader in self.readers)
        return {self.stored.manifest.blocks - 1} if played else set()

    async def wait(self, missing: list[int], most: int, waiter: Reader | None = None) -> None:
        """Return when all of `missing` have landed; raise what made one fail. Without a `waiter`, others go first."""
        # Some may have landed since the caller looked: nobody would ever end a flight of theirs.
        missing = self.stored.verified.missing(missing)
        flights = [self._flights.setdefault(index, _Flight()) for index in missing]
        waiters = [] if waiter is None else [waiter]
        for flight in flights:
            flight.waiters += waiters
            flight.waits += 1
        self.demand(most)
        try:
            for flight in flights:
                await flight.done.wait()
                if flight.error is not None:
                    raise flight.error
        finally:
            for flight in flights:
                flight.waits -= 1
                flight.left_at = trio.current_time()
            for flight, gone in product(flights, waiters):
                flight.waiters.remove(gone)


class Forsaken:
    """Looks after what readers leave behind who give up, in the flows that somebody waited for."""

    def __init__(self) -> None:
        self._flows: set[Flow] = set()
        self._any = trio.Event()

    def watch(self, flow: Flow) -> None:
        """Somebody is about to wait, and may leave before what is waited for comes."""
        self._flows.add(flow)
        self._any.set()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self._any.wait()
            await trio.sleep(_LOOK_AT_FORSAKEN)
            now = trio.current_time()
            self._flows = {flow for flow in self._flows if not flow.end_forsaken(now)}
            if not self._flows:
                self._any = trio.Event()


class Reader:
    """One open file: a flow, who opened it, and this file's own readahead window, which its process's budget bounds."""

    def __init__(self, flow: Flow, caller: Caller, accounts: Accounts) -> None:
        self.flow = flow
        self.caller = caller
        self._accounts = accounts
        self._account: Account | None = None
        self._flushed_at = float("-inf")
        self._ahead = range(0)
        self._most_ahead = 1
        self.window = window.Window(flow.stored.manifest.block_length, flow.stored.manifest.blocks)
        self.guesses = Guesses(self.window, self._may_guess)
        self._left, self._left_until = range(0), 0.0

    def saw(self, offset: int, size: int) -> None:
        """Take note of a read."""
        if left := self.window.saw(offset, size):
            self._left, self._left_until = left, trio.current_time() + _LEFT_FOR

    def has_left(self, index: int) -> bool:
        """Whether it read in order up to this block and then jumped elsewhere, a moment ago.

        What waits there is most likely the kernel's readahead, whose requests look like any others: the jump goes
        before it. If it is another thread after all, a moment is all that it loses.
        """
        return index in self._left and trio.current_time() < self._left_until

    def ahead(self, limit: int) -> range:
        """The blocks to read ahead now, at most `limit`, fewer if its process has read much ahead in vain."""
        if self._account is None:
            if not self.window.ahead(1):
                return range(0)
            self._account = self._accounts.of(self.caller.process)
        length = self.flow.stored.manifest.block_length
        self._most_ahead = min(limit, self._account.left(id(self)) // length)
        ahead = self.window.ahead(self._most_ahead)
        if not self._ahead.start <= ahead.start <= self._ahead.stop:
            self._account.waste(len(self._ahead) * length)
        self._ahead = ahead
        self._account.ahead(id(self), len(ahead) * length)
        return ahead

    def flushed(self) -> None:
        """A descriptor of this file was closed, maybe one of several."""
        self._flushed_at = trio.current_time()

    def _may_guess(self) -> bool:
        """Whether the kernel asks for a process that reads through its page cache, and is there."""
        handed_on = self._flushed_at > float("-inf") and self.caller.gone()
        return self.flow.item.frugal and not self.caller.direct and not handed_on

    def abandoned(self, since: float) -> bool:
        """Whether nobody waits any more for a read that began at `since`."""
        return self.caller.killed() or (since <= self._flushed_at and self.caller.gone())

    def close(self) -> None:
        """Nobody reads on: what was read ahead was in vain."""
        if self._account is not None:
            self._account.close(id(self))

    def window_moved(self) -> bool:
        """Whether the blocks to read ahead end elsewhere than when they were told last."""
        return self.window.ahead(self._most_ahead).stop != self._ahead.stop
