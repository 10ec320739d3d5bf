"""One download made of two: block by block, a file's torrent or the web fetches it.

How it works: the cache sees one `Download`. Behind it the torrent is in the session from the first moment, looking for
peers and ready to seed, while the table in policy.py says who is asked for what readers want. Conditions change, so
it is asked again several times a second while something is wanted. When it changes its mind, requests that are under
way to web seeds are not thrown away. While nothing is wanted nothing is asked or looked for, however long the file is
open, and the torrent may leave the session for others; it is back with the next demand.

Two writers must not meet in one block: libtorrent may write what a peer sent before it was checked. So a block that
came from the web is written to the file only if no peer can have been asked for it; otherwise libtorrent is given the
whole piece, overwrites with it whatever it had, and lands it as its own. While it is the web's turn, the web may claim
the blocks of a request and write them without asking for each. When the torrent's turn comes, claims are recalled, and
until they are released, a moment later, the torrent isn't asked for those blocks. A block that comes without a claim
has one of its own while it is written, for the turn may change just then: what a peer sent would come after it, over
what is served already. A block that a reader waits for too long while the torrent has it is asked from the web as
well: hedging works across the two.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

import trio

from cachefs.errors import StoreFailed
from cachefs.fetch.base import Claim, Job, Taker, Transfer
from cachefs.fetch.policy import HAND_OVER, Choice, Rule, Situation, hand_over
from cachefs.fetch.torrent.download import TorrentDownload

if TYPE_CHECKING:
    from cachefs.fetch.routing.router import Router

_FORGOTTEN = 60.0
"""Seconds after which it says nothing any more that peers of a file were looked for in vain."""

_STILL = 10.0
"""Seconds after the last block from which on nothing moves any more that would be worth telling."""


class _WebSide:
    """What the web's half tells: the blocks go to both halves, the end to the router."""

    def __init__(self, whole: RoutedDownload) -> None:
        self._whole = whole

    def landed(self, index: int) -> None:
        self._whole.wrote(index)

    async def deliver(self, index: int, data: memoryview) -> None:
        await self._whole.deliver(index, data)

    def write(self, index: int, data: memoryview) -> None:
        self._whole.write(index, data)

    def claim(self, blocks: range) -> Claim | None:
        return self._whole.claim(blocks)

    def has_room(self, index: int) -> bool:
        return self._whole.has_room(index)

    def release(self, claim: Claim) -> None:
        self._whole.claims.remove(claim)

    def failed(self, error: Exception) -> None:
        self._whole.failed(error)

    def ended(self) -> None:
        self._whole.end_if_idle()


