"""What the tests of the seed box share: one running seed box with its files, and a plain libtorrent client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt

from cachefs import metainfo
from tests.counterparts import Peer, Seedbox, cachefs_seed, make_snapshots

PIECE = metainfo.ERIGON_PIECE_LENGTH
SIZES = (5, PIECE, 3 * PIECE + 1, 100_000, 64 * 2**20)
HISTORY = "history/v1-accounts.0-64.v"
"""The largest file, in a subfolder: its name has the slash that other clients treat differently."""


@dataclass(frozen=True)
class Origin:
    """A running seed box, and the files it serves."""

    box: Seedbox
    root: Path
    files: dict[str, Path]

    def torrent(self, name: str) -> Path:
        return self.root / f"{name}.torrent"


@contextmanager
def seeded_origin(root: Path) -> Iterator[Origin]:
    """A seed box that serves files of `SIZES` below `root`."""
    files = make_snapshots(root, *SIZES)
    with cachefs_seed(root) as box:
        yield Origin(box, root, files)


def download(torrent: Path, into: Path, *, peer: Peer | None = None, url: str = "") -> bytes:
    """What a plain libtorrent client gets of `torrent` from one peer, or from one web seed."""
    session, handle = start_download(torrent, into, peer=peer, url=url)
    wait_for_alert(session, lt.torrent_finished_alert)
    handle.flush_cache()
    wait_for_alert(session, lt.cache_flushed_alert)
    return (into / "got").read_bytes()


def start_download(
    torrent: Path, into: Path, *, peer: Peer | None = None, url: str = ""
) -> tuple[lt.session, lt.torrent_handle]:
    settings: lt.settings_pack = {
        "listen_interfaces": "",
        "tick_interval": 100,
        "alert_mask": lt.alert_category.status | lt.alert_category.error | lt.alert_category.storage,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_outgoing_utp": False,
    }
    session, params = lt.session(settings), lt.load_torrent_file(str(torrent))
    params.save_path, params.renamed_files = str(into), {0: "got"}
    params.url_seeds = [url] if url else []
    handle = session.add_torrent(params)
    if peer is not None:
        handle.connect_peer((peer.host, peer.port))
    return session, handle


def wait_for_alert(session: lt.session, wanted: type[lt.alert], seconds: float = 30) -> None:
    seen: list[str] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        session.wait_for_alert(100)
        for alert in session.pop_alerts():
            seen.append(alert.message())
            if isinstance(alert, wanted):
                return
    raise AssertionError(f"no {wanted.__name__}; but:\n" + "\n".join(seen[-50:]))
