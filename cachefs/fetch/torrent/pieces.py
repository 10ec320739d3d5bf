"""Finished pieces on their way to the file, and pieces that others put there.

How it works: libtorrent's `piece_finished` says that its hash was right, yet its bytes may still be in
libtorrent's cache. So finished pieces wait for a flush: one in flight at a time, whatever finishes
meanwhile goes with the next. The flush's answer has no number and libtorrent posts the same alert on
other occasions, so it is not trusted alone: the file starts sparse, and a piece counts as landed only when
its whole span holds data. A piece whose span may hold older bytes (left by a crash, by an attempt that failed its
hash, or by a torrent that was removed in the middle of it) is *suspect*, and is hashed again from the file before
it lands. A piece that isn't in the file after a flush, because the disk is full say, is looked for again after a
growing pause.

A piece that somebody else fetched is either offered to libtorrent, which then lands it like one of its own, or it was
written to the file and is given to libtorrent later, a few at a time, once there is a peer who may want it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

import libtorrent as lt
import trio

from cachefs.errors import BlockInvalid, StoreFailed
from cachefs.fetch.base import Job
from cachefs.fetch.torrent.extents import Extents

_LOOK_AGAIN = (0.05, 5.0)
_CLEARED_AWAY = (0.1, 5.0)
_TAKEN_WITHIN = 5.0
_ADOPTED_AT_ONCE = 8


class Owner(Protocol):
    """The torrent that the pieces are of."""

    def landed(self, index: int) -> None:
        """A piece is in the file."""

    def on_file_error(self, error: Exception) -> None:
        """The file can't be read."""

    def ask_again(self, pieces: Iterable[int]) -> None:
        """Wish for these anew."""


class Pieces:
    """The pieces of one torrent; `attach` and `detach` begin and end one of its lives in the session."""

    def __init__(self, job: Job, nursery: trio.Nursery, owner: Owner) -> None:
        self.refuted: set[int] = set()
        """Those whose hash was wrong when they last came."""
        self._job = job
        self._manifest = job.item.manifest
        self._have = job.have
        self._nursery = nursery
        self._owner = owner
        self._extents = Extents(job.path)
        self._handle: lt.torrent_handle | None = None
        self._lives = 0
        self._suspect: set[int] = set()
        self._finished: list[int] = []
        self._flushing: list[int] = []
        self._looks: dict[int, int] = {}
        self._offers: dict[int, trio.Event] = {}
        self._foreign: list[int] = []

    def attach(self, handle: lt.torrent_handle) -> None:
        """The torrent is in the session."""
        self._handle = handle

    def detach(self, asked: Iterable[int]) -> None:
        """It is being taken out of the session; of the pieces that were asked for something may be in the file."""
        self._handle = None
        self._lives += 1
        self._suspect.update(asked)
        self.refuted.clear()
        self._finished, self._flushing, self._looks = [], [], {}
        for answered in self._offers.values():
            answered.set()  # what was offered went with it

    def look(self) -> None:
        """Find out which pieces the file holds something of that we don't have."""
        self._suspect |= self._extents.touched_without(self._manifest, self._have)

    def reopen(self) -> None:
        """The file may be another one now."""
        self._extents.reopen(self._job.path)

    def close(self) -> None:
        """Let go of the file."""
        self._extents.close()

    def on_finished(self, index: int) -> None:
        if index in self._have and index not in self._offers:
            return  # it came from us
        self._finished.append(index)
        self._flush()

    def on_hash_failed(self, index: int) -> None:
        self._suspect.add(index)
        if index not in self.refuted:
            self.refuted.add(index)
            self._nursery.start_soon(self._fetch_anew, index, self._lives)

    async def _fetch_anew(self, index: int, life: int) -> None:
        # Where nothing else is wanted libtorrent asks nobody for it again until something wakes it, seconds later. It
        # can't be asked for before its bad blocks are cleared away, of which nothing is told.
        pause, longest = _CLEARED_AWAY
        while pause < longest and index in self.refuted and self._lives == life:
            await trio.sleep(pause)
            self._owner.ask_again([index])
            pause *= 2

    def on_flushed(self) -> None:
        """Land the pieces whose bytes are in the file; the others go with the next flush."""
        flushed, self._flushing = self._flushing, []
        for index in flushed:
            if index in self._suspect:
                self._nursery.start_soon(self._hash_and_land, index)
            elif self._extents.written(self._manifest.span(index)):
                self._land(index)
            else:
                self._look_again(index)
        self._flush()

    def _land(self, index: int) -> None:
        self._suspect.discard(index)
        self.refuted.discard(index)
        self._looks.pop(index, None)
        self._owner.landed(index)
        if index in self._offers:
            self._offers[index].set()

    async def _hash_and_land(self, index: int) -> None:
        # Lands a suspect piece if the file really holds it; otherwise it is flushed once more.
        manifest, life = self._manifest, self._lives
        try:
            data = await trio.to_thread.run_sync(self._extents.read, manifest.span(index))
            await trio.to_thread.run_sync(manifest.verify, index, data)
        except BlockInvalid:
            if self._lives == life:
                self._look_again(index)
        except StoreFailed as error:
            if self._lives == life:
                self._owner.on_file_error(error)
        else:
            if self._lives == life:
                self._land(index)

    def _look_again(self, index: int) -> None:
        """Have a finished piece that isn't in the file yet flushed once more, after a pause."""
        shortest, longest = _LOOK_AGAIN
        looks = self._looks[index] = self._looks.get(index, 0) + 1
        pause = min(shortest * 2.0 ** min(looks - 1, 16), longest)
        self._nursery.start_soon(self._finish_later, index, pause, self._lives)

    async def _finish_later(self, index: int, pause: float, life: int) -> None:
        await trio.sleep(pause)
        if self._lives == life and index not in self._have:
            self.on_finished(index)

    def _flush(self) -> None:
        if self._finished and not self._flushing and self._handle is not None:
            self._flushing, self._finished = self._finished, []
            self._handle.flush_cache()

    # Pieces that others fetched

    async def offer(self, index: int, data: bytes) -> bool:
        """Have libtorrent take a whole piece in place of what it has of it; False if it doesn't land in time.

        Nor does it land if the torrent is taken out of the session meanwhile.
        """
        if self._handle is None:
            return False
        answered = self._offers.setdefault(index, trio.Event())
        self._suspect.add(index)  # blocks of a peer may still be on their way to the disk
        self._handle.add_piece(index, data, lt.torrent_handle.overwrite_existing)
        with trio.move_on_after(_TAKEN_WITHIN):
            await answered.wait()
        self._offers.pop(index, None)
        return index in self._have

    def arrived(self, index: int) -> None:
        """A piece was written to the file by somebody else; it is given to libtorrent when a peer may want it."""
        self._foreign.append(index)

    def adopt(self) -> bool:
        """Tell libtorrent of pieces that others put into the file, a few at a time; False: better add it anew."""
        if self._have.complete and self._foreign:
            self._foreign = []
            return False
        batch, self._foreign = self._foreign[:_ADOPTED_AT_ONCE], self._foreign[_ADOPTED_AT_ONCE:]
        if batch:
            self._nursery.start_soon(self._give, batch, self._lives)
        return True

    async def _give(self, pieces: list[int], life: int) -> None:
        for index in pieces:
            with suppress(StoreFailed):
                data = await trio.to_thread.run_sync(self._extents.read, self._manifest.span(index))
                if self._lives == life and self._handle is not None and not self._have.complete:
                    self._handle.add_piece(index, data, 0)
