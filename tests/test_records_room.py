"""Whole downloads keep to [limits]: room is made before the bytes come, and what can never fit isn't downloaded."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import records_kit
from tests.counterparts import running
from tests.mount_kit import Mount, cachefs, command_of, mounted
from tests.player_kit import cold
from tests.records_kit import OPEN_TOML, Host, data_dir, leftovers, refused, song, stored, web

LENGTH = 24 * 2**20
"""Much more than a socket's buffers take."""

METADATA = 2**20
SETTINGS = f'{OPEN_TOML}verify = "whole"\n'


def looks(data: Path, *patterns: str) -> Iterator[os.stat_result]:
    """Of the files below `data` that match; one that is evicted or moved in this moment may be left out."""
    for path in [path for pattern in patterns for path in data.glob(pattern)]:
        with contextlib.suppress(FileNotFoundError):
            yield path.stat()


def bytes_on_disk(data: Path) -> int:
    """What contents and downloads take, as du counts."""
    return sum(look.st_blocks * 512 for look in looks(data, "store/sha256/*/*/data", "incoming/*"))


def held(mount: Mount) -> list[int]:
    return sorted(look.st_size for look in looks(mount.data_dir, "store/sha256/*/*/data"))


def opened(path: Path) -> int:
    """Open it, which brings all of it; the errno, 0 for none."""
    try:
        with path.open("rb", buffering=0) as file:
            file.read(1)
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("section", ["limits", "limits.records"])
def test_a_record_that_can_never_fit_is_not_downloaded(tmp_path: Path, section: str) -> None:
    with web() as host:
        cold(tmp_path, {"song.mp3": host.put("song.mp3", song(1, LENGTH))})
        before = host.sent
        with mounted(tmp_path, settings=f"{SETTINGS}[{section}]\nsize = {LENGTH // 2}\n") as mount:
            path = mount.mountpoint / "records" / "song.mp3"
            assert opened(path) == errno.ENOSPC
            assert b"are more than the limit, 12.6 MB, ever has room for" in os.getxattr(path, "user.cachefs.error")
            assert not leftovers(mount.data_dir)
            assert not held(mount)
        assert host.sent - before < LENGTH // 2


def test_room_is_made_before_the_bytes_come(tmp_path: Path) -> None:
    gate = threading.Event()
    with web() as host:
        urls = {name: host.put(name, song(seed, LENGTH + seed)) for seed, name in enumerate(("a.mp3", "b.mp3"))}
        cold(tmp_path, urls)
        limit = LENGTH + LENGTH // 2
        with mounted(tmp_path, settings=f"{SETTINGS}[limits]\nsize = {limit}\n") as mount:
            shown = mount.mountpoint / "records"
            assert opened(shown / "a.mp3") == 0
            assert held(mount) == [LENGTH]
            page = host.pages["/b.mp3"]
            page.gate, page.hold = gate, 3 * 2**20
            reader = threading.Thread(target=opened, args=(shown / "b.mp3",))
            reader.start()
            mount.child.wait_until("b comes", lambda: bytes_on_disk(mount.data_dir) >= 2**20 and not held(mount))
            gate.set()
            reader.join(30)
            assert held(mount) == [LENGTH + 1]
            taken = mount.status()["limits"]["taken"]
            assert LENGTH < taken < LENGTH + METADATA


def test_what_is_pinned_stays_and_the_download_is_refused(tmp_path: Path) -> None:
    with web() as host:
        urls = {name: host.put(name, song(seed, LENGTH + seed)) for seed, name in enumerate(("a.mp3", "b.mp3"))}
        cold(tmp_path, urls)
        with mounted(tmp_path, settings=f"{SETTINGS}[limits]\nsize = {LENGTH + LENGTH // 2}\n") as mount:
            shown = mount.mountpoint / "records"
            assert opened(shown / "a.mp3") == 0
            assert cachefs("pin", "records/a.mp3", "--mountpoint", mount.mountpoint).returncode == 0
            before = host.sent
            assert opened(shown / "b.mp3") == errno.ENOSPC
            assert b"no room: the limit ([limits] size)" in os.getxattr(shown / "b.mp3", "user.cachefs.error")
            assert host.sent - before < LENGTH // 2
            assert held(mount) == [LENGTH]
            assert cachefs("unpin", "records/a.mp3", "--mountpoint", mount.mountpoint).returncode == 0
            assert opened(shown / "b.mp3") == 0


