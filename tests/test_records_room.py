"""Whole downloads keep to [limits]: room is made before the bytes come, and what can never fit isn't downloaded."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.mount_kit import Mount, cachefs, mounted
from tests.player_kit import cold
from tests.records_kit import OPEN_TOML, leftovers, song, web

LENGTH = 24 * 2**20
"""Much more than a socket's buffers take."""

METADATA = 2**20
SETTINGS = f'{OPEN_TOML}verify = "whole"\n'


def bytes_on_disk(data: Path) -> int:
    """What contents and downloads take, as du counts."""
    files = [*data.glob("store/sha256/*/*/data"), *data.glob("incoming/*")]
    return sum(path.stat().st_blocks * 512 for path in files)


def held(mount: Mount) -> list[int]:
    return sorted(path.stat().st_size for path in mount.data_dir.glob("store/sha256/*/*/data"))


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
