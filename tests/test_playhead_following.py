"""Following a decider: one that has lost its board, one behind a proxy that compresses, and one that can't be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from cachefs.cli import main
from cachefs.config.values import Peer
from cachefs.errors import PlayheadUnreachable
from cachefs.playhead.board import Board
from cachefs.playhead.client import RemoteBoard, connect
from cachefs.playhead.model import Change, Playhead
from cachefs.playhead.server import serve_address
from tests.counterparts import free_port, nginx
from tests.fakes import Answer, web_host
from tests.fakes import until as settled
from tests.test_playhead_api import SONG, daemon, following, run, until

OTHER = "other.ogg"
TIME = Answer(body=b'{"utc": 1000.0}')
COMPRESSING = """
    proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1; proxy_buffering off;
    gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any;
"""


def _forget(data_dir: Path, *records: str) -> None:
    """Have a decider's file lose these playheads."""
    file = data_dir / "playheads.json"
    kept = [item for item in json.loads(file.read_text()) if item["record"] not in records]
    file.write_text(json.dumps(kept))


def test_a_decider_that_has_lost_playheads_is_followed_in_that_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with connect(tmp_path) as client, trio.open_nursery() as nursery:
            mirror = RemoteBoard(client)
            async with daemon(tmp_path):
                await nursery.start(mirror.run)
                await mirror.connected.wait()
                other = await mirror.change(OTHER, Change("play"))
                await mirror.change(SONG, Change("play", 5000))
            await settled(lambda: not mirror.connected.is_set())
            assert mirror.get(SONG).playing
            _forget(tmp_path, SONG)
            async with daemon(tmp_path):
                assert await until(mirror, lambda head: not head.playing) == Playhead(SONG)
                await mirror.connected.wait()
                assert mirror.heads() == {OTHER: other}
            nursery.cancel_scope.cancel()

    run(test)


def test_a_lost_playhead_is_handed_on_by_a_daemon_that_follows(tmp_path: Path) -> None:
    async def test() -> None:
        serve = Peer("127.0.0.1", free_port())
        async with daemon(tmp_path / "b", follow=f"http://{serve}"), connect(tmp_path / "b") as client:
            async with trio.open_nursery() as nursery:
                mirror = RemoteBoard(client)
                async with daemon(tmp_path / "a", serve=serve):
                    await nursery.start(mirror.run)
                    await mirror.connected.wait()
                    await mirror.change(SONG, Change("play", 5000))
                _forget(tmp_path / "a", SONG)
                async with daemon(tmp_path / "a", serve=serve):
                    assert await until(mirror, lambda head: not head.playing) == Playhead(SONG)
                    assert mirror.heads() == {}
                nursery.cancel_scope.cancel()

    run(test)


def test_a_daemon_that_follows_and_has_heard_nothing_yet_is_not_taken_for_one_that_has_lost_its_board(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        serve = Peer("127.0.0.1", free_port())
        async with connect(tmp_path / "b") as client, trio.open_nursery() as nursery:
            mirror = RemoteBoard(client)
            async with daemon(tmp_path / "a", serve=serve), daemon(tmp_path / "b", follow=f"http://{serve}"):
                await nursery.start(mirror.run)
                await mirror.connected.wait()
                head = await mirror.change(SONG, Change("play", 5000))
            await settled(lambda: not mirror.connected.is_set())
            async with daemon(tmp_path / "b", follow=f"http://{serve}"):
                await settled(lambda: str(serve) in (mirror.trouble or ""))
                async with connect(tmp_path / "b") as asking:
                    with pytest.raises(PlayheadUnreachable):
                        await asking.heads()
                assert mirror.get(SONG) == head
                async with daemon(tmp_path / "a", serve=serve):
                    await mirror.connected.wait()
                    assert mirror.get(SONG) == head
            nursery.cancel_scope.cancel()

    (tmp_path / "b").mkdir()
    run(test)


def test_behind_a_proxy_that_compresses_every_change_is_heard_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        board = Board(lambda: 100.0)
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve_address, board, "127.0.0.1", 0, "")
            with nginx(tmp_path, location=COMPRESSING.format(port=url.rpartition(":")[2])) as proxy:
                async with connect(proxy) as client, following(client) as mirror:
                    for position in (1000, 2000, 3000):
                        head = await board.change(SONG, Change("seek", position))
                        with trio.fail_after(5):
                            assert await until(mirror, lambda head: head.position_ms == position) == head  # noqa: B023
            nursery.cancel_scope.cancel()

    run(test)


def test_events_that_come_compressed_all_the_same_are_trouble(tmp_path: Path) -> None:
    async def test() -> None:
        async with web_host() as host, connect(host.url) as client, trio.open_nursery() as nursery:
            compressed = Answer(body=b"\x1f\x8b\x08", headers=(("Content-Encoding", "gzip"),))
            host.answers = {"/time": TIME, "/playheads": Answer(body=b"[]"), "/events": compressed}
            mirror = RemoteBoard(client)
            await nursery.start(mirror.run)
            await settled(lambda: "events come as gzip" in (mirror.trouble or ""))
            nursery.cancel_scope.cancel()

    run(test)


@pytest.mark.parametrize("answer", [b"{}", b"[5]", b'[{"record": "../x"}]'])
def test_playheads_that_are_none_are_trouble(answer: bytes) -> None:
    async def test() -> None:
        async with web_host() as host, connect(host.url) as client:
            host.answers = {"/playheads": Answer(body=answer)}
            with pytest.raises(PlayheadUnreachable, match=r"no list|no playhead"):
                await client.heads()

    run(test)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--server", "http://[::1"], "http://[::1: can't be read as a URL"),
        (["--server", "http://localhost:x"], "can't be read as a URL"),
        (["--server", "localhost:8765"], "is no http:// or https:// URL"),
        (["--server", "http://"], "is no http:// or https:// URL"),
        (["--server", "http://a..b"], "http://a..b: "),
        (["--server", f"http://{'a' * 64}.example"], ".example: "),
        (["--server", "http://127.0.0.1:1", "--token", "ä"], "a token has printable ASCII characters"),
        (["--server", "http://127.0.0.1:1", "--token", "a\nb"], "a token has printable ASCII characters"),
    ],
)
def test_a_server_or_a_secret_that_cannot_be_meant_is_told(words: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["playhead", SONG, *words], catch_exceptions=False)
    assert done.exit_code == 1
    assert done.stderr.startswith("cachefs: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
