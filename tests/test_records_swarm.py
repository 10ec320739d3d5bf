"""A record's swarm: listeners fetch from each other, the origin serves it about once, and nobody needs the swarm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachefs.catalog.records import LOCK_NAME
from tests import records_kit
from tests.counterparts import LOOPBACK, Peer, free_port
from tests.mount_kit import Mount, mounted
from tests.records_kit import PIECE, data_dir, song, web

SONG = song(1, 20 * PIECE + 1000)


@contextmanager
def node(place: Path, *peers: Peer) -> Iterator[tuple[Mount, Peer]]:
    """A mount that others can connect to, and where."""
    here = Peer(LOOPBACK, free_port())
    with mounted(place, None, "--config", place / "data" / "cachefs.toml", "--listen", str(here), peers=peers) as mount:
        yield mount, here


def listener(place: Path, etcher: Path) -> Path:
    """A data directory with the etcher's lock and piece lists, but without the torrent."""
    data = data_dir(place)
    shutil.copy(etcher / LOCK_NAME, data)
    shutil.copytree(etcher / "pieces", data / "pieces", ignore=shutil.ignore_patterns("*.torrent"))
    return place


def test_listeners_fetch_from_each_other_and_the_origin_serves_it_once(tmp_path: Path) -> None:
    with web() as host:
        etcher = data_dir(tmp_path / "etcher")
        records_kit.etch(etcher, host.put("song.mp3", SONG), "--swarm")
        with node(tmp_path / "etcher") as (_, first):
            with node(listener(tmp_path / "one", etcher), first) as (one, second):
                assert (one.mountpoint / "records" / "song.mp3").read_bytes() == SONG
                with node(listener(tmp_path / "two", etcher), second) as (two, _):
                    assert (two.mountpoint / "records" / "song.mp3").read_bytes() == SONG
        assert len(host.asked_for("song.mp3")) == 1
        assert host.sent == len(SONG)


def test_a_swarm_without_peers_plays_from_its_url(tmp_path: Path) -> None:
    with web() as host:
        etcher = data_dir(tmp_path / "etcher")
        records_kit.etch(etcher, host.put("song.mp3", SONG), "--swarm")
        place = listener(tmp_path / "one", etcher)
        shutil.copytree(etcher / "pieces", place / "data" / "pieces", dirs_exist_ok=True)
        with node(place, Peer(LOOPBACK, free_port())) as (mount, _):
            assert (mount.mountpoint / "records" / "song.mp3").read_bytes() == SONG
            assert len(SONG) <= mount.received() <= len(SONG) + 8 * PIECE


def test_a_dead_url_is_made_up_for_by_peers(tmp_path: Path) -> None:
    with web() as host:
        etcher = data_dir(tmp_path / "etcher")
        records_kit.etch(etcher, host.put("song.mp3", SONG), "--swarm")
        host.put("song.mp3", b"", status=404)
        with node(tmp_path / "etcher") as (_, first):
            with node(listener(tmp_path / "one", etcher), first) as (one, _):
                assert (one.mountpoint / "records" / "song.mp3").read_bytes() == SONG
