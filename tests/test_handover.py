"""Who fetches: each row of the hand-over table through a real mount, watching which back end moved the bytes."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.counterparts import LOOPBACK, aria2_seeder, free_port, nginx, refusing_port, running
from tests.mount_kit import PIECE, Library, Mount, make_library, mounted, pread, same, seeding

SIZE = 5 * PIECE + 1
WAYS = {"directly": "[fetch]\n", "through rclone": "[fetch]\ndirect = false\n"}
"""The ways to ask a web seed, and the settings for each."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), SIZE, 5, PIECE)


@pytest.fixture(scope="module")
def large(library: Library) -> str:
    return max(library.files, key=lambda name: library.files[name].stat().st_size)


def total(library: Library) -> int:
    return sum(path.stat().st_size for path in library.files.values())


def moved(mount: Mount) -> tuple[int, int]:
    """The bytes of verified blocks that came from the torrent and from the web."""
    fetched = mount.status()["fetched"]
    return fetched["torrent"], fetched["web"]


def through_rclone(mount: Mount) -> int:
    """The bytes that rclone gave."""
    return int(mount.status()["rclone"]["received"])


def reasons(mount: Mount) -> set[str]:
    """The rows of the table that had something fetched from the web."""
    return set(mount.status()["handed_over"])


def has_way(mount: Mount, way: str, size: int) -> bool:
    """Whether what came from the web came this way."""
    return through_rclone(mount) == (size if way == "through rclone" else 0)


def torrents(library: Library) -> tuple[str, Path]:
    return "--torrent-dir", library.products


def test_where_there_are_peers_the_torrent_fetches_although_a_web_seed_is_there(
    library: Library, tmp_path: Path
) -> None:
    with seeding(library) as box, nginx(library.root) as web:
        with mounted(tmp_path, library.chain, *torrents(library), peers=[str(box.peer)], webseeds=[web]) as mount:
            assert same(mount, library)
            assert moved(mount) == (total(library), 0)


@pytest.mark.parametrize("way", WAYS)
def test_where_there_is_no_way_to_find_peers_the_web_is_asked(library: Library, tmp_path: Path, way: str) -> None:
    with nginx(library.root) as web:
        with mounted(tmp_path, library.chain, *torrents(library), webseeds=[web], settings=WAYS[way]) as mount:
            assert same(mount, library)
            assert moved(mount) == (0, total(library))
            assert has_way(mount, way, total(library))
            assert reasons(mount) == {"there is no way to find peers"}


@pytest.mark.parametrize("way", WAYS)
def test_where_no_peer_is_found_for_a_while_the_web_is_asked(library: Library, tmp_path: Path, way: str) -> None:
    with nginx(library.root) as web, refusing_port() as port:
        known = {"peers": [f"{LOOPBACK}:{port}"], "webseeds": [web]}
        with mounted(tmp_path, library.chain, *torrents(library), **known, settings=WAYS[way]) as mount:
            assert same(mount, library)
            assert moved(mount) == (0, total(library))
            assert has_way(mount, way, total(library))
            assert "no peers" in reasons(mount)


@pytest.mark.parametrize("way", WAYS)
def test_a_torrent_that_only_a_web_seed_told_of_is_fetched_from_it_with_no_wait_for_peers(
    library: Library, tmp_path: Path, way: str
) -> None:
    with nginx(library.merged(tmp_path / "web")) as web, refusing_port() as port:
        settings = f"{WAYS[way]}peer_grace = 3600\nhedging = false\n"
        dead = [f"{LOOPBACK}:{port}"]
        with mounted(tmp_path, library.chain, peers=dead, webseeds=[web], settings=settings) as mount:
            assert same(mount, library)
            assert moved(mount) == (0, total(library))
            assert has_way(mount, way, total(library))
            assert reasons(mount) == {"no peers yet; a web seed has the .torrent"}


@pytest.mark.parametrize("way", WAYS)
def test_a_torrent_that_stalls_is_handed_over_to_the_web(
    library: Library, large: str, tmp_path: Path, way: str
) -> None:
    settings = f"{WAYS[way]}hedging = false\nstalled_after = 1\npeer_grace = 600\n[read]\nreadahead_blocks = 0\n"
    with ExitStack() as stack:
        box, web = stack.enter_context(seeding(library)), stack.enter_context(nginx(library.root))
        mount = stack.enter_context(
            mounted(
                tmp_path, library.chain, *torrents(library), peers=[str(box.peer)], webseeds=[web], settings=settings
            )
        )
        pread(mount.snapshots / large, 0, 4096)
        assert moved(mount) == (PIECE, 0)
        box.process.send_signal(signal.SIGSTOP)
        stack.callback(box.process.send_signal, signal.SIGCONT)
        assert same(mount, library, [large])
        assert moved(mount) == (PIECE, SIZE - PIECE)
        assert has_way(mount, way, SIZE - PIECE)
        assert reasons(mount) == {"the torrent is stalled"}


