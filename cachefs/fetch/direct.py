"""Web seeds asked directly: a file, or a part of it, over connections that are kept.

How it works: one GET for each request, with its redirects followed here, because each of them is a URL that a server
chose: where only public addresses may be asked, that is decided for every address that is connected to, and not for
the name, which could resolve to another one a moment later. A connection whose answer was received whole is kept for
the next request, and a kept one may have been closed by the other end meanwhile: then the request is made once
more on a new one. The head of an answer tells all that can be told of a source before its bytes are verified: that it
doesn't have the file, has another one of this name, wants to be left alone, or ignores ranges.

Ranges: RFC 9110, 14. Redirects: 15.4. Retry-After: 10.2.3.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias
from urllib.parse import quote, unquote, urljoin, urlsplit

import h11
import trio

from cachefs import __version__
from cachefs.content import Span
from cachefs.errors import IgnoresRanges, NotAtSource, OtherContent, SourceBusy, SourceFailed
from cachefs.fetch import wire
from cachefs.fetch.addresses import is_public, resolve
from cachefs.fetch.busy import seconds_until
from cachefs.fetch.wire import Body, Framed, Line, Measured

_MOST_REDIRECTS = 4
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_KEPT_FOR = 20.0
"""Seconds; servers close a connection that asks for nothing after 15 s (Apache: 5 s) to several minutes."""
_MOST_KEPT = 8
_CONNECTED_WITHIN, _NEXT_AFTER = 10.0, 0.25


_Place: TypeAlias = "tuple[tuple[bool, str, int], bool]"
"""What a kept connection leads to, and whether only public addresses were allowed for it."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL taken apart."""

    secure: bool
    host: str
    port: int
    path: str
    authority: str
    credentials: str

    @classmethod
    def of(cls, url: str) -> _Target:
        try:
            parts = urlsplit(url)
            secure, port = parts.scheme == "https", parts.port
        except ValueError as error:
            raise SourceFailed(f"sends us to {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceFailed(f"sends us to {url!r}, which is no http:// or https:// URL")
        login, _, authority = parts.netloc.rpartition("@")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(secure, parts.hostname, port or (443 if secure else 80), path, authority, unquote(login))

    @property
    def place(self) -> tuple[bool, str, int]:
        """What a connection is made to."""
        return self.secure, self.host, self.port


class _Race:
    """Connections to several addresses of a host, the first of which is wanted (RFC 8305); the others are closed."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.failure = SourceFailed("can't be connected to: it does not answer")

    def __enter__(self) -> _Race:
        return self

    def __exit__(self, *exception: object) -> None:
        for line in self.lines:
            line.close()

    def winner(self) -> Line:
        """The first, taken out of the race; SourceFailed if there is none."""
        if not self.lines:
            raise self.failure
        return self.lines.pop(0)


class Direct:
    """The connections to web seeds; `open` asks for a file's bytes."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._given_tls = tls
        self._kept: dict[_Place, list[tuple[float, Line]]] = {}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or ssl.create_default_context()

    @asynccontextmanager
    async def open(self, url: str, span: Span | None, *, public: bool = False) -> AsyncIterator[Body]:
        """The bytes of a file, or of a span of it; `public`: nothing is asked at private addresses.

        SourceFailed, and what it is more exactly: NotAtSource, OtherContent, IgnoresRanges, SourceBusy.
        """
        target = _Target.of(url)
        for _ in range(_MOST_REDIRECTS + 1):
            async with self._asked(target, span, public=public) as (response, body):
                if response.status_code not in _REDIRECTS:
                    _check(response, body, span)
                    yield body
                    return
                url = _onward(url, response)
                target = _next(target, url)
        raise SourceFailed(f"more than {_MOST_REDIRECTS} redirects")

    def tidy(self) -> None:
        """Close connections that were kept for nothing."""
        now = trio.current_time()
        for place, lines in list(self._kept.items()):
            for since, line in list(lines):
                if now - since > _KEPT_FOR:
                    lines.remove((since, line))
                    line.close()
            if not lines:
                del self._kept[place]

    def close(self) -> None:
        """Close all connections that nobody uses."""
        for lines in self._kept.values():
            for _, line in lines:
                line.close()
        self._kept.clear()

    @asynccontextmanager
    async def _asked(
        self, target: _Target, span: Span | None, *, public: bool
    ) -> AsyncIterator[tuple[h11.Response, Measured | Framed]]:
        line, http, response = await self._ask(target, span, public=public)
        body = wire.body(line, http, response)
        try:
            yield response, body
        finally:
            if body.whole and isinstance(body, Measured) and _stays(response):
                self._keep((target.place, public), line)
            else:
                line.close()

    async def _ask(
        self, target: _Target, span: Span | None, *, public: bool
    ) -> tuple[Line, h11.Connection, h11.Response]:
        """An answer's head, and the connection that it came by."""
        request = _request(target, span)
        while True:
            line = self._take((target.place, public))
            fresh = line is None
            if line is None:
                line = await self._connect(target, public=public)
            http = h11.Connection(h11.CLIENT)
            try:
                return line, http, await wire.ask(line, http, request)
            except (OSError, h11.ProtocolError) as error:
                line.close()
                if fresh:
                    raise SourceFailed(f"hung up: {error}") from None
            except BaseException:
                line.close()
                raise

    def _take(self, place: _Place) -> Line | None:
        self.tidy()
        lines = self._kept.get(place)
        return lines.pop()[1] if lines else None

    def _keep(self, place: _Place, line: Line) -> None:
        lines = self._kept.setdefault(place, [])
        if len(lines) < _MOST_KEPT:
            lines.append((trio.current_time(), line))
        else:
            line.close()

    async def _connect(self, target: _Target, *, public: bool) -> Line:
        """A connection to the first address that answers; one that is slow to isn't waited for before the next."""
        addresses = await resolve(target.host)
        allowed = [a for a in addresses if not public or is_public(ipaddress.ip_address(a))]
        if not allowed:
            raise SourceFailed(f"{target.host} is at {', '.join(addresses)}, not a public address")
        with _Race() as race:
            with trio.move_on_after(_CONNECTED_WITHIN):
                async with trio.open_nursery() as nursery:
                    for address in allowed:
                        failed = trio.Event()
                        nursery.start_soon(self._run_for, race, target, address, failed, nursery.cancel_scope)
                        with trio.move_on_after(_NEXT_AFTER):
                            await failed.wait()
            return race.winner()

    async def _run_for(
        self, race: _Race, target: _Target, address: str, failed: trio.Event, scope: trio.CancelScope
    ) -> None:
        try:
            race.lines.append(await self._connected(target, address))
        except OSError as error:
            race.failure = SourceFailed(f"can't be connected to: {_reason(error)}")
            failed.set()
        else:
            scope.cancel()

    async def _connected(self, target: _Target, address: str) -> Line:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await connection.connect((address, target.port))
            plain = socket.socket(fileno=connection.detach())
        if not target.secure:
            return Line(plain)
        line = Line(self._tls.wrap_socket(plain, server_hostname=target.host, do_handshake_on_connect=False))
        try:
            await line.shake_hands()
        except BaseException:
            line.close()
            raise
        return line


def _reason(error: OSError) -> str:
    """What the matter is, without the address that trio tells with it."""
    known = error.errno is not None and not isinstance(error, ssl.SSLError)
    return os.strerror(error.errno or 0) if known else str(error)


def _request(target: _Target, span: Span | None) -> h11.Request:
    headers = [("Host", target.authority), ("User-Agent", f"cachefs/{__version__}"), ("Accept", "*/*")]
    headers.append(("Accept-Encoding", "identity"))
    if span is not None:
        headers.append(("Range", f"bytes={span.offset}-{span.end - 1}"))
    if target.credentials:
        headers.append(("Authorization", f"Basic {b64encode(target.credentials.encode()).decode()}"))
    return h11.Request(method="GET", target=target.path, headers=headers)


def _header(response: h11.Response, name: bytes) -> str:
    return next((bytes(value).decode("latin-1") for key, value in response.headers if key == name), "")


def _stays(response: h11.Response) -> bool:
    """Whether the connection may be used again."""
    return response.http_version == b"1.1" and "close" not in _header(response, b"connection").lower()


def _onward(url: str, response: h11.Response) -> str:
    location = _header(response, b"location")
    if not location:
        raise SourceFailed(f"HTTP {response.status_code} without a Location")
    try:
        return quote(urljoin(url, location), safe="%/:=&?~#+!$,;'@()*[]", encoding="latin-1")
    except ValueError as error:
        raise SourceFailed(f"sends us to {location!r}: {error}") from None


def _next(before: _Target, url: str) -> _Target:
    """Where a redirect leads; what let us in is told to the same host only."""
    target = _Target.of(url)
    if target.credentials or target.place != before.place:
        return target
    return _Target(target.secure, target.host, target.port, target.path, target.authority, before.credentials)


def _check(response: h11.Response, body: Body, span: Span | None) -> None:
    """Whether the body that follows is what was asked for."""
    status = response.status_code
    if status in (404, 410):
        raise NotAtSource(f"HTTP {status}")
    if status == 416:
        raise OtherContent(f"has {body.total} bytes under this name, too few for what was asked for")
    if status not in (200, 206):
        reason = f"HTTP {status} {bytes(response.reason).decode('latin-1')}".rstrip()
        raise SourceBusy(reason, seconds_until(_header(response, b"retry-after")))
    if (encoding := _header(response, b"content-encoding").lower()) not in ("", "identity"):
        raise SourceFailed(f"sends the bytes as {encoding}, though plain ones were asked for")
    if span is not None and status == 200 and (span.offset, span.length) != (0, body.length):
        raise IgnoresRanges("does not answer ranges")
    if span is not None and (body.start != span.offset or body.length not in (-1, span.length)):
        raise SourceFailed(f"sent {body.length} bytes from {body.start} on, not {span.length} from {span.offset} on")
