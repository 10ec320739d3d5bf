"""The driver that speaks to /dev/fuse by itself, with nothing behind it; tests of a whole mount are elsewhere."""

from __future__ import annotations

import mmap
import os
import time
from collections import Counter
from pathlib import Path
from typing import cast

import trio

from cachefs import mountinfo
from cachefs.cache import Cache
from cachefs.catalog.tree import Tree
from cachefs.drivers.devfuse import DevFuseDriver
from cachefs.filesystem import Attributes, Filesystem
from tests.mount_kit import PASSTHROUGH

pytestmark = PASSTHROUGH
NOTHING = Filesystem(Tree.build({}), {}, cast(Cache, None), born=0.0)


def mounted(place: Path, data_dir: Path) -> DevFuseDriver:
    driver = DevFuseDriver(NOTHING, place, data_dir, allow_other=False)
    driver.mount()
    return driver


def test_what_the_kernel_is_told_after_the_end_reaches_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    driver = mounted(tmp_path / "mnt", tmp_path / "data")
    mountinfo.unmount_lazily(tmp_path / "mnt")
    driver.close()
    with (tmp_path / "opened next").open("wb"):
        driver.forget([(1, "name")])
    assert (tmp_path / "opened next").read_bytes() == b""


class Slow(Filesystem):
    """One large file in memory, which takes five milliseconds for each read; `turns` is another task's count."""

    def __init__(self) -> None:
        super().__init__(Tree.build({}), {}, cast(Cache, None), born=0.0)
        self.turns = 0
        self.read_in: list[int] = []

    def lookup(self, parent: int, name: str) -> Attributes:
        return Attributes(2, False, 2**30, 0.0)

    async def open(self, inode: int, thread: int = 0, *, direct: bool = False) -> int:
        return 1

    def descriptor(self, handle: int) -> int | None:
        return None

    def read_now(self, handle: int, offset: int, size: int) -> memoryview:
        time.sleep(0.005)
        self.read_in.append(self.turns)
        return memoryview(bytes(size))

    async def count(self) -> None:
        while True:
            await trio.lowlevel.checkpoint()
            self.turns += 1


def test_other_tasks_have_their_turn_also_while_many_reads_are_waiting(tmp_path: Path) -> None:
    filesystem = Slow()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.serve)
            nursery.start_soon(filesystem.count)
            await trio.to_thread.run_sync(_read_directly, tmp_path / "mnt" / "file", 16 * 2**20)
            nursery.cancel_scope.cancel()

    (tmp_path / "mnt").mkdir()
    driver = DevFuseDriver(filesystem, tmp_path / "mnt", tmp_path / "data", allow_other=False)
    driver.mount()
    try:
        trio.run(main)
    finally:
        mountinfo.unmount_lazily(tmp_path / "mnt")
        driver.close()
    assert len(filesystem.read_in) == 16
    # Two in one turn: the tasks of a round run in any order.
    assert max(Counter(filesystem.read_in).values()) <= 2


def _read_directly(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(fd, [mmap.mmap(-1, size)], 0) == size
    finally:
        os.close(fd)
