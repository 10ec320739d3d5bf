"""A full disk is told from a broken one, and the file that it is about is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cachefs.diskerrors import named
from cachefs.errors import CachefsError, StoreFailed, StoreFull
from cachefs.store import disk


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreFailed), (errno.EROFS, StoreFailed)],
)
def test_no_room_on_a_disk_or_for_a_user_is_store_full_and_anything_else_store_failed(
    code: int, kind: type[CachefsError]
) -> None:
    with pytest.raises(kind) as raised, named(Path("/there/data")):
        raise OSError(code, os.strerror(code))
    assert str(raised.value) == f"/there/data: {os.strerror(code)}"


def test_an_error_without_an_errno_is_told_in_its_own_words() -> None:
    with pytest.raises(StoreFailed, match="/there/data: no such luck"), named(Path("/there/data")):
        raise OSError("no such luck")


def test_a_full_disk_is_store_full_with_the_path() -> None:
    full = Path("/dev/full")  # a device that has no room for anything
    with full.open("wb", buffering=0) as file, pytest.raises(StoreFull, match="/dev/full"), named(full):
        disk.write_all(file.fileno(), b"data", 0)
