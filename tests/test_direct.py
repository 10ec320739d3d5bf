"""Web seeds asked directly: real servers that answer well, oddly or not at all."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cachefs.content import Span
from cachefs.errors import IgnoresRanges, NotAtSource, OtherContent, SourceBusy, SourceFailed
from cachefs.fetch.http.wire import Body
from cachefs.fetch.remote.direct import Direct
from cachefs.fetch.remote.remotes import Remotes
from cachefs.fetch.sources import WebSeed
from tests.counterparts import nginx, open_sockets, refusing_port, silent_server
from tests.records_kit import make_certificate, song, web

DATA = song(1, 3_000_000)


def play(scenario: Callable[[Direct], Awaitable[None]], tls: ssl.SSLContext | None = None) -> None:
    async def main() -> None:
        direct = Direct(tls)
        with trio.fail_after(30):
            await scenario(direct)
        direct.close()

    trio.run(main)


async def whole(body: Body) -> bytes:
    data, buffer = bytearray(), memoryview(bytearray(1_000_000))
    while count := await body.read_some(buffer):
        data += buffer[:count]
    return bytes(data)


def fetched(url: str, span: Span | None = None, tls: ssl.SSLContext | None = None) -> bytes:
    """What comes from `url`."""
    got = b""

    async def scenario(direct: Direct) -> None:
        nonlocal got
        async with direct.open(url, span) as body:
            got = await whole(body)

    play(scenario, tls)
    return got


def failure(url: str, span: Span | None = None, *, public: bool = False) -> SourceFailed:
    """The error that asking for `url` ends in."""

    async def main() -> SourceFailed:
        direct = Direct()
        with pytest.raises(SourceFailed) as failed, trio.fail_after(30):
            async with direct.open(url, span, public=public):
                pass
        direct.close()
        return failed.value

    return trio.run(main)


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that gives each request the next answer, as it is, and then hangs up on that connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    head = b""
                    while not head.endswith(b"\r\n\r\n"):
                        head += connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/file"
        finally:
            thread.join(30)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + body


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web")
    (root / "file").write_bytes(DATA)
    (root / "empty").touch()
    return root


# What a good server gives

SPANS = [Span(0, 1), Span(0, len(DATA)), Span(1, 70_000), Span(len(DATA) - 1, 1), Span(500_000, len(DATA) - 500_000)]


@pytest.mark.parametrize("span", SPANS)
def test_a_range_is_what_was_asked_for_and_tells_where_it_lies(root: Path, span: Span) -> None:
    async def scenario(direct: Direct) -> None:
        async with direct.open(f"{url}file", span) as body:
            assert (body.length, body.start, body.total) == (span.length, span.offset, len(DATA))
            assert await whole(body) == DATA[span.offset : span.end]

    with nginx(root) as url:
        play(scenario)


def test_a_whole_file_comes_with_its_length_also_an_empty_one(root: Path) -> None:
    async def scenario(direct: Direct) -> None:
        async with direct.open(f"{url}file", None) as body:
            assert (body.length, body.total) == (len(DATA), len(DATA))
            assert await whole(body) == DATA
        async with direct.open(f"{url}empty", None) as body:
            assert (body.length, await whole(body)) == (0, b"")

    with nginx(root) as url:
        play(scenario)


def test_a_connection_whose_answer_was_read_is_used_again_and_one_that_was_left_is_not() -> None:
    async def scenario(direct: Direct) -> None:
        for _ in range(3):
            async with direct.open(url, Span(0, 1000)) as body:
                await whole(body)
        assert len(connections()) == 1
        async with direct.open(url, None) as body:
            await body.read_some(memoryview(bytearray(10)))
        async with direct.open(url, Span(0, 1000)) as body:
            await whole(body)
        assert len(connections()) == 2

    with web() as host:
        url = host.put("file", DATA)

        def connections() -> set[str]:
            return {asked.headers["x-from"] for asked in host.asked}

        play(scenario)


def test_a_kept_connection_that_was_closed_meanwhile_is_made_anew_and_nobody_notices() -> None:
    small = answer("200 OK", "Content-Length: 4", body=b"data")

    async def scenario(direct: Direct) -> None:
        for _ in range(3):
            async with direct.open(url, None) as body:
                assert await whole(body) == b"data"

    with answering(small, small, small) as url:
        play(scenario)


def test_connections_that_nobody_needs_are_closed_after_a_while(root: Path) -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        direct = Direct()
        async with direct.open(f"{url}file", Span(0, 10)) as body:
            await whole(body)
        before = open_sockets()
        clock.jump(30)
        direct.tidy()
        assert open_sockets() == before - 1

    with nginx(root) as url:
        trio.run(main, clock=clock)


def test_a_body_in_chunks_and_one_that_ends_with_its_connection_are_read_too() -> None:
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (b"abc", b"d" * 70_000, b"e")) + b"0\r\n\r\n"
    told = b"abc" + b"d" * 70_000 + b"e"
    headers = ("Transfer-Encoding: chunked", f"Content-Range: bytes 5-{5 + len(told) - 1}/100000")
    with answering(answer("206 Partial Content", *headers, body=chunked)) as url:
        assert fetched(url, Span(5, len(told))) == told
    with answering(answer("200 OK", "Connection: close", body=b"all of it")) as url:
        assert fetched(url) == b"all of it"


def test_an_answer_before_the_answer_is_passed_over() -> None:
    early = answer("103 Early Hints", "Link: </style.css>") + answer("200 OK", "Content-Length: 2", body=b"ok")
    with answering(early) as url:
        assert fetched(url) == b"ok"


def test_https_with_a_trusted_certificate_and_with_no_other(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with web(certificate) as host:
        url = host.put("file", DATA)
        tls = ssl.create_default_context(cafile=str(certificate))
        assert fetched(url, None, tls) == DATA
        assert fetched(url, Span(100_000, 1_000_000), tls) == DATA[100_000:1_100_000]
        assert "certificate verify failed" in str(failure(url))


def test_over_https_a_connection_is_used_again_too(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)

    async def scenario(direct: Direct) -> None:
        for at in range(3):
            async with direct.open(url, Span(at, 1_000_000)) as body:
                assert await whole(body) == DATA[at : at + 1_000_000]

    with web(certificate) as host:
        url = host.put("file", DATA)
        play(scenario, ssl.create_default_context(cafile=str(certificate)))
        assert len({asked.headers["x-from"] for asked in host.asked}) == 1


def test_a_name_and_password_of_the_url_are_told_to_its_host_and_not_to_where_it_sends_us() -> None:
    with web() as host, web() as other:
        there = other.put("there", DATA)
        host.put("away", b"", status=302, headers={"Location": there})
        host.put("here", b"", status=302, headers={"Location": "/file"})
        host.put("file", DATA)
        base = host.url.replace("//", "//us%40er:a%20secret@")
        assert fetched(base + "here") == fetched(base + "away") == DATA
        told = [asked.headers.get("authorization") for asked in [*host.asked, *other.asked]]
        basic = "Basic dXNAZXI6YSBzZWNyZXQ="
        assert told == [basic, basic, basic, None]


# What others give


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone"])
def test_what_is_not_there_is_told_as_that(status: str) -> None:
    with answering(answer(status, "Content-Length: 3", body=b"no!")) as url:
        assert isinstance(failure(url, Span(0, 10)), NotAtSource)


@pytest.mark.parametrize(
    ("status", "wish", "seconds"),
    [("503 Busy", "Retry-After: 30", 30.0), ("429 Slow down", "Retry-After: 7", 7.0), ("403 No", "X: y", 0.0)],
)
def test_a_refusal_is_told_with_its_status_and_for_how_long_it_holds(status: str, wish: str, seconds: float) -> None:
    with answering(answer(status, wish, "Content-Length: 0")) as url:
        failed = failure(url, Span(0, 10))
        assert isinstance(failed, SourceBusy)
        assert (str(failed), failed.retry_after) == (f"HTTP {status}", seconds)
        assert failed.status == int(status[:3])


def test_a_host_that_ignores_ranges_is_known_by_its_head_unless_all_was_asked_for(root: Path) -> None:
    with nginx(root, location="max_ranges 0;") as url:
        assert isinstance(failure(f"{url}file", Span(5, 10)), IgnoresRanges)
        assert isinstance(failure(f"{url}file", Span(0, 10)), IgnoresRanges)
        assert fetched(f"{url}file", Span(0, len(DATA))) == DATA


@pytest.mark.parametrize("length", [1, 9])
def test_the_beginning_of_a_range_is_an_answer_too(length: int) -> None:
    headers = (f"Content-Range: bytes 5-{4 + length}/100", f"Content-Length: {length}")
    with answering(answer("206 Partial Content", *headers, body=bytes(length))) as url:
        assert fetched(url, Span(5, 10)) == bytes(length)


WRONG_RANGES = [
    "bytes 0-9/100",
    "bytes 4-14/100",
    "bytes 5-15/100",
    "bytes */100",
    "lines 5-14/100",
    "",
    f"bytes 5-14/{'9' * 5000}",
]


@pytest.mark.parametrize("range_", WRONG_RANGES)
def test_a_range_other_than_what_was_asked_for_is_no_answer(range_: str) -> None:
    length = 11 if "15" in range_ else 10
    headers = (f"Content-Range: {range_}", f"Content-Length: {length}")
    with answering(answer("206 Partial Content", *headers, body=bytes(length))) as url:
        assert str(failure(url, Span(5, 10))) == f"sent {range_[:80] or 'no Content-Range'} for 10 bytes from 5 on"


def test_a_range_of_a_file_whose_length_nobody_tells_is_taken() -> None:
    async def scenario(direct: Direct) -> None:
        async with direct.open(url, Span(10, 5)) as body:
            assert (body.length, body.start, body.total) == (5, 10, -1)
            assert await whole(body) == b"abcde"

    headers = ("Content-Range: bytes 10-14/*", "Content-Length: 5")
    with answering(answer("206 Partial Content", *headers, body=b"abcde")) as url:
        play(scenario)


def test_a_file_that_is_too_short_is_another_one() -> None:
    with answering(answer("416 Range Not Satisfiable", "Content-Range: bytes */7", "Content-Length: 0")) as url:
        failed = failure(url, Span(10, 10))
        assert isinstance(failed, OtherContent)
        assert "has 7 bytes" in str(failed)


def test_bytes_that_come_compressed_are_refused() -> None:
    with answering(answer("200 OK", "Content-Encoding: gzip", "Content-Length: 2", body=b"xx")) as url:
        assert "as gzip" in str(failure(url))


def test_a_body_that_is_cut_short_ends_early(root: Path) -> None:
    with answering(answer("200 OK", "Content-Length: 10", body=b"four")) as url:
        assert fetched(url) == b"four"
    cut = b"5\r\nabcde\r\n5\r\nab"
    with answering(answer("200 OK", "Transfer-Encoding: chunked", body=cut)) as url:
        assert fetched(url) in (b"abcde", b"abcdeab")


@pytest.mark.parametrize(
    ("rubbish", "told"),
    [
        (b"", "it hung up without an answer"),
        (answer("103 Early Hints"), "it hung up without an answer"),
        (b"HTTP/1.1 200 OK\r\n", "it hung up in the midst of an answer"),
        (b"\x16\x03\x01", "its answer can't be read as HTTP"),
        (b"220 ftp.example.org ready\r\n\r\n", "its answer can't be read as HTTP"),
        (answer("200 OK", "Content-Length: -5"), "its answer can't be read as HTTP"),
        (answer("200 OK", f"X: {'x' * 100_000}"), "its answer can't be read as HTTP"),
    ],
)
def test_what_is_no_answer_of_http_is_a_source_that_failed(rubbish: bytes, told: str) -> None:
    with answering(rubbish) as url:
        assert str(failure(url)) == told


def test_a_connection_that_is_reset_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reset() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        told = str(failure(f"http://127.0.0.1:{server.getsockname()[1]}/"))
        thread.join(30)
    assert told == "it hung up: Connection reset by peer"


def test_what_can_not_be_connected_to_is_told_with_the_reason() -> None:
    with refusing_port() as port:
        assert str(failure(f"http://127.0.0.1:{port}/")) == "can't be connected to: Connection refused"
    assert "can't be resolved" in str(failure("http://nobody.invalid/"))
    assert "is not a host name" in str(failure(f"http://{'a' * 300}/"))


class Resolver(trio.abc.HostnameResolver):
    """A host with these addresses, whatever its name."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self._addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@contextmanager
