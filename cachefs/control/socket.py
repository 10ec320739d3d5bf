"""The control socket: one JSON object a line each way, on `<data-dir>/control.sock`.

How it works: a request is `{"command": NAME}`, the answer `{"ok": true, "result": …}` or `{"ok": false,
"error": TEXT}`. The socket is mode 0600 in a directory of mode 0700, and the kernel tells who is at the other
end: only the daemon's own user and root are answered. Socket addresses are limited to 107 bytes and data directories
are not, so both ends go through a descriptor of the directory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from cachefs.errors import CachefsError, ControlError, NoDaemon

log = logging.getLogger(__name__)

NAME = "control.sock"
_LONGEST_REQUEST = 65_536
_ANSWER_WITHIN = 10.0

Command = Callable[[], Awaitable[Any]]


@contextlib.contextmanager
def _address(data_dir: Path) -> Iterator[str]:
    directory = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{NAME}"
    finally:
        os.close(directory)


async def serve(
    data_dir: Path, commands: Mapping[str, Command], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer commands for ever; the socket file is there while this runs."""
    path = data_dir / NAME
    path.unlink(missing_ok=True)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener, _address(data_dir) as address:
        await listener.bind(address)
        path.chmod(0o600)
        listener.listen(128)
        accepting = trio.SocketListener(listener)
        try:
            task_status.started()
            # Out of file descriptors it pauses, where a bare accept would end the daemon.
            await trio.serve_listeners(partial(_converse, commands), [accepting])
        finally:
            path.unlink(missing_ok=True)


async def _converse(commands: Mapping[str, Command], stream: trio.SocketStream) -> None:
    async with stream:
        if _peer_uid(stream) not in (0, os.getuid()):
            return
        with contextlib.suppress(trio.BrokenResourceError):
            line = b""
            with trio.move_on_after(_ANSWER_WITHIN):
                line = await _line(stream)
            # A command may take its time: who asked says for how long they wait.
            answer = await _answer(line, commands)
            with trio.move_on_after(_ANSWER_WITHIN):
                await stream.send_all(answer + b"\n")


def _peer_uid(stream: trio.SocketStream) -> int:
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


async def _line(stream: trio.SocketStream) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_REQUEST:
        part = await stream.receive_some(_LONGEST_REQUEST)
        if not part:
            break
        line += part
    return line


async def _answer(line: bytes, commands: Mapping[str, Command]) -> bytes:
    try:
        request = json.loads(line)
        command = commands[request["command"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _refusal(f"not a command: {line[:200].decode('utf-8', 'replace')!r}")
    try:
        return json.dumps({"ok": True, "result": await command()}).encode()
    except CachefsError as error:
        return _refusal(str(error))
    except Exception as error:
        log.exception("the command %s failed", request["command"])
        return _refusal(f"a fault of the daemon, told in its log: {error!r}")


def _refusal(why: str) -> bytes:
    return json.dumps({"ok": False, "error": why}).encode()


def ask(data_dir: Path, command: str, *, timeout: float = _ANSWER_WITHIN) -> Any:
    """The daemon's answer to a command; ControlError says why there is none. Blocks, `timeout` in seconds."""
    try:
        with _address(data_dir) as address, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(address)
            connection.sendall(json.dumps({"command": command}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
    except TimeoutError:
        raise ControlError(f"the daemon of {data_dir} doesn't answer within {timeout:g} s") from None
    except OSError as error:
        raise NoDaemon(f"no daemon answers for {data_dir}: {error.strerror}; is it mounted?") from None
    if not line.endswith(b"\n"):
        raise ControlError(f"the daemon of {data_dir} hung up in the middle of its answer")
    answer = json.loads(line)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return answer["result"]
