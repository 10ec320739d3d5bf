"""What systemd is told, on a socket like its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.control.systemd import tell_ready
from tests.mount_kit import HEADERS, make_library, mounted


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(10)
        yield manager


def test_systemd_is_told_when_the_mount_is_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = make_library(tmp_path / "library", 5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with listening(str(tmp_path / "notify")) as manager, mounted(tmp_path, library.chain) as mount:
        told = manager.recv(4096).decode().splitlines()
        assert told[0] == "READY=1"
        assert told[1].startswith(f"STATUS={mount.mountpoint}: ")


def test_systemd_is_asked_for_time_while_local_files_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library(tmp_path / "library", 5)
    local = tmp_path / "data" / "snapshots" / HEADERS
    local.parent.mkdir(parents=True)
    os.link(library.files[HEADERS], local)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with listening(str(tmp_path / "notify")) as manager, mounted(tmp_path, library.chain):
        told = manager.recv(4096).decode().splitlines()
        assert told == ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=hashing local files: 5 bytes of 5 bytes"]
        assert manager.recv(4096).startswith(b"READY=1\n")


def test_systemd_is_told_at_an_abstract_address_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
    with listening(f"\0{tmp_path}") as manager:
        tell_ready("usable")
        assert manager.recv(4096) == b"READY=1\nSTATUS=usable\n"


@pytest.mark.parametrize("address", ["/nonexistent/notify", "", "vsock:2:1"])
def test_a_socket_that_cannot_be_reached_ends_nothing(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    tell_ready("usable")
