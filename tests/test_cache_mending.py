"""Reading through while a file is being mended: nothing is fetched into a file that isn't the store's own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from cachefs.errors import StoreFull
from cachefs.flow import Reader
from cachefs.store import StoredObject, places
from tests.cache_kit import FILE, Bench, run
from tests.fakes import BLOCK, until


async def whole(bench: Bench, *blocks: int) -> Reader:
    """A reader of FILE, of which these blocks are here, and no download."""
    reader = await bench.open()
    await bench.start_read(reader, blocks[0] * BLOCK, 1)
    bench.fetcher.last.land(*blocks)
    await bench.settled()
    bench.clock.autojump_threshold, bench.clock.rate = float("inf"), 1.0  # from here on threads work
    bench.cache.close(reader)
    bench.fetcher.last.end()
    await bench.until_closed()
    bench.outcomes.clear()
    return await bench.cache.open(FILE.item)


def rotten(stored: StoredObject, mine: Path) -> bytes:
    """Have the object's file be the user's own as well, and block 2 of it wrong; the file's bytes."""
    mine.hardlink_to(stored.path)
    mine.chmod(0o600)
    with mine.open("r+b") as file:
        file.seek(2 * BLOCK)
        file.write(bytes(100))
    return mine.read_bytes()


def test_a_reader_of_a_block_that_went_bad_in_a_users_own_file_waits_until_that_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may, really = threading.Event(), threading.Event(), places.take_own

    def slowly(path: Path) -> bool:
        begun.set()
        assert may.wait(20)
        return really(path)

    async def scenario(bench: Bench) -> None:
        reader = await whole(bench, *range(FILE.blocks))
        stored, mine = reader.flow.stored, tmp_path / "mine"
        before = rotten(stored, mine)
        monkeypatch.setattr(places, "take_own", slowly)
        bench.nursery.start_soon(stored.doubt, [2])
        await trio.to_thread.run_sync(begun.wait, 20)
        await bench.start_read(reader, 2 * BLOCK, 100)
        assert len(bench.fetcher.jobs) == 1
        may.set()
        await until(lambda: len(bench.fetcher.jobs) == 2)
        await until(lambda: bench.fetcher.last.urgent == {2})
        bench.fetcher.last.land(2)
        await until(lambda: bool(bench.outcomes))
        assert bench.outcomes == [FILE.data[2 * BLOCK :][:100]]
        assert mine.read_bytes() == before != stored.path.read_bytes() == FILE.data

    run(tmp_path, scenario)


def test_where_there_is_no_room_for_a_copy_readers_are_told_and_the_users_file_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int, copy: int) -> None:
        raise OSError(28, "no room")

    async def scenario(bench: Bench) -> None:
        reader = await whole(bench, *range(FILE.blocks))
        stored, mine = reader.flow.stored, tmp_path / "mine"
        before = rotten(stored, mine)
        monkeypatch.setattr(places, "_require_room", no_room)
        with pytest.raises(StoreFull):
            await stored.doubt([2])
        await bench.read(reader, 2 * BLOCK, 100)
        assert isinstance(bench.error, StoreFull)
        assert (len(bench.fetcher.jobs), mine.read_bytes()) == (1, before)

    run(tmp_path, scenario)


def test_a_file_that_was_taken_away_before_anything_was_fetched_is_begun_anew(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await whole(bench, 0, 1)
        reader.flow.stored.path.unlink()
        await bench.start_read(reader, 5 * BLOCK, 10)
        await until(lambda: len(bench.fetcher.jobs) == 2)
        await until(lambda: bench.fetcher.last.urgent == {5})
        bench.fetcher.last.land(5)
        await until(lambda: bool(bench.outcomes))
        assert bench.outcomes == [FILE.data[5 * BLOCK :][:10]]
        assert list(reader.flow.stored.verified) == [5]

    run(tmp_path, scenario)


def test_a_read_whose_block_is_doubted_meanwhile_waits_until_it_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = StoredObject.read

    async def doubted(stored: StoredObject, offset: int, size: int) -> bytes | None:
        monkeypatch.undo()
        await stored.doubt([3])
        return await really(stored, offset, size) if 3 in stored.verified else None

    async def scenario(bench: Bench) -> None:
        reader = await whole(bench, *range(FILE.blocks))
        monkeypatch.setattr(StoredObject, "read_now", lambda stored, offset, size: None)
        monkeypatch.setattr(StoredObject, "read", doubted)
        bench.nursery.start_soon(bench.read, reader, 3 * BLOCK, 10)
        await until(lambda: len(bench.fetcher.jobs) == 2)
        await until(lambda: bench.fetcher.last.urgent == {3})
        bench.fetcher.last.land(3)
        await until(lambda: bool(bench.outcomes))
        assert bench.outcomes == [FILE.data[3 * BLOCK :][:10]]

    run(tmp_path, scenario)
