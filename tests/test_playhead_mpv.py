"""Two real players that listen together, each driven by a bridge of its own; what one user does the other hears."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from cachefs.config.playhead import Playheads
from cachefs.config.values import Peer
from cachefs.errors import PlayerFailed
from cachefs.playhead.bridge import Bridge
from cachefs.playhead.client import PlayheadClient, RemoteBoard, connect
from cachefs.playhead.listen import Listener, listen
from cachefs.playhead.model import Change, Playhead
from cachefs.playhead.mpv import Mpv, attached, command_line
from cachefs.playhead.service import PlayheadService
from tests.counterparts import running
from tests.fakes import until
from tests.player_kit import QUIET, make_music, together, worst

SONG = "Fast Car.flac"
CLOSE = 0.05
"""Seconds: how near each other two players must stay."""


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_music(tmp_path_factory.mktemp("music") / SONG, 60)


@asynccontextmanager
async def player(music: Path, ipc: Path, daemon: Path | str) -> AsyncIterator[Mpv]:
    """An mpv with its bridge; what is yielded is a second connection, which plays the user."""
    start = partial(trio.run_process, command_line(music, ipc, *QUIET), check=False)
    async with trio.open_nursery() as processes:
        processes.start_soon(start)
        async with connect(daemon) as client, attached(ipc) as driven, attached(ipc) as user:
            async with trio.open_nursery() as nursery:
                board = RemoteBoard(client)
                await nursery.start(board.run)
                await board.connected.wait()
                nursery.start_soon(Bridge(board, SONG, driven).run)
                yield user
                nursery.cancel_scope.cancel()
        processes.cancel_scope.cancel()


@asynccontextmanager
async def two_players(music: Path, place: Path) -> AsyncIterator[tuple[tuple[Mpv, Mpv], PlayheadClient]]:
    """Two listeners, one by the socket of the daemon that decides and one over TCP, and a client to command them."""
    service = PlayheadService(Playheads(serve=Peer("127.0.0.1", 0)), place)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(service.run)
            async with connect(place) as client, player(music, place / "a.ipc", place) as one:
                async with player(music, place / "b.ipc", str(service.report()["served"])) as other:
                    yield (one, other), client
            nursery.cancel_scope.cancel()


async def _hears(client: PlayheadClient, state: str, after: Playhead) -> Playhead:
    with trio.fail_after(10):
        async with client.events() as events:
            async for head in events:
                if head.revision > after.revision and head.state == state:
                    return head
    raise AssertionError("the event stream ended")


def test_19_two_players_stay_within_50_ms_through_play_seek_pause_and_what_a_user_does(
    music: Path, tmp_path: Path
) -> None:
    """Promise 19: play time in sync between users."""

    async def main() -> None:
        async with two_players(music, tmp_path) as (players, client):
            await client.change(SONG, Change("play", 0))
            assert worst(await together(players, CLOSE, 20)) <= CLOSE
            head = await client.change(SONG, Change("seek", 30_000))
            assert worst(await together(players, CLOSE, 20)) <= CLOSE

            await players[0].command("seek", 10, "absolute+exact")
            sought = await _hears(client, "playing", head)
            assert abs(sought.position_ms - 10_000) < 500
            assert worst(await together(players, CLOSE, 20)) <= CLOSE

            await players[1].set("pause", True)
            paused = await _hears(client, "paused", sought)
            await _until_paused(players[0], True)
            await players[0].set("pause", False)
            await _hears(client, "playing", paused)
            await _until_paused(players[1], False)
            assert worst(await together(players, CLOSE, 20)) <= CLOSE

    trio.run(main)


def test_a_player_that_lost_time_catches_up(music: Path, tmp_path: Path) -> None:
    """Slowed down behind the bridge's back, as a sound card with a bad clock would: by far more than any has."""

    async def main() -> None:
        async with two_players(music, tmp_path) as (players, client):
            await client.change(SONG, Change("play", 0))
            await together(players, CLOSE, 2)
            await players[1].command("seek", -0.08, "relative+exact")
            assert worst(await together(players, CLOSE, 30)) <= CLOSE

    trio.run(main)


