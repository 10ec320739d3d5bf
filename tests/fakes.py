"""Parts that do what a test tells them, for faults and interleavings that no real counterpart can be made to produce.

How it works: `FakeFetcher` remembers what is demanded, as a real one does, and lands, fails or ends nothing by
itself. Bytes that land are written to the object's file first, as the contract of `Sink.landed` has it.
`FakeFinder` and `FakePeers` know some metadata and take their time. `WebHost` is a real HTTP server with answers
that no sane one would give.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Set
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import h11
import trio

from cachefs import metainfo
from cachefs.content import ContentId
from cachefs.errors import MetadataUnavailable
from cachefs.fetch.base import Item, Job, Sink, Transfer
from cachefs.manifests import Manifests
from cachefs.metainfo import Metainfo
from cachefs.store import ObjectStore, State

BLOCK = 2**16
WITHIN = 20.0
"""Seconds in which a condition that is waited for must hold."""


async def until(condition: Callable[[], bool], *, every: float = 0.01) -> None:
    """Return when `condition()` holds; it is looked at `every` so many seconds."""
    with trio.fail_after(WITHIN):
        while True:
            if condition():
                return
            await trio.sleep(every)


def content(seed: int, length: int, block: int = BLOCK, name: str = "v1-000000-000500-headers.seg") -> Content:
    """A torrent and its bytes, which only the arguments decide."""
    data = random.Random(seed).randbytes(length)
    pieces = [data[at : at + block] for at in range(0, length, block)]
    digests = b"".join(hashlib.sha1(piece, usedforsecurity=False).digest() for piece in pieces)
    return Content(metainfo.build(name, length, digests, block), data)


class Content:
    """A metainfo, and the bytes that it describes."""

    def __init__(self, info: Metainfo, data: bytes) -> None:
        self.info = info
        self.data = data

    @property
    def item(self) -> Item:
        return Item(self.info.name, self.info.manifest, self.info)

    @property
    def blocks(self) -> int:
        return self.info.manifest.blocks

    def piece(self, index: int) -> bytes:
        span = self.info.manifest.span(index)
        return self.data[span.offset : span.end]


class FakeDownload:
    """One job: what is wanted of it now, and how it was treated."""

    def __init__(self, job: Job, sink: Sink, data: bytes) -> None:
        self.job = job
        self.sink = sink
        self.urgent: frozenset[int] = frozenset()
        self.ahead: frozenset[int] = frozenset()
        self.demands: list[frozenset[int]] = []
        self.opened = True
        self.ended = False
        self.restarts = 0
        self.doubts = 0
        self.words = ""
        self.moved = float("-inf")
        self._data = data

    def demand(self, urgent: Set[int], ahead: Set[int]) -> None:
        self.urgent, self.ahead = frozenset(urgent), frozenset(ahead)
        self.demands.append(self.urgent | self.ahead)

    def moved_at(self) -> float:
        return self.moved

    def sources(self) -> list[str]:
        return ["fake"]

    def trouble(self) -> str:
        return self.words

    def restart(self) -> None:
        self.restarts += 1

    def doubted(self) -> None:
        self.doubts += 1

    def open(self) -> None:
        self.opened = True

    def close(self) -> None:
        self.opened = False
        self.demand(frozenset(), frozenset())

    def leave(self) -> None:
        self.close()
        self.end()

    def land(self, *blocks: int) -> None:
        """Write blocks into the file, and say so."""
        for index in blocks:
            span = self.job.item.manifest.span(index)
            with self.job.path.open("r+b") as file:
                file.seek(span.offset)
                file.write(self._data[span.offset : span.end])
            self.sink.landed(index)

    def end(self) -> None:
        """Let go of the file, as a fetcher may when nobody reads it."""
        self.ended = True
        self.sink.ended()


class FakeFetcher:
    """A fetcher of `contents`; `jobs` are its downloads, oldest first."""

    def __init__(self, *contents: Content) -> None:
        self.jobs: list[FakeDownload] = []
        self._data = {item.info.content: item.data for item in contents}

    def download(self, job: Job, sink: Sink) -> FakeDownload:
        assert all(d.ended for d in self.jobs if d.job.item.content == job.item.content), "two at a time"
        self.jobs.append(FakeDownload(job, sink, self._data[job.item.content]))
        return self.jobs[-1]

    def transfers(self) -> list[Transfer]:
        return []

    @property
    def last(self) -> FakeDownload:
        return self.jobs[-1]


class FakeFinder:
    """Finds metadata among `known`, after `delay` seconds, and hands it to `manifests`."""

    def __init__(self, *known: Metainfo, delay: float = 1.0) -> None:
        self.manifests: Manifests | None = None
        self.wanted: dict[str, ContentId] = {}
        self.lookups: list[str] = []
        self._known = {info.content: info for info in known}
        self._delay = delay

    def want(self, names: Mapping[str, ContentId]) -> None:
        self.wanted.update(names)

    def failure(self, name: str) -> str:
        return "" if self.wanted.get(name) in self._known else "not among the known"

    async def lookup(self, name: str) -> None:
        self.lookups.append(name)
        if name not in self.wanted:
            return
        await trio.sleep(self._delay)
        info = self._known.get(self.wanted[name])
        if info is None:
            raise MetadataUnavailable(name, "not among the known")
        assert self.manifests is not None
        self.manifests.found(info)
        del self.wanted[name]


@contextmanager
def store_at(root: Path) -> Iterator[ObjectStore]:
    """A store below `root`, and its state closed afterwards."""
    root.mkdir(parents=True, exist_ok=True)
    state = State.open(root / "state.db")
    try:
        yield ObjectStore(root / "store", state)
    finally:
        state.close()


class FakePeers:
    """Peers that send the info dictionaries of `known`, each after `delay` seconds, and are silent about others."""

    def __init__(self, *known: Metainfo, delay: float = 1.0) -> None:
        self.known = {info.content: info.raw for info in known}
        self.delay = delay
        self.has_peers = True
        self.asked: list[str] = []
        self.answering = 0
        self.most_at_once = 0

    async def metainfo(self, content: ContentId, name: str) -> bytes:
        self.asked.append(name)
        self.answering += 1
        self.most_at_once = max(self.most_at_once, self.answering)
        try:
            await trio.sleep(self.delay)
            if content not in self.known:
                await trio.sleep_forever()
            return self.known[content]
        finally:
            self.answering -= 1


@dataclass(frozen=True)
class Answer:
    """What a `WebHost` says; `dribble` is a pause before each byte of the body, in seconds."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    dribble: float = 0.0


@dataclass
class WebHost:
    """A running HTTP server: `answers` by request target, as the client wrote it; anything else is a 404."""

    url: str
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def _serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with stream:
                while await self._answer(h11.Connection(h11.SERVER), stream):
                    pass

    async def _answer(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        if not isinstance(event, h11.Request):
            return False
        self.asked.append(event.target.decode())
        answer = self.answers.get(event.target.decode(), Answer(404))
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
        headers.append((b"Content-Length", b"%d" % len(answer.body)))
        head = connection.send(h11.Response(status_code=answer.status, headers=headers))
        await stream.send_all(head or b"")
        if not answer.dribble:
            await stream.send_all(answer.body)
        for at in range(len(answer.body) if answer.dribble else 0):
            await trio.sleep(answer.dribble)
            await stream.send_all(answer.body[at : at + 1])
        return True


@asynccontextmanager
async def web_host() -> AsyncIterator[WebHost]:
    """An HTTP server on a free loopback port; its `url` ends in `/`."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host = WebHost(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, host._serve, [listener])
        yield host
        nursery.cancel_scope.cancel()
