"""Asking web servers, carefully: one GET with its redirects, each step judged.

How it works: redirects are followed here, at most four, because each of them is a URL that a server chose: its
scheme is judged again, and its address where the connection is made (`addresses.py`). What comes back is the
answer's head, and the body in parts as it arrives. A connection has to be there in 10 s and the next bytes in
30 s; there is no limit on the whole while bytes come. A host that asks to be left alone for a while is (`busy.py`).
Every error of the HTTP library becomes one of ours here, once: `SourceSilent` and `Interrupted` may be tried again,
`SourceRefused` may not.

Plain bytes are asked for; a server that sends them compressed all the same is refused, for then neither
ranges nor checksums mean what we think.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote, urljoin, urlsplit

import httpcore
import trio

from cachefs import __version__
from cachefs.config.values import has_login, without_login
from cachefs.errors import SourceRefused, SourceSilent, UrlFailed
from cachefs.fetch.addresses import GuardedBackend
from cachefs.fetch.busy import Wishes, seconds_until

MOST_REDIRECTS = 4
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_LOGIN = frozenset((401, 403, 407))
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))


class Interrupted(UrlFailed):
    """A body, or the way to it, that ended before its time: asking again may help."""


class Unreachable(Interrupted):
    """A host that refuses connections, or whose name can't be resolved."""


class RangeRefused(Interrupted):
    """A range that the server says it doesn't have."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be asked, and how long is waited; times in seconds.

    `allow_http`: plain http too; `allow_private`: hosts with private addresses, loopback among them.
    """

    allow_http: bool = False
    allow_private: bool = False
    connect: float = 10.0
    stall: float = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response's head, after redirects; header names in lower case. `body` gives the parts as they come."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]

    @property
    def length(self) -> int | None:
        """What Content-Length says, in bytes."""
        value = self.headers.get("content-length", "")
        return int(value) if value.isdigit() else None

    @property
    def etag(self) -> str:
        """The strong validator; "" if there is none. A weak one says nothing about bytes."""
        value = self.headers.get("etag", "")
        return value if value.startswith('"') and value.endswith('"') and len(value) > 2 else ""


