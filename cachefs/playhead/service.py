"""Playheads in a running mount: whose they are, who may ask, and what is fetched when a record is picked up.

How it works: without `[playhead] follow` this daemon decides (`Board`, kept in `<data-dir>/playheads.json`); with it,
another one does and this one mirrors it (`RemoteBoard`). Either way the API is on `<data-dir>/playhead.sock`, and with
`serve` on an address, for other daemons to follow. When somebody starts a record, wherever that is, it has been
picked up: every daemon that knows the playhead fetches the record for its own listeners.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from cachefs.config.playhead import Playheads
from cachefs.config.values import without_login
from cachefs.errors import CachefsError, PlayheadUnreachable
from cachefs.playhead.board import Board, Heads
from cachefs.playhead.client import RemoteBoard, connect
from cachefs.playhead.clock import SteadyUtc
from cachefs.playhead.server import serve_address, serve_socket

FILE = "playheads.json"
PICKED_UP_AT_ONCE = 4
"""Records that are fetched at a time because somebody picked them up."""

_STILL_PLAYING = 6 * 3600.0
"""Seconds after which a record that was started and never stopped is taken for forgotten."""

PickUp = Callable[[str], Awaitable[None]]

log = logging.getLogger(__name__)


class PlayheadService:
    """The playheads of one daemon. `pick_up` fetches a record by its name."""

    def __init__(self, settings: Playheads, data_dir: Path, pick_up: PickUp | None = None) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._pick_up = pick_up
        self._heads: Heads | None = None
        self._url = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve playheads until cancelled. ConfigError if the address can't be listened on."""
        async with self._opened() as heads, trio.open_nursery() as nursery:
            self._heads = heads
            await nursery.start(heads.run)
            await nursery.start(serve_socket, heads, self._data_dir)
            address, token = self._settings.serve, self._settings.token
            if address is not None:
                self._url = await nursery.start(serve_address, heads, address.host, address.port, token)
                log.info("playheads are served at %s", self._url)
            if self._pick_up is not None:
                nursery.start_soon(self._picked_up, heads, self._pick_up)
            task_status.started()

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Board | RemoteBoard]:
        if self._settings.follow:
            async with connect(self._settings.follow, self._settings.token) as client:
                yield RemoteBoard(client)
        else:
            yield Board(SteadyUtc(), self._data_dir / FILE)

    async def _picked_up(self, heads: Heads, pick_up: PickUp) -> None:
        """Fetch each record once it is started; a few at a time, in the order in which they were."""
        limit, under_way = trio.CapacityLimiter(PICKED_UP_AT_ONCE), set[str]()
        async with heads.watch() as watch, trio.open_nursery() as nursery:
            while True:
                head = await watch.next()
                recent = heads.utc() - head.anchor_utc < _STILL_PLAYING
                if head.playing and recent and head.record not in under_way:
                    under_way.add(head.record)
                    nursery.start_soon(self._fetch, limit, under_way, pick_up, head.record)

    async def _fetch(self, limit: trio.CapacityLimiter, under_way: set[str], pick_up: PickUp, record: str) -> None:
        try:
            async with limit:
                await pick_up(record)
        except CachefsError as error:
            log.warning("picked up, but not fetched ahead: %s", error)
        finally:
            under_way.discard(record)

    def report(self) -> Mapping[str, Any]:
        """For the status: who decides, where others may follow, how well, and the playheads."""
        heads = self._heads
        remote = heads if isinstance(heads, RemoteBoard) else None
        return {
            "decided": without_login(self._settings.follow) or "here",
            "served": self._url or None,
            "connected": remote.connected.is_set() if remote else True,
            "clock_uncertainty": remote.uncertainty if remote and remote.connected.is_set() else None,
            "trouble": remote.trouble if remote else None,
            "playing": self._playing(),
        }

    def _playing(self) -> int:
        """How many records play, as far as is known."""
        with contextlib.suppress(PlayheadUnreachable):
            return sum(head.playing for head in self._heads.heads().values()) if self._heads else 0
        return 0