def deaf(port: int) -> Iterator[str]:
    """An address where connections are neither made nor refused."""
    address = "127.0.0.9"
    with socket.create_server((address, port), backlog=0), ExitStack() as stack:
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield address


def test_an_address_that_refuses_or_is_deaf_does_not_keep_the_next_from_answering(root: Path) -> None:
    async def main(deaf_address: str, port: int) -> None:
        trio.socket.set_custom_hostname_resolver(Resolver("127.0.0.8", deaf_address, "127.0.0.1"))
        direct = Direct()
        with trio.fail_after(5):
            async with direct.open(f"http://host.example:{port}/file", Span(7, 1000)) as body:
                assert await whole(body) == DATA[7:1007]
        direct.close()

    with nginx(root) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        with deaf(port) as address:
            trio.run(main, address, port)


def test_a_deaf_host_is_given_up(root: Path) -> None:
    async def main(address: str, port: int) -> None:
        trio.socket.set_custom_hostname_resolver(Resolver(address))
        with pytest.raises(SourceFailed, match="no connection within 10 s"):
            async with Direct().open(f"http://host.example:{port}/file", None):
                pass

    with refusing_port() as port, deaf(port) as address:
        trio.run(main, address, port, clock=trio.testing.MockClock(rate=100))


def test_plain_http_where_tls_was_meant_is_told(root: Path) -> None:
    with nginx(root) as url:
        assert "can't be connected to" in str(failure(url.replace("http:", "https:")))


