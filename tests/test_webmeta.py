"""One web seed as a source of metadata: what a real HTTP server may answer, well or badly."""

from __future__ import annotations

import email.utils
import gzip
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from cachefs.errors import ContentMismatch, MetadataUnavailable, MetainfoError, NoMetadata
from cachefs.fetch.metadata.web import WebMetadata
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.metainfo import MAX_METAINFO, build
from tests.counterparts import nginx
from tests.fakes import Answer, WebHost, web_host


@asynccontextmanager
async def asking(url: str, patience: float = 5.0) -> AsyncIterator[WebMetadata]:
    async with httpx.AsyncClient(timeout=patience, follow_redirects=True) as client:
        yield WebMetadata(WebSeed(url), client, Ledger())


def ask_host(scenario: Callable[[WebHost, WebMetadata], Awaitable[None]]) -> None:
    async def main() -> None:
        async with web_host() as host, asking(host.url) as web:
            await scenario(host, web)

    trio.run(main)


PLAIN = build("v1-000000-000500-headers.seg", 1, bytes(20))
NESTED = build("history/v1-accounts.0-64.v", 5, bytes(20))


def test_a_torrent_is_had_from_nginx_with_and_without_a_manifest(tmp_path: Path) -> None:
    for info in (PLAIN, NESTED):
        path = tmp_path / f"{info.name}.torrent"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(info.raw)

    async def main(url: str) -> None:
        async with asking(url) as web:
            for info in (PLAIN, NESTED):
                assert await web.fetch(info.name, info.content) == info

    with nginx(tmp_path) as url:
        trio.run(main, url)
        (tmp_path / "manifest.txt").write_text(f"{PLAIN.name}.torrent\r\n{NESTED.name}.torrent\n")
        trio.run(main, url)


def test_what_a_manifest_does_not_list_is_not_asked_for() -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        host.answers["/manifest.txt"] = Answer(body=f"other.seg\n{NESTED.name}.torrent\n".encode())
        with pytest.raises(MetadataUnavailable, match=r"not in its manifest\.txt"):
            await web.fetch(PLAIN.name, PLAIN.content)
        assert host.asked == ["/manifest.txt"]
        assert not web.breaker.pause()

    ask_host(scenario)


def test_a_name_that_a_manifest_lists_by_now_is_had_though_a_copy_without_it_was_read_a_moment_ago() -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with web_host() as host, asking(host.url) as web:
            host.answers["/manifest.txt"] = Answer(body=f"{NESTED.name}.torrent\n".encode())
            host.answers[f"/{PLAIN.name}.torrent"] = Answer(body=PLAIN.raw)
            with pytest.raises(NoMetadata):
                await web.fetch(PLAIN.name, PLAIN.content)
            host.answers["/manifest.txt"] = Answer(body=f"{NESTED.name}.torrent\n{PLAIN.name}.torrent\n".encode())
            clock.jump(9)
            with pytest.raises(NoMetadata):
                await web.fetch(PLAIN.name, PLAIN.content)
            clock.jump(1)
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(web.fetch, PLAIN.name, PLAIN.content)
            assert host.asked.count("/manifest.txt") == 2, "once for all"

    trio.run(main, clock=clock)


def test_a_manifest_that_stays_the_same_is_asked_for_again_less_and_less_often() -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with web_host() as host, asking(host.url) as web:
            host.answers["/manifest.txt"] = Answer(body=f"{NESTED.name}.torrent\n".encode())
            for _ in range(1000):
                with pytest.raises(NoMetadata):
                    await web.fetch(PLAIN.name, PLAIN.content)
                clock.jump(1)
            assert host.asked == ["/manifest.txt"] * len([0, 10, 30, 70, 150, 310, 630])
            with pytest.raises(NoMetadata):
                await web.fetch(PLAIN.name, PLAIN.content, urgent=True)
            assert len(host.asked) == 8

    trio.run(main, clock=clock)


def test_a_manifest_that_lists_data_alone_says_nothing_about_torrents() -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        host.answers["/manifest.txt"] = Answer(body=b"other.seg\n")
        host.answers[f"/{PLAIN.name}.torrent"] = Answer(body=PLAIN.raw)
        assert await web.fetch(PLAIN.name, PLAIN.content) == PLAIN

    ask_host(scenario)


def test_a_name_that_a_host_does_not_have_is_no_fault_of_the_host() -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        host.answers["/403.seg.torrent"] = Answer(403)
        for name in ["404.seg", "403.seg"] * 5:
            with pytest.raises(MetadataUnavailable, match=f"has no {name}"):
                await web.fetch(name, PLAIN.content)
        assert not web.breaker.pause()

    ask_host(scenario)


@pytest.mark.parametrize("slash", ["/", "%2F"])
def test_a_slash_in_a_name_is_sent_as_the_host_wants_it_and_that_is_remembered(slash: str) -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        target = f"/{NESTED.name}.torrent".replace("history/", f"history{slash}")
        host.answers[target] = Answer(body=NESTED.raw)
        assert await web.fetch(NESTED.name, NESTED.content) == NESTED
        host.asked.clear()
        assert await web.fetch(NESTED.name, NESTED.content) == NESTED
        assert host.asked == [target]

    ask_host(scenario)


