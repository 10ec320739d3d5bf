"""Metadata made from bytes: right for both piece lengths, bounded, and nothing kept that isn't the lock's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs import metainfo
from cachefs.config import Fetch, Rclone
from cachefs.content import ContentId
from cachefs.errors import MetadataUnavailable, NoMetadata, StoreFull
from cachefs.fetch.health import Silence
from cachefs.fetch.metadata.rebuild import PIECE_LENGTHS, Hasher, RemoteMetadata
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.remote.remotes import Remotes
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.metainfo import Metainfo
from tests.counterparts import nginx, refusing_port, silent_server, small_disk

SMALL, LARGE = PIECE_LENGTHS
NAME = "history/v1-accounts.0-64.v"


def plainly(name: str, data: bytes, piece_length: int) -> Metainfo:
    """The torrent of some bytes, hashed piece by piece."""
    pieces = [data[at : at + piece_length] for at in range(0, len(data), piece_length)]
    digests = b"".join(hashlib.sha1(piece).digest() for piece in pieces)
    return metainfo.build(name, len(data), digests, piece_length)


def hashed(name: str, data: bytes) -> list[Metainfo]:
    hasher, view = Hasher(), memoryview(data)
    for at in range(0, len(data), SMALL):
        hasher.update(view[at : at + SMALL])
    return hasher.metainfos(name)


def test_the_piece_lengths_are_those_that_erigon_has_used() -> None:
    assert (SMALL, LARGE) == (2 * 2**20, 64 * 2**20)


@pytest.mark.parametrize("length", [1, SMALL - 1, SMALL, SMALL + 1, LARGE, LARGE + 1, LARGE + SMALL])
def test_a_stream_is_hashed_for_every_piece_length_as_if_for_it_alone(length: int) -> None:
    data = random.Random(length).randbytes(2**20) * (length // 2**20 + 1)
    data = data[:length]
    assert hashed(NAME, data) == [plainly(NAME, data, piece_length) for piece_length in PIECE_LENGTHS]


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=1, max_size=100), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_the_name_is_part_of_the_info_hash(data: bytes, name: str) -> None:
    found = hashed(name, data)
    assert found == [plainly(name, data, piece_length) for piece_length in PIECE_LENGTHS]
    assert {info.content for info in found}.isdisjoint(info.content for info in hashed(name + "x", data))


class Keeper:
    """Remembers what was given to be kept, and what bytes it had."""

    def __init__(self) -> None:
        self.kept: list[tuple[Metainfo, bytes]] = []

    async def __call__(self, info: Metainfo, path: Path) -> None:
        self.kept.append((info, await trio.Path(path).read_bytes()))


Scenario = Callable[[RemoteMetadata, Keeper, Remotes], Awaitable[None]]


def play(tmp_path: Path, urls: Iterable[str], scenario: Scenario, *, rebuild_limit: int = 2**30) -> None:
    """Run with a real rclone and these web seeds; nothing unfinished may be left behind."""

    async def main() -> None:
        async with rebuilding(tmp_path / "rclone", urls, rebuild_limit) as (metadata, keeper, remotes):
            with trio.fail_after(30):
                await scenario(metadata, keeper, remotes)
        assert not list((tmp_path / "rclone").glob("*.rebuild"))

    trio.run(main)


@asynccontextmanager
async def room(size: int) -> AsyncIterator[None]:
    """Room for everything."""
    yield


@asynccontextmanager
async def rebuilding(
    directory: Path, urls: Iterable[str], rebuild_limit: int
) -> AsyncIterator[tuple[RemoteMetadata, Keeper, Remotes]]:
    seeds = [WebSeed(url) for url in urls]
    remotes, keeper = Remotes(seeds, [], "none"), Keeper()
    settings = Fetch(rebuild_limit=rebuild_limit, stall=3.0)
    fetcher = RemoteFetcher(settings, Rclone(), Ledger(map(str, seeds)), remotes, directory, memory=30.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(fetcher.run)
        yield RemoteMetadata(fetcher, directory, keeper, room), keeper, remotes
        nursery.cancel_scope.cancel()


def served(root: Path, data: bytes) -> Path:
    (root / NAME).parent.mkdir(parents=True)
    (root / NAME).write_bytes(data)
    return root


@pytest.mark.parametrize("piece_length", PIECE_LENGTHS)
def test_a_file_without_a_torrent_is_made_one_of_whatever_piece_length_the_lock_means(
    tmp_path: Path, piece_length: int
) -> None:
    data = random.Random(1).randbytes(SMALL + 5)
    wanted = plainly(NAME, data, piece_length)

    async def scenario(metadata: RemoteMetadata, keeper: Keeper, remotes: Remotes) -> None:
        assert await metadata.rebuild(NAME, wanted.content) == wanted
        assert keeper.kept == [(wanted, data)]

    with nginx(served(tmp_path / "web", data)) as url:
        play(tmp_path, [url], scenario)


def test_bytes_that_are_not_the_lock_s_are_kept_nowhere_and_their_source_is_not_asked_again(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    wanted = plainly(NAME, bytes(reversed(data)), SMALL)

    async def scenario(metadata: RemoteMetadata, keeper: Keeper, remotes: Remotes) -> None:
        with pytest.raises(MetadataUnavailable, match="the lock says"):
            await metadata.rebuild(NAME, wanted.content)
        assert not keeper.kept
        assert remotes.sources[0].health.objection(wanted.content) == "has other bytes"

    with nginx(served(tmp_path / "web", data)) as url:
        play(tmp_path, [url], scenario)


def test_of_two_sources_the_one_with_the_lock_s_bytes_decides(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    wanted = plainly(NAME, data, SMALL)

    async def scenario(metadata: RemoteMetadata, keeper: Keeper, remotes: Remotes) -> None:
        assert await metadata.rebuild(NAME, wanted.content) == wanted
        assert [kept for _, kept in keeper.kept] == [data]

    wrong, right, empty = served(tmp_path / "wrong", bytes(100_000)), served(tmp_path / "right", data), tmp_path / "no"
    empty.mkdir()
    with nginx(empty) as a, nginx(wrong) as b, nginx(right) as c:
        play(tmp_path, [a, b, c], scenario)


def test_a_source_that_is_silent_is_given_up_and_the_next_one_asked(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    wanted = plainly(NAME, data, SMALL)

    async def scenario(metadata: RemoteMetadata, keeper: Keeper, remotes: Remotes) -> None:
        assert await metadata.rebuild(NAME, wanted.content) == wanted
        assert "silent for 6 s" in remotes.sources[0].health.objection(wanted.content)

    with silent_server() as port, nginx(served(tmp_path / "web", data)) as url:
        play(tmp_path, [f"http://127.0.0.1:{port}/", url], scenario)


def test_no_more_is_fetched_in_an_hour_than_the_limit_allows(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    wanted = plainly(NAME, data, SMALL)

    async def scenario(metadata: RemoteMetadata, keeper: Keeper, remotes: Remotes) -> None:
        await metadata.rebuild(NAME, wanted.content)
        with pytest.raises(MetadataUnavailable, match=r"100,000 bytes .* more than the 99,999 .* rebuild_limit"):
            await metadata.rebuild(NAME, wanted.content)
        assert len(keeper.kept) == 1

    with nginx(served(tmp_path / "web", data)) as url:
        play(tmp_path, [url], scenario, rebuild_limit=199_999)


def test_what_an_earlier_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{'0' * 40}.rebuild").touch()
    (tmp_path / "rclone.log").touch()
    remotes = Remotes([], [], "none")
    fetcher = RemoteFetcher(Fetch(), Rclone(), Ledger(), remotes, tmp_path, memory=30.0)
    RemoteMetadata(fetcher, tmp_path, Keeper(), room).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["rclone.log"]


def test_a_full_disk_is_told_as_that_and_blamed_on_no_source(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * 2**20)
    wanted = plainly(NAME, data, SMALL)

    async def scenario(metadata: RemoteMetadata, keeper: Keeper, remotes: Remotes) -> None:
        with pytest.raises(StoreFull, match="No space left"):
            await metadata.rebuild(NAME, wanted.content)
        assert not keeper.kept
        assert not remotes.sources[0].health.objection(wanted.content)

    (tmp_path / "rclone").mkdir()
    with nginx(served(tmp_path / "web", data)) as url, small_disk(tmp_path / "rclone", 2**20):
        play(tmp_path, [url], scenario)


def test_a_remote_that_is_gone_counts_as_having_no_torrent_once_it_was_silent_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silence, "APART", 0.0)
    monkeypatch.setattr(Silence, "LONG", 1.0)
    content = ContentId("btih", bytes(20))

    async def main(port: int) -> None:
        (tmp_path / "rclone.conf").write_text(f"[gone]\ntype = webdav\nurl = http://127.0.0.1:{port}\n")
        remotes, ledger = Remotes([], ["gone:"], "none"), Ledger()
        rclone = Rclone(config=tmp_path / "rclone.conf")
        fetcher = RemoteFetcher(Fetch(stall=3.0), rclone, ledger, remotes, tmp_path / "rclone", memory=30.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(fetcher.run)
            metadata = RemoteMetadata(fetcher, tmp_path / "rclone", Keeper(), room)
            said: list[MetadataUnavailable] = []
            while not said or type(said[-1]) is MetadataUnavailable:
                with pytest.raises(MetadataUnavailable) as caught:
                    await metadata.torrent(NAME, content)
                said.append(caught.value)
                ledger.answered()
            assert len(said) >= Silence.TRIES
            assert isinstance(said[-1], NoMetadata)
            nursery.cancel_scope.cancel()

    with refusing_port() as port:
        trio.run(main, port)


def test_without_rclone_it_is_said_why_there_is_no_metadata(tmp_path: Path) -> None:
    async def main() -> None:
        seeds = [WebSeed("http://127.0.0.1:1/")]
        remotes = Remotes(seeds, [], "none", direct=False)
        rclone = Rclone(binary=tmp_path / "absent")
        fetcher = RemoteFetcher(Fetch(), rclone, Ledger(), remotes, tmp_path, memory=30.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(fetcher.run)
            with pytest.raises(MetadataUnavailable, match="there is none"):
                await RemoteMetadata(fetcher, tmp_path, Keeper(), room).rebuild(NAME, ContentId("btih", bytes(20)))
            nursery.cancel_scope.cancel()

    trio.run(main)