def test_a_silent_server_can_be_left_at_any_moment() -> None:
    async def main() -> None:
        for scheme in ("http", "https"):
            with trio.fail_after(10), trio.move_on_after(0.2) as patience:
                async with Direct().open(f"{scheme}://127.0.0.1:{port}/", None):
                    raise AssertionError("it answered")
            assert patience.cancelled_caught

    with silent_server() as port:
        trio.run(main)


def test_a_body_that_stands_still_can_be_left_at_any_moment() -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with Direct().open(url, None) as body:
                buffer = memoryview(bytearray(1_000_000))
                got = await body.read_some(buffer[:1000])
                with trio.move_on_after(0.2) as patience:
                    while got < len(buffer):
                        got += await body.read_some(buffer[got:])
                assert patience.cancelled_caught

    with web() as host:
        url = host.put("file", DATA, gate=threading.Event(), hold=1000)
        trio.run(main)


# Where it may be sent


def test_redirects_are_followed_but_not_for_ever() -> None:
    with web() as host:
        host.put("file", DATA)
        for number in range(5):
            onward = f"hop{number + 1}" if number < 4 else "file"
            host.put(f"hop{number}", b"", status=302 + number % 2 * 5, headers={"Location": onward})
        assert fetched(f"{host.url}hop1", Span(3, 50)) == DATA[3:53]
        assert str(failure(f"{host.url}hop0")) == "more than 4 redirects"
        host.put("nowhere", b"", status=301)
        assert "without a Location" in str(failure(f"{host.url}nowhere"))


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://[::1/", "//:x/"])
def test_a_redirect_to_what_is_no_web_address_is_refused(target: str) -> None:
    with answering(answer("302 Found", f"Location: {target}", "Content-Length: 0")) as url:
        assert "sends us to" in str(failure(url))


PRIVATE = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "10.1.2.3", "169.254.169.254", "127.1"]


@pytest.mark.parametrize("host", PRIVATE)
def test_where_only_public_addresses_may_be_asked_no_other_is(host: str) -> None:
    assert "not a public address" in str(failure(f"http://{host}:9/", public=True))


# Whether it is asked at all


@pytest.mark.parametrize(
    ("environment", "direct"),
    [
        ({}, True),
        ({"http_proxy": "http://proxy:3128"}, False),
        ({"https_proxy": "http://proxy:3128"}, True),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "example.org"}, True),
        ({"HTTP_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, True),
    ],
)
def test_a_web_seed_behind_a_proxy_is_left_to_rclone(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], direct: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (source,) = Remotes([WebSeed("http://example.org/x")], [], "none").sources
    assert source.direct is direct
