"""Strangers who take all of a server's connections and ask nothing keep nobody out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio
import trio.testing

from cachefs.crowd import Crowd
from cachefs.origin import web
from cachefs.playhead import server
from tests.counterparts import cachefs_seed, free_port
from tests.mount_kit import mounted

TOKEN = "0123456789abcdef"


@contextmanager
def _crowded(address: tuple[str, int], connections: int) -> Iterator[None]:
    """So many connections on which a request begins and never ends."""
    with ExitStack() as stack:
        for _ in range(connections):
            stranger = stack.enter_context(socket.create_connection(address, timeout=10))
            stranger.sendall(b"GET / HTT")
        yield


def _answer(address: tuple[str, int], request: str) -> bytes:
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(request.encode())
        return client.recv(12)


def test_a_seed_box_answers_who_asks_something(tmp_path: Path) -> None:
    (tmp_path / "a.seg").write_bytes(b"a")
    with cachefs_seed(tmp_path) as box:
        host, _, port = box.url.removeprefix("http://").strip("/").partition(":")
        with _crowded((host, int(port)), web.MAX_CONNECTIONS):
            assert _answer((host, int(port)), "GET /a.seg HTTP/1.1\r\nHost: x\r\n\r\n") == b"HTTP/1.1 200"


def test_a_daemon_answers_who_follows_its_playheads(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "records-lock.toml").write_text('lock-version = "1.0"\n')
    address = "127.0.0.1", free_port()
    settings = f'[playhead]\nserve = "127.0.0.1:{address[1]}"\ntoken = "{TOKEN}"\n'
    with mounted(tmp_path, settings=settings), _crowded(address, server.MAX_CONNECTIONS):
        request = f"GET /time HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        assert _answer(address, request) == b"HTTP/1.1 200"


def test_who_is_being_answered_stays_and_who_was_waited_for_longest_goes() -> None:
    async def scenario() -> None:
        crowd, gone = Crowd(3), list[str]()

        async def wait(name: str) -> None:
            with crowd.entered() as let_in, crowd.waiting() as scope:
                assert let_in
                await trio.sleep_forever()
            assert scope.cancelled_caught
            gone.append(name)

        async with trio.open_nursery() as nursery:
            with ExitStack() as answered:
                answered.enter_context(crowd.entered())
                for name in ("first", "second"):
                    nursery.start_soon(wait, name)
                    await trio.testing.wait_all_tasks_blocked()
                for expected in (["first"], ["first", "second"]):
                    assert answered.enter_context(crowd.entered())
                    await trio.testing.wait_all_tasks_blocked()
                    assert gone == expected
                assert not answered.enter_context(crowd.entered())

    trio.run(scenario)
