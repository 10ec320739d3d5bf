"""The look at what changed on disk after a start: one object that can't be looked at doesn't keep others from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from cachefs.recheck import recheck
from cachefs.store import ObjectStore, disk
from tests.fakes import BLOCK, content, store_at

ITEMS = [content(seed, 2 * BLOCK) for seed in (1, 2, 3)]


def test_an_object_that_cannot_be_opened_is_logged_and_the_others_are_verified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    infos = {item.info.content: item.info for item in ITEMS}

    async def look(store: ObjectStore) -> None:
        first = (await store.doubtful())[0]
        stuck = disk.directory_of(store.root, first) / "data"
        stuck.unlink()
        stuck.mkdir()
        await recheck(store, infos.get)
        held = await store.inventory()
        assert held == {content: 0 if content == first else 2 * BLOCK for content in infos}
        assert f"{first} changed on disk" in caplog.text
        await store.aclose()

    with store_at(tmp_path) as store:
        for item in ITEMS:
            path = disk.directory_of(store.root, item.info.content) / "data"
            disk.make_directory(path.parent)
            path.write_bytes(item.data)
        trio.run(look, store)