def test_a_torrent_that_is_slow_is_handed_over_to_the_web(library: Library, large: str, tmp_path: Path) -> None:
    settings = "[fetch]\nhedging = false\nstalled_after = 4\nslow_below = 1000000000\npeer_grace = 600\n"
    with aria2_seeder(library.torrent(large), library.root, limit="30K") as peer, nginx(library.root) as web:
        with mounted(
            tmp_path, library.chain, *torrents(library), peers=[peer], webseeds=[web], settings=settings
        ) as mount:
            assert same(mount, library, [large])
            torrent, web_bytes = moved(mount)
            assert torrent + web_bytes == SIZE
            assert web_bytes > SIZE / 2
            assert "the torrent is slow" in reasons(mount)


def test_a_late_block_of_a_slow_peer_is_asked_from_a_web_seed_as_well(
    library: Library, large: str, tmp_path: Path
) -> None:
    settings = "[fetch]\nstalled_after = 600\nslow_below = 0\npeer_grace = 600\n"
    with aria2_seeder(library.torrent(large), library.root, limit="30K") as peer, nginx(library.root) as web:
        with mounted(
            tmp_path, library.chain, *torrents(library), peers=[peer], webseeds=[web], settings=settings
        ) as mount:
            assert same(mount, library, [large])
            hedging = mount.status()["hedging"]
            assert hedging["won"] > 0
            assert hedging["extra_bytes"] <= 16 * 2**20 + hedging["received_bytes"] / 10
            assert "late at its first source" in reasons(mount)


def test_where_nobody_has_a_torrent_the_file_is_fetched_whole_and_served_if_it_is_the_locks(
    library: Library, tmp_path: Path
) -> None:
    with nginx(library.root) as web:
        with mounted(tmp_path, library.chain, webseeds=[web]) as mount:
            assert same(mount, library)
            assert moved(mount) == (0, 0), "the bytes came with the metadata"
            assert mount.received() == total(library)


def test_a_whole_file_that_is_not_the_locks_is_refused_by_name_and_nothing_is_kept(
    library: Library, large: str, tmp_path: Path
) -> None:
    wrong = library.corrupted(tmp_path / "wrong")
    with nginx(wrong.root) as web:
        with mounted(tmp_path, library.chain, webseeds=[web]) as mount:
            with pytest.raises(OSError, match="Input/output error"):
                (mount.snapshots / large).stat()
            assert "its whole file gave" in mount.status()["metadata"]["last_error"]
            assert not mount.object(library, large).exists()
            assert not list((mount.data_dir / "rclone").glob("*.rebuild"))


def test_web_seeds_need_no_rclone(library: Library, tmp_path: Path) -> None:
    with nginx(library.root) as web:
        with mounted(tmp_path, library.chain, *torrents(library), "--no-rclone", webseeds=[web]) as mount:
            assert same(mount, library)
            assert moved(mount) == (0, total(library))
            assert "turned off" in mount.status()["rclone"]["trouble"]


def test_where_web_seeds_are_left_to_an_rclone_that_may_not_run_the_torrent_asks_them_itself(
    library: Library, tmp_path: Path
) -> None:
    with nginx(library.root) as web:
        given = (*torrents(library), "--no-rclone")
        with mounted(tmp_path, library.chain, *given, webseeds=[web], settings=WAYS["through rclone"]) as mount:
            assert same(mount, library)
            assert moved(mount) == (total(library), 0)


def test_rclone_is_not_started_where_nothing_is_to_be_asked_of_it(library: Library, tmp_path: Path) -> None:
    with nginx(library.root) as web:
        with mounted(tmp_path, library.chain, *torrents(library), webseeds=[web]) as mount:
            assert same(mount, library)
            rclone = mount.status()["rclone"]
            assert (rclone["pid"], rclone["restarts"]) == (None, 0)
            assert "not needed" in rclone["trouble"]


