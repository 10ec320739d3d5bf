"""The contract of providers, for each of them; the strategies; and the downloader that joins the two.

A new provider is one more entry in `PROVIDERS`, and inherits every test that asks for `kind`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cachefs import metainfo
from cachefs.content import ContentId
from cachefs.errors import RecordMismatch, SourceRefused, SourceTooLarge, UrlFailed, together
from cachefs.fetch.http.client import Rules, WebClient
from cachefs.fetch.torrent.whole import WholeTorrents
from cachefs.fetch.whole.downloads import Downloader
from cachefs.fetch.whole.providers import HttpProvider, LocalProvider, Provider
from cachefs.fetch.whole.rclone_provider import RcloneProvider
from cachefs.fetch.whole.receiver import Expected, Fetched
from cachefs.fetch.whole.strategies import STRATEGIES, Attempt, Strategy
from cachefs.fetch.whole.torrent_provider import TorrentProvider
from tests.fakes import BLOCK, Content
from tests.records_kit import Host, sha256, song, web
from tests.torrent_kit import fetching, seeding

SONG = song(1, 1_500_000)
CONTENT = ContentId.parse(f"sha256:{sha256(SONG)}")
OPEN = Rules(allow_http=True, allow_private=True, stall=10.0)


@dataclass(frozen=True)
class Source:
    """A provider, the URL under which it has SONG, and one that it would take and has nothing for."""

    provider: Provider
    url: str
    missing: str


@asynccontextmanager
async def by_http(place: Path) -> AsyncIterator[Source]:
    with web() as host:
        async with WebClient(OPEN) as client:
            yield Source(HttpProvider(client), host.put("song.mp3", SONG), f"{host.url}missing.mp3")


@asynccontextmanager
async def by_file(place: Path) -> AsyncIterator[Source]:
    (place / "my song.mp3").write_bytes(SONG)
    base = place.as_uri()
    yield Source(LocalProvider(allowed=True), f"{base}/my%20song.mp3", f"{base}/missing.mp3")


@asynccontextmanager
async def by_rclone(place: Path) -> AsyncIterator[Source]:
    (place / "-my song.mp3").write_bytes(SONG)
    provider = RcloneProvider({"music": f":local:{place}"}, stall=20.0)
    yield Source(provider, "rclone://music/-my%20song.mp3", "rclone://music/missing.mp3")


@asynccontextmanager
async def by_torrent(place: Path) -> AsyncIterator[Source]:
    torrent = torrent_of(SONG)
    with seeding(place, torrent) as seeder:
        async with fetching(place, seeder.peer) as bench:
            provider = TorrentProvider(WholeTorrents(bench.fetcher, stall=5.0))
            missing = f"magnet:?xt=urn:btih:{'0' * 40}"
            yield Source(provider, f"magnet:?xt=urn:btih:{torrent.info.content.hex}&dn=song", missing)


def torrent_of(data: bytes) -> Content:
    pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    digests = b"".join(hashlib.sha1(piece, usedforsecurity=False).digest() for piece in pieces)
    return Content(metainfo.build("song.mp3", len(data), digests, BLOCK), data)


PROVIDERS = {"http": by_http, "file": by_file, "rclone": by_rclone, "torrent": by_torrent}
every_provider = pytest.mark.parametrize("kind", PROVIDERS)


def with_source(kind: str, place: Path, scenario: Callable[[Source, Path], Awaitable[None]]) -> None:
    """Run `scenario` with a source of a kind, and see that nothing of its downloads stays but what it kept."""
    incoming = place / "incoming"
    incoming.mkdir()

    async def main() -> None:
        async with PROVIDERS[kind](place) as source:
            await scenario(source, incoming)

    trio.run(main)
    assert [path.name for path in incoming.iterdir() if path.name != "kept"] == []


async def download(source: Source, url: str, incoming: Path, expected: Expected | None = None) -> Fetched:
    fetched = await Downloader([source.provider]).download([url], expected or Expected(), maker(incoming))
    fetched.path.rename(incoming / "kept")
    return fetched


def maker(incoming: Path) -> Callable[[], Path]:
    numbers = iter(range(100))

    def make() -> Path:
        path = incoming / f"{next(numbers)}.part"
        path.touch()
        return path

    return make


@every_provider
def test_3_a_provider_gives_all_bytes_and_their_checksum(tmp_path: Path, kind: str) -> None:
    async def scenario(source: Source, incoming: Path) -> None:
        fetched = await download(source, source.url, incoming, Expected(CONTENT, len(SONG)))
        assert (fetched.content, fetched.size) == (CONTENT, len(SONG))
        assert (incoming / "kept").read_bytes() == SONG
        assert fetched.head == SONG[:512]

    with_source(kind, tmp_path, scenario)


@every_provider
def test_3_15_what_is_not_there_is_an_error_that_names_the_url(tmp_path: Path, kind: str) -> None:
    async def scenario(source: Source, incoming: Path) -> None:
        assert source.provider.takes(source.missing)
        with pytest.raises(UrlFailed) as raised:
            await download(source, source.missing, incoming)
        assert raised.value.url == source.missing

    with_source(kind, tmp_path, scenario)


@every_provider
def test_other_bytes_than_expected_are_refused_with_both_checksums(tmp_path: Path, kind: str) -> None:
    async def scenario(source: Source, incoming: Path) -> None:
        expected = ContentId.parse(f"sha256:{sha256(b'other')}")
        with pytest.raises(RecordMismatch) as raised:
            await download(source, source.url, incoming, Expected(expected))
        error = raised.value
        assert (error.expected, error.got, error.size) == (str(expected), str(CONTENT), len(SONG))

    with_source(kind, tmp_path, scenario)


@every_provider
def test_more_bytes_than_expected_or_allowed_are_refused(tmp_path: Path, kind: str) -> None:
    async def scenario(source: Source, incoming: Path) -> None:
        with pytest.raises(RecordMismatch):
            await download(source, source.url, incoming, Expected(CONTENT, 1000))
        with pytest.raises(SourceTooLarge):
            await download(source, source.url, incoming, Expected(most=1000))

    with_source(kind, tmp_path, scenario)


@every_provider
def test_a_download_that_is_cancelled_leaves_nothing(tmp_path: Path, kind: str) -> None:
    async def scenario(source: Source, incoming: Path) -> None:
        with trio.CancelScope() as scope:
            made = maker(incoming)

            def cancel(done: int, total: int | None) -> None:
                scope.cancel()

            await Downloader([source.provider]).download([source.url], Expected(), made, cancel)
        assert scope.cancelled_caught

    with_source(kind, tmp_path, scenario)


@every_provider
def test_a_scheme_may_be_in_upper_case(tmp_path: Path, kind: str) -> None:
    async def scenario(source: Source, incoming: Path) -> None:
        scheme, _, rest = source.url.partition(":")
        assert (await download(source, f"{scheme.upper()}:{rest}", incoming)).content == CONTENT

    with_source(kind, tmp_path, scenario)


def test_what_the_settings_do_not_allow_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        for provider, url in (
            (LocalProvider(allowed=False), (tmp_path / "x").as_uri()),
            (RcloneProvider({"music": "s3:music"}), "rclone://other/x"),
            (RcloneProvider({"music": "s3:music"}), "rclone://music/../other/x"),
            (RcloneProvider({"music": "s3:music"}), "rclone://music/a/%2e%2e/%2E%2e/other/x"),
        ):
            with pytest.raises(SourceRefused):
                await Downloader([provider]).download([url], Expected(), maker(tmp_path))

    trio.run(main)


@pytest.mark.parametrize("url", ["file:///song%00.mp3", "rclone://music/song%00.mp3"])
def test_a_null_byte_in_a_files_name_is_refused(tmp_path: Path, url: str) -> None:
    providers: list[Provider] = [LocalProvider(allowed=True), RcloneProvider({"music": f":local:{tmp_path}"})]

    async def main() -> None:
        with pytest.raises(UrlFailed, match="null byte"):
            await Downloader(providers).download([url], Expected(), maker(tmp_path))

    trio.run(main)


def by_strategy(name: str, place: Path, host: Host, *paths: str) -> Fetched:
    """What the strategy gives for these paths of `host`."""

    async def main() -> Fetched:
        async with WebClient(OPEN) as client:
            downloader = Downloader([HttpProvider(client)], STRATEGIES[name])
            with trio.fail_after(20):
                return await downloader.download([host.url + path for path in paths], Expected(CONTENT), maker(place))

    return trio.run(main)


def test_17_first_asks_the_first_url_alone(tmp_path: Path) -> None:
    with web() as host:
        host.put("mirror.mp3", SONG)
        with pytest.raises(UrlFailed, match="HTTP 404"):
            by_strategy("first", tmp_path, host, "song.mp3", "mirror.mp3")
        assert host.asked_for("mirror.mp3") == []


def test_17_mirrors_are_asked_in_order_until_one_is_right(tmp_path: Path) -> None:
    with web() as host:
        for path in ("liar.mp3", "good.mp3", "spare.mp3"):
            host.put(path, song(2, 1000) if path == "liar.mp3" else SONG)
        fetched = by_strategy("mirrors", tmp_path, host, "missing.mp3", "liar.mp3", "good.mp3", "spare.mp3")
        assert fetched.url.endswith("good.mp3")
        assert [asked.path for asked in host.asked] == ["/missing.mp3", "/liar.mp3", "/good.mp3"]


def test_17_fastest_takes_who_delivers_first_and_falls_back_when_that_one_fails(tmp_path: Path) -> None:
    with web() as host:
        gate = threading.Event()
        host.put("slow.mp3", SONG, gate=gate)
        host.put("quick.mp3", SONG)
        assert by_strategy("fastest", tmp_path, host, "slow.mp3", "quick.mp3").url.endswith("quick.mp3")
        host.put("quick.mp3", song(2, len(SONG)))
        threading.Timer(0.3, gate.set).start()
        assert by_strategy("fastest", tmp_path, host, "slow.mp3", "quick.mp3").url.endswith("slow.mp3")


def test_errors_told_together_stay_what_they_were_on_their_own() -> None:
    errors = [UrlFailed("https://a/", "HTTP 404"), SourceRefused("https://b/", "HTTP 403")]
    for _ in range(2):
        told = together(errors)
        assert isinstance(told, SourceRefused)
        assert (told.url, str(told)) == ("https://b/", "https://b/: HTTP 403; also tried: https://a/: HTTP 404")


@pytest.mark.parametrize("name", ["mirrors", "fastest"])
def test_17_when_all_fail_the_gravest_reason_leads_and_every_url_is_told(tmp_path: Path, name: str) -> None:
    with web() as host:
        host.put("liar.mp3", song(2, 1000))
        with pytest.raises(RecordMismatch) as raised:
            by_strategy(name, tmp_path, host, "missing.mp3", "liar.mp3")
        assert "HTTP 404" in str(raised.value)
        assert "liar.mp3" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_17_a_strategy_of_ones_own_is_a_function(tmp_path: Path) -> None:
    async def last(attempts: Sequence[Attempt]) -> Fetched:
        return await attempts[-1].run()

    strategy: Strategy = last
    (tmp_path / "a").write_bytes(SONG)

    async def main() -> Fetched:
        downloader = Downloader([LocalProvider(allowed=True)], strategy)
        urls = ["file:///nowhere", (tmp_path / "a").as_uri()]
        return await downloader.download(urls, Expected(), maker(tmp_path))

    assert trio.run(main).content == CONTENT
