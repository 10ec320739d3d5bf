"""What holds of every HTTP server here, the seed box's and the playheads': last answers arrive, shortages pass.

How it works: each test runs against both, at their plainest, and asks with a bare stream: a client library would read
an answer early, or hide that a connection was reset.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cachefs.httpserver import LINGER_TIMEOUT, MAX_BODY, MAX_HEADERS
from cachefs.origin import web
from cachefs.playhead.board import Board
from cachefs.playhead.server import serve_address
from tests.counterparts import LOOPBACK
from tests.descriptor_kit import no_descriptor_left

Serving = Callable[[trio.Nursery], Awaitable[str]]
PLAIN = b"GET /time HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ENDLESS = b"POST /playheads/a.ogg HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000\r\n\r\n"


async def seed_box(nursery: trio.Nursery) -> str:
    return str(await nursery.start(web.serve, LOOPBACK, 0, web.Site({})))


async def playheads(nursery: trio.Nursery) -> str:
    return str(await nursery.start(serve_address, Board(lambda: 100.0), LOOPBACK, 0, ""))


pytestmark = pytest.mark.parametrize("serving", [seed_box, playheads])


def run(test: Callable[[], Awaitable[None]], clock: MockClock | None = None) -> None:
    async def limited() -> None:
        with trio.fail_after(60):
            await test()

    trio.run(limited, clock=clock)


@asynccontextmanager
async def server(serving: Serving) -> AsyncIterator[int]:
    """The port of a server, which runs meanwhile."""
    async with trio.open_nursery() as nursery:
        yield int((await serving(nursery)).rstrip("/").rpartition(":")[2])
        nursery.cancel_scope.cancel()


async def all_of(stream: trio.SocketStream) -> bytes:
    return b"".join([part async for part in stream])


@pytest.mark.parametrize(
    ("begin", "status"),
    [(ENDLESS, b"413"), (b"no request\r\n\r\n", b"400"), (b"GET /" + b"a" * 2 * MAX_HEADERS, b"431")],
    ids=["body", "nonsense", "headers"],
)
def test_a_refusal_arrives_although_the_client_sends_on(serving: Serving, begin: bytes, status: bytes) -> None:
    async def test() -> None:
        async with server(serving) as port, await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(begin)
            for _ in range(20):
                await stream.send_all(bytes(MAX_HEADERS))
            answer = await all_of(stream)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nConnection: close\r\n" in answer

    run(test)


def test_the_last_answer_arrives_although_more_was_asked(serving: Serving) -> None:
    """Of what follows a request that closes the connection nothing is answered, and nothing is lost by it."""

    async def test() -> None:
        async with server(serving) as port, await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            for _ in range(20):
                await stream.send_all(bytes(MAX_HEADERS))
            assert (await all_of(stream)).count(b"HTTP/1.1 ") == 1

    run(test)


def test_what_follows_a_request_for_the_head_is_refused_with_a_body(serving: Serving) -> None:
    async def test() -> None:
        async with server(serving) as port, await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(PLAIN.replace(b"GET", b"HEAD") + b"nonsense\r\n\r\n")
            _, refusal, body = (await all_of(stream)).split(b"\r\n\r\n")
            assert refusal.startswith(b"HTTP/1.1 400 ")
            assert body

    run(test)


def test_a_client_that_does_not_go_after_the_last_answer_is_left(serving: Serving) -> None:
    async def test() -> None:
        async with server(serving) as port, await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(ENDLESS + bytes(2 * MAX_BODY))
            await all_of(stream)
            began = trio.current_time()
            with suppress(trio.BrokenResourceError):
                while True:
                    await trio.sleep(0.1)
                    await stream.send_all(b"more")
            assert LINGER_TIMEOUT - 0.5 < trio.current_time() - began < LINGER_TIMEOUT + 0.5

    run(test, MockClock(autojump_threshold=0.2))


def test_a_wrong_request_for_the_head_is_refused_without_a_body(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with server(serving) as port, await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(
                b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n"
            )
            answer = await all_of(stream)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.endswith(b"\r\n\r\n")

    run(test)
    assert not caplog.records


def test_without_a_descriptor_left_new_clients_wait_and_the_log_says_so_once(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    clock = MockClock(rate=1.0)

    async def time_passes() -> None:
        await wait_all_tasks_blocked(0.01)
        clock.jump(0.2)

    async def answered(stream: trio.SocketStream) -> bool:
        return (await stream.receive_some()).startswith(b"HTTP/1.1 ")

    async def test() -> None:
        async with server(serving) as port, await trio.open_tcp_stream(LOOPBACK, port) as early:
            with trio.socket.socket() as waiting:
                with no_descriptor_left():
                    await waiting.connect((LOOPBACK, port))
                    late = trio.SocketStream(waiting)
                    await late.send_all(PLAIN)
                    for _ in range(10):
                        await time_passes()
                    await early.send_all(PLAIN)
                    assert await answered(early)
                await time_passes()
                assert await answered(late)

    run(test, clock)
    assert [record.getMessage() for record in caplog.records] == ["new clients have to wait: Too many open files"]
