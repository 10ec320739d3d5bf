"""One line when nothing comes any more, one when it does again, in virtual time."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.engine import without_room
from cachefs.fetch.outage import PATIENCE, Outage
from tests import room_kit
from tests.room_kit import FILES, RoomBench


class Sources:
    """What an outage is told: who waits, and how much has come."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.received = 0


Scenario = Callable[[Sources, Outage], Awaitable[None]]
Watched = Callable[[Scenario], list[str]]


@pytest.fixture
def watched(caplog: pytest.LogCaptureFixture) -> Watched:
    """Runs a scenario beside the watch; the lines that were logged."""

    def run(scenario: Scenario) -> list[str]:
        async def main() -> None:
            sources = Sources()
            outage = Outage(lambda: sources.waiting, lambda: sources.received, lambda: "peer: no route to host")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outage.run)
                await scenario(sources, outage)
                nursery.cancel_scope.cancel()

        with caplog.at_level(logging.INFO, "cachefs.fetch.outage"):
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        return [record.getMessage() for record in caplog.records]

    return run


def test_an_outage_is_told_once_however_long_it_lasts_and_its_end_once(watched: Watched) -> None:
    async def scenario(sources: Sources, outage: Outage) -> None:
        sources.waiting = ["one.seg", "two.seg"]
        await trio.sleep(300.5)
        assert outage.seconds() == 300.5
        sources.received += 1
        await trio.sleep(2)
        assert outage.seconds() is None

    begun, over = watched(scenario)
    assert "one.seg and 1 more reads waited 5 s in vain (peer: no route to host)" in begun
    assert over == "bytes come again, after 301 s without any"


def test_a_second_outage_is_told_again(watched: Watched) -> None:
    async def scenario(sources: Sources, outage: Outage) -> None:
        sources.waiting = ["one.seg"]
        for _ in range(2):
            await trio.sleep(PATIENCE + 1)
            sources.received += 1
            await trio.sleep(1.5)  # past the next look, whoever of the two is woken first

    assert len(watched(scenario)) == 4


def test_silence_while_nobody_waits_is_no_outage(watched: Watched) -> None:
    async def scenario(sources: Sources, outage: Outage) -> None:
        await trio.sleep(3600)

    assert watched(scenario) == []


def test_waits_that_are_rewarded_are_no_outage(watched: Watched) -> None:
    async def scenario(sources: Sources, outage: Outage) -> None:
        sources.waiting = ["slow.seg"]
        for _ in range(100):
            await trio.sleep(PATIENCE - 1)
            sources.received += 1

    assert watched(scenario) == []


def test_readers_that_give_up_one_after_the_other_are_counted_together(watched: Watched) -> None:
    async def scenario(sources: Sources, outage: Outage) -> None:
        for reader in range(3):
            sources.waiting = [f"{reader}.seg"]
            await trio.sleep(2.2)  # never at the moment of a look
            sources.waiting = []
            await trio.sleep(30.1)

    assert [line.partition(" waited")[0] for line in watched(scenario)] == ["nothing comes from any source; 2.seg"]


def test_an_outage_ends_with_the_first_byte_also_when_nobody_waits_any_more(watched: Watched) -> None:
    async def scenario(sources: Sources, outage: Outage) -> None:
        sources.waiting = ["one.seg"]
        await trio.sleep(10)
        sources.waiting = []
        await trio.sleep(10)
        sources.received += 1
        await trio.sleep(1.5)

    assert len(watched(scenario)) == 2


def test_a_read_that_waits_for_room_is_told_from_one_that_waits_for_bytes(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        first, second = await bench.open(FILES[0]), await bench.open(FILES[1])
        for index in range(4):
            await bench.have(first, index)
        await bench.start_read(second, 0, 10)
        assert [wait.name for wait in without_room(bench.cache, bench.room)] == [FILES[1].item.name]
        await bench.shut(first)
        await bench.granted(second, 0)
        assert [wait.name for wait in bench.cache.waiting()] == [FILES[1].item.name]
        assert not without_room(bench.cache, bench.room)

    room_kit.run(tmp_path, scenario, room_kit.limit(4))
