"""The yardstick: a bare libtorrent download, in a process of its own, that prints how many seconds it took.

How it works: no mount, no store, no policy; a session with its defaults (no discovery, and told to react fast, so
that no time goes into waiting for its next tick), one torrent, one source. The clock runs from the session's making
to the moment libtorrent says that everything, or the one piece asked for, is downloaded and verified. What it
does not do is wait until the bytes can be read from the file, which is in its favour.

Usage: bench_reference.py TORRENT DIRECTORY DISK (--peer HOST:PORT | --url URL) [PIECE]
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import libtorrent as lt

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS: lt.settings_pack = {
    "listen_interfaces": "",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "tick_interval": 100,
    "alert_mask": int(lt.alert_category.status | lt.alert_category.piece_progress),
}


def download(torrent: str, directory: str, disk: str, kind: str, source: str, piece: int | None) -> float:
    """The seconds that it takes; `disk` is a back end's name, or "default"."""
    started = time.perf_counter()
    params = lt.session_params()
    if disk != "default":
        params.disk_io_constructor = f"{disk}_disk_io_constructor"
    params.settings = SETTINGS
    session, adding = lt.session(params), lt.load_torrent_file(torrent)
    adding.save_path, adding.flags = directory, lt.torrent_flags.sequential_download
    adding.url_seeds = [source] if kind == "--url" else []
    if piece is not None and adding.ti is not None:
        adding.piece_priorities = [7 if index == piece else 0 for index in range(adding.ti.num_pieces())]
    handle = session.add_torrent(adding)
    if kind == "--peer":
        host, _, port = source.rpartition(":")
        handle.connect_peer((host, int(port)))
    wanted = lt.torrent_finished_alert if piece is None else lt.piece_finished_alert
    while not any(isinstance(alert, wanted) for alert in session.pop_alerts()):
        session.wait_for_alert(1000)
    return time.perf_counter() - started


def main(arguments: Sequence[str]) -> None:
    torrent, directory, disk, kind, source, *piece = arguments
    sys.stdout.write(f"{download(torrent, directory, disk, kind, source, int(piece[0]) if piece else None)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
