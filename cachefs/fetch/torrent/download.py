"""One torrent in the session, fed with what readers want.

How it works: the torrent is added paused with what we hold, gets its wishes and its peers, and only then
runs: left to itself for a moment it would fetch what nobody reads.

What is wished for, and how libtorrent is told, is for wishes.py; how a finished piece comes to be readable in
the file, for pieces.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from typing import TYPE_CHECKING

import libtorrent as lt
import trio

from cachefs.content import ContentId
from cachefs.errors import MetainfoError
from cachefs.fetch.base import Job, Sink, Transfer
from cachefs.fetch.torrent.pieces import Pieces
from cachefs.fetch.torrent.wishes import UNWANTED, Wishes

if TYPE_CHECKING:
    from cachefs.fetch.sources import WebSeed
    from cachefs.metainfo import Metainfo

_GONE_FROM_LIST = 0.05
_GIVEN_UP = 2.0


class Phase(enum.Enum):
    """Where a torrent is in its life; `REMOVING` may be followed by `ADDING` again."""

    ADDING = "adding"
    RUNNING = "running"
    REMOVING = "removing"
    GONE = "gone"


class Swarm:
    """Where a torrent's bytes may come from: the addresses of known peers, web seeds, trackers."""

    def __init__(self, web_seeds: Iterable[WebSeed], trackers: Iterable[str], *, peer_exchange: bool) -> None:
        self.peers: list[tuple[str, int]] = []
        self.peer_exchange = peer_exchange
        self.web_seeds = tuple(web_seeds)
        self.asks_web_seeds: Callable[[], bool] = lambda: True
        """Whether torrents ask web seeds themselves: while nobody else does."""
        self.trackers = tuple(trackers)