class WebClient:
    """A pool of connections under `rules`; use it as a context manager."""

    def __init__(self, rules: Rules, tls: ssl.SSLContext | None = None) -> None:
        self.rules = rules
        self._wishes = Wishes()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=64,
            keepalive_expiry=30.0,
            network_backend=GuardedBackend(allow_private=rules.allow_private),
        )

    async def __aenter__(self) -> WebClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._pool.aclose()

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        """The answer to a GET of `url`, redirects followed: 200 or 206, whatever else is an error.

        SourceRefused, SourceSilent, UrlFailed (404, say), Busy, and Interrupted for what may pass; the body raises
        Interrupted and SourceSilent too.
        """
        for _ in range(MOST_REDIRECTS + 1):
            self._judge(url)
            self._wishes.respect(url)
            async with self._ask(url, headers) as answer:
                if answer.status not in _REDIRECTS:
                    self._check(answer)
                    yield answer
                    return
                onward = _location(answer)
            url = onward
        raise UrlFailed(url, f"more than {MOST_REDIRECTS} redirects")

    def _judge(self, url: str) -> None:
        if has_login(url):  # a redirect's too: who sends a login along has it read in every log
            why = "has a login in it, with which nothing is asked; an rclone remote can have it (rclone://LABEL/path)"
            raise SourceRefused(without_login(url), why)
        scheme = urlsplit(url).scheme
        if scheme == "http" and not self.rules.allow_http:
            raise SourceRefused(url, "is plain http; [records] allow_http = true allows it")
        if scheme not in ("http", "https"):
            raise SourceRefused(url, "is neither https nor http")

    def _check(self, answer: Answer) -> None:
        status, wait = answer.status, seconds_until(answer.headers.get("retry-after", ""))
        if status in _LOGIN:
            raise SourceRefused(answer.url, f"HTTP {status}: it won't let us in")
        if status == 416:
            raise RangeRefused(answer.url, "HTTP 416: it has no such range")
        if status in _PASSING and wait:
            raise self._wishes.wish(answer.url, f"HTTP {status}: busy", wait)
        if status in _PASSING:
            raise Interrupted(answer.url, f"HTTP {status}")
        if status not in (200, 206):
            raise UrlFailed(answer.url, f"HTTP {status}")
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise UrlFailed(answer.url, f"sends the bytes as {encoding}, though plain ones were asked for")

    @asynccontextmanager
    async def _ask(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        rules = self.rules
        limits = {"connect": rules.connect, "read": rules.stall, "write": rules.stall, "pool": rules.stall}
        sent = {"User-Agent": f"cachefs/{__version__}", "Accept": "*/*", **headers}
        request = [("Host", urlsplit(url).netloc), *sent.items()]
        with _Translated(url, rules):
            response = await self._pool.handle_async_request(
                httpcore.Request("GET", url, headers=request, extensions={"timeout": limits})
            )
        body = _Body(response, url, rules)
        try:
            names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            yield Answer(url, response.status, names, body)
        finally:
            await body.leave()
            await response.aclose()


class _Body:
    """The parts of a response's body, with our errors."""

    def __init__(self, response: httpcore.Response, url: str, rules: Rules) -> None:
        self._parts = response.aiter_stream()
        self._translated = _Translated(url, rules)

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        with self._translated:
            return await anext(self._parts)

    async def leave(self) -> None:
        """End the library's generators where they are, if the body was not read to its end.

        Left to the garbage collector they would end later, outside of any task; going on under cancellation unwinds
        them now.
        """
        with trio.CancelScope() as scope:
            scope.cancel()
            with suppress(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
                async for _ in self._parts:
                    pass


def _location(answer: Answer) -> str:
    target = answer.headers.get("location", "")
    if not target:
        raise UrlFailed(answer.url, f"HTTP {answer.status} without a Location")
    # What isn't ASCII came as Latin-1, and goes back as the same bytes.
    return quote(urljoin(answer.url, target), safe="%/:=&?~#+!$,;'@()*[]", encoding="latin-1")


class _Translated:
    """Turn httpcore's errors into ours."""

    def __init__(self, url: str, rules: Rules) -> None:
        self._url = url
        self._rules = rules

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, SourceRefused):
            raise SourceRefused(self._url, f"{error.url} {error.why}") from None
        if isinstance(error, httpcore.TimeoutException):
            raise SourceSilent(self._url, self._silence(error)) from None
        if isinstance(error, httpcore.ConnectError):
            raise Unreachable(self._url, _reason(error)) from None
        if isinstance(error, httpcore.NetworkError | httpcore.ProtocolError):
            raise Interrupted(self._url, _reason(error)) from None
        if isinstance(error, ssl.SSLError | OSError):
            raise Interrupted(self._url, f"{type(error).__name__}: {error}") from None

    def _silence(self, error: httpcore.TimeoutException) -> str:
        if isinstance(error, httpcore.ConnectTimeout):
            return f"no connection within {self._rules.connect:g} s"
        if isinstance(error, httpcore.PoolTimeout):
            return f"no connection was free within {self._rules.stall:g} s"
        return f"silent for {self._rules.stall:g} s"


def _reason(error: BaseException) -> str:
    """What the system said, if it did, or else the first words in the chain: the library's own are often empty."""
    inner: BaseException | None = error
    words = ""
    while inner is not None:
        if isinstance(inner, OSError) and (inner.errno or 0) > 0 and not isinstance(inner, ssl.SSLError):
            return os.strerror(inner.errno or 0)
        words = words or str(inner)
        inner = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner.__cause__ or inner.__context__
    return words or type(error).__name__
