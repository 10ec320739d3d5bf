"""Fetching by BitTorrent when things go wrong: wrong bytes, bans, restarts, absent peers, disks full or gone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from cachefs.config import Peer
from cachefs.errors import StoreFailed, StoreFull
from cachefs.metainfo import parse
from tests.counterparts import LOOPBACK, free_port, refusing_port, small_disk
from tests.fakes import WITHIN, content, until
from tests.torrent_kit import FILE, PIECE, Bench, Seeder, fetch_from, fetching, seeding


@pytest.mark.parametrize("left", ["wrong", "right", "torn"])
def test_bytes_left_in_the_file_without_a_bit_never_land_unchecked(tmp_path: Path, left: str) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        bytes_left = FILE.piece(5) if left == "right" else bytes(reversed(FILE.piece(5)))
        with receiver.path.open("r+b") as file:
            file.seek(5 * PIECE)
            file.write(bytes_left[: PIECE // 2 if left == "torn" else PIECE])
        bench.fetch(receiver)
        receiver.wants(5)
        await receiver.lands(5)
        assert receiver.landed_order == [5]

    fetch_from(tmp_path, scenario)


def test_wrong_bytes_never_land_and_after_a_restart_a_peer_that_was_banned_is_asked_again(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        origin = seeder.files[FILE.info.content]
        origin.write_bytes(bytes(len(FILE.data)))
        receiver = bench.receiver()
        download = bench.fetch(receiver)
        receiver.wants(4)
        await until(lambda: "wrong bytes" in bench.failures())
        assert str(seeder.peer) in bench.failures()
        origin.write_bytes(FILE.data)
        download.restart()
        await receiver.lands(4)

    fetch_from(tmp_path, scenario)


def test_wrong_bytes_are_logged_under_the_name_of_the_catalogue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = content(2, PIECE, PIECE, name="history/v1-accounts.0-64.v")

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        seeder.files[item.info.content].write_bytes(bytes(len(item.data)))
        bench.fetch(bench.receiver(item)).demand(frozenset({0}), frozenset())
        await until(lambda: "wrong bytes" in bench.failures())
        assert f"{item.item.name}: piece 0 failed its hash" in caplog.text

    fetch_from(tmp_path, scenario, item)


def test_wrong_bytes_of_an_interrupted_attempt_never_land(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        origin = seeder.files[FILE.info.content]
        receiver = bench.receiver()
        download = bench.fetch(receiver)
        for turn in range(6):
            origin.write_bytes(bytes(len(FILE.data)))
            receiver.wants(*range(turn * 5, turn * 5 + 5))
            await trio.sleep(0.05 * turn)
            origin.write_bytes(FILE.data)
            download.restart()
        receiver.wants(*range(FILE.blocks))
        await receiver.lands(*range(FILE.blocks))
        assert receiver.path.read_bytes() == FILE.data

    fetch_from(tmp_path, scenario)


def test_a_restart_while_bytes_are_coming_in_throws_none_of_them_away(tmp_path: Path) -> None:
    large = content(7, 2**19, 2**19)

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        seeder.slow_down(2**18)
        receiver = bench.receiver(large)
        download = bench.fetch(receiver)
        receiver.wants(0)
        with trio.fail_after(WITHIN):
            while not receiver.have.complete:
                await trio.sleep(1.5)
                download.restart()

    fetch_from(tmp_path, scenario, large)


def test_restarts_while_everything_else_goes_on_do_no_harm(tmp_path: Path) -> None:
    items = [content(number, 16 * PIECE, PIECE, name=f"{number}.seg") for number in range(10, 14)]

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receivers = [bench.receiver(item) for item in items]
        downloads = [bench.fetch(receiver) for receiver in receivers]
        for turn in range(16):
            for receiver, download in zip(receivers, downloads, strict=True):
                receiver.wants(turn)
                download.restart()
                await trio.sleep(0.01)
        for receiver in receivers:
            receiver.wants(*range(16))
        for receiver in receivers:
            await receiver.lands(*range(16))

    fetch_from(tmp_path, scenario, *items)


def test_metadata_that_is_given_up_on_leaves_nothing_behind_and_can_be_asked_for_again(tmp_path: Path) -> None:
    absent = content(99, PIECE, PIECE)

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        for patience in (0, 0.001, 0.05, 0.3):
            with trio.move_on_after(patience) as given_up:
                await bench.fetcher.metainfo(absent.info.content, absent.info.name)
            assert given_up.cancelled_caught
        seeder.files[absent.info.content] = tmp_path / "late.origin"
        seeder.handles.append(seeder.add(absent))
        with trio.fail_after(WITHIN):
            assert parse(await bench.fetcher.metainfo(absent.info.content, absent.info.name)) == absent.info

    fetch_from(tmp_path, scenario)


def test_a_peer_that_refuses_is_named_and_does_not_keep_others_from_being_asked(tmp_path: Path) -> None:
    async def main() -> None:
        with refusing_port() as port, seeding(tmp_path, FILE) as seeder:
            async with fetching(tmp_path / "store", Peer(LOOPBACK, port), seeder.peer) as bench:
                receiver = bench.receiver()
                bench.fetch(receiver)
                receiver.wants(1)
                await receiver.lands(1)
                await until(lambda: f"{LOOPBACK}:{port}: " in bench.failures())

    trio.run(main)


def test_a_name_that_cannot_be_resolved_keeps_no_other_peer_from_being_asked(tmp_path: Path) -> None:
    async def main() -> None:
        with seeding(tmp_path, FILE) as seeder:
            began = time.monotonic()
            async with fetching(tmp_path / "store", Peer("nobody.invalid", 1), seeder.peer) as bench:
                assert time.monotonic() - began < 5
                receiver = bench.receiver()
                bench.fetch(receiver)
                receiver.wants(1)
                await receiver.lands(1)
                await until(lambda: "nobody.invalid" in bench.failures())

    trio.run(main)


def test_a_peer_that_appears_later_is_found_without_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        async with fetching(tmp_path / "store", Peer(LOOPBACK, port)) as bench:
            receiver = bench.receiver()
            download = bench.fetch(receiver)
            receiver.wants(1)
            await trio.sleep(0.5)
            assert download.trouble() == "no peer is connected"
            with seeding(tmp_path, FILE) as seeder:
                seeder.session.apply_settings({"listen_interfaces": f"{LOOPBACK}:{port}"})
                await receiver.lands(1)
                await until(lambda: not download.trouble())

    trio.run(main)


@pytest.mark.parametrize("host", ["a..b", "b" * 64])
def test_a_web_seed_whose_host_can_be_nobodys_name_is_told_and_no_more(tmp_path: Path, host: str) -> None:
    async def main() -> None:
        with seeding(tmp_path, FILE) as seeder:
            async with fetching(tmp_path / "store", seeder.peer, seeds=(f"http://{host}/",)) as bench:
                assert "is not a host name" in bench.failures()
                receiver = bench.receiver()
                bench.fetch(receiver)
                receiver.wants(1)
                await receiver.lands(1)

    trio.run(main)


def test_a_full_disk_is_told_as_such_costs_no_idle_cpu_and_is_over_when_there_is_room_again(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        with small_disk(tmp_path / "disk", 8 * PIECE) as resize:
            receiver = bench.receiver(directory=tmp_path / "disk")
            bench.fetch(receiver)
            receiver.wants(*range(FILE.blocks))
            await until(lambda: bool(receiver.errors))
            assert isinstance(receiver.errors[0], StoreFull)
            receiver.errors.clear()
            receiver.wants(*range(FILE.blocks))  # one alone may still find room
            await until(lambda: bool(receiver.errors))
            busy = time.process_time()
            await trio.sleep(2)
            assert time.process_time() - busy < 1
            resize(64 * PIECE)
            for index in range(FILE.blocks):
                receiver.wants(index)
                await receiver.lands(index)
            assert receiver.path.read_bytes() == FILE.data

    fetch_from(tmp_path, scenario)


def test_a_file_that_is_gone_is_told_to_whoever_asks(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        receiver.path.unlink()
        with pytest.raises(StoreFailed, match=str(receiver.path)):
            bench.fetch(receiver)

    fetch_from(tmp_path, scenario)
