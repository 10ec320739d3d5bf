"""The control socket: one JSON object a line each way, on `<data-dir>/control.sock`.

How it works: a request is `{"command": NAME}`, with `"arguments": {…}` if it takes any; the answer is `{"ok": true,
"result": …}` or `{"ok": false, "error": TEXT}`. A job, which may take hours, sends lines `{"progress": …}` first, twice
a second whether there is progress or not: when its caller has gone, that is noticed and the job ends.

The socket is mode 0600 in a directory of mode 0700, and the kernel tells who is at the other end: only the daemon's
own user and root are answered.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import trio

from cachefs.errors import CachefsError, ControlError, Fault, NoDaemon, Stopping
from cachefs.sockets import address, listening, serve_clients
from cachefs.store.lock import holder

log = logging.getLogger(__name__)

NAME = "control.sock"
_LONGEST_REQUEST = 16 * 2**20
"""Bytes; a command may name every file of a catalogue."""

_TOO_LONG = f"a command of more than {_LONGEST_REQUEST} bytes"

_LAST_WORD_WITHIN = 1.0

_PART = 65_536
_ANSWER_WITHIN = 10.0
_TELL_EVERY = 0.5
_SILENT_TOO_LONG = 60.0

Command = Callable[..., Awaitable[Any]]
"""Called with a request's arguments by name; its result is JSON."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command that takes its time; `run` is called with what takes its progress, as JSON, and the arguments."""

    run: Callable[..., Awaitable[Any]]


async def serve(
    data_dir: Path,
    commands: Mapping[str, Command | Job],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer commands for ever; the socket file is there while this runs."""
    async with listening(data_dir, NAME) as listeners:
        task_status.started()
        if not listeners:
            await trio.sleep_forever()
        await serve_clients(listeners, partial(_converse, commands))


async def _converse(commands: Mapping[str, Command | Job], stream: trio.SocketStream) -> None:
    async with stream:
        if _peer_uid(stream) not in (0, os.getuid()):
            return
        with contextlib.suppress(trio.BrokenResourceError):
            line = answer = b""
            with trio.move_on_after(_ANSWER_WITHIN):
                line = await _line(stream)
            progress = _Progress(stream)
            # A command may take its time: who asked says for how long they wait.
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(progress.tell, nursery.cancel_scope)
                    answer = await _answer(line, commands, progress)
                    progress.end()
            except BaseException:  # the mount ends
                with trio.CancelScope(shield=True), trio.move_on_after(_LAST_WORD_WITHIN):
                    await stream.send_all(_refusal(str(Stopping())) + b"\n")
                raise
            with trio.move_on_after(_ANSWER_WITHIN):
                await stream.send_all(answer + b"\n" if answer else b"")


class _Progress:
    """What a job has told last, sent to whoever asked for it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.started, self.done = trio.Event(), trio.Event()
        self.latest: Any = None
        self._stream = stream

    def take(self, progress: Any) -> None:
        self.latest = progress

    def end(self) -> None:
        self.done.set()
        self.started.set()

    async def tell(self, job: trio.CancelScope) -> None:
        """Send it twice a second until it is done; cancel the job when nobody listens any more."""
        await self.started.wait()
        while not self.done.is_set():
            with trio.CancelScope(shield=True), trio.move_on_after(_ANSWER_WITHIN) as sending:  # never half a line
                try:
                    await self._stream.send_all(json.dumps({"progress": self.latest}).encode() + b"\n")
                except trio.BrokenResourceError:
                    job.cancel()
            if sending.cancelled_caught:
                job.cancel()
            with trio.move_on_after(_TELL_EVERY):
                await self.done.wait()


def _peer_uid(stream: trio.SocketStream) -> int:
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


async def _line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= _LONGEST_REQUEST:
        part = await stream.receive_some(_PART)
        if not part:
            break
        line += part
    return bytes(line)


async def _answer(line: bytes, commands: Mapping[str, Command | Job], progress: _Progress) -> bytes:
    if len(line) > _LONGEST_REQUEST:
        return _refusal(_TOO_LONG)
    try:
        request = json.loads(line)
        command = commands[request["command"]]
        arguments = dict(request.get("arguments", {}))
    except (ValueError, KeyError, TypeError, RecursionError):
        return _refusal(f"not a command: {line[:200].decode('utf-8', 'replace')!r}")
    try:
        if isinstance(command, Job):
            progress.started.set()
            result = await command.run(progress.take, **arguments)
        else:
            result = await command(**arguments)
        return json.dumps({"ok": True, "result": result}).encode()
    except CachefsError as error:
        return _refusal(str(error))
    except Exception as error:
        log.exception("the command %s failed", request["command"])
        return _refusal(str(Fault(error)))


def _refusal(why: str) -> bytes:
    return json.dumps({"ok": False, "error": why}).encode()


def ask(data_dir: Path, command: str, *, timeout: float = _ANSWER_WITHIN, **arguments: Any) -> Any:
    """The daemon's answer to a command; ControlError says why there is none. Blocks, `timeout` in seconds."""
    with _answers(data_dir, command, arguments, timeout) as lines:
        return _result(data_dir, next(lines))


def follow(data_dir: Path, job: str, told: Callable[[Any], None], **arguments: Any) -> Any:
    """A job's result; `told` gets its progress meanwhile, None before there is any. ControlError. Blocks.

    The job ends with the process that asked for it.
    """
    with _answers(data_dir, job, arguments, _SILENT_TOO_LONG) as lines:
        for line in lines:
            message = json.loads(line) if line.endswith(b"\n") else {}
            if "progress" not in message:
                return _result(data_dir, line)
            told(message["progress"])
    raise AssertionError("the lines have no end")


@contextlib.contextmanager
def _answers(data_dir: Path, command: str, arguments: Mapping[str, Any], timeout: float) -> Iterator[Iterator[bytes]]:
    """Say a command; the lines that come back, empty ones without end when the daemon hung up."""
    request = {"command": command} | ({"arguments": arguments} if arguments else {})
    line = json.dumps(request).encode() + b"\n"
    if len(line) > _LONGEST_REQUEST:
        raise ControlError(_TOO_LONG)
    with socket.socket(socket.AF_UNIX) as connection:
        with _about(data_dir, timeout), address(data_dir, NAME) as where:
            connection.settimeout(timeout)
            connection.connect(where)
            connection.sendall(line)
        with connection.makefile("rb") as answers:
            yield _lines(answers, data_dir, timeout)


def _lines(answers: BinaryIO, data_dir: Path, timeout: float) -> Iterator[bytes]:
    while True:
        with _about(data_dir, timeout):
            line = answers.readline()
        yield line  # what its reader runs into is no fault of the daemon's


@contextlib.contextmanager
def _about(data_dir: Path, timeout: float) -> Iterator[None]:
    """Turn what a connection runs into into ControlError, which says whether there is a daemon."""
    try:
        yield
    except TimeoutError:
        raise ControlError(f"the daemon of {data_dir} doesn't answer within {timeout:g} s") from None
    except OSError as error:
        who = holder(data_dir)
        if who:
            raise NoDaemon(f"{data_dir}: {who} doesn't answer: it is still coming up, or going down") from None
        raise NoDaemon(f"no daemon answers for {data_dir}: {error.strerror}; is it mounted?") from None


def _result(data_dir: Path, line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise ControlError(f"the daemon of {data_dir} ended before it had answered")
    answer = json.loads(line)
    if not answer["ok"]:
        raise ControlError(answer["error"])
    return answer["result"]
