"""The playhead API: HTTP/1.1 with JSON and server-sent events, on a Unix socket and, if configured, on an address.

    GET  /time                  {"utc": seconds since 1970}: the clock by which anchors are meant
    GET  /playheads             all of them
    GET  /playheads/NAME        one; revision 0 if nobody has touched it
    POST /playheads/NAME        a change {"action": …, "position_ms": …, "rate": …, "if_revision": …}; what it became
    GET  /events[?record=NAME]  the present playheads as events, then each change

How it works: `httpserver` speaks the protocol, and a request is routed to one function that gives an object. A change
whose `if_revision` is not the present one is answered 409 with the present playhead, so the caller need not ask. An
event stream begins with what is, so a client that lost its connection has only to open it again.

Who may: on the Unix socket the kernel tells who is at the other end, and only root and the daemon's own user are
answered. On an address a shared secret (`Authorization: Bearer …`) is needed unless it is a loopback one. A web page in
a local browser must not move anybody's music: a POST has to be `application/json`, which a page of another origin can't
send without asking first, and without a secret the Host must be an address or `localhost`, so a name that somebody
points at 127.0.0.1 doesn't get in.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import trio

from cachefs.errors import CachefsError, PlayheadConflict, PlayheadInvalid, PlayheadUnreachable
from cachefs.httpserver import MAX_BODY, Connection, Response, Server, asked_by_address, listen
from cachefs.playhead import events
from cachefs.playhead.board import Heads
from cachefs.playhead.model import Change, record_name
from cachefs.sockets import listening

SOCKET = "playhead.sock"

MAX_CONNECTIONS = 500

KEEP_ALIVE = 10.0
"""Seconds without a change after which an event stream says that it is still there."""

_REFUSALS = {413: f"a body of more than {MAX_BODY} bytes", 500: "a fault of the daemon, told in its log"}


class Refused(CachefsError):
    """A request that isn't done: the status and the object that it is answered with."""

    def __init__(self, status: int, answer: object) -> None:
        super().__init__(f"{status}: {answer}")
        self.status = status
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request: the path and the query apart, header names in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[bytes, bytes]
    body: bytes


Gate = Callable[[trio.SocketStream, Request], None]
"""Returns if the request may be answered, raises Refused otherwise."""


async def serve_socket(
    heads: Heads, data_dir: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on `<data-dir>/playhead.sock` for ever; the file is there while this runs."""
    async with listening(data_dir, SOCKET) as listeners:
        task_status.started()
        if not listeners:
            await trio.sleep_forever()
        await Server(Api(heads, _same_user), MAX_CONNECTIONS).run(listeners)


async def serve_address(
    heads: Heads, host: str, port: int, token: str, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer on a TCP address for ever; started with the URL. ConfigError if it can't be listened on."""
    listeners, url = await listen(host, port, "playheads")
    task_status.started(url)
    await Server(Api(heads, partial(_knows_secret, token)), MAX_CONNECTIONS).run(listeners)


def _same_user(stream: trio.SocketStream, request: Request) -> None:
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    if struct.unpack("3i", credentials)[1] not in (0, os.getuid()):
        raise Refused(403, {"error": "another user's daemon"})


def _knows_secret(token: str, stream: trio.SocketStream, request: Request) -> None:
    if token:
        given = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, token.encode()):
            raise Refused(401, {"error": "the shared secret is needed: Authorization: Bearer …"})
    elif not asked_by_address(request.headers.get(b"host", b"").decode("latin-1")):
        raise Refused(403, {"error": "without a shared secret, ask by address"})


class Api:
    """Answers requests about `heads`. `gate` decides on each of them whether it may be answered."""

    def __init__(self, heads: Heads, gate: Gate) -> None:
        self._heads = heads
        self._gate = gate

    async def answer(self, stream: trio.SocketStream, request: h11.Request, body: bytes) -> Response:
        try:
            asked = _request(request, body)
            self._gate(stream, asked)
            if asked.path == "/events":
                return self._events(asked)
            return _json(200, await self._answer(asked))
        except Refused as refused:
            return _json(refused.status, refused.answer)

    def refusal(self, status: int) -> Response:
        return _json(status, {"error": _REFUSALS.get(status, "not HTTP that can be understood")})

    async def _answer(self, request: Request) -> object:
        record = request.path.removeprefix("/playheads/")
        handlers: dict[tuple[str, str], Callable[[], Awaitable[object]]] = {
            ("GET", "/time"): self._time,
            ("GET", "/playheads"): self._all,
            ("GET", f"/playheads/{record}"): partial(self._one, record),
            ("POST", f"/playheads/{record}"): partial(self._change, record, request),
        }
        handler = handlers.get((request.method, request.path))
        if handler is None:
            raise Refused(404, {"error": f"no {request.method} {request.path[:200]}"})
        try:
            return await handler()
        except PlayheadInvalid as error:
            raise Refused(400, {"error": str(error)}) from None
        except PlayheadConflict as error:
            raise Refused(409, {"error": str(error), "present": error.present}) from None
        except PlayheadUnreachable as error:
            raise Refused(502, {"error": str(error)}) from None

    async def _time(self) -> object:
        return {"utc": self._heads.utc()}

    async def _all(self) -> object:
        return [head.as_json() for head in self._heads.heads().values()]

    async def _one(self, record: str) -> object:
        return self._heads.get(record_name(record)).as_json()

    async def _change(self, record: str, request: Request) -> object:
        if request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise Refused(415, {"error": "Content-Type: application/json is needed"})
        try:
            change = Change.from_json(json.loads(request.body))
        except (ValueError, RecursionError):
            raise PlayheadInvalid("the body is not JSON") from None
        return (await self._heads.change(record_name(record), change)).as_json()

    def _events(self, request: Request) -> Response:
        if request.method != "GET":
            raise Refused(405, {"error": "GET only"})
        asked = request.query.get("record")
        try:
            return Events(self._heads, record_name(asked[0]) if asked else None)
        except PlayheadInvalid as error:
            raise Refused(400, {"error": str(error)}) from None


class Events(Response):
    """What is and then each change, of one record or of all; ends when the client goes."""

    def __init__(self, heads: Heads, record: str | None) -> None:
        super().__init__(200, [("Content-Type", events.MEDIA_TYPE), ("Cache-Control", "no-store")])
        self._heads = heads
        self._record = record

    @property
    def length(self) -> None:
        return None

    async def send_rest(self, connection: Connection) -> None:
        async with self._heads.watch(self._record) as watch:
            while True:
                chunk = events.KEEP_ALIVE
                with trio.move_on_after(KEEP_ALIVE):
                    chunk = events.encode(await watch.next())
                await connection.send_part(chunk)


def _json(status: int, answer: object) -> Response:
    return Response(status, [("Content-Type", "application/json")], json.dumps(answer).encode() + b"\n")


def _request(event: h11.Request, body: bytes) -> Request:
    try:
        target = urlsplit(event.target.decode("ascii"))
    except ValueError as error:
        raise Refused(400, {"error": f"the request's target can't be read: {error}"}) from None
    return Request(
        method=event.method.decode("ascii"),
        path=unquote(target.path),
        query=parse_qs(target.query, keep_blank_values=True),
        headers=dict(event.headers),
        body=body,
    )
