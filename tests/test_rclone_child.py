"""The rclone process, with the real binary: which one is run, what it gives away, and what happens when it ends."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from cachefs.config import Rclone
from cachefs.errors import RcloneUnusable
from cachefs.fetch.rclone.child import OLDEST, SOCKET, Binary, RcloneChild, find_binary
from tests.fakes import until
from tests.rclone_kit import RCLONE, alive, fake_rclone, running_child, supervised, warnings

# Which one


def test_the_binary_that_is_installed_beside_python_is_found_and_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = find_binary(None)
    assert found.path == RCLONE
    assert tuple(map(int, found.version.split("."))) >= OLDEST


def test_one_on_path_comes_first_unless_it_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    newer = fake_rclone(tmp_path / "rclone", "rclone v99.0.1")
    assert find_binary(None) == Binary(newer, "99.0.1")
    fake_rclone(tmp_path / "rclone", "rclone v1.75.0")
    assert find_binary(None).path == RCLONE


def test_a_configured_one_is_the_only_one_looked_at(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "rclone"
    other.parent.mkdir()
    shutil.copy(RCLONE, other)
    assert find_binary(other).path == other
    with pytest.raises(RcloneUnusable) as refused:
        find_binary(tmp_path / "absent")
    assert str(refused.value) == f"{tmp_path / 'absent'}: there is none"


@pytest.mark.parametrize(
    ("prints", "complaint"),
    [
        ("rclone v1.75.0", r"is 1\.75\.0, older than 1\.75\.1, which mends security holes"),
        ("rclone v1.60.1-DEV", r"is 1\.60\.1, older than 1\.75\.1"),
        ("rclone v0.99.99", r"is 0\.99\.99, older"),
        ("something else", "doesn't tell its version as rclone does"),
        ("", "doesn't tell its version as rclone does"),
    ],
)
def test_one_that_is_too_old_or_no_rclone_is_refused_with_the_reason(
    tmp_path: Path, prints: str, complaint: str
) -> None:
    path = fake_rclone(tmp_path / "rclone", prints)
    with pytest.raises(RcloneUnusable, match=complaint) as refused:
        find_binary(path)
    assert str(path) in str(refused.value)


def test_one_that_can_not_be_run_is_refused(tmp_path: Path) -> None:
    path = fake_rclone(tmp_path / "rclone", "rclone v99.0.0")
    path.chmod(0o644)
    with pytest.raises(RcloneUnusable, match=r"can't be run: .*Permission denied"):
        find_binary(path)


def test_without_a_usable_one_it_is_said_once_and_found_as_soon_as_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetch.rclone.child._LOOK_AGAIN", 0.05)
    path = tmp_path / "bin" / "rclone"

    async def scenario() -> None:
        async with running_child(tmp_path / "rclone", settings=Rclone(binary=path)) as child:
            with trio.fail_after(5):
                await child.until_known()
            await trio.sleep(0.3)  # several looks
            assert not child.ready
            assert not child.expected
            (said,) = warnings(caplog)
            assert said == f"rclone can't be used, torrents go on without it: {path}: there is none"
            assert child.trouble == said
            path.parent.mkdir()
            path.symlink_to(RCLONE)
            await until(lambda: child.ready)
            assert not child.trouble

    trio.run(scenario)


def test_a_directory_that_can_not_be_made_is_said_once_and_used_as_soon_as_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetch.rclone.child._LOOK_AGAIN", 0.05)
    (tmp_path / "data").write_text("in the way")

    async def scenario() -> None:
        async with running_child(tmp_path / "data" / "rclone") as child:
            with trio.fail_after(10):
                await child.until_known()
            (said,) = warnings(caplog)
            assert said.startswith("rclone can't be used, torrents go on without it: ")
            assert "Not a directory" in said
            (tmp_path / "data").unlink()
            await until(lambda: child.ready)

    trio.run(scenario)


# What it gives away


MINE = {"RCLONE_CONFIG_MINE_TYPE": "alias"}


def play(tmp_path: Path, scenario: Callable[[RcloneChild, Path], Awaitable[None]]) -> None:
    async def main() -> None:
        async with supervised(tmp_path / "rclone", MINE | {"RCLONE_CONFIG_MINE_REMOTE": str(tmp_path)}) as child:
            await scenario(child, tmp_path / "rclone")

    trio.run(main)


def secret_of(pid: int | None) -> bytes:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (secret,) = (entry.partition(b"=")[2] for entry in environment if entry.startswith(b"RCLONE_RC_PASS="))
    return secret


def argument_lists() -> Iterator[bytes]:
    """Those of all processes."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            yield command.read_bytes()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ports(pid: int | None) -> list[str]:
    """The lines of the kernel's tables that belong to network sockets of a process."""
    opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path(f"/proc/{pid}/net/{kind}").read_text() for kind in ("tcp", "tcp6", "udp", "udp6")]
    lines = [line for table in tables for line in table.splitlines()[1:]]
    return [line for line in lines if f"socket:[{line.split()[9]}]" in opened]


def test_no_secret_stands_in_an_argument_list_or_in_the_log(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, directory: Path) -> None:
        secret = secret_of(child.pid)
        assert len(secret) >= 32
        assert not [command for command in argument_lists() if secret in command]
        assert secret not in await trio.Path(directory / "rclone.log").read_bytes()

    play(tmp_path, scenario)


def test_its_secret_is_another_after_each_start(tmp_path: Path) -> None:
    secrets: set[bytes] = set()

    async def scenario(child: RcloneChild, directory: Path) -> None:
        secrets.add(secret_of(child.pid))

    play(tmp_path, scenario)
    play(tmp_path, scenario)
    assert len(secrets) == 2


