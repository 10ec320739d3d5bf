"""Asking web servers, carefully: one GET with its redirects, each step judged.

How it works: redirects are followed here, at most four, because each of them is a URL that a server chose: its
scheme is judged again, and its address where the connection is made (`connections.py`). What comes back is the
answer's head, and a body to be read. A connection has to be there in 10 s and the next bytes in 30 s; there is no limit
on the whole while bytes come. A host that asks to be left alone for a while is (`busy.py`). What went wrong below
becomes an error about the URL here, once: `SourceSilent` and `Interrupted` may be tried again, `SourceRefused` may not.

Plain bytes are asked for; a server that sends them compressed all the same is refused, for then neither
ranges nor checksums mean what we think.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

import h11
import trio

from cachefs.config.values import has_login, without_login
from cachefs.errors import NoAnswer, NotPublic, NotReached, SourceFailed, SourceRefused, SourceSilent, UrlFailed
from cachefs.fetch.http import wire
from cachefs.fetch.http.busy import Wishes, seconds_until
from cachefs.fetch.http.connections import MOST_REDIRECTS, REDIRECTS, Connections, Target, redirected
from cachefs.fetch.http.wire import Body, ContentRange

_MOST_CONNECTIONS = 64
_STRONG_ETAG = re.compile(r'"[^"]+"')
_LOGIN = frozenset((401, 403, 407))
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))


class Interrupted(UrlFailed):
    """A body, or the way to it, that ended before its time: asking again may help."""


class Unreachable(Interrupted):
    """A host that refuses connections, or whose name can't be resolved."""


class RangeRefused(Interrupted):
    """A range that the server says it doesn't have; `total` is how many bytes it has, if it says so."""

    def __init__(self, url: str, total: int | None) -> None:
        super().__init__(url, "HTTP 416: it has no such range")
        self.total = total


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
    """A response's head, after redirects. Its body may be silent for `stall` seconds.

    `headers` by name in lower case; of one that came several times, the values in a list (RFC 9110, 5.3).
    """

    url: str
    status: int
    headers: Mapping[str, str]
    body: Body
    stall: float

    @property
    def length(self) -> int | None:
        """What Content-Length says, in bytes."""
        value = self.headers.get("content-length", "")
        return int(value) if value.isdigit() else None

    @property
    def range(self) -> ContentRange | None:
        """What Content-Range says."""
        return wire.content_range(self.headers.get("content-range", ""))

    @property
    def etag(self) -> str:
        """The strong validator; "" if there is none. A weak one says nothing about bytes."""
        value = self.headers.get("etag", "")
        return value if _STRONG_ETAG.fullmatch(value) else ""

    async def read_some(self, buffer: memoryview) -> int:
        """Receive into `buffer` until it is full, or what a moment brings; 0 at the end. Interrupted, SourceSilent."""
        return await self._read(self.body.read_some, buffer)

    async def read_next(self, buffer: memoryview) -> int:
        """Receive into `buffer` what comes next; 0 at the end. Interrupted, SourceSilent."""
        return await self._read(self.body.read_next, buffer)

    async def _read(self, read: Callable[[memoryview], Awaitable[int]], buffer: memoryview) -> int:
        with trio.move_on_after(self.stall):
            count = await read(buffer)
            if not count and not self.body.whole:
                raise self.cut_short()
            return count
        raise self.silent()

    def cut_short(self) -> Interrupted:
        """What to raise where the body ends before its time."""
        return Interrupted(self.url, "gave less than it was asked for" if self.body.whole else "the connection ended")

    def silent(self) -> SourceSilent:
        """What to raise where nothing more comes."""
        return SourceSilent(self.url, f"silent for {self.stall:g} s")


class WebClient:
    """A pool of connections under `rules`; use it as a context manager."""

    def __init__(self, rules: Rules, tls: ssl.SSLContext | None = None) -> None:
        self.rules = rules
        self._wishes = Wishes()
        self._connections = Connections(tls, within=rules.connect, patience=rules.stall)
        self._free = trio.Semaphore(_MOST_CONNECTIONS)

    async def __aenter__(self) -> WebClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._connections.close()

    def tidy(self) -> None:
        """Close connections that were kept for nothing."""
        self._connections.tidy()

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
                if answer.status not in REDIRECTS:
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
            raise RangeRefused(answer.url, answer.range.total if answer.range else None)
        if status in _PASSING and wait:
            raise self._wishes.wish(answer.url, f"HTTP {status}: busy", wait)
        if status in _PASSING:
            raise Interrupted(answer.url, f"HTTP {status}")
        if status not in (200, 206):
            raise UrlFailed(answer.url, f"HTTP {status}")
        encoding = answer.headers.get("content-encoding", "").lower()
        if any(coding.strip() not in ("", "identity") for coding in encoding.split(",")):
            raise UrlFailed(answer.url, f"sends the bytes as {encoding}, though plain ones were asked for")

    @asynccontextmanager
    async def _ask(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        async with self._turn(url), AsyncExitStack() as stack:
            with _about(url):
                asked = self._connections.asked(Target.of(url), headers, public=not self.rules.allow_private)
                response, body = await stack.enter_async_context(asked)
            yield Answer(url, response.status_code, _named(response), body, self.rules.stall)

    @asynccontextmanager
    async def _turn(self, url: str) -> AsyncIterator[None]:
        """One of so many connections."""
        with trio.move_on_after(self.rules.stall) as waiting:
            await self._free.acquire()
        if waiting.cancelled_caught:
            raise SourceSilent(url, f"no connection was free within {self.rules.stall:g} s")
        try:
            yield
        finally:
            self._free.release()


def _named(response: h11.Response) -> dict[str, str]:
    said: dict[str, dict[str, None]] = {}
    for name, value in response.headers:  # the same value twice is one: many a proxy doubles what is no list
        said.setdefault(bytes(name).decode("latin-1"), {})[bytes(value).decode("latin-1")] = None
    return {name: ", ".join(values) for name, values in said.items()}


def _location(answer: Answer) -> str:
    with _about(answer.url):
        return redirected(answer.url, answer.status, answer.headers.get("location", ""))


@contextmanager
def _about(url: str) -> Iterator[None]:
    """Turn errors of a connection into errors about a URL."""
    try:
        yield
    except NotPublic as error:
        where = f"{error.host} is at {error.addresses[0]}, a private address"
        raise SourceRefused(url, f"{where}; [records] allow_private = true allows it") from None
    except NotReached as error:
        raise Unreachable(url, error.why) from None
    except NoAnswer as error:
        raise SourceSilent(url, str(error)) from None
    except SourceFailed as error:
        raise Interrupted(url, str(error)) from None