class TorrentDownload:
    """A `Download` by libtorrent; the methods named `on_…` are called with its alerts."""

    def __init__(self, session: lt.session, nursery: trio.Nursery, swarm: Swarm, job: Job, sink: Sink) -> None:
        self.job = job
        self.phase = Phase.GONE
        self.opened = True
        self.sought = False
        """Whether peers are looked for although nothing is wanted of them yet: somebody else fetches meanwhile."""
        self.idle_since = self.removing_since = trio.current_time()
        self.peers = 0
        self.holders = 0
        """How many connected peers, web seeds not counted, have something of it."""
        self.rate = 0.0
        self._received, self.arriving = 0, False
        self._counting = self._measured = self._gave = False
        self._moved_at = float("-inf")
        self.failing = ""
        self.landed_since_measured = False
        self._session = session
        self._swarm = swarm
        self._sink = sink
        self._nursery = nursery
        assert job.item.metainfo is not None
        self._params = _parameters(job.item.metainfo)
        self._handle: lt.torrent_handle | None = None
        self._have = job.have
        self.pieces = Pieces(job, nursery, self)
        self._wishes = Wishes(job.have, job.item.manifest.block_length)
        self._out = trio.Event()
        self._broken = self._leaving = self._outdated = self._resting = False
        self._be_patient()
        self._add()

    @property
    def content(self) -> ContentId:
        """The torrent's id, which for a record is another than the content's."""
        assert self.job.item.metainfo is not None
        return self.job.item.metainfo.content

    @property
    def complete(self) -> bool:
        return self._have.complete

    @property
    def busy(self) -> bool:
        """Whether anything wanted is still missing."""
        return bool(self._wishes.wanted)

    # What the cache asks

    def demand(self, urgent: Set[int], ahead: Set[int]) -> None:
        self.idle_since = trio.current_time()
        was_busy = self.busy
        self._wishes.want(urgent, ahead)
        if self.busy and not was_busy:
            self._be_patient()
            self._revive()
        self._send_wishes()
        if self.busy and not self.peers:
            self._connect()

    def moved_at(self) -> float:
        return self._moved_at

    def sources(self) -> list[str]:
        return ["torrent"] if self._gave else []

    def trouble(self) -> str:
        if self.failing:
            return self.failing
        return "" if self.peers else "no peer is connected"

    def open(self) -> None:
        self.opened, self._leaving, self._resting = True, False, False

    def close(self) -> None:
        self.opened = False
        self.demand(frozenset(), frozenset())

    def leave(self) -> None:
        self._leaving = True
        self.close()
        self.remove()

    def transfer(self) -> Transfer:
        return Transfer(
            self.job.item.content, self.job.item.name, self.peers, self.rate, len(self._wishes.wanted), self.trouble()
        )

    # Life in the session

    def restart(self) -> None:
        """Remove and add again: libtorrent forgets whom it banned and which web seeds it gave up.

        Not while bytes come in that may be right: a piece that a slow source has begun would begin anew, and never
        be whole.
        """
        if not self.arriving or self.pieces.refuted:
            self.remove()

    def doubted(self) -> None:
        """Remove and add again: there is no other way to tell libtorrent that a piece isn't there any more."""
        self.pieces.reopen()
        self._outdated = self.phase is Phase.ADDING
        self.remove()

    def rest(self) -> None:
        """Take it out for others that are read, though somebody has it open; `Sink.ended`, unless it is wanted."""
        self._resting = True
        self.remove()

    def remove(self) -> None:
        """Take the torrent out of the session; its file and what landed stay."""
        if self.phase is Phase.RUNNING and self._handle is not None:
            self.phase, self.removing_since = Phase.REMOVING, trio.current_time()
            self._out = trio.Event()
            self._session.remove_torrent(self._handle)
            self._handle = None
            self.pieces.detach(self._wishes.forget_sent())
            self.peers, self.holders, self.rate, self._measured = 0, 0, 0.0, False

    def _add(self) -> None:
        self.phase = Phase.ADDING
        self._broken = self._resting = False
        self.pieces.look()
        params = self._params
        blocks = self._have.size
        path = self.job.path
        params.save_path, params.renamed_files = str(path.parent), {0: path.name}
        params.have_pieces = [index in self._have for index in range(blocks)]
        params.piece_priorities = [UNWANTED] * blocks
        params.trackers = list(self._swarm.trackers)
        params.url_seeds = []
        flags = lt.torrent_flags
        params.flags = flags.paused | flags.sequential_download | flags.no_verify_files
        if not self._swarm.peer_exchange:
            params.flags |= flags.disable_pex
        self._session.async_add_torrent(params)

    def on_added(self, handle: lt.torrent_handle) -> None:
        """Send the wishes first, then let it run."""
        self._handle = handle
        self.pieces.attach(handle)
        self.phase = Phase.RUNNING
        if self._outdated:
            self._outdated = False
            self.remove()
            return
        self._send_wishes()
        self._add_web_seeds(handle)
        self._connect()
        handle.resume()
        if self._leaving:
            self.remove()

    def discard(self) -> None:
        """Let go of the file; this is of no use afterwards."""
        self.pieces.close()

    def end(self) -> None:
        """Let go of the file and say so: the session goes on without this torrent."""
        self.discard()
        self._sink.ended()

    def on_removed(self) -> bool:
        """Add it again if somebody opened it meanwhile or wants something; False if it is gone for good."""
        self.phase = Phase.GONE
        self._out.set()
        if self.busy or self.sought or (self.opened and not self._resting):
            self._add()
            return True
        return False

    def _be_patient(self) -> None:
        self._progress_at = trio.current_time()
        self._patience = 1.0

    def _revive(self) -> None:
        """Add the torrent anew where libtorrent would ask nobody: after a file error, or when all peers have gone."""
        if self._broken or (self._measured and not self.peers):
            self.remove()

    def _connect(self) -> None:
        if self._handle is not None:
            for address in self._swarm.peers:
                self._handle.connect_peer(address)

    def _add_web_seeds(self, handle: lt.torrent_handle) -> None:
        # In every form that the host may know; libtorrent drops the one that is answered with 404.
        if self.job.item.urls:  # it lies there, asked for by somebody who judges addresses, and nowhere else
            return
        for seed in self._swarm.web_seeds if self._swarm.asks_web_seeds() else ():
            for url in seed.urls(self.job.item.name):
                handle.add_url_seed(url)

    def supervise(self, now: float) -> None:
        """Called about twice a second: try the sources again when what is wanted does not come."""
        if self.peers and self._handle is not None and not self.pieces.adopt():
            self.remove()
            return
        if not (self.busy or self.sought) or self._handle is None or now - self._progress_at < self._patience:
            return
        self._progress_at = now
        self._patience = min(self._patience * 2, 15.0)
        # libtorrent dials an address three times and then never again, and who sent right bytes of a piece that
        # failed its hash may never be asked for the rest of it.
        if self._patience > _GIVEN_UP and (not self.peers or (self.pieces.refuted and not self.arriving)):
            self.remove()
            return
        self._add_web_seeds(self._handle)
        self._connect()
        if not self.arriving:
            self.ask_again(self._wishes.wanted)

    def ask_again(self, pieces: Iterable[int]) -> None:
        """Make the wishes for these anew."""
        if self._handle is not None:
            self._wishes.send_again(self._handle, pieces)

    def _send_wishes(self) -> None:
        if self._handle is not None:
            self._wishes.send(self._handle, self.rate)

    async def measured_peers(self) -> list[lt.peer_info]:
        """Who is connected, and take note of their number and speed.

        libtorrent's network thread answers this, so it is waited for elsewhere than in the event loop.
        """
        peers: list[lt.peer_info] = []
        if self._handle is not None:
            with suppress(RuntimeError):  # removed meanwhile
                peers = await trio.to_thread.run_sync(self._handle.get_peer_info)
        if self._handle is None:
            return []
        self._measured = True
        there = [peer for peer in peers if not peer.flags & (peer.handshake | peer.connecting)]
        self.peers = len(there)
        self.holders = sum(1 for peer in there if peer.connection_type != peer.web_seed and peer.num_pieces)
        self.rate = float(sum(peer.payload_down_speed for peer in peers))
        # The rate is an average that takes a minute to forget.
        before, self._received = self._received, sum(peer.total_download for peer in peers)
        self.arriving = self._received > before
        if self.arriving:
            self._moved_at = trio.current_time()
        return peers

    def on_peers_changed(self) -> None:
        """A peer came or went: whether any is there decides how the next wish is pursued, so they are counted soon."""
        if not self._counting:
            self._counting = True
            self._nursery.start_soon(self._count_peers)

    async def _count_peers(self) -> None:
        await trio.sleep(_GONE_FROM_LIST)
        self._counting = False
        await self.measured_peers()

    # Pieces on their way to the file

    def may_write(self, index: int) -> bool:
        """Whether peers may have been asked for a piece in this life, so that libtorrent may write to its span."""
        return self._wishes.was_asked(index) and self.phase is Phase.RUNNING

    def keeps_off(self, blocks: range) -> bool:
        """Whether libtorrent writes to none of these as long as it isn't asked for them."""
        return self.phase is not Phase.REMOVING and not any(map(self.may_write, blocks))

    async def step_aside(self, index: int) -> None:
        """Return when libtorrent will not write to a piece's span, so that somebody else may."""
        while self.phase is Phase.REMOVING:
            await self._out.wait()
        self._wishes.drop(index)
        self._send_wishes()

    def landed(self, index: int) -> None:
        """A piece is in the file."""
        self.landed_since_measured = True
        self._wishes.landed(index)
        self.failing = ""
        self._gave = True
        self._moved_at = self.idle_since = trio.current_time()
        self._be_patient()
        self._sink.landed(index)

    def on_file_error(self, error: Exception) -> None:
        """libtorrent stopped the torrent; whoever waits is told, so nothing is wanted until the next read."""
        self.failing = str(error)
        self._broken = True
        self._wishes.drop_all()
        self._sink.failed(error)


def _parameters(info: Metainfo) -> lt.add_torrent_params:
    try:
        return lt.load_torrent_buffer(info.raw)
    except RuntimeError as error:
        raise MetainfoError(f"{info.content}: libtorrent refuses its metadata: {error}") from error