def test_what_is_not_the_locks_content_is_refused_and_named() -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        host.answers[f"/{PLAIN.name}.torrent"] = Answer(body=NESTED.raw)
        with pytest.raises(ContentMismatch, match=str(NESTED.content)) as caught:
            await web.fetch(PLAIN.name, PLAIN.content)
        assert caught.value.source == f"{host.url}{PLAIN.name}.torrent"
        host.answers[f"/{PLAIN.name}.torrent"] = Answer(body=b"<html>Please log in</html>")
        with pytest.raises(MetainfoError, match=f"{host.url}{PLAIN.name}.torrent"):
            await web.fetch(PLAIN.name, PLAIN.content)

    ask_host(scenario)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_that_is_too_large_is_not_taken_however_small_it_was_packed(encoding: str) -> None:
    body = bytes(MAX_METAINFO + 1)

    async def scenario(host: WebHost, web: WebMetadata) -> None:
        packed = gzip.compress(body, 1) if encoding == "gzip" else body
        host.answers["/large.torrent"] = Answer(body=packed, headers=(("Content-Encoding", encoding),))
        with pytest.raises(MetadataUnavailable, match=f"more than {MAX_METAINFO} bytes"):
            await web.fetch("large", PLAIN.content)

    ask_host(scenario)


@pytest.mark.parametrize("status", [200, 302])
def test_an_answer_that_was_packed_twice_is_not_unpacked_at_all(status: int) -> None:
    bomb = gzip.compress(gzip.compress(bytes(2**28)))

    async def scenario(host: WebHost, web: WebMetadata) -> None:
        headers = (("Content-Encoding", "gzip, gzip"), ("Location", "/elsewhere"))
        host.answers["/small.torrent"] = Answer(status, body=bomb, headers=headers)
        host.answers["/elsewhere"] = Answer(body=PLAIN.raw)
        if status == 302:
            assert await web.fetch("small", PLAIN.content) == PLAIN
            return
        with pytest.raises(MetadataUnavailable, match="'gzip, gzip', which wasn't asked for"):
            await web.fetch("small", PLAIN.content)

    tracemalloc.start()
    try:
        ask_host(scenario)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_redirect_is_followed_and_one_in_circles_is_the_hosts_fault() -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        host.answers[f"/{PLAIN.name}.torrent"] = Answer(302, headers=(("Location", "/elsewhere"),))
        host.answers["/elsewhere"] = Answer(body=PLAIN.raw)
        assert await web.fetch(PLAIN.name, PLAIN.content) == PLAIN
        host.answers["/elsewhere"] = Answer(302, headers=(("Location", "/elsewhere"),))
        with pytest.raises(MetadataUnavailable, match="redirects"):
            await web.fetch(PLAIN.name, PLAIN.content)
        host.answers["/elsewhere"] = Answer(302, headers=(("Location", "gopher://127.0.0.1:1/\xff"),))
        with pytest.raises(MetadataUnavailable, match=host.url):
            await web.fetch(PLAIN.name, PLAIN.content)

    ask_host(scenario)


@pytest.mark.parametrize("header", ["20", "date", "soon"])
def test_a_host_that_asks_for_a_pause_gets_it(header: str) -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        when = email.utils.formatdate(time.time() + 20, usegmt=True) if header == "date" else header
        host.answers[f"/{PLAIN.name}.torrent"] = Answer(503, headers=(("Retry-After", when),))
        with pytest.raises(MetadataUnavailable, match="HTTP 503"):
            await web.fetch(PLAIN.name, PLAIN.content)
        if header == "soon":
            assert not web.breaker.pause()
            return
        assert 18 < web.breaker.pause() <= 20
        asked = len(host.asked)
        with pytest.raises(MetadataUnavailable, match=r"left alone for now: .*HTTP 503"):
            await web.fetch(PLAIN.name, PLAIN.content)
        assert len(host.asked) == asked

    ask_host(scenario)


def test_a_failing_manifest_is_the_hosts_failure_and_is_asked_for_again() -> None:
    async def scenario(host: WebHost, web: WebMetadata) -> None:
        host.answers["/manifest.txt"] = Answer(500)
        host.answers[f"/{PLAIN.name}.torrent"] = Answer(body=PLAIN.raw)
        with pytest.raises(MetadataUnavailable, match=r"manifest\.txt: HTTP 500"):
            await web.fetch(PLAIN.name, PLAIN.content)
        del host.answers["/manifest.txt"]
        assert await web.fetch(PLAIN.name, PLAIN.content) == PLAIN

    ask_host(scenario)


def test_a_connection_cut_in_the_middle_of_an_answer_is_the_hosts_failure() -> None:
    async def cut(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nd4:info")
        await stream.aclose()

    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        async with trio.open_nursery() as nursery, asking(url) as web:
            await nursery.start(trio.serve_listeners, cut, [listener])
            for _ in range(3):
                with pytest.raises(MetadataUnavailable, match=url):
                    await web.fetch(PLAIN.name, PLAIN.content)
            assert web.breaker.pause()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_host_that_dribbles_is_given_up_and_not_waited_for_until_its_last_byte() -> None:
    async def main() -> None:
        async with web_host() as host, asking(host.url, patience=30) as web:
            host.answers[f"/{PLAIN.name}.torrent"] = Answer(body=PLAIN.raw, dribble=2.0)
            began = trio.current_time()
            with pytest.raises(MetadataUnavailable, match="no whole answer within 60 s"):
                await web.fetch(PLAIN.name, PLAIN.content)
            assert trio.current_time() - began < 90

    trio.run(main, clock=trio.testing.MockClock(rate=60))
