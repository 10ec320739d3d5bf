"""The daemon's socket: whatever is said to it, it answers, and goes on answering."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.control.socket import NAME, Job, ask, follow, serve
from cachefs.errors import ControlError, Unavailable
from tests.descriptor_kit import no_descriptor_left
from tests.fakes import until


async def _status() -> Any:
    return {"name": "grüße", "rate": 1.5, "none": None}


async def _known_error() -> Any:
    raise Unavailable("x.seg", 60.0, "no peers")


async def _bug() -> Any:
    raise ZeroDivisionError("a bug")


async def _unspeakable() -> Any:
    return {"path": Path("/")}


async def _never() -> Any:
    await trio.sleep_forever()


async def _add(one: int, other: int) -> Any:
    return one + other


async def _count(tell: Callable[[Any], None], to: int) -> Any:
    for number in range(to + 1):
        tell(number)
        await trio.sleep(0.05)
    return "counted"


async def _failing(tell: Callable[[Any], None]) -> Any:
    raise Unavailable("x.seg", 60.0, "no peers")


COMMANDS: dict[str, Any] = {
    "status": _status, "known-error": _known_error, "bug": _bug, "unspeakable": _unspeakable, "never": _never,
    "add": _add, "count": Job(_count), "failing": Job(_failing),
}  # fmt: skip


def with_daemon(data_dir: Path, client: Callable[[], None]) -> None:
    """Run `client` in a thread while a daemon serves; afterwards the daemon must still answer."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, data_dir, COMMANDS)
            await trio.to_thread.run_sync(client)
            assert await trio.to_thread.run_sync(ask, data_dir, "status") == await _status()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not (data_dir / NAME).exists()