class RoutedDownload:
    """A `Download` by a torrent and from the web; to the torrent it is the `Sink`."""

    def __init__(self, router: Router, job: Job, sink: Taker) -> None:
        self.job = job
        self.opened = True
        self.reason = ""
        self.claims: list[Claim] = []
        """What the web's half writes in threads now."""
        self._router = router
        self._sink = sink
        self._urgent: dict[int, float] = {}
        self._ahead: frozenset[int] = frozenset()
        self._hedged: set[int] = set()
        self._offered: set[int] = set()
        self._counted = job.have.copy()
        self._choice = Choice.TORRENT
        self._seeking_since = self._wanted_at = trio.current_time()
        self._torrent_gave_at = trio.current_time()
        self._gave: list[str] = []
        self._sticks_until = float("-inf")
        self._row = HAND_OVER[-1]
        self.web = router.web.download(job, _WebSide(self))
        self.torrent = router.join(job, self)

    @property
    def busy(self) -> bool:
        return bool(self._urgent or self._ahead)

    @property
    def waited_for(self) -> bool:
        """Whether a reader waits for something of it."""
        return bool(self._urgent)

    @property
    def at_rest(self) -> bool:
        """Whether nothing was wanted for so long that nothing moves any more."""
        return not self.busy and trio.current_time() - self._wanted_at > _STILL

    # What the cache asks

    def demand(self, urgent: Set[int], ahead: Set[int]) -> None:
        now = trio.current_time()
        if urgent and not self._urgent:
            self._torrent_gave_at = now
        if (urgent or ahead) and not self._seek(now):
            return
        self._urgent = {index: self._urgent.get(index, now) for index in urgent}
        self._ahead = frozenset(ahead)
        self._hedged &= self._urgent.keys()
        self.review()

    def _seek(self, now: float) -> bool:
        """Have the torrent in the session, and peers looked for: from now on, if they weren't a moment ago.

        False if its file can't be had; whoever waits was told.
        """
        self._router.wanting.add(self)
        try:
            joined = self._router.join(self.job, self) if self.torrent is None else None
        except StoreFailed as error:
            self.failed(error)
            return False
        if joined is not None:
            self.torrent, self._seeking_since = joined, now
        elif not self.busy and now - self._wanted_at > _FORGOTTEN:
            self._seeking_since = now
        return True

    def moved_at(self) -> float:
        return max(half.moved_at() for half in (self.web, self.torrent) if half is not None)

    def sources(self) -> list[str]:
        torrent = self._gave if self.torrent is None else self._gave or self.torrent.sources()
        return [*torrent, *self.web.sources()]

    def trouble(self) -> str:
        halves = [self.web.trouble()]
        if self.torrent is not None:
            halves.append(self.torrent.trouble())
        return "; ".join(filter(None, halves))

    def restart(self) -> None:
        self.web.restart()
        if self.torrent is not None:
            self.torrent.restart()

    def doubted(self) -> None:
        if self.torrent is not None:  # the web's half has no memory of what is here
            self.torrent.doubted()

    def open(self) -> None:
        self.opened = True
        self.web.open()
        if self.torrent is not None:
            self.torrent.open()

    def close(self) -> None:
        self.opened = False
        self._forget_wishes()
        if self.torrent is not None:
            self.torrent.close()
        self.web.close()

    def leave(self) -> None:
        self.opened = False
        self._forget_wishes()
        if self.torrent is not None:
            self.torrent.leave()
        self.web.leave()

    def _forget_wishes(self) -> None:
        self._urgent, self._ahead, self._hedged = {}, frozenset(), set()
        self._wanted_at = trio.current_time()
        if self.torrent is not None:
            self.torrent.sought = False

    # What the halves tell

    def landed(self, index: int) -> None:
        """The torrent has a block."""
        self._torrent_gave_at = trio.current_time()
        self._came(index, Choice.WEB if index in self._offered else Choice.TORRENT)

    def _came(self, index: int, by: Choice) -> None:
        if index not in self._counted:
            self._counted.add(index)
            self._router.hedging.won += by is Choice.WEB and index in self._hedged
            self._router.count(by, self.job.item.manifest.span(index).length, self._why(index))
        self._urgent.pop(index, None)
        self._ahead -= {index}
        self._hedged.discard(index)
        if not self.busy:
            self._forget_wishes()
        self.web.landed(index)
        self._sink.landed(index)

    def _why(self, index: int) -> str:
        return "late at its first source" if index in self._hedged else self.reason

    async def deliver(self, index: int, data: memoryview) -> None:
        """The web's half has a block."""
        while (torrent := self.torrent) is not None and torrent.may_write(index):
            if await self._taken_by(torrent, index, data):
                self._came(index, Choice.WEB)
                return
        self.claims.append(claim := Claim(range(index, index + 1)))
        try:
            if torrent is not None:
                await torrent.step_aside(index)
            await trio.to_thread.run_sync(self.write, index, data)
            self.wrote(index)
        finally:
            self.claims.remove(claim)

    def write(self, index: int, data: memoryview) -> None:
        """Verify a block that is the web's to write, and write it: in a thread."""
        self._sink.write(index, data)

    def has_room(self, index: int) -> bool:
        """Whether what the web's half was sent unasked may be kept."""
        return self._sink.has_room(index)

    def wrote(self, index: int) -> None:
        """The web's half has written a block."""
        if self.torrent is not None:
            self.torrent.pieces.arrived(index)
        self._came(index, Choice.WEB)

    def claim(self, blocks: range) -> Claim | None:
        """The web's half would like to write these as they come."""
        if self.torrent is not None and not (self._choice is Choice.WEB and self.torrent.keeps_off(blocks)):
            return None
        self.claims.append(claim := Claim(blocks))
        return claim

    def _recall(self) -> set[int]:
        """Have all claims released soon; the blocks that are claimed until then."""
        for claim in self.claims:
            claim.recalled = True
        return {index for claim in self.claims for index in claim.blocks}

    async def _taken_by(self, torrent: TorrentDownload, index: int, data: memoryview) -> bool:
        """Give libtorrent the block; if it doesn't take it, it is out of the session, and the file ours to write."""
        await trio.to_thread.run_sync(self.job.item.manifest.verify, index, data)
        self._offered.add(index)
        if await torrent.pieces.offer(index, bytes(data)):
            return True
        if torrent.may_write(index):
            torrent.remove()
        return False

    def failed(self, error: Exception) -> None:
        self._forget_wishes()
        self._sink.failed(error)

    def ended(self) -> None:
        """The torrent has let go of the file."""
        if self.torrent is not None:
            self._gave = self._gave or self.torrent.sources()
        self.torrent = None
        self.end_if_idle()

    def end_if_idle(self) -> None:
        """End when both halves have let go; begin anew if something is wanted by then."""
        if self.torrent is not None or self.web.busy:
            return
        if self.busy:
            self._seek(trio.current_time())
        elif not self.opened:
            self._router.forget(self)
            self._sink.ended()

    # Who fetches what

    def review(self) -> None:
        """Ask the table, and share out what is wanted."""
        if self.torrent is not None:
            self.torrent.sought = self.busy
        rule = self._rule()
        if rule.choice is not self._choice or not self.reason:
            self._changed(rule)
        self._choice, self.reason = rule.choice, rule.reason
        if rule.choice is Choice.WEB:
            if self.torrent is not None:
                self.torrent.demand(frozenset(), frozenset())
            self.web.demand(self._urgent.keys(), self._ahead)
        elif self.torrent is not None:
            self._hedge()
            claimed = self._recall()
            self.torrent.demand(self._urgent.keys() - claimed, self._ahead - claimed)
            under_way = self.web.flying()
            self.web.demand(self._urgent.keys() & (under_way | self._hedged), self._ahead & under_way)

    def _rule(self) -> Rule:
        """The row of the table that holds now; one that gave the torrent up holds for a while."""
        now = self._situation()
        if trio.current_time() >= self._sticks_until or not now.web_sources:
            self._row = hand_over(now, self._router.settings)
        return self._row

    def _changed(self, rule: Rule) -> None:
        self._sticks_until = trio.current_time() + rule.sticks_for
        if rule.means_drought:
            self._router.found_no_peers()

    def _situation(self) -> Situation:
        now = trio.current_time()
        torrent = self.torrent
        holders = 0 if torrent is None else torrent.holders
        if holders:
            self._seeking_since = now
            self._router.found_peers()
        waited = now - max(self._torrent_gave_at, min(self._urgent.values())) if self._urgent else 0.0
        return Situation(
            has_torrent=torrent is not None,
            web_sources=len(self.web.askable()),
            findable=self._router.torrent.has_peers,
            peers=holders,
            looked_for=float("inf") if self._router.drought else now - self._seeking_since,
            from_web=self._router.from_web(self.job.item.content),
            waited=waited,
            arriving=torrent is not None and torrent.arriving,
            rate=0.0 if torrent is None else torrent.rate,
        )

    def _hedge(self) -> None:
        """Ask the web too for what readers wait for too long."""
        hedging, now = self._router.hedging, trio.current_time()
        late_after = hedging.late_after()
        for index, since in self._urgent.items():
            size = self.job.item.manifest.span(index).length
            if index in self._hedged or now - since < late_after or not hedging.allows(size):
                continue
            if self.web.askable():
                hedging.hedge(size)
                self._hedged.add(index)

    def transfer(self) -> Transfer:
        halves = [self.web.transfer()]
        if self.torrent is not None:
            halves.append(self.torrent.transfer())
        item = self.job.item
        return Transfer(
            item.content,
            item.name,
            peers=sum(half.peers for half in halves),
            rate=sum(half.rate for half in halves),
            wanted=len(self._urgent.keys() | self._ahead),
            trouble=self.trouble() if self.busy else "",
            by=self._choice.value,
            because=self.reason,
        )
