"""Fetching by BitTorrent: one session, and a torrent for what is read or seeded.

How it works: a torrent is added when it is first needed and removed when it has been idle for a while,
so a catalogue of many thousand names costs nothing by itself. Complete torrents stay to be seeded, up to a
limit, least recently used ones first to go. A node has every file open, so an open one stays within that limit, too:
beyond it those of which nothing is wanted make room, and the next read adds them again. Alerts find their torrent by
info-hash. About twice a second a supervisor looks after what does not come: addresses are dialled again, web seeds that
libtorrent gave up are offered again, with growing pauses. Who gave what is asked of libtorrent once a second and
kept in the ledger, since pieces carry no sender.

Metadata from peers uses the same session (`magnets.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import libtorrent as lt
import trio

from cachefs.config.values import without_login
from cachefs.content import ContentId
from cachefs.diskerrors import kind_of
from cachefs.errors import MetadataUnavailable, StoreFailed
from cachefs.fetch.base import Job, Sink, Transfer
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.fetch.torrent.download import Phase, Swarm, TorrentDownload
from cachefs.fetch.torrent.hosts import Hosts
from cachefs.fetch.torrent.magnets import Magnets
from cachefs.fetch.torrent.nodelay import NoDelay
from cachefs.fetch.torrent.session import TorrentSession, session_settings

if TYPE_CHECKING:
    from cachefs.config import Peer, Torrent

log = logging.getLogger(__name__)

_SUPERVISE_EVERY = 0.5
_REMOVED_WITHIN = 2.0


class TorrentFetcher:
    """The `Fetcher` by libtorrent; use it inside `run`."""

    def __init__(
        self,
        settings: Torrent,
        ledger: Ledger,
        *,
        peers: Iterable[Peer] = (),
        web_seeds: Iterable[WebSeed] = (),
        trackers: Iterable[str] = (),
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._swarm = Swarm(web_seeds, trackers, peer_exchange=settings.pex)
        self._hosts = Hosts(peers, self._swarm, ledger)
        self._downloads: dict[bytes, TorrentDownload] = {}
        self._magnets: Magnets | None = None
        self._no_delay, self._news = NoDelay(), False
        self._counted: dict[bytes, dict[str, int]] = {}
        self._nursery: trio.Nursery | None = None
        self._session: TorrentSession | None = None

    @property
    def has_peers(self) -> bool:
        """Whether there is any way to find a peer."""
        return bool(self._hosts or self._swarm.trackers or self._settings.dht or self._settings.lsd)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the session and serve it for ever; it is closed when this is cancelled."""
        self._session = session = TorrentSession(session_settings(self._settings))
        self._magnets = magnets = Magnets(session.lt, self._swarm, self._downloads.__contains__)
        self._listen(session, magnets)
        try:
            async with trio.open_nursery() as self._nursery:
                await self._nursery.start(self._hosts.run)
                self._nursery.start_soon(session.pump)
                self._nursery.start_soon(self._supervise, session, magnets)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await session.aclose()
            for download in self._downloads.values():
                download.discard()

    # What the cache and the metadata service ask

    def download(self, job: Job, sink: Sink) -> TorrentDownload:
        """Add the job's torrent to the session."""
        assert self._session is not None
        assert self._nursery is not None
        assert job.item.metainfo is not None
        key = job.item.metainfo.content.digest
        assert key not in self._downloads
        download = TorrentDownload(self._session.lt, self._nursery, self._swarm, job, sink)
        self._downloads[key] = download
        return download

    def leave_web_seeds_to(self, other: Callable[[], bool]) -> None:
        """Ask web seeds only while `other()` says that nobody else does."""
        self._swarm.asks_web_seeds = lambda: not other()

    def has(self, content: ContentId) -> bool:
        """Whether this torrent is in the session."""
        return content.digest in self._downloads

    def transfers(self) -> list[Transfer]:
        return [d.transfer() for d in self._downloads.values() if d.busy or d.rate > 0]

    async def metainfo(self, content: ContentId, name: str) -> bytes:
        """A .torrent made of the info dictionary that peers send; waits until one does.

        Cancel it to give up. libtorrent checks the dictionary against the info-hash.
        """
        assert self._magnets is not None
        if not self.has_peers:
            raise MetadataUnavailable(name, "no peers are known")
        return await self._magnets.metainfo(content)

    # Alerts

    def _listen(self, session: TorrentSession, magnets: Magnets) -> None:
        session.on(lt.add_torrent_alert, lambda a: self._on_added(a, magnets))
        session.on(lt.torrent_removed_alert, self._on_removed)
        session.on(lt.metadata_received_alert, lambda a: magnets.on_metadata(_key(a.handle), a.handle.torrent_file()))
        session.on(lt.piece_finished_alert, lambda a: self._with(a, lambda d: d.pieces.on_finished(a.piece_index)))
        session.on(lt.cache_flushed_alert, lambda a: self._with(a, lambda d: d.pieces.on_flushed()))
        session.on(lt.hash_failed_alert, self._on_hash_failed)
        session.on(lt.file_error_alert, self._on_file_error)
        session.on(lt.torrent_error_alert, self._on_torrent_error)
        session.on(lt.peer_ban_alert, self._on_ban)
        session.on(lt.peer_error_alert, lambda a: self._source_failed(_endpoint(a.endpoint), a.error.message()))
        session.on(lt.peer_disconnected_alert, self._on_disconnected)
        session.on(lt.peer_connect_alert, self._on_connected)
        session.on(lt.incoming_connection_alert, lambda _: self._connections_came())
        session.on(lt.url_seed_alert, self._on_url_seed)
        session.on(lt.alerts_dropped_alert, lambda a: log.error("libtorrent dropped alerts: %s", a.message()))
        session.on(lt.listen_failed_alert, lambda a: log.warning("%s", a.message()))

    def _with(self, alert: lt.torrent_alert, call: Callable[[TorrentDownload], None]) -> None:
        download = self._downloads.get(_key(alert.handle))
        if download is not None and download.phase is Phase.RUNNING:
            call(download)

    def _on_added(self, alert: lt.add_torrent_alert, magnets: Magnets) -> None:
        if alert.error.value():
            log.error("libtorrent refuses a torrent: %s", alert.message())
            return
        key = _key(alert.handle)
        if not magnets.on_added(key, alert.handle) and key in self._downloads:
            self._downloads[key].on_added(alert.handle)

    def _on_removed(self, alert: lt.torrent_removed_alert) -> None:
        download = self._downloads.get(alert.info_hashes.v1.to_bytes())
        if download is not None and download.phase is Phase.REMOVING:
            self._removed(download)

    def _removed(self, download: TorrentDownload) -> None:
        if not download.on_removed():
            self._forget(download)

    def _forget(self, download: TorrentDownload) -> None:
        del self._downloads[download.content.digest]
        download.end()
        self._counted.pop(download.content.digest, None)

    def _on_hash_failed(self, alert: lt.hash_failed_alert) -> None:
        def failed(download: TorrentDownload) -> None:
            # The alert's own name of it has lost the slash after a folder.
            log.warning("%s: piece %d failed its hash; fetched again", download.job.item.name, alert.piece_index)
            download.pieces.on_hash_failed(alert.piece_index)

        self._with(alert, failed)

    def _on_file_error(self, alert: lt.file_error_alert) -> None:
        error = kind_of(alert.error.value())(f"{alert.filename()}: {alert.error.message()}")
        self._with(alert, lambda download: download.on_file_error(error))

    def _on_torrent_error(self, alert: lt.torrent_error_alert) -> None:
        error = StoreFailed(alert.message())
        self._with(alert, lambda download: download.on_file_error(error))

    def _on_disconnected(self, alert: lt.peer_disconnected_alert) -> None:
        # What we end ourselves, a torrent being removed for one, and what a ban ends, is no failure of its own.
        if alert.error.category().name() != "libtorrent":
            self._source_failed(_endpoint(alert.endpoint), alert.error.message())
        self._with(alert, TorrentDownload.on_peers_changed)

    def _on_connected(self, alert: lt.peer_connect_alert) -> None:
        self._connections_came()
        self._with(alert, TorrentDownload.on_peers_changed)

    def _connections_came(self) -> None:
        # Once for all that are told of at one time: where nobody can be reached, that is hundreds a second.
        if not self._news and self._nursery is not None:
            self._news = True
            self._nursery.start_soon(self._set_no_delay)

    async def _set_no_delay(self) -> None:
        self._news = False
        self._no_delay.set()

    def _on_ban(self, alert: lt.peer_ban_alert) -> None:
        self._ledger.failed(_endpoint(alert.endpoint), "sent wrong bytes; banned", lied=True)

    def _source_failed(self, source: str, why: str) -> None:
        self._ledger.failed(source, why)

    def _on_url_seed(self, alert: lt.url_seed_alert) -> None:
        url = alert.server_url()
        why = alert.error_message() or alert.error.message()
        self._ledger.failed(
            next((str(s) for s in self._swarm.web_seeds if url.startswith(s.base)), without_login(url)), why
        )

    def _count(self, key: bytes, peer: lt.peer_info, rates: dict[str, float]) -> None:
        source = self._source_of(peer)
        counted = self._counted.setdefault(key, {})
        before = counted.get(source, 0)
        # A new connection starts to count from nothing.
        self._ledger.received(source, peer.total_download - (before if peer.total_download >= before else 0))
        counted[source] = peer.total_download
        rates[source] = rates.get(source, 0.0) + peer.payload_down_speed

    def _source_of(self, peer: lt.peer_info) -> str:
        if peer.connection_type != peer.web_seed:
            return _endpoint(peer.ip)
        # libtorrent tells the server's software and its address, not the URL.
        seed = self._hosts.seed_at(peer.ip)
        return str(seed) if seed is not None else _endpoint(peer.ip)

    # Looking after what does not come

    async def _supervise(self, session: TorrentSession, magnets: Magnets) -> None:
        tick = 0
        while True:
            await trio.sleep(_SUPERVISE_EVERY)
            tick += 1
            now = trio.current_time()
            for download in list(self._downloads.values()):
                download.supervise(now)
                if download.phase is Phase.REMOVING and now - download.removing_since > _REMOVED_WITHIN:
                    self._look_for(session, download)
            if tick % 2 == 0:
                await self._measure()
                self._remove_idle(now)
                magnets.dial()

    def _look_for(self, session: TorrentSession, download: TorrentDownload) -> None:
        """Take note that a torrent is gone, though libtorrent didn't say so: in a storm of file errors it may not."""
        handle = session.lt.find_torrent(lt.sha1_hash(download.content.digest))
        if not handle.is_valid():
            self._removed(download)

    async def _measure(self) -> None:
        """Ask who gives what; it is asked once more after the last bytes, to count them too."""
        rates: dict[str, float] = {}
        for digest, download in list(self._downloads.items()):
            if not (download.busy or download.sought or download.rate > 0 or download.landed_since_measured):
                continue
            download.landed_since_measured = False
            peers = await download.measured_peers()
            for peer in peers:
                self._count(digest, peer, rates)
        self._ledger.set_rates("torrent", rates)

    def _remove_idle(self, now: float) -> None:
        running = [d for d in self._downloads.values() if d.phase is not Phase.REMOVING]
        idle = [d for d in running if not d.busy and not d.sought and d.phase is Phase.RUNNING]
        idle.sort(key=lambda download: (download.opened, download.idle_since))
        excess = len(running) - self._settings.active_torrents
        for number, download in enumerate(idle):
            kept = download.opened or (self._settings.seed and download.complete)
            if number < excess:
                download.rest()
            elif not kept and now - download.idle_since >= self._settings.idle_seconds:
                download.remove()


def _key(handle: lt.torrent_handle) -> bytes:
    return handle.info_hashes().v1.to_bytes()


def _endpoint(endpoint: tuple[str, int]) -> str:
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