@pytest.fixture
def host() -> Iterator[Host]:
    with web() as host:
        yield host


@pytest.fixture
def mount(host: Host, tmp_path: Path) -> Iterator[Mount]:
    """A mount with room for one and a half songs, and one in it."""
    data = data_dir(tmp_path)
    records_kit.etch(data, host.put("first.mp3", song(1, LENGTH)))
    with mounted(tmp_path, settings=f"{SETTINGS}[limits]\nsize = {LENGTH + LENGTH // 2}\n") as mount:
        mount.wait_for("looked at", lambda now: (now["limits"]["taken"] or 0) > LENGTH)
        host.sent = 0
        yield mount


def taken(mount: Mount) -> int:
    return int(mount.status()["limits"]["taken"])


def test_an_etch_beside_a_mount_has_room_made_and_is_counted_at_once(host: Host, mount: Mount) -> None:
    gate = threading.Event()
    url = host.put("second.mp3", song(2, LENGTH + 1), gate=gate, hold=3 * 2**20)
    with running("cachefs etch", command_of(["etch", url, "--data-dir", mount.data_dir]), signal.SIGTERM) as child:
        child.wait_until("it comes", lambda: bytes_on_disk(mount.data_dir) >= 2**20 and not held(mount))
        assert taken(mount) > LENGTH
        gate.set()
        assert child.process.wait(30) == 0
    assert held(mount) == [LENGTH + 1]
    mount.wait_for("counted once", lambda now: LENGTH < now["limits"]["taken"] < LENGTH + METADATA)


def test_an_etch_beside_a_mount_that_can_never_fit_is_not_downloaded(host: Host, mount: Mount) -> None:
    said = refused(mount.data_dir, host.put("long.mp3", song(2, 2 * LENGTH)))
    assert said == "cachefs: 50.3 MB are more than the limit, 37.7 MB, ever has room for"
    assert host.sent < LENGTH
    assert not leftovers(mount.data_dir)
    assert held(mount) == [LENGTH]


def test_an_etch_of_unknown_length_ends_where_there_is_no_more_room(host: Host, mount: Mount) -> None:
    assert "no room: the limit ([limits] size)" in refused(mount.data_dir, host.put("x.mp3", song(2, 9), endless=True))
    assert host.sent < 2 * LENGTH
    assert not leftovers(mount.data_dir)
    mount.wait_for("given back", lambda now: now["limits"]["taken"] < METADATA)
    records_kit.etch(mount.data_dir, host.put("second.mp3", song(2, LENGTH)))
    assert held(mount) == [LENGTH]


def test_an_etch_that_is_killed_gives_its_room_back(host: Host, mount: Mount) -> None:
    url = host.put("second.mp3", song(2, LENGTH), gate=threading.Event(), hold=3 * 2**20)
    with running("cachefs etch", command_of(["etch", url, "--data-dir", mount.data_dir]), signal.SIGKILL) as child:
        child.wait_until("it comes", lambda: bytes_on_disk(mount.data_dir) >= 2**20 and not held(mount))
        assert taken(mount) > LENGTH
    mount.wait_for("given back", lambda now: now["limits"]["taken"] < METADATA)


def test_an_etch_goes_on_when_the_mount_beside_it_ends(host: Host, mount: Mount) -> None:
    gate = threading.Event()
    url = host.put("second.mp3", song(2, LENGTH), gate=gate, hold=3 * 2**20)
    with running("cachefs etch", command_of(["etch", url, "--data-dir", mount.data_dir]), signal.SIGKILL) as child:
        child.wait_until("it comes", lambda: bytes_on_disk(mount.data_dir) >= 2**20 and not held(mount))
        mount.unmount()
        gate.set()
        assert child.process.wait(20) == 0, child.printed()
    assert held(mount) == [LENGTH]


def test_without_a_mount_nobody_keeps_to_limits_but_gc(host: Host, tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    (data / "cachefs.toml").write_text(f"{OPEN_TOML}[limits]\nsize = {LENGTH // 2}\n")
    records_kit.etch(data, host.put("song.mp3", song(1, LENGTH)))
    assert len(stored(data)) == 1
    assert "1 beyond the limits" in cachefs("gc", "--data-dir", data).stdout
    assert not stored(data)
