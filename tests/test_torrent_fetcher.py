"""Fetching by BitTorrent from real libtorrent seeders: what is asked for, what lands, and how long a torrent lives."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.config import Peer
from cachefs.content import Bitmap
from cachefs.errors import MetadataUnavailable
from cachefs.fetch.torrent.download import Phase, TorrentDownload
from cachefs.metainfo import parse
from tests.counterparts import LOOPBACK, free_port, nginx
from tests.fakes import WITHIN, Content, content, until
from tests.torrent_kit import FILE, PIECE, QUIET, Bench, Seeder, fetch_from, fetching


def test_what_is_demanded_lands_and_nothing_else_is_fetched(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        bench.fetch(receiver)
        receiver.wants(3, FILE.blocks - 1, ahead=frozenset({7, 8}))
        await receiver.lands(3, 7, 8, FILE.blocks - 1)
        receiver.wants()
        await trio.sleep(0.5)
        assert receiver.touched() == set(receiver.have) == {3, 7, 8, FILE.blocks - 1}
        assert seeder.sent() <= 4 * PIECE

    fetch_from(tmp_path, scenario)


def test_a_torrent_that_nobody_demands_anything_of_fetches_nothing(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        bench.fetch(receiver)
        await trio.sleep(0.5)
        assert not receiver.touched()
        assert seeder.sent() == 0

    fetch_from(tmp_path, scenario)


def test_what_a_reader_waits_for_comes_before_what_is_read_ahead(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        seeder.slow_down(16 * PIECE)
        receiver = bench.receiver()
        bench.fetch(receiver)
        ahead = frozenset(range(24))
        receiver.wants(0, ahead=ahead)
        await receiver.lands(0)
        receiver.wants(30, ahead=ahead)
        await receiver.lands(30, *ahead)
        assert receiver.landed_order.index(30) < 12

    fetch_from(tmp_path, scenario)


def test_a_jump_overtakes_what_was_asked_for_already_where_that_takes_long(tmp_path: Path) -> None:
    long = content(8, 160 * PIECE, PIECE)

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        seeder.slow_down(16 * PIECE)
        receiver = bench.receiver(long)
        download = bench.fetch(receiver)
        ahead = frozenset(range(128))
        receiver.wants(0, ahead=ahead)
        await until(lambda: download.rate > 4 * PIECE)
        before = len(receiver.landed_order)
        receiver.wants(150, ahead=ahead)
        await receiver.lands(150)
        assert len(receiver.landed_order) - before < (len(ahead) - before) / 2
        await receiver.lands(*range(before + 16))

    fetch_from(tmp_path, scenario, long)


def test_a_withdrawn_wish_is_not_fetched(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        seeder.slow_down(16 * PIECE)
        receiver = bench.receiver()
        bench.fetch(receiver)
        receiver.wants(0, ahead=frozenset(range(1, 30)))
        await receiver.lands(0)
        receiver.wants(31)
        await receiver.lands(31)
        await trio.sleep(0.5)
        assert len(receiver.have) < 20

    fetch_from(tmp_path, scenario)


def test_blocks_that_are_here_are_not_fetched_again(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        receiver.path.write_bytes(FILE.piece(0) + FILE.piece(1))
        os.truncate(receiver.path, len(FILE.data))
        receiver.have = Bitmap(FILE.blocks, [0, 1])
        bench.fetch(receiver)
        receiver.wants(0, 1, 2)
        await receiver.lands(2)
        assert receiver.landed_order == [2]
        assert seeder.sent() == PIECE

    fetch_from(tmp_path, scenario)


def test_an_idle_torrent_is_removed_and_its_end_is_told(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        download = bench.fetch(receiver)
        receiver.wants(0)
        await receiver.lands(0)
        await trio.sleep(0.5)
        assert not receiver.has_ended, "somebody has it open"
        download.close()
        await until(lambda: receiver.has_ended)
        assert bench.fetcher.transfers() == []
        bench.fetch(again := bench.receiver())
        again.wants(1)
        await again.lands(1)

    fetch_from(tmp_path, scenario)


def test_a_torrent_reopened_while_or_after_it_is_removed_goes_on(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        download = bench.fetch(receiver)
        for index in range(20):
            receiver.wants(index)
            await receiver.lands(index)
            download.close()
            download.remove()
            await trio.sleep(index * 0.0005)
            if receiver.has_ended:
                receiver.has_ended = False
                download = bench.fetch(receiver)
            else:
                download.open()

    fetch_from(tmp_path, scenario)


def test_a_piece_that_is_offered_while_the_torrent_is_taken_out_is_refused_at_once(tmp_path: Path) -> None:
    answers: list[bool] = []

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        download = bench.fetch(receiver := bench.receiver())
        await until(lambda: download.phase is Phase.RUNNING)

        async def offer() -> None:
            answers.append(await download.pieces.offer(0, FILE.piece(0)))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer)
            for _ in range(2):  # the first may be scheduled before the offer
                await trio.lowlevel.checkpoint()
            download.remove()
        assert answers == [0 in receiver.have]
        assert trio.current_time() - began < 4, "libtorrent is given five seconds to take it"

    fetch_from(tmp_path, scenario)


def test_complete_torrents_are_kept_for_seeding_up_to_the_limit_the_latest_ones(tmp_path: Path) -> None:
    items = [content(number, PIECE, PIECE, name=f"{number}.seg") for number in range(5)]

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receivers = [bench.receiver(item) for item in items]
        for receiver in receivers:
            download = bench.fetch(receiver)
            receiver.wants(0)
            await receiver.lands(0)
            download.close()
        await until(lambda: sum(receiver.has_ended for receiver in receivers) == 3)
        await trio.sleep(1.5)
        assert [receiver.has_ended for receiver in receivers] == [True, True, True, False, False]

    fetch_from(tmp_path, scenario, *items, settings=replace(QUIET, active_torrents=2))


def test_without_seeding_a_complete_torrent_goes_like_any_other(tmp_path: Path) -> None:
    (item,) = (content(1, PIECE, PIECE),)

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver(item)
        download = bench.fetch(receiver)
        receiver.wants(0)
        await receiver.lands(0)
        download.close()
        await until(lambda: receiver.has_ended)

    fetch_from(tmp_path, scenario, item, settings=replace(QUIET, seed=False))


def test_what_was_fetched_is_seeded_to_others_as_metadata_and_as_pieces(tmp_path: Path) -> None:
    ours = replace(QUIET, listen=Peer(LOOPBACK, free_port()))

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        download = bench.fetch(receiver)
        receiver.wants(*range(FILE.blocks))
        await receiver.lands(*range(FILE.blocks))
        download.close()
        async with fetching(tmp_path / "other", ours.listen) as other:
            with trio.fail_after(WITHIN):
                raw = await other.fetcher.metainfo(FILE.info.content, FILE.info.name)
            assert parse(raw).content == FILE.info.content
            second = other.receiver()
            other.fetch(second)
            second.wants(*range(FILE.blocks))
            await second.lands(*range(FILE.blocks))
            assert second.path.read_bytes() == FILE.data
            await until(lambda: [report.name for report in other.ledger.report()] == [str(ours.listen)])

    fetch_from(tmp_path, scenario, settings=ours)


def test_metadata_of_many_names_comes_from_a_peer_and_the_content_can_be_fetched_at_once(tmp_path: Path) -> None:
    items = [content(number, PIECE, PIECE, name=f"{number}.seg") for number in range(20)]

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        async def one(item: Content) -> None:
            raw = await bench.fetcher.metainfo(item.info.content, item.info.name)
            assert parse(raw) == item.info
            receiver = bench.receiver(item)
            bench.fetch(receiver)
            receiver.wants(0)
            await receiver.lands(0)

        with trio.fail_after(WITHIN):
            async with trio.open_nursery() as nursery:
                for item in items:
                    nursery.start_soon(one, item)

    fetch_from(tmp_path, scenario, *items)


def test_of_two_who_wait_for_the_same_metadata_one_may_give_up(tmp_path: Path) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        found: list[bytes] = []
        patience = trio.CancelScope()

        async def one(scope: trio.CancelScope) -> None:
            with scope:
                found.append(await bench.fetcher.metainfo(FILE.info.content, FILE.info.name))

        with trio.fail_after(WITHIN):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, patience)
                nursery.start_soon(one, trio.CancelScope())
                await trio.testing.wait_all_tasks_blocked()
                patience.cancel()
        assert parse(found[-1]) == FILE.info

    fetch_from(tmp_path, scenario)


def test_without_peers_metadata_is_refused_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with fetching(tmp_path) as bench:
            with pytest.raises(MetadataUnavailable, match="no peers are known"):
                await bench.fetcher.metainfo(FILE.info.content, FILE.info.name)

    trio.run(main)


def test_a_web_seed_alone_delivers_and_is_accounted_for(tmp_path: Path) -> None:
    item = content(5, 8 * PIECE, PIECE, name="history/v1-accounts.0-64.v")
    origin = tmp_path / "web" / item.info.name
    origin.parent.mkdir(parents=True)
    origin.write_bytes(item.data)

    async def main(url: str) -> None:
        async with fetching(tmp_path / "store", seeds=(url,)) as bench:
            receiver = bench.receiver(item)
            bench.fetch(receiver)
            receiver.wants(*range(8))
            await receiver.lands(*range(8))
            await until(lambda: bool(bench.ledger.report()))
            await until(lambda: {r.name for r in bench.ledger.report() if r.received} == {url})

    with nginx(tmp_path / "web") as url:
        trio.run(main, url)


@pytest.mark.parametrize("when", ["while it is being added", "while it runs", "when the file was replaced"])
def test_a_block_that_was_doubted_is_fetched_again_into_the_file_that_is_there(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receiver = bench.receiver()
        bad = FILE.data[: 2 * PIECE] + bytes(PIECE) + FILE.data[3 * PIECE :]
        receiver.path.write_bytes(bad)
        for index in range(FILE.blocks):
            receiver.have.add(index)
        download = bench.fetch(receiver)
        if when != "while it is being added":
            await until(lambda: download.phase is Phase.RUNNING)
        if when == "when the file was replaced":
            receiver.path.rename(receiver.path.with_name("old"))
            receiver.path.write_bytes(bad)
        receiver.have.discard(2)
        download.doubted()
        receiver.wants(2)
        await receiver.lands(2)
        assert receiver.path.read_bytes() == FILE.data
        assert seeder.sent() <= PIECE

    # It would add the torrent anew sooner or later, for want of peers.
    monkeypatch.setattr(TorrentDownload, "supervise", lambda self, now: None)
    fetch_from(tmp_path, scenario)
