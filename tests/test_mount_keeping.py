"""prefetch, pin, unpin, evict and gc as their user runs them, with a mount and without."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cachefs.catalog.snapshots import LOCK_NAME, SnapshotLock
from cachefs.content import ContentId
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HEADERS,
    HISTORY,
    PIECE,
    TRANSACTIONS,
    Library,
    Mount,
    cachefs,
    make_library,
    mounted,
    pread,
    same,
    seeding,
)
from tests.terminal_kit import on_a_terminal, shown_until

LENGTH = 4 * PIECE


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, LENGTH, LENGTH, LENGTH, LENGTH)


@contextmanager
def served(library: Library, place: Path, limits: str = "") -> Iterator[Mount]:
    with seeding(library) as box:
        arguments = ("--torrent-dir", library.products, "--deadline", "20")
        with mounted(place, library.chain, *arguments, peers=[str(box.peer)], settings=limits) as mount:
            mount.knows(len(library.files))
            yield mount


def at(mount: Mount) -> tuple[str | Path, str | Path]:
    return ("--mountpoint", mount.mountpoint)


def done(*arguments: str | Path) -> str:
    """What a command that must succeed prints."""
    ended = cachefs(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def refused(*arguments: str | Path) -> str:
    ended = cachefs(*arguments)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def held(place: Mount | Path, library: Library) -> set[str]:
    """The names of which the store has anything."""
    store = (place if isinstance(place, Path) else place.data_dir) / "store" / "btih"
    contents = {name: library.content(name).hex for name in library.files}
    return {name for name, hexed in contents.items() if (store / hexed[:2] / hexed / "data").exists()}


def test_prefetch_fetches_what_matches_and_nothing_else_and_reads_then_need_no_source(
    library: Library, tmp_path: Path
) -> None:
    with served(library, tmp_path) as mount:
        said = done("prefetch", "v1-*", DOMAIN, *at(mount))
        assert "4 of 4 files here" in said
        assert held(mount, library) == {HEADERS, BODIES, TRANSACTIONS, DOMAIN}
        assert "0 bytes fetched" in done("prefetch", "snapshots/v1-*", "--data-dir", mount.data_dir)
        assert "no name matches nothing*" in refused("prefetch", "nothing*", *at(mount))
    with mounted(tmp_path) as mount:
        assert same(mount, library, [HEADERS, BODIES, TRANSACTIONS, DOMAIN])


def test_prefetch_draws_bars_on_a_terminal_and_ends_with_it(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, "--torrent-dir", library.products) as mount:  # from which nothing comes
        ours, its = pty.openpty()
        command = [sys.executable, "-m", "cachefs", "prefetch", HISTORY, *at(mount)]
        running = subprocess.Popen(
            command, stderr=its, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "150", "TERM": "xterm"}
        )
        os.close(its)
        shown = b""
        with suppress(OSError):  # EIO: it has ended
            while not (b"0 of 1 files" in shown and HISTORY.encode() in shown):
                shown += os.read(ours, 4096)
        mount.wait_for("wanting it", lambda now: any(t["wanted_blocks"] for t in now["transfers"]))
        running.kill()
        running.wait()
        os.close(ours)
        assert HISTORY.encode() in shown
        assert b"/8.4 MB" in shown
        mount.wait_for("wanting nothing", lambda now: not any(t["wanted_blocks"] for t in now["transfers"]))


def test_what_cannot_be_prefetched_is_named_with_the_reason_and_the_rest_is_here(
    library: Library, tmp_path: Path
) -> None:
    with served(library, tmp_path, f"[limits]\nsize = {2 * LENGTH + PIECE}\n") as mount:
        ended = cachefs("prefetch", "*", "--json", *at(mount))
        assert ended.returncode == 1
        result: dict[str, Any] = json.loads(ended.stdout)
        assert result["done"] == 4, "two large ones, and two that fit beside them"
        assert len(result["failed"]) == 2
        assert all("no room: the limit" in why and why in ended.stderr for why in result["failed"].values())
        assert same(mount, library, [HEADERS])


def test_pinned_files_outlast_a_sweep_through_everything_else(library: Library, tmp_path: Path) -> None:
    with served(library, tmp_path, f"[limits]\nsize = {2 * LENGTH + PIECE}\n") as mount:
        assert "1 of 1 files here" in done("prefetch", "--pin", BODIES, *at(mount))
        assert done("pin", *at(mount)) == f"{BODIES}\n"
        assert same(mount, library, [TRANSACTIONS, DOMAIN, HISTORY])
        assert {BODIES, HISTORY} <= held(mount, library)
        assert TRANSACTIONS not in held(mount, library)
        assert f"{BODIES} stays: pinned" in done("evict", "*", *at(mount))
        assert held(mount, library) == {BODIES}
        assert mount.status()["limits"]["pinned"] == 1
        assert "1 pinned" in done("status", mount.mountpoint)
        assert "1 unpinned" in done("unpin", "v1-*", *at(mount))
        assert done("pin", *at(mount)) == ""
        assert "1 evicted, 8.4 MB freed" in done("evict", BODIES, *at(mount))
        assert "no pinned name matches" in refused("unpin", BODIES, *at(mount))


def test_an_open_file_is_not_evicted_and_an_evicted_one_is_fetched_again(library: Library, tmp_path: Path) -> None:
    with served(library, tmp_path) as mount:
        assert same(mount, library, [BODIES, DOMAIN])
        with (mount.snapshots / BODIES).open("rb"):
            assert f"{BODIES} stays: open" in done("evict", BODIES, DOMAIN, *at(mount))
            assert held(mount, library) == {BODIES}
        assert same(mount, library)
        assert mount.received(3 * LENGTH) >= 3 * LENGTH


def test_files_of_the_users_own_are_counted_when_they_are_evicted_and_stay_where_they_are(
    library: Library, tmp_path: Path
) -> None:
    data = ("--data-dir", tmp_path / "data")
    done("adopt", library.root, *data, "--chain-toml", library.chain)
    done("pin", HISTORY, DOMAIN, *data)
    said = done("evict", "*", *data).splitlines()
    assert said == [f"{DOMAIN} stays: pinned", f"{HISTORY} stays: pinned", "4 evicted, 0 bytes freed"]
    assert held(tmp_path / "data", library) == {HISTORY, DOMAIN}
    assert all(path.exists() for path in library.files.values())
    assert "0 evicted" in done("evict", "v1-*", *data)


def test_the_settings_in_the_data_directory_are_used_by_commands_too(library: Library, tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    (tmp_path / "data").mkdir()
    settings = f"[snapshots]\nchain_toml = {json.dumps(str(library.chain))}\n[limits]\nage = 1\n"
    (tmp_path / "data" / "cachefs.toml").write_text(settings)
    assert "6 files match" in done("adopt", library.root, *data)
    assert "0 added" in done("lock", "diff", *data) or "no difference" in done("lock", "diff", *data)
    (tmp_path / "data" / "cachefs.toml").write_text("[limits]\nage = -1\n")
    assert "[limits] age" in refused("gc", *data)


def test_without_a_mount_the_same_commands_do_the_same(library: Library, tmp_path: Path) -> None:
    with served(library, tmp_path) as mount:
        assert same(mount, library)
    data = ("--data-dir", tmp_path / "data")
    assert "2 pinned" in done("pin", BODIES, HISTORY, *data)
    assert f"{BODIES} stays: pinned" in done("evict", "v1-*", *data)
    assert {BODIES, HISTORY, DOMAIN} <= held(tmp_path / "data", library)
    assert not {HEADERS, TRANSACTIONS} & held(tmp_path / "data", library)
    (tmp_path / "limits.toml").write_text(f"[limits]\nsize = {2 * LENGTH + PIECE}\n")
    assert "1 beyond the limits, 8.4 MB" in done("gc", *data, "--config", tmp_path / "limits.toml")
    assert held(tmp_path / "data", library) >= {BODIES, HISTORY}
    assert DOMAIN not in held(tmp_path / "data", library)
    with mounted(tmp_path) as mount:
        assert same(mount, library, [BODIES, HISTORY])
    assert "no data directory" in refused("gc", "--data-dir", tmp_path)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("mounted_too", [True, False], ids=["mounted", "idle"])
def test_gc_deletes_what_the_lock_does_not_name_and_nothing_else(
    library: Library, tmp_path: Path, mounted_too: bool
) -> None:
    with served(library, tmp_path) as mount:
        assert same(mount, library)
        lock = json.loads(mount.lock.read_text())
    gone = ContentId.btih(lock["downloads"].pop(DOMAIN))
    mount.lock.write_text(json.dumps(lock, separators=(",", ":"), sort_keys=True))
    other = mount.data_dir / "store" / "sha256" / "ab" / ("ab" * 32)
    other.mkdir(parents=True)
    (other / "data").write_bytes(b"of a catalogue that was not looked at")
    if mounted_too:
        with mounted(tmp_path) as mount:
            assert "1 without a name, 8.4 MB" in done("gc", "--mountpoint", mount.mountpoint)
            assert same(mount, library, set(library.files) - {DOMAIN})
    else:
        assert "1 without a name, 8.4 MB" in done("gc", "--data-dir", mount.data_dir)
    assert not (mount.data_dir / "store" / "btih" / gone.hex[:2] / gone.hex).exists()
    assert held(mount, library) == set(library.files) - {DOMAIN}
    assert (other / "data").exists()


def test_a_second_read_of_a_piece_after_its_eviction_is_right(library: Library, tmp_path: Path) -> None:
    with served(library, tmp_path) as mount:
        for _ in range(3):
            assert pread(mount.snapshots / DOMAIN, PIECE, 4096) == library.files[DOMAIN].read_bytes()[PIECE:][:4096]
            done("evict", DOMAIN, *at(mount))
        assert not held(mount, library)


def test_a_pin_goes_over_to_the_content_that_an_edited_lock_gives_its_name(library: Library, tmp_path: Path) -> None:
    with served(library, tmp_path) as mount:
        assert same(mount, library, [BODIES, DOMAIN])
        done("pin", DOMAIN, *at(mount))
        lock = json.loads(mount.lock.read_text())
        lock["downloads"][DOMAIN] = lock["downloads"][BODIES]
        mount.lock.write_text(json.dumps(lock, separators=(",", ":"), sort_keys=True))
        done("reload", mount.mountpoint)
        assert f"{BODIES} stays: pinned" in done("evict", BODIES, *at(mount))
        assert "1 without a name" in done("gc", *at(mount))
        assert held(mount, library) == {BODIES}


def test_a_name_means_itself_even_if_it_is_a_pattern_too(tmp_path: Path) -> None:
    content = ContentId.btih("12" * 20)
    (tmp_path / "snapshots").mkdir()
    SnapshotLock("x", {"[x].seg": content, "x.seg": content}).save(tmp_path / "snapshots" / LOCK_NAME)
    done("pin", "[x].seg", "--data-dir", tmp_path)
    assert done("pin", "--data-dir", tmp_path) == "[x].seg\nx.seg\n", "as for a shell"
    done("unpin", "x.seg", "--data-dir", tmp_path)
    assert done("pin", "--data-dir", tmp_path) == "[x].seg\n"


def test_evicting_shows_on_a_terminal_how_far_it_is(library: Library, tmp_path: Path) -> None:
    done("adopt", library.root, "--data-dir", tmp_path, "--chain-toml", library.chain)
    with on_a_terminal("evict", "*", "--data-dir", tmp_path) as (process, terminal):
        shown_until(terminal, b"6/6")
        assert process.wait(20) == 0
