"""Playheads between daemons: one decides, others follow, whoever comes late or comes back knows what is."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cachefs.catalog.files import replace_text
from cachefs.config import load_config
from cachefs.config.playhead import Playheads
from cachefs.config.values import Peer
from cachefs.errors import ConfigError, PlayheadConflict, PlayheadInvalid, PlayheadUnreachable
from cachefs.playhead.board import Board
from cachefs.playhead.client import PlayheadClient, RemoteBoard, connect
from cachefs.playhead.model import Change, Playhead
from cachefs.playhead.server import serve_address, serve_socket
from cachefs.playhead.service import PlayheadService
from tests.fakes import until as settled

SONG = "Fast Car.mp3"
SECRET = "sixteen-characters-or-more"


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        with trio.fail_after(30):
            await test()

    trio.run(limited)


@asynccontextmanager
async def daemon(data_dir: Path, **settings: Any) -> AsyncIterator[PlayheadService]:
    """The playheads of one daemon, and nothing else of it."""
    await trio.Path(data_dir).mkdir(exist_ok=True)
    service = PlayheadService(Playheads(**settings), data_dir)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        yield service
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def following(client: PlayheadClient) -> AsyncIterator[RemoteBoard]:
    board = RemoteBoard(client)
    async with trio.open_nursery() as nursery:
        await nursery.start(board.run)
        await board.connected.wait()
        yield board
        nursery.cancel_scope.cancel()


async def until(board: RemoteBoard, wanted: Callable[[Playhead], bool]) -> Playhead:
    async with board.watch(SONG) as watch:
        while not wanted(head := await watch.next()):
            pass
        return head


def test_what_one_changes_all_see_with_one_revision_and_one_clock(tmp_path: Path) -> None:
    async def test() -> None:
        async with daemon(tmp_path / "a", serve=Peer("127.0.0.1", 0)) as service:
            url = str(service.report()["served"])
            async with connect(url) as far, connect(tmp_path / "a") as near, following(far) as one:
                async with following(near) as other:
                    played = await one.change(SONG, Change("play", 5000))
                    assert await until(other, lambda head: head.playing) == played
                    assert abs(one.utc() - other.utc()) < one.uncertainty + other.uncertainty + 0.001

    run(test)


def test_a_late_listener_knows_where_the_record_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with daemon(tmp_path), connect(tmp_path) as client:
            head = await client.change(SONG, Change("play", 60_000))
            async with following(client) as late:
                assert await until(late, lambda head: head.playing) == head
                assert late.get(SONG).position_at(late.utc()) >= 60_000

    run(test)


def test_of_two_changes_for_one_revision_one_wins_and_the_other_learns_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with daemon(tmp_path), connect(tmp_path) as client:
            first = await client.change(SONG, Change("play", 1000, if_revision=0))
            with pytest.raises(PlayheadConflict) as refused:
                await client.change(SONG, Change("seek", 9000, if_revision=0))
            assert Playhead.from_json(refused.value.present) == first == await client.get(SONG)

    run(test)


def test_a_daemon_that_follows_hands_on_both_ways(tmp_path: Path) -> None:
    async def test() -> None:
        async with daemon(tmp_path / "a", serve=Peer("127.0.0.1", 0), token=SECRET) as service:
            url = str(service.report()["served"])
            async with daemon(tmp_path / "b", follow=url, token=SECRET) as follower:
                async with connect(tmp_path / "a") as a, connect(tmp_path / "b") as b, following(b) as mirror:
                    sought = await b.change(SONG, Change("seek", 30_000))
                    assert await a.get(SONG) == sought == mirror.get(SONG)
                    paused = await a.change(SONG, Change("play"))
                    assert await until(mirror, lambda head: head.playing) == paused
                    assert follower.report()["connected"]
                    with pytest.raises(PlayheadConflict):
                        await b.change(SONG, Change("pause", if_revision=sought.revision))

    run(test)


def test_a_follower_goes_on_without_its_daemon_and_takes_what_is_when_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with connect(tmp_path) as client, trio.open_nursery() as nursery:
            async with daemon(tmp_path):
                mirror = RemoteBoard(client)
                await nursery.start(mirror.run)
                await mirror.connected.wait()
                for position in (1000, 2000, 3000):
                    await client.change(SONG, Change("play", position))
                before = await until(mirror, lambda head: head.position_ms == 3000)
            await settled(lambda: not mirror.connected.is_set())
            assert mirror.get(SONG) == before
            assert mirror.utc() > before.anchor_utc
            with pytest.raises(PlayheadUnreachable):
                await mirror.change(SONG, Change("pause"))
            (tmp_path / "playheads.json").unlink()
            async with daemon(tmp_path):
                await client.change(SONG, Change("pause", 70_000))
                back = await until(mirror, lambda head: not head.playing)
                assert (back.position_ms, back.revision) == (70_000, 1)
            nursery.cancel_scope.cancel()

    run(test)


def test_daemons_that_follow_each_other_in_a_ring_say_so_and_do_not_go_round(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        async with daemon(tmp_path / "a", serve=Peer("127.0.0.1", 0), follow=f"http://127.0.0.1:{port}") as a:
            url = str(a.report()["served"])
            async with daemon(tmp_path / "b", serve=Peer("127.0.0.1", port), follow=url):
                async with connect(tmp_path / "a") as client:
                    with pytest.raises(PlayheadUnreachable):
                        await client.change(SONG, Change("play"))

    run(test)


def test_playheads_and_revisions_outlive_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with daemon(tmp_path), connect(tmp_path) as client:
            await client.change("other.ogg", Change("pause", 5))
            before = await client.change(SONG, Change("play", 1000))
        async with daemon(tmp_path), connect(tmp_path) as client:
            assert await client.get(SONG) == before
            assert (await client.change("third.ogg", Change("play"))).revision == before.revision + 1

    run(test)


def test_a_board_that_could_not_be_written_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def counted(path: Path, text: str) -> None:
        tries.append(text)
        replace_text(path, text)

    monkeypatch.setattr("cachefs.playhead.board._SAVE_AGAIN", 0.01)
    monkeypatch.setattr("cachefs.playhead.board.replace_text", counted)
    path = tmp_path / "not there yet" / "playheads.json"
    board = Board(lambda: 100.0, path)

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(board.run)
            await board.change(SONG, Change("play"))
            await settled(lambda: len(tries) > 3)
            path.parent.mkdir()
            await settled(path.exists)
            nursery.cancel_scope.cancel()

    run(test)
    assert Board(lambda: 100.0, path).get(SONG) == board.get(SONG)
    assert len(caplog.records) == 1


def test_a_board_that_could_not_be_written_is_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "not there yet" / "playheads.json"
    board = Board(lambda: 100.0, path)

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(board.run)
            await board.change(SONG, Change("play"))
            await settled(lambda: bool(board.trouble))
            path.parent.mkdir()
            nursery.cancel_scope.cancel()

    run(test)
    assert Board(lambda: 100.0, path).get(SONG) == board.get(SONG)


@pytest.mark.parametrize("broken", ["", "{", "{}", '[{"record": 5}]', "[" * 100_000, "\x00"])
def test_a_broken_board_is_begun_anew(tmp_path: Path, broken: str) -> None:
    (tmp_path / "playheads.json").write_text(broken)
    assert Board(lambda: 0.0, tmp_path / "playheads.json").heads() == {}


def test_a_slow_watcher_gets_what_is_and_not_what_was() -> None:
    async def test() -> None:
        board = Board(lambda: 100.0)
        async with board.watch() as watch:
            for position in range(1, 101):
                await board.change(SONG, Change("seek", position))
            await board.change("other.ogg", Change("play"))
            assert (await watch.next()).position_ms == 100
            assert (await watch.next()).record == "other.ogg"
            with trio.move_on_after(0) as nothing:
                await watch.next()
            assert nothing.cancelled_caught

    run(test)


def test_18_a_record_that_is_picked_up_anywhere_is_fetched_here_once(tmp_path: Path) -> None:
    """Promise 18: prefetch when the record is picked up."""

    async def test() -> None:
        fetched: list[str] = []
        held = trio.Event()

        async def pick_up(record: str) -> None:
            fetched.append(record)
            await held.wait()

        async with trio.open_nursery() as nursery:
            await nursery.start(PlayheadService(Playheads(), tmp_path, pick_up).run)
            async with connect(tmp_path) as client:
                await client.change(SONG, Change("seek", 1))
                await client.change("other.ogg", Change("play"))
                await client.change(SONG, Change("play"))
                await client.change(SONG, Change("seek", 2))
                await wait_all_tasks_blocked(0.05)
            assert fetched == ["other.ogg", SONG]
            held.set()
            nursery.cancel_scope.cancel()

    run(test)


def test_an_address_needs_the_secret_and_the_socket_is_the_users_own(tmp_path: Path) -> None:
    async def test() -> None:
        async with daemon(tmp_path, serve=Peer("127.0.0.1", 0), token=SECRET) as service:
            url = str(service.report()["served"])
            for wrong in ("", SECRET[:-1], SECRET + "x"):
                async with connect(url, wrong) as stranger:
                    with pytest.raises(PlayheadUnreachable, match="secret"):
                        await stranger.get(SONG)
                    with pytest.raises(PlayheadUnreachable, match="secret"):
                        async with stranger.events():
                            pass
            async with connect(url, SECRET) as friend:
                assert (await friend.get(SONG)).revision == 0
            assert (tmp_path / "playhead.sock").stat().st_mode & 0o777 == 0o600

    run(test)


def test_an_address_others_can_reach_is_refused_without_a_secret(tmp_path: Path) -> None:
    settings = tmp_path / "cachefs.toml"
    settings.write_text('[playhead]\nserve = "0.0.0.0:8765"\n')
    with pytest.raises(ConfigError, match="reached from other machines"):
        load_config(settings)
    settings.write_text(f'[playhead]\nserve = "0.0.0.0:8765"\ntoken = "{SECRET}"\nfollow = "https://music.example/"\n')
    assert load_config(settings).playhead == Playheads(Peer("0.0.0.0", 8765), "https://music.example", SECRET)
    settings.write_text('[playhead]\ntoken = "short"\n')
    with pytest.raises(ConfigError, match="16"):
        load_config(settings)


def test_a_web_page_moves_nobodys_music(tmp_path: Path) -> None:
    """A page may post text without asking, and may bring any name to 127.0.0.1."""

    async def test() -> None:
        async with daemon(tmp_path, serve=Peer("127.0.0.1", 0)) as service:
            url = str(service.report()["served"])
            async with httpx.AsyncClient(base_url=url) as page:
                path = "/playheads/song.ogg"
                simple = await page.post(path, content=b'{"action":"play"}', headers={"Content-Type": "text/plain"})
                rebound = await page.get("/playheads", headers={"Host": "evil.example"})
                assert (simple.status_code, rebound.status_code) == (415, 403)
                assert (await page.get("/playheads")).json() == []

    run(test)


def test_requests_that_make_no_sense_are_answered_and_change_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        board = Board(lambda: 100.0)
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve_address, board, "127.0.0.1", 0, "")
            async with httpx.AsyncClient(base_url=url) as client:
                for status, method, path, body in (
                    (404, "GET", "/", None),
                    (404, "DELETE", "/playheads/a.ogg", None),
                    (400, "GET", "/playheads/%2e%2e/x", None),
                    (400, "GET", "/events?record=/etc", None),
                    (400, "POST", "/playheads/a.ogg", b"{"),
                    (400, "POST", "/playheads/a.ogg", b"[" * 4000),
                    (400, "POST", "/playheads/a.ogg", b'{"action": "seek"}'),
                    (413, "POST", "/playheads/a.ogg", b" " * 5000),
                ):
                    json_type = {"Content-Type": "application/json"}
                    answer = await client.request(method, path, content=body, headers=json_type)
                    assert (answer.status_code, "error" in answer.json()) == (status, True), path
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
            async with stream:
                await stream.send_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
                assert b" 400 " in await stream.receive_some()
            assert board.heads() == {}
            nursery.cancel_scope.cancel()

    run(test)


def test_events_are_server_sent_events(tmp_path: Path) -> None:
    """Read as any client would: a line protocol, the playhead as JSON, its revision as the event's id."""

    async def test() -> None:
        board = Board(lambda: 100.0)
        await board.change(SONG, Change("play", 1500))
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_socket, board, tmp_path)
            with socket.socket(socket.AF_UNIX) as plain:
                plain.connect(str(tmp_path / "playhead.sock"))
                plain.sendall(b"GET /events?record=Fast%20Car.mp3 HTTP/1.1\r\nHost: x\r\n\r\n")
                plain.settimeout(10)
                said = b""
                while not said.endswith(b"\n\n\r\n"):
                    said += await trio.to_thread.run_sync(plain.recv, 65536)
            nursery.cancel_scope.cancel()
        head, _, body = said.decode().partition("\r\n\r\n")
        assert "text/event-stream" in head
        kind, number, data = body.split("\r\n", 1)[1].splitlines()[:3]
        assert (kind, number) == ("event: playhead", "id: 1")
        assert Playhead.from_json(json.loads(data.removeprefix("data: "))) == board.get(SONG)

    run(test)


def test_a_daemon_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with connect(tmp_path) as client:
            with pytest.raises(PlayheadUnreachable, match=f"{tmp_path}: no daemon answers: .*; is it mounted"):
                await client.get(SONG)
        with pytest.raises(PlayheadUnreachable, match="no data directory"):
            async with connect(tmp_path / "none"):
                pass
        async with connect(tmp_path) as client:
            with pytest.raises(PlayheadInvalid):
                await client.get("../x")

    run(test)


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_socket_of_a_deep_data_directory_works(tmp_path: Path) -> None:
    """Socket addresses end at 107 bytes."""

    async def test() -> None:
        deep = tmp_path / ("d" * 120)
        before = _descriptors()
        async with daemon(deep), connect(deep) as client:
            assert (await client.get(SONG)).revision == 0
        assert _descriptors() <= before + 2

    run(test)
