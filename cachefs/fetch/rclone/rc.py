"""Talking to rclone's remote control: JSON commands, and files read in ranges.

How it works: commands are `POST /group/name` with a JSON body. Files are `GET /[remote:path]/name`, which
answers ranges; what stands between the brackets is ours or the operator's, and a name from a catalogue is only
ever the path behind it, percent-encoded whole.

Each request has a connection of its own: on a Unix socket that costs less than keeping a pool in order.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import quote

import h11
import trio

from cachefs.content import Span
from cachefs.errors import NotAtSource, RcloneGone, SourceBusy, SourceFailed
from cachefs.fetch.http import wire
from cachefs.fetch.http.wire import Body, Line

_MOST_JSON = 16 * 2**20
_ANSWER_WITHIN = 10.0
_HEAD_WITHIN = 75.0
"""Seconds after which rclone itself has given a host up: its --contimeout and --timeout."""
_Headers: TypeAlias = "list[tuple[str, str]] | tuple[()]"
_Exchange: TypeAlias = "tuple[h11.Response, Line, h11.Connection]"
_HTTP_ERROR = re.compile(r"HTTP Error: (\d{3}[^\"\\]*)")


class RemoteControl:
    """An rclone that listens on the Unix socket `address`."""

    def __init__(self, address: str, user: str, password: str) -> None:
        self._address = address
        self._authorization = b"Basic " + b64encode(f"{user}:{password}".encode())

    async def answers(self) -> bool:
        """Whether it is there."""
        try:
            with trio.fail_after(_ANSWER_WITHIN):
                await self.call("rc/noop", {})
        except (RcloneGone, SourceFailed, trio.TooSlowError):
            return False
        return True

    async def call(self, command: str, parameters: Mapping[str, Any]) -> Any:
        """The result of a command. RcloneGone if nobody answers, SourceFailed with what rclone says went wrong."""
        data = json.dumps(parameters).encode()
        async with self._exchange("POST", f"/{command}", (), data) as (response, connection, http):
            raw = await _rest(connection, http)
        if response.status_code != 200:
            raise _failure(raw, response.status_code)
        return json.loads(raw)

    @contextlib.asynccontextmanager
    async def open(self, remote: str, path: str, span: Span | None = None) -> AsyncIterator[Body]:
        """A file's bytes, or those of a span. NotAtSource, SourceFailed, RcloneGone.

        `remote` is in rclone's own words, `path` is any text.
        """
        headers = [("Range", f"bytes={span.offset}-{span.end - 1}")] if span else []
        target = quote(f"/[{remote}]/", safe="/[]:,='\"@") + quote(path, safe="/")
        async with self._exchange("GET", target, headers, b"") as (response, line, http):
            if response.status_code in (200, 206):
                yield wire.body(line, http, response)
                return
            raw = await _rest(line, http)
        failure = _failure(raw, response.status_code)
        raise NotAtSource(str(failure)) if response.status_code == 404 else failure

    @contextlib.asynccontextmanager
    async def _exchange(self, method: str, target: str, headers: _Headers, data: bytes) -> AsyncIterator[_Exchange]:
        line, http = await self._connect(), h11.Connection(h11.CLIENT)
        try:
            try:
                with trio.fail_after(_HEAD_WITHIN):
                    response = await wire.ask(line, http, self._request(method, target, headers, data), data)
            except (OSError, h11.ProtocolError) as error:
                raise RcloneGone(f"rclone doesn't answer: {error}") from error
            except trio.TooSlowError:
                raise SourceFailed(f"no answer through rclone within {_HEAD_WITHIN:g} s") from None
            yield response, line, http
        finally:
            line.close()

    async def _connect(self) -> Line:
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                await connection.connect(self._address)
            except OSError as error:
                raise RcloneGone(f"rclone doesn't answer: {error}") from error
            return Line(socket.socket(fileno=connection.detach()))

    def _request(self, method: str, target: str, headers: _Headers, data: bytes) -> h11.Request:
        fixed = [("Host", "rclone"), ("Connection", "close"), ("Authorization", self._authorization)]
        described = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))] if data else []
        return h11.Request(method=method, target=target, headers=[*fixed, *described, *headers])


async def _rest(line: Line, http: h11.Connection) -> bytes:
    """The whole body of an answer whose head was read. RcloneGone."""
    try:
        return await wire.small_body(line, http, _MOST_JSON)
    except (OSError, h11.ProtocolError) as error:
        raise RcloneGone(f"rclone stopped in the middle of an answer: {error}") from error


def _failure(raw: bytes, status: int) -> SourceFailed:
    """What rclone says went wrong, in few words; SourceBusy if a host had answered it with a status of its own."""
    try:
        text = str(json.loads(raw)["error"])
    except (ValueError, KeyError, TypeError):
        text = raw.decode("utf-8", "replace").strip() or f"status {status}"
    http = _HTTP_ERROR.search(text)
    if http:
        return SourceBusy(f"HTTP {http[1]}", status=int(http[1][:3]))
    return SourceFailed(text.removeprefix("failed to find object: "))
