"""A thread that stays with a request: what it writes and tells, when it returns, and what it leaves behind."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest
import trio

from cachefs.content import Bitmap
from cachefs.errors import BlockInvalid, SourceFailed
from cachefs.fetch.base import Claim
from cachefs.fetch.http import reception
from cachefs.fetch.http.reception import Buffers, Reception
from cachefs.fetch.http.wire import Line, Measured, in_thread
from cachefs.fetch.remote.remotes import RemoteSource
from cachefs.fetch.remote.run import Run
from tests.fakes import BLOCK, WITHIN, content, until

FILE = content(1, 5 * BLOCK + 7)
BLOCKS = FILE.info.manifest.blocks


class Desk:
    """A request for all of the file, its body on a socket, and its taker and listener, who note what they are told."""

    def __init__(self, buffer: int = BLOCK) -> None:
        self.server, client = socket.socketpair()
        self.run = Run(RemoteSource("web", "", None, {}), FILE.info.manifest, range(BLOCKS), self.wants)
        self.line = Line(client)
        self.body = Measured(self.line, b"", len(FILE.data), 0, len(FILE.data))
        self.buffer = memoryview(bytearray(buffer))
        self.reception = Reception(self.run, self.body, self.buffer, self, self)
        self.written = Bitmap(BLOCKS)
        self.told: list[int] = []
        self.counted = 0
        self.wanted = BLOCKS
        self.trouble: Exception | None = None
        self.useless: set[int] = set()

    def wants(self, run: Run, index: int) -> bool:
        return index not in self.useless

    async def stay(self, claim: Claim | None = None) -> None:
        held = claim or Claim(self.run.left())
        await in_thread(self.reception.stay, held)

    def close(self) -> None:
        self.server.close()
        self.line.close()

    def send(self, data: bytes) -> None:
        self.server.sendall(data)

    # What a taker does

    def write(self, index: int, data: memoryview) -> None:
        FILE.info.manifest.verify(index, data)
        self.written.add(index)

    async def deliver(self, index: int, data: memoryview) -> None:
        raise AssertionError("what is claimed is written")

    def claim(self, blocks: range) -> Claim | None:
        return Claim(blocks)

    def has_room(self, index: int) -> bool:
        return True

    def release(self, claim: Claim) -> None: ...

    def landed(self, index: int) -> None: ...

    def failed(self, error: Exception) -> None: ...

    def ended(self) -> None: ...

    # What a listener does

    def received(self, run: Run, size: int) -> None:
        self.counted += size

    def wrote(self, run: Run) -> bool:
        if self.trouble is not None:
            raise self.trouble
        assert (run.at in self.written) != (run.at in run.passed), "told before it was written"
        self.told.append(run.at)
        run.next()
        return run.at < self.wanted


def play(scenario: Callable[[Desk], Awaitable[None]], *, buffer: int = BLOCK) -> None:
    async def main() -> None:
        with trio.fail_after(WITHIN), closing(Desk(buffer)) as desk:
            await scenario(desk)

    trio.run(main)


def test_blocks_are_written_and_told_in_order_and_it_returns_after_the_last() -> None:
    async def scenario(desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, desk.send, FILE.data)
            await desk.stay()
        assert desk.told == list(range(BLOCKS))
        assert desk.counted == desk.run.came == len(FILE.data)
        assert desk.run.done
        assert desk.body.whole

    play(scenario)


def test_a_block_is_told_while_the_next_one_is_still_coming() -> None:
    async def scenario(desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.stay)
            desk.send(FILE.data[: BLOCK + 10])
            await until(lambda: desk.told == [0] and desk.counted == BLOCK + 10)
            assert desk.run.received == 10
            desk.send(FILE.data[BLOCK + 10 :])
        assert desk.told == list(range(BLOCKS))

    play(scenario)


def test_a_block_that_is_of_no_use_is_verified_and_not_written() -> None:
    async def scenario(desk: Desk) -> None:
        desk.useless = {1, 3}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, desk.send, FILE.data)
            await desk.stay()
        assert desk.told == list(range(BLOCKS))
        assert set(desk.written) == set(range(BLOCKS)) - desk.useless

    async def lying(desk: Desk) -> None:
        desk.useless = {1}
        desk.send(FILE.data[:BLOCK] + bytes(BLOCK))
        with pytest.raises(BlockInvalid):
            await desk.stay()

    play(scenario, buffer=4 * BLOCK)
    play(lying)


def recalled_after(blocks: int) -> Callable[[Desk], Awaitable[None]]:
    """So many blocks and a bit come, then the claim is recalled; another stay receives the rest."""

    async def scenario(desk: Desk) -> None:
        claim, came = Claim(range(BLOCKS)), blocks * BLOCK + 100
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.stay, claim)
            desk.send(FILE.data[:came])
            await until(lambda: desk.counted == came)
            claim.recalled = True
        assert (desk.told, desk.run.at, desk.run.received) == (list(range(blocks)), blocks, 100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, desk.send, FILE.data[came:])
            await desk.stay()
        assert desk.told == list(range(BLOCKS))

    return scenario


def test_recalled_it_returns_in_the_middle_of_a_block_and_another_stay_goes_on_from_there() -> None:
    play(recalled_after(2))


def test_it_returns_when_somebody_jumped_at_this_source() -> None:
    async def scenario(desk: Desk) -> None:
        desk.run.source.jumps = 1
        desk.send(FILE.data[:BLOCK])
        await desk.stay()
        assert desk.told == [0]

    play(scenario)


def test_it_returns_by_itself_after_a_while() -> None:
    async def scenario(desk: Desk) -> None:
        desk.send(FILE.data[:100])
        await desk.stay()
        assert (desk.run.received, desk.told) == (100, [])

    play(scenario)


def test_it_returns_after_a_block_if_the_next_is_not_wanted() -> None:
    async def scenario(desk: Desk) -> None:
        desk.wanted = 1
        desk.send(FILE.data[:BLOCK])
        await desk.stay()
        assert desk.told == [0]

    play(scenario)


def test_a_body_that_ends_early_is_told_with_how_far_it_came() -> None:
    async def scenario(desk: Desk) -> None:
        desk.send(FILE.data[: BLOCK + 5])
        desk.server.shutdown(socket.SHUT_WR)
        with pytest.raises(SourceFailed) as failed:
            await desk.stay()
        assert str(failed.value) == f"cut short after 5 of {BLOCK} bytes of a block"
        assert (desk.told, desk.counted) == ([0], BLOCK + 5)

    play(scenario)


def test_wrong_bytes_are_not_written_but_counted() -> None:
    async def scenario(desk: Desk) -> None:
        desk.send(FILE.data[:BLOCK] + bytes(BLOCK))
        with pytest.raises(BlockInvalid):
            await desk.stay()
        assert (desk.told, list(desk.written), desk.counted) == ([0], [0], 2 * BLOCK)

    play(scenario)


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes, comes swiftly, so that several blocks are received at a time."""
    monkeypatch.setattr(reception, "_SWIFT", 0)


