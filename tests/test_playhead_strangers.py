"""Odd bytes at the playhead API, and deciders that answer oddly: each costs a conversation, and no more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from cachefs.playhead.board import Board, Heads
from cachefs.playhead.client import RemoteBoard, connect
from cachefs.playhead.model import Playhead
from cachefs.playhead.server import serve_address
from tests.fakes import Answer, until, web_host
from tests.test_playhead_api import SONG, run

JSON = {"Content-Type": "application/json"}
TIME = Answer(body=b'{"utc": 1000.0}')
HUGE = b'{"action": "rate", "rate": 1%s}' % (b"0" * 400)


@asynccontextmanager
async def served(heads: Heads) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server on an address, which must still answer at the end."""
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve_address, heads, "127.0.0.1", 0, "")
        async with httpx.AsyncClient(base_url=url) as client:
            yield client
            assert (await client.get("/time")).status_code == 200
        nursery.cancel_scope.cancel()


async def said(client: httpx.AsyncClient, request: str) -> bytes:
    """All that is answered to these bytes, until the server hangs up."""
    async with await trio.open_tcp_stream("127.0.0.1", client.base_url.port or 0) as stream:
        await stream.send_all(request.replace("\n", "\r\n").encode())
        answer = b""
        while part := await stream.receive_some():
            answer += part
        return answer


def test_a_target_that_is_no_url_is_refused() -> None:
    async def test() -> None:
        async with served(Board(lambda: 100.0)) as client:
            answer = await said(client, "GET //[ HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n")
            assert answer.startswith(b"HTTP/1.1 400 ")

    run(test)


@pytest.mark.parametrize("path", ["/time", "/events", "/playheads", "/playheads/%2e%2e/x"])
def test_a_request_for_the_head_alone_is_answered_without_a_body(path: str) -> None:
    async def test() -> None:
        async with served(Board(lambda: 100.0)) as client:
            answer = await said(client, f"HEAD {path} HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n")
            assert answer.startswith(b"HTTP/1.1 40")
            assert answer.endswith(b"\r\n\r\n")

    run(test)


def test_a_rate_beyond_all_numbers_is_refused() -> None:
    async def test() -> None:
        async with served(Board(lambda: 100.0)) as client:
            answer = await client.post("/playheads/a.ogg", content=HUGE, headers=JSON)
            assert (answer.status_code, answer.json()["error"][:5]) == (400, "rate:")

    run(test)


class FaultyBoard(Board):
    """A board with a mistake in it."""

    def heads(self) -> Mapping[str, Playhead]:
        raise RuntimeError("a mistake")


def test_a_fault_of_ours_costs_one_request() -> None:
    async def test() -> None:
        async with served(FaultyBoard(lambda: 100.0)) as client:
            answer = await client.get("/playheads")
            assert (answer.status_code, answer.json()) == (500, {"error": "a fault of the daemon, told in its log"})

    run(test)


# Deciders


def _event(**changes: Any) -> bytes:
    table = Playhead(SONG, "playing", 1000, 500.0, 1.0, 7).as_json() | changes
    return b"data: " + json.dumps(table).encode() + b"\n\n"


@asynccontextmanager
async def follower(**answers: Answer) -> AsyncIterator[RemoteBoard]:
    """Who follows a decider that gives these answers to `/time`, `/playheads` and `/events`."""
    async with web_host() as host, connect(host.url) as client, trio.open_nursery() as nursery:
        host.answers = {f"/{name}": answer for name, answer in answers.items()}
        board = RemoteBoard(client)
        await nursery.start(board.run)
        yield board
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (Answer(400, b'{"error": "not so"}'), "not so"),
        (Answer(409, b'{"error": "x", "present": %s}' % _event()[6:].strip()), "revision"),
        (Answer(409, b'{"present": 5}'), "no playhead"),
        (Answer(200, b"soon"), "not JSON"),
        (Answer(502, b'{"error": "%s"}' % (b"long" * 10_000)), "long"),
    ],
)
def test_a_decider_that_refuses_to_tell_the_time_is_trouble_and_no_end(answer: Answer, trouble: str) -> None:
    async def test() -> None:
        async with follower(time=answer, events=Answer(body=_event()), playheads=Answer(body=b"[]")) as board:
            await until(lambda: trouble in (board.trouble or ""))
            assert len(board.trouble or "") < 1000
            assert not board.connected.is_set()

    run(test)


def test_an_event_with_a_rate_beyond_all_numbers_is_trouble_and_no_end() -> None:
    async def test() -> None:
        async with follower(time=TIME, events=Answer(body=_event(rate=10**400)), playheads=Answer(body=b"[]")) as board:
            await until(lambda: "an event that is none: rate" in (board.trouble or ""))

    run(test)
