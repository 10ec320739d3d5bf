"""The end of a mount as libfuse meets it, where the kernel can't be brought to show it each time."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import cast

import pyfuse3
import pytest
import trio

from cachefs.drivers.pyfuse3 import Pyfuse3Driver
from cachefs.filesystem import Filesystem


def served(monkeypatch: pytest.MonkeyPatch, ends_with: OSError) -> None:
    """Serve a mount whose device can't be read any more: `ends_with` is what libfuse makes of that."""

    async def main(max_tasks: int) -> None:
        async with trio.open_nursery():
            raise ends_with

    monkeypatch.setattr(pyfuse3, "main", main)
    filesystem = cast(Filesystem, None)  # never asked
    trio.run(Pyfuse3Driver(filesystem, Path("mnt"), Path("data"), allow_other=False).serve)


def test_a_mount_that_goes_while_a_request_is_being_read_ends_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, ConnectionAbortedError(errno.ECONNABORTED, "reading device"))


def test_another_error_of_the_device_is_not_taken_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, check=lambda error: error.errno == errno.EIO)):
        served(monkeypatch, OSError(errno.EIO, "reading device"))