def say(data_dir: Path, *parts: bytes, hang_up: bool = False) -> bytes:
    """The answer to raw bytes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(data_dir / NAME))
        for part in parts:
            connection.sendall(part)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answers:
            return answers.readline()


def test_a_command_is_answered_with_its_result(tmp_path: Path) -> None:
    def client() -> None:
        assert ask(tmp_path, "status") == {"name": "grüße", "rate": 1.5, "none": None}
        assert json.loads(say(tmp_path, b'{"comm', b'and": "sta', b'tus"}\n'))["ok"] is True

    with_daemon(tmp_path, client)


def test_a_command_is_called_with_its_arguments_by_name(tmp_path: Path) -> None:
    def client() -> None:
        assert ask(tmp_path, "add", one=1, other=2) == 3
        with pytest.raises(ControlError, match="unexpected keyword argument"):
            ask(tmp_path, "add", first=1)
        assert json.loads(say(tmp_path, b'{"command": "add", "arguments": 5}\n'))["ok"] is False

    with_daemon(tmp_path, client)


def test_a_job_tells_its_progress_until_its_result(tmp_path: Path) -> None:
    def client() -> None:
        told: list[Any] = []
        assert follow(tmp_path, "count", told.append, to=20) == "counted"
        assert len(told) >= 2
        assert told == sorted(told)
        with pytest.raises(ControlError, match=r"^x\.seg: nothing after 60\.0 s: no peers$"):
            follow(tmp_path, "failing", told.append)
        with pytest.raises(ControlError, match="not a command"):
            follow(tmp_path, "unknown", told.append)

    with_daemon(tmp_path, client)


def test_a_job_ends_when_its_caller_has_gone(tmp_path: Path) -> None:
    async def main() -> None:
        ended = trio.Event()

        async def endless(tell: Callable[[Any], None]) -> Any:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(serve, tmp_path, {"status": _status, "endless": Job(endless)})
            async with await trio.open_unix_socket(tmp_path / NAME) as stream:
                await stream.send_all(b'{"command": "endless"}\n')
                assert await stream.receive_some() == b'{"progress": null}\n'
            with trio.fail_after(10):
                await ended.wait()
            assert await trio.to_thread.run_sync(ask, tmp_path, "status") == await _status()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_known_error_is_told_in_its_own_words(tmp_path: Path) -> None:
    def client() -> None:
        with pytest.raises(ControlError, match=r"^x\.seg: nothing after 60\.0 s: no peers$"):
            ask(tmp_path, "known-error")

    with_daemon(tmp_path, client)


@pytest.mark.parametrize(("command", "what"), [("bug", "ZeroDivisionError"), ("unspeakable", "not JSON serializable")])
def test_a_fault_in_a_command_is_told_and_logged_and_the_daemon_lives(
    tmp_path: Path, command: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    def client() -> None:
        with pytest.raises(ControlError, match=f"a fault of the daemon, told in its log: .*{what}"):
            ask(tmp_path, command)

    with_daemon(tmp_path, client)
    assert f"the command {command} failed" in caplog.text


@pytest.mark.parametrize(
    "line",
    [
        b'{"command": "other"}\n',
        b"\n",
        b"status\n",
        b"\xff\x00\xfe\n",
        b"[]\n",
        b"5\n",
        b"{}\n",
        b'{"command": ["status"]}\n',
        b'{"command": null}\n',
        b"[" * 60_000 + b"\n",
    ],
    ids=lambda line: repr(line[:24]),
)
def test_what_is_no_command_is_answered_with_an_error_and_the_daemon_lives(tmp_path: Path, line: bytes) -> None:
    def client() -> None:
        answer = json.loads(say(tmp_path, line))
        assert answer["ok"] is False
        assert answer["error"].startswith("not a command: ")
        assert len(answer["error"]) < 1000

    with_daemon(tmp_path, client)


def test_a_command_may_name_every_file_of_a_catalogue(tmp_path: Path) -> None:
    names = [f"history/v1-accounts.{number}-{number + 1}.v" for number in range(3000)]
    with_daemon(tmp_path, lambda: _equal(ask(tmp_path, "add", one=names, other=["more"]), [*names, "more"]))


def _equal(one: Any, other: Any) -> None:
    assert one == other


def test_a_command_that_is_too_long_is_told_so_by_either_side(tmp_path: Path) -> None:
    longest = 16 * 2**20

    def client() -> None:
        answer = json.loads(say(tmp_path, b"x" * (longest + 1)))
        assert answer == {"ok": False, "error": f"a command of more than {longest} bytes"}
        with pytest.raises(ControlError, match=f"a command of more than {longest} bytes"):
            ask(tmp_path, "add", one="x" * longest, other="")

    with_daemon(tmp_path, client)


def test_what_the_caller_of_a_job_runs_into_is_not_taken_for_the_daemons(tmp_path: Path) -> None:
    def closed(progress: Any) -> None:
        raise BrokenPipeError("nobody reads what is printed")

    def client() -> None:
        with pytest.raises(BrokenPipeError, match="nobody reads what is printed"):
            follow(tmp_path, "count", closed, to=20)

    with_daemon(tmp_path, client)


def test_a_line_without_end_is_refused_instead_of_collected(tmp_path: Path) -> None:
    def client() -> None:
        with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
            say(tmp_path, *[b"x" * 2**20] * 64)

    with_daemon(tmp_path, client)


def test_a_client_that_says_nothing_and_leaves_does_no_harm(tmp_path: Path) -> None:
    def client() -> None:
        assert json.loads(say(tmp_path, hang_up=True))["ok"] is False
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(tmp_path / NAME))

    with_daemon(tmp_path, client)


def test_clients_that_wait_keep_nobody_else_waiting(tmp_path: Path) -> None:
    async def waits() -> None:
        async with await trio.open_unix_socket(tmp_path / NAME) as stream:
            await stream.send_all(b'{"command": "never"}\n')
            await stream.receive_some()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, tmp_path, COMMANDS)
            for _ in range(20):
                nursery.start_soon(waits)
            with trio.fail_after(5):
                assert await trio.to_thread.run_sync(ask, tmp_path, "status") == await _status()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_an_answer_that_does_not_come_in_time_is_an_error_that_says_so(tmp_path: Path) -> None:
    def client() -> None:
        with pytest.raises(ControlError, match=r"doesn't answer within 0\.2 s"):
            ask(tmp_path, "never", timeout=0.2)

    with_daemon(tmp_path, client)


def test_a_data_directory_may_have_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    data_dir = tmp_path / ("d" * 120) / ("e" * 120)
    data_dir.mkdir(parents=True)
    with_daemon(data_dir, lambda: None)


def test_only_the_owner_may_connect(tmp_path: Path) -> None:
    def client() -> None:
        mode = (tmp_path / NAME).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    with_daemon(tmp_path, client)


def test_a_socket_left_by_a_daemon_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / NAME))
    with pytest.raises(ControlError, match=r"no daemon answers .*Connection refused; is it mounted"):
        ask(tmp_path, "status")
    with_daemon(tmp_path, lambda: None)


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_daemon_that_is_not_there_is_an_error_that_names_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ControlError, match=f"no daemon answers for {tmp_path / name}: No such file"):
        ask(tmp_path / name, "status")


@pytest.mark.parametrize("said", [b"", b'{"ok": true, "resu'])
def test_a_daemon_that_dies_in_the_middle_of_its_answer_is_an_error(tmp_path: Path, said: bytes) -> None:
    def die() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(said)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / NAME))
        server.listen()
        daemon = threading.Thread(target=die)
        daemon.start()
        with pytest.raises(ControlError, match="ended before it had answered"):
            ask(tmp_path, "status")
        daemon.join()


def test_a_daemon_without_free_descriptors_answers_again_when_there_are_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, tmp_path, COMMANDS)
            with socket.socket(socket.AF_UNIX) as client, no_descriptor_left():
                client.connect(str(tmp_path / NAME))
                await until(lambda: "new clients have to wait: Too many open files" in caplog.text)
            assert await trio.to_thread.run_sync(ask, tmp_path, "status") == await _status()
            nursery.cancel_scope.cancel()

    trio.run(main)