def test_the_playhead_stops_where_the_record_ends(music: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with two_players(music, tmp_path) as (players, client):
            head = await client.change(SONG, Change("play", 59_000))
            ended = await _hears(client, "paused", head)
            assert abs(ended.position_ms - 60_000) < 100
            await client.change(SONG, Change("play", 5_000))
            assert worst(await together(players, CLOSE, 5)) <= CLOSE

    trio.run(main)


async def _decide(place: Path, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(PlayheadService(Playheads(), place).run)
            task_status.started(scope)


def test_a_player_follows_when_the_decider_has_lost_its_board(music: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as deciders:
            decider = await deciders.start(_decide, tmp_path)
            async with connect(tmp_path) as client, player(music, tmp_path / "a.ipc", tmp_path) as user:
                await client.change(SONG, Change("play", 20_000))
                await _until_paused(user, False)
                decider.cancel()
                await until(lambda: not (tmp_path / "playhead.sock").exists())
                (tmp_path / "playheads.json").unlink()
                await deciders.start(_decide, tmp_path)
                await _until_paused(user, True)
                await _until_at_the_beginning(user)
            deciders.cancel_scope.cancel()

    trio.run(main)


async def _until_at_the_beginning(mpv: Mpv) -> None:
    with trio.fail_after(10):
        while True:
            at = await mpv.seconds("time-pos")
            if at is not None and at < 1:  # a paused mpv tells its place only roughly
                break
            await trio.sleep(0.02)


def test_changes_in_quick_succession_are_followed_and_answered_by_none(music: Path, tmp_path: Path) -> None:
    """What a bridge was ordered must never look to it like what its user did."""

    async def main() -> None:
        async with two_players(music, tmp_path) as (players, client):
            for number in range(20):
                await client.change(SONG, Change("pause" if number % 2 else "play", 1000 * number))
            last = await client.change(SONG, Change("play"))
            assert worst(await together(players, CLOSE, 10)) <= CLOSE
            assert await client.get(SONG) == last
            assert last.revision == 21

    trio.run(main)


async def _until_paused(mpv: Mpv, wanted: bool) -> None:
    await mpv.command("observe_property", 7, "pause")
    with trio.fail_after(10):
        async for event in mpv.events:
            if event.get("id") == 7 and event.get("data") is wanted:
                break
    await mpv.command("unobserve_property", 7)


def test_the_command_starts_an_mpv_and_ends_with_it(music: Path, tmp_path: Path) -> None:
    """`cachefs playhead NAME mpv`, commanded by `cachefs playhead NAME seek`."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(PlayheadService(Playheads(), tmp_path).run)
            await trio.to_thread.run_sync(_listen_and_command, music, tmp_path)
            nursery.cancel_scope.cancel()

    trio.run(main)


def _listen_and_command(music: Path, place: Path) -> None:
    cachefs = [sys.executable, "-m", "cachefs", "playhead", "--data-dir", str(place)]
    command = [*cachefs, "--file", str(music), SONG, "mpv", "--", *QUIET]
    with running("cachefs playhead", command, signal.SIGTERM) as listening:
        listening.wait_until("listening", lambda: listening.printed() == f"{SONG}: listening\n")
        said = subprocess.check_output([*cachefs, SONG, "seek", "0:12.5"], text=True)
        assert said == f"{SONG}: paused at 0:00:12.500, revision 1\n"
        subprocess.check_output([*cachefs, SONG, "play", "0:59"], text=True)
        trio.run(_ended, place)
        players = children(listening.process.pid)
        assert len(players) == 1
    assert not any(Path("/proc", str(pid)).exists() for pid in players)


def children(pid: int) -> list[int]:
    """The processes that any thread of `pid` has started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


async def _ended(place: Path) -> None:
    async with connect(place) as client:
        await _hears(client, "paused", Playhead(SONG, revision=1))


def test_a_file_that_mpv_cannot_open_or_an_mpv_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(PlayheadService(Playheads(), tmp_path).run)
            nobody = Listener(tmp_path, "", SONG)
            with pytest.raises(PlayerFailed, match="nothing to play"):
                await trio.to_thread.run_sync(listen, nobody)
            command = [sys.executable, "-m", "cachefs", "playhead", SONG, "mpv", "--data-dir", str(tmp_path)]
            command += ["--file", f"{tmp_path}/none.flac", "--", *QUIET]
            with trio.fail_after(30):
                done = await trio.run_process(command, capture_stderr=True, check=False)
            assert done.returncode == 1
            assert b"mpv could not play" in done.stderr or b"before it could be driven" in done.stderr
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_mpv_that_quits_ends_the_bridge_and_nobody_elses_music(music: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with two_players(music, tmp_path) as (players, client):
            await client.change(SONG, Change("play", 0))
            await together(players, CLOSE, 2)
            await players[0].command("quit")
            async for _ in players[0].events:  # until mpv has ended
                pass
            assert (await client.get(SONG)).playing
            assert await players[1].get("pause") is False

    trio.run(main)
