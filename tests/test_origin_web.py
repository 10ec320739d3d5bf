"""The web seed over HTTP: what is listed is served, whole or in ranges, and nothing else is.

How it works: one real `cachefs seed` is asked by httpx, and by a plain socket where a client library would tidy
the request up; some tests run the server itself, one of them in virtual time.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import h11
import httpx
import pytest
import trio
import trio.testing

from cachefs.content import Span
from cachefs.httpserver import IDLE_TIMEOUT, MAX_HEADERS
from cachefs.origin import web
from tests.counterparts import (
    LOOPBACK,
    cachefs_seed,
    make_snapshots,
)
from tests.origin_kit import HISTORY, PIECE, Origin, seeded_origin


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with seeded_origin(tmp_path_factory.mktemp("origin")) as running_origin:
        yield running_origin


def test_every_name_in_the_manifest_can_be_fetched(origin: Origin) -> None:
    with httpx.Client(base_url=origin.box.url) as client:
        for name in client.get("manifest.txt").text.splitlines():
            assert client.get(name).content == (origin.root / name).read_bytes()
        assert client.get("chain.toml").content == origin.box.chain.read_bytes()


@pytest.mark.parametrize("path", [HISTORY, quote(HISTORY, safe=""), quote(HISTORY, safe="").lower(), f"{HISTORY}?a=b"])
def test_a_slash_in_a_name_may_be_sent_as_is_or_encoded(origin: Origin, path: str) -> None:
    status, _, body = exchange(origin, f"GET /{path} HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9\r\n\r\n")
    assert (status, body) == (206, origin.files[HISTORY].read_bytes()[5:10])


def exchange(origin: Origin, request: str) -> tuple[int, str, bytes]:
    """One request, sent byte for byte as it is written, and the answer: status, headers, body."""
    url = httpx.URL(origin.box.url)
    with socket.create_connection((url.host, url.port or 0), timeout=10) as sock:
        sock.sendall(request.encode("latin-1"))
        sock.shutdown(socket.SHUT_WR)
        raw = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode("latin-1"), body


@pytest.mark.parametrize(
    "target",
    [
        "/../../etc/passwd",
        "/history/../erigondb.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/.hidden",
        "/history",
        "/",
        "/%ff",
        "/erigondb.toml%00",
        "http://x/../erigondb.toml",
    ],
)
def test_only_listed_names_are_served(origin: Origin, target: str) -> None:
    assert exchange(origin, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404


@pytest.mark.parametrize(
    ("value", "span"),
    [
        (b"bytes=0-0", Span(0, 1)),
        (b"bytes=10-19", Span(10, 10)),
        (b"bytes=90-", Span(90, 10)),
        (b"bytes=90-1000", Span(90, 10)),
        (b"bytes=-10", Span(90, 10)),
        (b"bytes=-1000", Span(0, 100)),
        (b"bytes=100-", Span(100, 0)),
        (b"bytes=-0", Span(100, 0)),
        (b"bytes=5-4", None),
        (b"bytes=0-1,3-4", None),
        (b"bytes=-", None),
        (b"bytes=a-b", None),
        (b"lines=0-1", None),
        (b"", None),
    ],
)
def test_a_range_is_clamped_ignored_or_not_satisfiable(value: bytes, span: Span | None) -> None:
    assert web.parse_range(value, 100) == span


def test_a_range_says_what_it_is_of(origin: Origin) -> None:
    data = origin.files[HISTORY].read_bytes()
    got = httpx.get(f"{origin.box.url}{HISTORY}", headers={"Range": f"bytes={PIECE - 1}-{2 * PIECE}"})
    assert got.status_code == 206
    assert got.content == data[PIECE - 1 : 2 * PIECE + 1]
    assert got.headers["Content-Range"] == f"bytes {PIECE - 1}-{2 * PIECE}/{len(data)}"


def test_a_range_past_the_end_is_416_with_the_length(origin: Origin) -> None:
    got = httpx.get(f"{origin.box.url}erigondb.toml", headers={"Range": "bytes=46-"})
    assert (got.status_code, got.headers["Content-Range"], got.content) == (416, "bytes */46", b"")


def test_head_has_the_headers_of_get_and_no_body(origin: Origin) -> None:
    with httpx.Client(base_url=origin.box.url) as client:
        for _ in range(3):
            head, get = client.head("erigondb.toml"), client.get("erigondb.toml")
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["Content-Length"] == get.headers["Content-Length"] == "46"
            assert head.headers["ETag"] == get.headers["ETag"]


def test_if_range_sends_the_part_of_the_same_file_and_the_whole_of_another(origin: Origin) -> None:
    url = f"{origin.box.url}erigondb.toml"
    etag = httpx.head(url).headers["ETag"]
    assert httpx.get(url, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert httpx.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200


def test_a_client_that_has_the_file_is_told_so(origin: Origin) -> None:
    url = f"{origin.box.url}manifest.txt"
    got = httpx.get(url, headers={"If-None-Match": httpx.head(url).headers["ETag"]})
    assert (got.status_code, got.content) == (304, b"")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("POST /erigondb.toml HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        ("DELETE /erigondb.toml HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET /erigondb.toml HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 400),
        ("GET /erigondb.toml HTTP/1.1\r\n\r\n", 400),
        ("GET /" + "a" * 4 * MAX_HEADERS + " HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        ("nonsense\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_for_a_file_is_refused(origin: Origin, request_text: str, status: int) -> None:
    assert exchange(origin, request_text)[0] == status


def test_many_requests_go_over_one_connection(origin: Origin) -> None:
    asked = "GET /erigondb.toml HTTP/1.1\r\nHost: x\r\n\r\n"
    _, _, rest = exchange(origin, asked * 20)
    assert rest.count(b"HTTP/1.1 200") == 19


def served(site: web.Site, *names: str) -> list[httpx.Response]:
    """What a web seed of `site` answers to requests for `names`, each on a connection of its own."""

    async def ask() -> list[httpx.Response]:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(web.serve, LOOPBACK, 0, site)
            got = []
            for name in names:
                async with httpx.AsyncClient() as client:
                    got.append(await client.get(f"{url}{name}"))
            nursery.cancel_scope.cancel()
        return got

    return trio.run(ask)


def test_before_the_names_are_known_clients_are_told_to_come_again() -> None:
    (got,) = served(web.Site(), "erigondb.toml")
    assert (got.status_code, got.headers["Retry-After"]) == (503, "10")


def test_without_a_descriptor_left_clients_are_told_to_come_again(tmp_path: Path) -> None:
    (tmp_path / "a.seg").write_bytes(b"x")
    request = h11.Request(method="GET", target="/a.seg", headers=[("Host", "x")])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        response = web.respond(request, web.Site({"a.seg": tmp_path / "a.seg"}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    response.close()
    assert (response.status, dict(response.headers)["Retry-After"]) == (503, "10")


def test_a_file_that_is_gone_or_became_something_else_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    names = ("gone", "file/gone", "link", "directory", "pipe", "a" * 256)
    got = served(web.Site({name: tmp_path / name for name in names}), *names)
    assert [response.status_code for response in got] == [404] * len(names)


def test_a_file_of_the_far_future_is_served_with_no_date_to_come() -> None:
    with TemporaryDirectory(dir="/dev/shm") as directory:  # other file systems cut such a time short
        path = Path(directory, "a.seg")
        path.write_bytes(b"x")
        for seconds in (10**12, -(10**12)):
            os.utime(path, (seconds, seconds))
            (got,) = served(web.Site({"a.seg": path}), "a.seg")
            assert (got.status_code, got.content) == (200, b"x")
            assert parsedate_to_datetime(got.headers["Last-Modified"]).timestamp() <= time.time()


def test_a_fault_costs_one_request_and_the_seed_box_goes_on(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x")
    no_path = tmp_path / "bad\0"  # which `os.open` takes for a mistake of the program's
    faulty, good = served(web.Site({"bad": no_path, "good": tmp_path / "good"}), "bad", "good")
    assert (faulty.status_code, faulty.headers["Connection"]) == (500, "close")
    assert (good.status_code, good.content) == (200, b"x")


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_connection_without_a_whole_request_is_closed_in_time(said: bytes) -> None:
    async def dawdle() -> float:
        async with trio.open_nursery() as nursery:
            url = httpx.URL(await nursery.start(web.serve, LOOPBACK, 0, web.Site()))
            async with await trio.open_tcp_stream(url.host, url.port or 0) as stream:
                if said:
                    await stream.send_all(said)
                began = trio.current_time()
                assert await stream.receive_some() == b""
                waited = trio.current_time() - began
            nursery.cancel_scope.cancel()
        return waited

    waited = trio.run(dawdle, clock=trio.testing.MockClock(autojump_threshold=0.2))
    assert waited <= IDLE_TIMEOUT + 1


def test_a_file_that_is_cut_short_breaks_the_connection_rather_than_ending_the_answer(tmp_path: Path) -> None:
    files = make_snapshots(tmp_path, 4 * PIECE)
    (path, _) = files.values()
    with cachefs_seed(tmp_path, torrent=False) as box, httpx.stream("GET", f"{box.url}{path.name}") as response:
        os.truncate(path, 2 * PIECE)
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