def test_its_socket_lies_in_a_directory_that_only_its_user_enters(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, directory: Path) -> None:
        assert mode(directory) == 0o700
        assert await trio.Path(directory / SOCKET).is_socket()

    play(tmp_path, scenario)


def test_a_directory_that_others_could_enter_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "rclone").mkdir(mode=0o755)

    async def scenario(child: RcloneChild, directory: Path) -> None:
        assert mode(directory) == 0o700

    play(tmp_path, scenario)


def test_it_listens_on_no_port(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, directory: Path) -> None:
        assert not ports(child.pid)

    play(tmp_path, scenario)


def ask(address: Path, request_line: str, authorization: str) -> bytes:
    """What whoever listens there answers to a request made by hand."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(address))
        head = f"{request_line} HTTP/1.1\r\nHost: x\r\n{authorization}Content-Length: 0\r\nConnection: close"
        client.sendall(f"{head}\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_nobody_without_its_password_is_answered() -> None:
    passwords = ("", "Authorization: Basic Y2FjaGVmczo=\r\n", "Authorization: Basic Y2FjaGVmczp3cm9uZw==\r\n")

    async def scenario(child: RcloneChild, directory: Path) -> None:
        for request in ("POST /core/version", "POST /rc/noop", "GET /[mine:]/file", "GET /"):
            for password in passwords:
                answer = await trio.to_thread.run_sync(ask, directory / SOCKET, request, password)
                assert answer.startswith(b"HTTP/1.1 401 ")

    with tempfile.TemporaryDirectory() as place:  # so that the socket's address fits in 107 bytes
        play(Path(place), scenario)


def test_a_directory_with_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    place = tmp_path / ("d" * 100) / ("é" * 50)

    async def scenario(child: RcloneChild, directory: Path) -> None:
        assert child.control is not None
        assert await child.control.answers()

    play(place, scenario)


# How it ends, and begins again


def test_one_that_is_killed_is_started_again_and_each_change_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(child: RcloneChild, directory: Path) -> None:
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: not child.ready)
        assert child.expected, "for a moment readers may count on its coming back"
        assert "SIGKILL" in child.trouble
        await until(lambda: child.ready)
        assert child.pid not in (None, first)
        assert (child.restarts, child.trouble) == (1, "")

    play(tmp_path, scenario)
    ended, back = warnings(caplog)
    assert ended == "rclone ended (SIGKILL); it is started again"
    assert back.endswith("answers again")


def test_one_that_ends_at_once_each_time_is_started_ever_more_rarely_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetch.rclone.child._PAUSES", (0.05, 0.4))
    notes = tmp_path / "starts"
    broken = fake_rclone(tmp_path / "rclone", "rclone v99.0.0", f"date +%s.%N >>{notes}; echo broken; exit 3")

    async def main() -> None:
        async with running_child(tmp_path / "run", settings=Rclone(binary=broken)):
            await until(lambda: notes.exists() and len(notes.read_text().split()) >= 6)

    trio.run(main)
    starts = [float(line) for line in notes.read_text().split()]
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.4), strict=False):
        assert pause >= least
    assert warnings(caplog) == ["rclone ended (exit code 3): broken; it is started again"]


def test_a_socket_that_is_gone_is_noticed_when_somebody_asks_and_rclone_is_started_again(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, directory: Path) -> None:
        first = child.pid
        assert first is not None
        (directory / SOCKET).unlink()
        child.suspect()
        await until(lambda: child.ready and child.pid != first)
        assert not alive(first)
        assert child.control is not None
        assert await child.control.answers()

    play(tmp_path, scenario)


def test_one_that_answers_is_left_alone_whatever_somebody_suspects(tmp_path: Path) -> None:
    async def scenario(child: RcloneChild, directory: Path) -> None:
        first = child.pid
        for _ in range(20):
            child.suspect()
            await trio.sleep(0.01)
        assert child.ready
        assert (child.pid, child.restarts) == (first, 0)

    play(tmp_path, scenario)


def test_new_remotes_are_known_after_a_start_anew_that_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"some bytes")

    async def scenario(child: RcloneChild, directory: Path) -> None:
        first = child.pid
        child.describe({"RCLONE_CONFIG_ANEW_TYPE": "alias", "RCLONE_CONFIG_ANEW_REMOTE": str(tmp_path)})
        await until(lambda: child.ready and child.pid != first)
        async with child.open("anew:", "file", None) as body:
            assert body.total == 10
        assert child.restarts == 0

    play(tmp_path, scenario)
    assert not warnings(caplog)


def test_it_is_not_started_anew_while_somebody_reads(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(2**20))

    async def scenario(child: RcloneChild, directory: Path) -> None:
        first = child.pid
        async with child.open("mine:", "file", None) as body:
            anew = {"RCLONE_CONFIG_ANEW_TYPE": "local"}
            child.describe(anew)
            assert not child.knows(anew)
            left, buffer = body.length, memoryview(bytearray(2**16))
            while left:
                await trio.sleep(0.02)
                left -= await body.read_some(buffer)
            assert child.pid == first
        await until(lambda: child.ready and child.pid != first)
        assert child.knows(anew)

    play(tmp_path, scenario)


def test_leaving_ends_it(tmp_path: Path) -> None:
    pids: list[int] = []

    async def scenario(child: RcloneChild, directory: Path) -> None:
        assert child.pid is not None
        pids.append(child.pid)

    play(tmp_path, scenario)
    assert not alive(pids[0])


_PARENT = """
import sys, trio
from pathlib import Path
from cachefs.config import Rclone
from cachefs.fetch.rclone.child import RcloneChild

async def main():
    child = RcloneChild(Rclone(), Path(sys.argv[1]), {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        await child.until_known()
        print(child.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def test_it_dies_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "rclone")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    trio.run(until, lambda: not alive(child))
