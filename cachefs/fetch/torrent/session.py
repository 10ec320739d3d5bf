"""The libtorrent session: its settings, and its alerts as calls.

How it works: libtorrent runs its own network and disk threads and tells what happened through a queue of
alerts. It writes to one end of a socket pair when the queue is no longer empty; we wait for the other
end in the event loop, so there is no thread of ours and no polling. An alert's memory goes with the
next `pop_alerts`, so a handler copies what it keeps. Only categories that somebody listens to are asked for.

The settings follow measurements on loopback: `tick_interval` bounds how late libtorrent reacts to a
changed wish, `pread` disk I/O lets a full disk be an error instead of a signal, and a peer that has
nothing we want at this moment must not be dropped, because the next read may want it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import libtorrent as lt
import trio

if TYPE_CHECKING:
    from cachefs.config import Torrent

log = logging.getLogger(__name__)

_Category = lt.alert.category_t
_ALERTS = (
    _Category.error_notification
    | _Category.status_notification
    | _Category.storage_notification
    | _Category.piece_progress_notification
    | _Category.connect_notification
    | _Category.peer_notification
)

AlertT = TypeVar("AlertT", bound=lt.alert)


def session_settings(settings: Torrent) -> lt.settings_pack:
    """libtorrent's settings pack for our own (names: libtorrent's settings_pack reference)."""
    return {
        "user_agent": "cachefs",
        "listen_interfaces": str(settings.listen),
        "enable_dht": settings.dht,
        "enable_lsd": settings.lsd,
        "enable_upnp": settings.upnp,
        "enable_natpmp": settings.natpmp,
        "enable_incoming_utp": settings.utp,
        "enable_outgoing_utp": False,
        "download_rate_limit": settings.download_limit,
        "upload_rate_limit": settings.upload_limit,
        "connections_limit": settings.connections,
        "active_limit": -1,
        "alert_mask": int(_ALERTS),
        "alert_queue_size": 50_000,
        "tick_interval": 100,
        "min_reconnect_time": 0,
        "torrent_connect_boost": 255,
        "close_redundant_connections": False,
        "allow_multiple_connections_per_ip": True,
        "unchoke_slots_limit": -1,
        "max_out_request_queue": 5_000,
        "max_allowed_in_request_queue": 5_000,
        "request_queue_time": 30,
        "send_buffer_watermark": 8 * 2**20,
        "send_buffer_low_watermark": 2**20,
        "urlseed_timeout": 10,
        "urlseed_wait_retry": 5,
        "peer_connect_timeout": 5,
        "stop_tracker_timeout": 1,
    }


class TorrentSession:
    """One libtorrent session with these settings; `on` a kind of alert a handler is called, while `pump` runs."""

    def __init__(self, settings: lt.settings_pack) -> None:
        params = lt.session_params()
        params.disk_io_constructor = "pread_disk_io_constructor"
        params.settings = settings
        self._wake, self._signal = socket.socketpair()
        self._wake.setblocking(False)
        self._signal.setblocking(False)
        self.lt = lt.session(params)
        self.lt.set_alert_fd(self._signal.fileno())
        self._handlers: dict[type[lt.alert], Callable[[Any], None]] = {}

    def on(self, kind: type[AlertT], handler: Callable[[AlertT], None]) -> None:
        """Call `handler` with every alert of exactly this kind."""
        self._handlers[kind] = handler

    async def pump(self) -> None:
        """Hand out alerts for ever; the queue is emptied before the first wait."""
        while True:
            for alert in self.lt.pop_alerts():
                handler = self._handlers.get(type(alert))
                if handler is not None:
                    self._call(handler, alert)
            await trio.lowlevel.wait_readable(self._wake)
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)

    @staticmethod
    def _call(handler: Callable[[Any], None], alert: lt.alert) -> None:
        # One torrent's trouble must not end the pump, and with it every other torrent.
        try:
            handler(alert)
        except Exception:
            log.exception("handling %s", alert.what())

    async def aclose(self) -> None:
        """End the session; its threads have ended and its files are closed on return.

        The destructor joins those threads, so the last reference is given up off the event loop.
        """
        self.lt.pause()
        last_reference = [self.lt]
        del self.lt
        await trio.to_thread.run_sync(last_reference.clear)
        self._wake.close()
        self._signal.close()