def test_rclone_killed_in_mid_transfer_is_restarted_and_every_byte_is_right(
    library: Library, large: str, tmp_path: Path
) -> None:
    with nginx(library.root, location="limit_rate 4m;") as web:
        settings = WAYS["through rclone"]
        with mounted(tmp_path, library.chain, *torrents(library), webseeds=[web], settings=settings) as mount:
            pread(mount.snapshots / large, 0, 4096)
            first = mount.status()["rclone"]["pid"]
            signal.pidfd_send_signal(pidfd(first), signal.SIGKILL)
            assert same(mount, library)
            mount.wait_for("with another rclone", lambda now: now["rclone"]["pid"] not in (None, first))


def pidfd(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


def test_peers_that_come_later_take_over_from_the_web(library: Library, large: str, tmp_path: Path) -> None:
    port = free_port()
    settings = "[read]\nreadahead_blocks = 0\n"
    with ExitStack() as stack:
        web = stack.enter_context(nginx(library.root, location="limit_rate 300k;"))
        mount = stack.enter_context(
            mounted(
                tmp_path,
                library.chain,
                *torrents(library),
                peers=[f"{LOOPBACK}:{port}"],
                webseeds=[web],
                settings=settings,
            )
        )
        pread(mount.snapshots / large, 0, 4096)
        assert moved(mount) == (0, PIECE)
        stack.enter_context(seeding(library, "--listen", f"{LOOPBACK}:{port}"))
        assert same(mount, library, [large])
        assert moved(mount)[0] > 0


def test_a_peer_that_comes_while_a_web_seed_crawls_gives_the_block_that_the_web_has_begun(
    library: Library, large: str, tmp_path: Path
) -> None:
    port = free_port()
    settings = "[fetch]\nhedging = false\n[read]\nreadahead_blocks = 0\ndeadline = 120\n"
    web_seed = f"limit_rate {PIECE // 100};"  # a piece in a hundred seconds
    with ExitStack() as stack:
        web = stack.enter_context(nginx(library.root, location=web_seed))
        known = {"peers": [f"{LOOPBACK}:{port}"], "webseeds": [web]}
        mount = stack.enter_context(mounted(tmp_path, library.chain, *torrents(library), **known, settings=settings))
        reader = stack.enter_context(ThreadPoolExecutor(1))
        read = reader.submit(pread, mount.snapshots / large, PIECE, 4096)
        mount.wait_for("bytes from the web", lambda now: now["transfers"] and now["transfers"][0]["by"] == "web")
        stack.enter_context(seeding(library, "--listen", f"{LOOPBACK}:{port}"))
        assert read.result(60) == pread(library.files[large], PIECE, 4096)
        assert moved(mount) == (PIECE, 0)


def test_what_came_from_the_web_is_seeded_to_others(library: Library, large: str, tmp_path: Path) -> None:
    port = free_port()
    ours = ("--listen", f"{LOOPBACK}:{port}")
    with nginx(library.root) as web:
        with mounted(tmp_path / "one", library.chain, *torrents(library), *ours, webseeds=[web]) as one:
            pread(one.snapshots / large, 0, 3 * PIECE)
            with (
                mounted(tmp_path / "two", library.chain, *torrents(library), peers=[f"{LOOPBACK}:{port}"]) as two,
                (one.snapshots / large).open("rb"),
            ):
                assert pread(two.snapshots / large, 0, 4096) == pread(library.files[large], 0, 4096)
                assert moved(two)[1] == 0


def test_a_remote_of_the_operators_serves_data_and_torrents(library: Library, large: str, tmp_path: Path) -> None:
    web = library.merged(tmp_path / "web")
    port = free_port()
    rclone = Path(__import__("sys").executable).with_name("rclone")
    serve: list[str | Path] = [rclone, "serve", "webdav", web, "--addr", f"{LOOPBACK}:{port}", "--config", ""]
    conf = tmp_path / "rclone.conf"
    conf.write_text(f"[dav]\ntype = webdav\nurl = http://{LOOPBACK}:{port}\nvendor = rclone\n")
    settings = f'[sources]\nrclone_remotes = ["dav:"]\n[rclone]\nconfig = "{conf}"\n'
    with running("rclone serve webdav", serve) as server:
        server.wait_until("serving", lambda: "started on" in server.printed().lower())
        with mounted(tmp_path, library.chain, settings=settings) as mount:
            assert same(mount, library)
            assert moved(mount)[1] == total(library)
