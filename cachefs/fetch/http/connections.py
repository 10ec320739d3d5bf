"""Connections to web servers: made to addresses that were judged, and kept for the next request.

How it works: a URL comes from a lock that somebody else may have written, and a redirect from a server. So where only
public addresses may be asked, that is decided for every address that is connected to, and not for the name, which
could resolve to another one a moment later (DNS rebinding). Of several addresses that a host has, one that is slow to
answer isn't waited for before the next is tried. A connection whose answer was received whole is kept, and a kept
one may have been closed by the other end meanwhile: then the request is made once more on a new one.

Requests: RFC 9110. Several addresses: RFC 8305.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias
from urllib.parse import quote, unquote, urljoin, urlsplit

import h11
import trio

from cachefs import __version__
from cachefs.config.values import without_login
from cachefs.errors import NoAnswer, NotPublic, NotReached, SourceFailed
from cachefs.fetch.http import wire
from cachefs.fetch.http.addresses import is_public, resolve
from cachefs.fetch.http.wire import Framed, Line, Measured

MOST_REDIRECTS = 4
REDIRECTS = frozenset((301, 302, 303, 307, 308))
_KEPT_FOR = 20.0
"""Seconds; servers close a connection that asks for nothing after 15 s (Apache: 5 s) to several minutes."""
_MOST_KEPT = 8
_CONNECTED_WITHIN, _NEXT_AFTER = 10.0, 0.25


_Place: TypeAlias = "tuple[tuple[bool, str, int], bool]"
"""What a kept connection leads to, and whether only public addresses were allowed for it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart; `credentials` are a login that was in it, NAME:PASSWORD."""

    secure: bool
    host: str
    port: int
    path: str
    authority: str
    credentials: str

    @classmethod
    def of(cls, url: str) -> Target:
        """SourceFailed if it is no web address."""
        try:
            parts = urlsplit(url)
            secure, port = parts.scheme == "https", parts.port
        except ValueError as error:
            raise SourceFailed(f"sends us to {without_login(url)!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceFailed(f"sends us to {without_login(url)!r}, which is no http:// or https:// URL")
        login, _, authority = parts.netloc.rpartition("@")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(secure, parts.hostname, port or (443 if secure else 80), path, authority, unquote(login))

    @property
    def place(self) -> tuple[bool, str, int]:
        """What a connection is made to."""
        return self.secure, self.host, self.port


class _Race:
    """Connections to several addresses of a host, the first of which is wanted (RFC 8305); the others are closed."""

    def __init__(self, within: float) -> None:
        self.lines: list[Line] = []
        self.failure: SourceFailed = NoAnswer(f"no connection within {within:g} s")

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


class Connections:
    """`asked` makes requests. Seconds: a connection is there `within` so many, an answer's head after `patience`."""

    def __init__(
        self, tls: ssl.SSLContext | None = None, *, within: float = _CONNECTED_WITHIN, patience: float = float("inf")
    ) -> None:
        self._given_tls = tls
        self._within = within
        self._patience = patience
        self._kept: dict[_Place, list[tuple[float, Line]]] = {}

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or ssl.create_default_context()

    @asynccontextmanager
    async def asked(
        self, target: Target, headers: Mapping[str, str], *, public: bool
    ) -> AsyncIterator[tuple[h11.Response, Measured | Framed]]:
        """The answer to a GET, head and body; `public`: nothing is asked at private addresses.

        SourceFailed, and of its kinds NotReached, NoAnswer and NotPublic.
        """
        line, http, response = await self._ask(target, _request(target, headers), public=public)
        body = wire.body(line, http, response)
        try:
            yield response, body
        finally:
            if body.whole and isinstance(body, Measured) and _stays(response):
                self._keep((target.place, public), line)
            else:
                line.close()

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

    async def _ask(
        self, target: Target, request: h11.Request, *, public: bool
    ) -> tuple[Line, h11.Connection, h11.Response]:
        """An answer's head, and the connection that it came by."""
        while True:
            line = self._take((target.place, public))
            fresh = line is None
            if line is None:
                line = await self._connect(target, public=public)
            http = h11.Connection(h11.CLIENT)
            try:
                with trio.fail_after(self._patience):
                    return line, http, await wire.ask(line, http, request)
            except (OSError, h11.ProtocolError) as error:
                line.close()
                if fresh:
                    why = f"it hung up: {_reason(error)}" if isinstance(error, OSError) else str(error)
                    raise SourceFailed(why) from None
            except trio.TooSlowError:
                line.close()
                raise NoAnswer(f"silent for {self._patience:g} s") from None
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

    async def _connect(self, target: Target, *, public: bool) -> Line:
        """A connection to the first address that answers; one that is slow to isn't waited for before the next."""
        with _Race(self._within) as race:
            with trio.move_on_after(self._within):
                addresses = await _allowed(target.host, public=public)
                async with trio.open_nursery() as nursery:
                    for address in addresses:
                        failed = trio.Event()
                        nursery.start_soon(self._run_for, race, target, address, failed, nursery.cancel_scope)
                        with trio.move_on_after(_NEXT_AFTER):
                            await failed.wait()
            return race.winner()

    async def _run_for(
        self, race: _Race, target: Target, address: str, failed: trio.Event, scope: trio.CancelScope
    ) -> None:
        try:
            race.lines.append(await self.connected(target, address))
        except OSError as error:
            why = _reason(error)
            race.failure = NotReached(why, f"can't be connected to: {why}")
            failed.set()
        else:
            scope.cancel()

    async def connected(self, target: Target, address: str) -> Line:
        """A connection to one address of the target. OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with trio.socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await connection.connect((address, target.port))
            plain = socket.socket(fileno=connection.detach())
        if not target.secure:
            return Line(plain)
        return await self._secured(target, plain)

    async def _secured(self, target: Target, plain: socket.socket) -> Line:
        line = Line(self._tls.wrap_socket(plain, server_hostname=target.host, do_handshake_on_connect=False))
        try:
            await line.shake_hands()
        except BaseException:
            line.close()
            raise
        return line


async def _allowed(host: str, *, public: bool) -> list[str]:
    """The addresses of a host that may be connected to."""
    addresses = await resolve(host)
    allowed = [address for address in addresses if not public or is_public(ipaddress.ip_address(address))]
    if not allowed:
        raise NotPublic(host, addresses)
    return allowed


def _reason(error: OSError) -> str:
    """What the matter is, without the address that trio tells with it."""
    known = error.errno is not None and not isinstance(error, ssl.SSLError)
    return os.strerror(error.errno or 0) if known else str(error)


def _request(target: Target, headers: Mapping[str, str]) -> h11.Request:
    named = {"Host": target.authority, "User-Agent": f"cachefs/{__version__}", "Accept": "*/*"}
    named |= {"Accept-Encoding": "identity", **headers}
    try:
        told = [(name.encode(), value.encode("latin-1")) for name, value in named.items()]
        return h11.Request(method="GET", target=target.path, headers=told)
    except (h11.ProtocolError, ValueError) as error:
        raise SourceFailed(f"can't be asked for {target.path!r}: {error}") from None


def header(response: h11.Response, name: bytes) -> str:
    """The value of the first header with this name, which is in lower case; "" if there is none."""
    return next((bytes(value).decode("latin-1") for key, value in response.headers if key == name), "")


def _stays(response: h11.Response) -> bool:
    """Whether the connection may be used again."""
    return response.http_version == b"1.1" and "close" not in header(response, b"connection").lower()


def redirected(url: str, status: int, location: str) -> str:
    """Where an answer from `url` sends us. SourceFailed if it doesn't say."""
    if not location:
        raise SourceFailed(f"HTTP {status} without a Location")
    try:  # what isn't ASCII came as Latin-1, and goes back as the same bytes
        return quote(urljoin(url, location), safe="%/:=&?~#+!$,;'@()*[]", encoding="latin-1")
    except ValueError as error:
        raise SourceFailed(f"sends us to {without_login(location)!r}: {error}") from None