@pytest.mark.usefixtures("swift")
def test_blocks_that_come_swiftly_are_received_together_and_told_one_by_one() -> None:
    async def scenario(desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, desk.send, FILE.data)
            await desk.stay()
        assert desk.told == list(range(BLOCKS))
        assert desk.counted == desk.run.came == len(FILE.data)

    play(scenario, buffer=3 * BLOCK)


@pytest.mark.usefixtures("swift")
def test_of_blocks_received_together_the_rest_of_the_last_waits_for_what_follows() -> None:
    play(recalled_after(3), buffer=4 * BLOCK)


@pytest.mark.usefixtures("swift")
def test_of_blocks_received_together_those_before_a_wrong_one_are_kept() -> None:
    async def scenario(desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, desk.send, FILE.data[: 2 * BLOCK] + bytes(BLOCK))
            with pytest.raises(BlockInvalid):
                await desk.stay()
        assert (desk.told, desk.run.at) == ([0, 1], 2)

    play(scenario, buffer=4 * BLOCK)


def test_cancelled_it_returns_within_a_moment_though_nothing_comes() -> None:
    async def scenario(desk: Desk) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.stay)
            desk.send(FILE.data[:10])
            await until(lambda: desk.counted == 10)
            nursery.cancel_scope.cancel()
        assert not desk.told

    play(scenario)


def test_a_fault_of_who_listens_is_kept_for_the_loop_and_ends_the_stay() -> None:
    async def scenario(desk: Desk) -> None:
        desk.trouble = RuntimeError("a fault")
        desk.send(FILE.data[:BLOCK])
        await desk.stay()
        assert desk.reception.fault is desk.trouble

    play(scenario)


def test_a_buffer_is_lent_again_but_never_to_two() -> None:
    buffers = Buffers()
    with buffers.lent(2**20) as first, buffers.lent(2**20) as second:
        first[:1] = b"1"
        assert bytes(second[:1]) != b"1"
    with buffers.lent(2**20) as again, buffers.lent(2**22) as other:
        assert again is first or again is second
        assert len(other) == 2**22


def test_a_buffer_has_room_for_several_small_blocks_and_never_for_a_part_of_one() -> None:
    for block, size in ((2**18, 2**20), (300_000, 900_000), (2**20 + 1, 2**20 + 1)):
        with Buffers().lent(block) as buffer:
            assert len(buffer) == size
