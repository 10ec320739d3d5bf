"""A web seed that needs a login: its host is told, and nobody else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount_kit import BODIES, make_library, mounted, pread, typed


def test_what_a_mount_tells_of_a_web_seed_leaves_out_its_login(tmp_path: Path) -> None:
    library = make_library(tmp_path / "library", 5, 100_000)
    settings = '[sources]\nwebseeds = ["http://somebody:secret@127.0.0.1:1/"]\n'
    with mounted(
        tmp_path, library.chain, "-v", "--torrent-dir", library.products, "--deadline", "1", settings=settings
    ) as mount:
        mount.knows(len(library.files))
        with pytest.raises(OSError, match="Input/output error"):
            pread(mount.snapshots / BODIES, 0, 1)
        told = os.getxattr(mount.snapshots / BODIES, "user.cachefs.error").decode()
        assert "http://***@127.0.0.1:1/: can't be connected to" in told
        said = [told, str(mount.status()), typed("status", mount.mountpoint).stdout, mount.child.printed()]
        assert [text for text in said if "secret" in text] == []


def test_why_the_size_of_a_file_cant_be_had_is_told_without_the_login(tmp_path: Path) -> None:
    library = make_library(tmp_path / "library", 5)
    settings = '[sources]\nwebseeds = ["http://somebody:secret@127.0.0.1:1/"]\n'
    with mounted(tmp_path, library.chain, settings=settings) as mount:
        now = mount.wait_for("failed", lambda now: now["metadata"]["last_error"])
        assert "http://***@127.0.0.1:1/manifest.txt" in now["metadata"]["last_error"]
        assert "secret" not in str(now) + mount.child.printed()
