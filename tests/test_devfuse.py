"""The driver that speaks to /dev/fuse by itself, with nothing behind it; tests of a whole mount are elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from cachefs import mountinfo
from cachefs.cache import Cache
from cachefs.catalog.tree import Tree
from cachefs.drivers import syscalls
from cachefs.drivers.devfuse import DevFuseDriver
from cachefs.filesystem import Filesystem
from tests.mount_kit import PASSTHROUGH

pytestmark = PASSTHROUGH
NOTHING = Filesystem(Tree.build({}), {}, cast(Cache, None), born=0.0)


def mounted(place: Path, data_dir: Path) -> DevFuseDriver:
    driver = DevFuseDriver(NOTHING, place, data_dir, allow_other=False)
    driver.mount()
    return driver


def test_the_end_of_a_mount_leaves_what_another_one_mounted_in_its_place(tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    place.mkdir()
    first = mounted(place, tmp_path / "first")
    syscalls.umount(place, syscalls.MNT_DETACH)
    second = mounted(place, tmp_path / "second")  # which has the first one's number now
    try:
        first.close()
        found = mountinfo.mount_at(place)
        assert found is not None
        assert found.data_dir == tmp_path / "second"
    finally:
        second.close()
    assert mountinfo.mount_at(place) is None
