"""The end of a mount as libfuse meets it, where the kernel can't be brought to show it each time."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import pytest
import trio

from cachefs import mountinfo
from cachefs.drivers.pyfuse3 import Pyfuse3Driver
from tests.test_devfuse import NOTHING


@contextmanager
def mounted(place: Path) -> Iterator[Pyfuse3Driver]:
    driver = Pyfuse3Driver(NOTHING, place, place / "data", allow_other=False)
    driver.mount()
    try:
        yield driver
    finally:
        mountinfo.unmount_lazily(place)
        driver.close()


def served(place: Path, monkeypatch: pytest.MonkeyPatch, ends_with: OSError) -> None:
    """Serve a mount whose device can't be read any more: `ends_with` is what libfuse makes of that."""

    async def main(max_tasks: int) -> None:
        async with trio.open_nursery():
            raise ends_with

    monkeypatch.setattr(pyfuse3, "main", main)
    with mounted(place) as driver:
        trio.run(driver.serve)


def test_a_mount_that_goes_while_a_request_is_being_read_ends_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(tmp_path, monkeypatch, ConnectionAbortedError(errno.ECONNABORTED, "reading device"))


def test_another_error_of_the_device_is_not_taken_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_taken = pytest.RaisesExc(OSError, check=lambda error: error.errno == errno.EIO)
    with pytest.RaisesGroup(not_taken, flatten_subgroups=True):
        served(tmp_path, monkeypatch, OSError(errno.EIO, "reading device"))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_kernel_is_told_what_to_forget_also_where_no_descriptor_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted(tmp_path) as driver:
        with no_descriptor_left():
            driver.forget([(1, "snapshots")])
        assert caplog.messages == []
    driver.forget([(1, "snapshots")])
    assert caplog.messages == []
