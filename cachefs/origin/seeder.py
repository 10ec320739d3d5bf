"""The torrent seeder: one libtorrent session that uploads files which are already complete.

How it works: every torrent is added with all pieces marked as had, so nothing is hashed at the start, and in
upload mode, so that libtorrent never asks a peer for a piece and never writes into the directory, whatever
it may think of a file. The session's alerts arrive through a socket pair that trio waits on: no thread, no
polling. By default a peer finds this seeder only if it is told its address: DHT, local discovery, port
mapping and uTP come with `discover`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import libtorrent as lt
import trio

from cachefs.errors import ConfigError
from cachefs.fetch.nodelay import set_nodelay
from cachefs.origin.torrents import SeededFile

LISTEN_TIMEOUT = 10.0
"""Seconds that the session has to say whether it listens."""

log = logging.getLogger(__name__)

_Category = lt.alert.category_t
_ALERTS = _Category.status_notification | _Category.error_notification | _Category.peer_notification


class Seeder:
    """A session that listens at `address` and seeds what `add` gives it."""

    def __init__(self, session: lt.session, bell: trio.socket.SocketType) -> None:
        self._session = session
        self._bell = bell
        self.address = ("", 0)

    async def add(self, root: Path, files: Iterable[SeededFile]) -> None:
        """Seed `files`, whose names are paths below `root`. ConfigError if libtorrent refuses a .torrent."""
        await trio.to_thread.run_sync(self._add_all, root, tuple(files))

    def _add_all(self, root: Path, files: tuple[SeededFile, ...]) -> None:
        for file in files:
            try:
                self._session.add_torrent(_complete(root, file))
            except (RuntimeError, OSError) as error:
                raise ConfigError(str(file.torrent), f"libtorrent refuses it: {error}") from error

    async def listening(self, wanted: str) -> None:
        """Wait until the session listens; ConfigError if it can't, or doesn't say in time."""
        with trio.move_on_after(LISTEN_TIMEOUT):
            while not self.address[1]:
                for alert in await self._alerts():
                    if isinstance(alert, lt.listen_failed_alert):
                        raise ConfigError(wanted, f"can't listen there for peers: {alert.error.message()}")
                    if isinstance(alert, lt.listen_succeeded_alert):
                        self.address = (alert.address, alert.port)
            return
        raise ConfigError(wanted, f"libtorrent did not listen there within {LISTEN_TIMEOUT:.0f} s")

    async def attend(self) -> None:
        """Quicken new connections and log what goes wrong, a file that disappears for instance, until cancelled."""
        while True:
            for alert in await self._alerts():
                if isinstance(alert, lt.incoming_connection_alert):
                    set_nodelay(alert.endpoint)
                elif isinstance(alert, (lt.file_error_alert, lt.torrent_error_alert)):
                    log.warning("%s", alert.message())

    async def _alerts(self) -> list[lt.alert]:
        # An alert rings the bell only when the queue was empty, so the queue is looked at before waiting.
        while not (alerts := self._session.pop_alerts()):
            await self._bell.recv(4096)
        return alerts


@asynccontextmanager
async def open_seeder(host: str, port: int, *, discover: bool = False) -> AsyncIterator[Seeder]:
    """A seeder that listens for peers at host and port (0: any free one) while the context is open.

    `discover` lets strangers find it: DHT, local discovery, UPnP, NAT-PMP. ConfigError if it can't listen.
    """
    wanted = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    params = lt.session_params(_settings(wanted, discover))
    params.disk_io_constructor = "pread_disk_io_constructor"
    session = lt.session(params)
    bell, rope = socket.socketpair()
    try:
        bell.setblocking(False)
        rope.setblocking(False)
        session.set_alert_fd(rope.fileno())
        seeder = Seeder(session, trio.socket.from_stdlib_socket(bell))
        await seeder.listening(wanted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seeder.attend)
            yield seeder
            nursery.cancel_scope.cancel()
    finally:
        session.set_alert_fd(-1)
        rope.close()
        bell.close()


def _complete(root: Path, file: SeededFile) -> lt.add_torrent_params:
    params = lt.load_torrent_buffer(file.torrent.read_bytes())
    if params.ti is None:
        raise ConfigError(str(file.torrent), "libtorrent finds no torrent in it")
    params.save_path = str(root)
    # libtorrent drops the slash of `history/x.v` from the path it would use: say where the file is.
    params.renamed_files = {0: file.name}
    params.have_pieces = [True] * params.ti.num_pieces()
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    params.flags |= lt.torrent_flags.upload_mode
    return params


def _settings(listen: str, discover: bool) -> lt.settings_pack:
    return {
        "user_agent": "cachefs",
        "listen_interfaces": listen,
        "listen_system_port_fallback": False,
        "max_retry_port_bind": 0,
        "alert_mask": _ALERTS,
        "alert_queue_size": 20_000,
        "enable_dht": discover,
        "enable_lsd": discover,
        "enable_upnp": discover,
        "enable_natpmp": discover,
        "enable_outgoing_utp": discover,
        "enable_incoming_utp": discover,
        # Several mounts behind one address, or on one machine, are several peers.
        "allow_multiple_connections_per_ip": True,
        "close_redundant_connections": False,
        "connections_limit": 2000,
        # A seed box uploads to whoever asks, with enough in flight to fill a fast link.
        "unchoke_slots_limit": -1,
        "send_buffer_watermark": 8 * 2**20,
        "send_buffer_low_watermark": 2**20,
        "max_allowed_in_request_queue": 5000,
        "max_out_request_queue": 5000,
        "tick_interval": 100,
    }
