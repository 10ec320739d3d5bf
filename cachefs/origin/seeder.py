"""The torrent seeder: one libtorrent session that uploads files which are already complete.

How it works: every torrent is added with all pieces marked as had, so nothing is hashed at the start, and in
upload mode, so that libtorrent never asks a peer for a piece and never writes into the directory, whatever
it may think of a file. It is told of each file by a descriptor of ours (`opening.py`), for it follows links, and would
read what one leads to that somebody put in the file's place. The session is the one that fetches in a mount, with other
settings. By default a peer finds
this seeder only if it is told its address: DHT, local discovery, port mapping and uTP come with `discover`.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import libtorrent as lt
import trio

from cachefs.config import Torrent
from cachefs.config.values import Peer
from cachefs.errors import ConfigError
from cachefs.fetch.torrent.nodelay import NoDelay
from cachefs.fetch.torrent.session import TorrentSession, session_settings
from cachefs.origin.opening import hold
from cachefs.origin.torrents import SeededFile

_OTHER_DESCRIPTORS = 512
"""What is left for connections and for files that are being read."""

LISTEN_TIMEOUT = 10.0
"""Seconds that the session has to say whether it listens."""

log = logging.getLogger(__name__)

_Category = lt.alert.category_t
_ALERTS = _Category.status_notification | _Category.error_notification | _Category.peer_notification


class Seeder:
    """Seeds through `session`, which is told to listen at `wanted`, what `add` gives it; `address` is where it does."""

    def __init__(self, session: TorrentSession, wanted: Peer) -> None:
        self._session = session
        self._told = trio.Event()
        self._refused = ""
        self._held: list[int] = []
        self.address = wanted
        no_delay = NoDelay()
        session.on(lt.listen_succeeded_alert, self._on_listening)
        session.on(lt.listen_failed_alert, self._on_not_listening)
        session.on(lt.incoming_connection_alert, lambda _: no_delay.set())
        session.on(lt.file_error_alert, _warn)  # a file that disappeared, for instance
        session.on(lt.torrent_error_alert, _warn)

    async def add(self, files: Iterable[SeededFile]) -> None:
        """Seed these, as many as there are descriptors for. ConfigError if libtorrent refuses a .torrent."""
        await trio.to_thread.run_sync(self._add_all, tuple(files))

    def close(self) -> None:
        """Let go of the files; the session has ended."""
        while self._held:
            os.close(self._held.pop())

    def _add_all(self, files: tuple[SeededFile, ...]) -> None:
        spare = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_DESCRIPTORS
        for file in files[: max(1, spare)]:
            try:
                self._held.append(hold(file.path))
                self._session.lt.add_torrent(_complete(file, self._held[-1]))
            except OSError as error:
                log.warning("%s is no torrent to be had here: %s", file.name, error.strerror)
            except RuntimeError as error:
                raise ConfigError(str(file.torrent), f"libtorrent refuses it: {error}") from error
        if len(files) > max(1, spare):
            left = len(files) - max(1, spare)
            log.warning("%d files are no torrents to be had here: raise the limit of open files (ulimit -n)", left)

    async def listening(self) -> None:
        """Wait until the session listens; ConfigError if it can't, or doesn't say in time."""
        with trio.move_on_after(LISTEN_TIMEOUT):
            await self._told.wait()
        if self._refused:
            raise ConfigError(str(self.address), f"can't listen there for peers: {self._refused}")
        if not self._told.is_set():
            raise ConfigError(str(self.address), f"libtorrent did not listen there within {LISTEN_TIMEOUT:.0f} s")

    def _on_listening(self, alert: lt.listen_succeeded_alert) -> None:
        if not self._told.is_set():
            self.address = Peer(alert.address, alert.port)
            self._told.set()

    def _on_not_listening(self, alert: lt.listen_failed_alert) -> None:
        if not self._told.is_set():
            self._refused = alert.error.message()
            self._told.set()


def _warn(alert: lt.alert) -> None:
    log.warning("%s", alert.message())


@asynccontextmanager
async def open_seeder(listen: Peer, *, discover: bool = False) -> AsyncIterator[Seeder]:
    """A seeder that listens for peers at `listen` (port 0: any free one) while the context is open.

    `discover` lets strangers find it: DHT, local discovery, UPnP, NAT-PMP. ConfigError if it can't listen.
    """
    session = TorrentSession(_settings(listen, discover))
    seeder = Seeder(session, listen)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.pump)
            await seeder.listening()
            yield seeder
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await session.aclose()
        seeder.close()


def _complete(file: SeededFile, descriptor: int) -> lt.add_torrent_params:
    params = lt.load_torrent_buffer(file.torrent.read_bytes())
    if params.ti is None:
        raise ConfigError(str(file.torrent), "libtorrent finds no torrent in it")
    params.save_path = "/proc/self/fd"
    params.renamed_files = {0: str(descriptor)}
    params.have_pieces = [True] * params.ti.num_pieces()
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    params.flags |= lt.torrent_flags.upload_mode
    return params


def _settings(listen: Peer, discover: bool) -> lt.settings_pack:
    """A mount's settings, but for what a session that only uploads has otherwise."""
    mount = Torrent(
        listen=listen, dht=discover, lsd=discover, upnp=discover, natpmp=discover, utp=discover, connections=2000
    )
    return {
        **session_settings(mount),
        "listen_system_port_fallback": False,
        "max_retry_port_bind": 0,
        "alert_mask": int(_ALERTS),
        "enable_outgoing_utp": discover,
        # Nothing is waited for here: libtorrent's own pace in looking for peers.
        "min_reconnect_time": 60,
        "torrent_connect_boost": 30,
    }
