"""rclone's remote control, with the real binary and nginx: ranges, names, and how failures are told."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from cachefs.content import Span
from cachefs.errors import NotAtSource, RcloneGone, SourceFailed
from cachefs.fetch.http.wire import Body
from cachefs.fetch.rclone.child import RcloneChild
from cachefs.fetch.rclone.rc import RemoteControl
from tests.counterparts import nginx, refusing_port
from tests.rclone_kit import supervised

DATA = bytes(range(256)) * 4096
Scenario = Callable[[RcloneChild, RemoteControl], Awaitable[None]]


def play(tmp_path: Path, scenario: Scenario, url: str = "http://127.0.0.1:1/") -> None:
    """Run with an rclone that has nginx as `web:`."""

    async def main() -> None:
        environment = {"RCLONE_CONFIG_WEB_TYPE": "http", "RCLONE_CONFIG_WEB_URL": url}
        async with supervised(tmp_path / "rclone", environment) as child:
            assert child.control is not None
            with trio.fail_after(30):
                await scenario(child, child.control)

    trio.run(main)


async def whole(body: Body) -> bytes:
    data, buffer = bytearray(), memoryview(bytearray(100_000))
    while len(data) < body.length and (count := await body.read_some(buffer)):
        data += buffer[:count]
    return bytes(data)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "file").write_bytes(DATA)
    return tmp_path / "web"


def test_a_whole_file_comes_with_its_length(tmp_path: Path, root: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        async with control.open("web:", "file") as body:
            assert (body.length, body.total) == (len(DATA), len(DATA))
            assert await whole(body) == DATA

    with nginx(root) as url:
        play(tmp_path, scenario, url)


@pytest.mark.parametrize(
    "span",
    [Span(0, 1), Span(0, len(DATA)), Span(1, 70_000), Span(len(DATA) - 1, 1), Span(500_000, len(DATA) - 500_000)],
)
def test_a_range_is_what_was_asked_for_and_tells_the_file_s_length(tmp_path: Path, root: Path, span: Span) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        async with control.open("web:", "file", span) as body:
            assert (body.length, body.total) == (span.length, len(DATA))
            assert await whole(body) == DATA[span.offset : span.end]

    with nginx(root) as url:
        play(tmp_path, scenario, url)


def test_what_is_not_there_is_told_as_that(tmp_path: Path, root: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        for name in ("absent", "no/such/folder", "absent [x] % ? #"):
            with pytest.raises(NotAtSource):
                async with control.open("web:", name):
                    pass

    with nginx(root) as url:
        play(tmp_path, scenario, url)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_a_host_s_refusal_is_told_with_its_status(tmp_path: Path, root: Path, status: int) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        with pytest.raises(SourceFailed, match=f"^HTTP {status}") as failed:
            async with control.open("web:", "file"):
                pass
        assert not isinstance(failed.value, NotAtSource)

    with nginx(root, location=f"return {status};") as url:
        play(tmp_path, scenario, url)


def test_a_host_that_refuses_connections_is_a_source_that_failed(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        with pytest.raises(SourceFailed, match="refused"):
            async with control.open("web:", "file"):
                pass

    with refusing_port() as port:
        play(tmp_path, scenario, f"http://127.0.0.1:{port}/")


def test_an_unknown_remote_is_a_source_that_failed(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        with pytest.raises(SourceFailed, match="didn't find section"):
            async with control.open("nobody:", "file"):
                pass

    play(tmp_path, scenario)


def test_commands_answer_and_their_failures_are_told(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        assert await control.call("rc/noop", {"é": [1, "two"]}) == {"é": [1, "two"]}
        assert "bytes" in await control.call("core/stats", {})
        with pytest.raises(SourceFailed, match="couldn't find method"):
            await control.call("no/such", {})

    play(tmp_path, scenario)


def test_a_wrong_password_is_refused(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        stranger = RemoteControl(control._address, "cachefs", "wrong")
        assert not await stranger.answers()
        with pytest.raises(SourceFailed):
            await stranger.call("core/version", {})

    play(tmp_path, scenario)


def test_an_rclone_that_is_killed_in_the_middle_of_a_body_ends_it_short(tmp_path: Path, root: Path) -> None:
    async def scenario(child: RcloneChild, control: RemoteControl) -> None:
        async with control.open("web:", "file") as body:
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            assert 0 <= len(await whole(body)) < len(DATA)
        with pytest.raises(RcloneGone):
            async with control.open("web:", "file"):
                pass
        assert not await control.answers()

    with nginx(root, location="limit_rate 100k;") as url:
        play(tmp_path, scenario, url)


def test_nobody_at_the_socket_is_rclone_gone(tmp_path: Path) -> None:
    async def main() -> None:
        control = RemoteControl(str(tmp_path / "absent"), "cachefs", "secret")
        assert not await control.answers()
        with pytest.raises(RcloneGone, match="doesn't answer"):
            await control.call("rc/noop", {})

    trio.run(main)
