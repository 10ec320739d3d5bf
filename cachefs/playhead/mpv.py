"""mpv, spoken to over its IPC: commands and their answers, properties, events.

How it works: mpv listens on a Unix socket (`--input-ipc-server`), one JSON object a line each way. A command carries a
`request_id` that comes back with its answer; lines without one are events, which go to whoever waits for them. One
task reads; callers wait for their answer with a limit, because an mpv that is being moved to another disk or is
stopped in a debugger answers nobody.

Format: mpv's manual, section "JSON IPC".
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from cachefs.errors import PlayerFailed

_ANSWER_WITHIN = 5.0
_LONGEST_LINE = 2**20
_EVENTS = 1000

Event = Mapping[str, Any]


class Mpv:
    """A running mpv. Made by `attached`; `events` gives what mpv tells by itself."""

    def __init__(self, stream: trio.SocketStream, where: str) -> None:
        self._stream = stream
        self._where = where
        self._answers: dict[int, Event] = {}
        self._waiting: dict[int, trio.Event] = {}
        self._last_id = 0
        self._sending = trio.Lock()
        self._publish, self.events = trio.open_memory_channel[Event](_EVENTS)

    async def command(self, *words: str | float | bool) -> Any:
        """What mpv answers to a command; PlayerFailed if it refuses, or says nothing in time."""
        self._last_id += 1
        number, answered = self._last_id, trio.Event()
        self._waiting[number] = answered
        line = json.dumps({"command": words, "request_id": number}).encode() + b"\n"
        try:
            with trio.fail_after(_ANSWER_WITHIN):
                async with self._sending:
                    await self._stream.send_all(line)
                await answered.wait()
        except trio.TooSlowError:
            raise PlayerFailed(f"mpv at {self._where} doesn't answer within {_ANSWER_WITHIN:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise PlayerFailed(f"mpv at {self._where} has ended") from None
        finally:
            del self._waiting[number]
            answer = self._answers.pop(number, {"error": "mpv has ended"})
        if answer.get("error") != "success":
            raise PlayerFailed(f"mpv at {self._where}: {' '.join(map(str, words))}: {answer.get('error')}")
        return answer.get("data")

    async def get(self, name: str) -> Any:
        """A property; None while it has no value (no file is loaded, say)."""
        try:
            return await self.command("get_property", name)
        except PlayerFailed as error:
            if str(error).endswith("property unavailable"):
                return None
            raise

    async def set(self, name: str, value: str | float | bool) -> None:
        await self.command("set_property", name, value)

    async def seconds(self, name: str) -> float | None:
        """A property that is a time, in seconds; None while there is none."""
        value = await self.get(name)
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if usable else None

    async def run(self) -> None:
        """Read what mpv says until it ends; `events` ends then, and whoever waits is told."""
        buffer = b""
        with self._publish:
            while True:
                try:
                    part = await self._stream.receive_some(65_536)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    part = b""
                *lines, buffer = (buffer + part).split(b"\n")
                for line in lines:
                    self._take(line)
                if not part or len(buffer) > _LONGEST_LINE:
                    break
        for waiting in self._waiting.values():
            waiting.set()

    def _take(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, dict):
            return
        waiting = self._waiting.get(said.get("request_id", 0))
        if waiting is not None:
            self._answers[said["request_id"]] = said
            waiting.set()
        elif "event" in said:
            # Nobody has listened for a thousand events: he will look at properties instead.
            with suppress(trio.WouldBlock, trio.BrokenResourceError):
                self._publish.send_nowait(said)


@asynccontextmanager
async def attached(path: Path, *, within: float = 10.0) -> AsyncIterator[Mpv]:
    """The mpv that listens on a Unix socket, which may take `within` seconds to be there; PlayerFailed if none does."""
    stream = await _connected(path, within)
    async with stream, trio.open_nursery() as nursery:
        mpv = Mpv(stream, str(path))
        nursery.start_soon(mpv.run)
        yield mpv
        nursery.cancel_scope.cancel()


async def _connected(path: Path, within: float) -> trio.SocketStream:
    deadline = trio.current_time() + within
    while True:
        try:
            return await trio.open_unix_socket(str(path))
        except OSError as error:
            if trio.current_time() > deadline:
                raise PlayerFailed(f"no mpv listens on {path}: {error.strerror or error}") from None
        await trio.sleep(0.02)


def command_line(file: Path, ipc: Path, *options: str) -> list[str]:
    """How mpv is started to be driven, whatever else the user wants of it: paused, open at the end, seeking exactly."""
    driven = ("--pause", "--keep-open=always", "--hr-seek=yes", f"--input-ipc-server={ipc}")
    return ["mpv", *options, *driven, "--", str(file)]
