"""Playheads that another daemon decides on, reached over HTTP: by its address, or by the Unix socket of a local one.

How it works: one event stream keeps a mirror of all playheads, a second connection asks for the time every few
seconds, and changes are posted. When the other side is gone the mirror stays as it was, and music goes on by it, for
a playhead needs no news to be right. The stream is opened again after a pause that doubles up to ten seconds. Then all
playheads are asked for, and the mirror becomes what is: the other side may have lost its board. Whatever changes from
then on comes by the stream, which was opened before that. Revisions have no say in it, for a lost board counts anew,
nor has the answer to a change, which races with the event about it.

`RemoteBoard` is one of the two `Heads`, so a daemon that follows serves its own machine with the same API, and the
machine's players and commands need not know where playheads are decided.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import trio

from cachefs.config.values import without_login
from cachefs.errors import CachefsError, PlayheadConflict, PlayheadInvalid, PlayheadUnreachable
from cachefs.fetch.http.body import read_body
from cachefs.playhead import events
from cachefs.playhead.board import MAX_RECORDS, Watch, Watchers
from cachefs.playhead.clock import FollowedUtc, steady
from cachefs.playhead.model import Change, Playhead, record_name
from cachefs.playhead.server import SOCKET
from cachefs.sockets import address

_TIMEOUT = httpx.Timeout(10.0)
_SILENCE = 30.0
"""Seconds without any event or comment after which a stream counts as dead; the server says something every ten."""

_FIRST_SAMPLES, _EVERY = 5, 10.0
"""How often the time is asked for at the start of a connection, and every how many seconds from then on."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_MIRRORED_WITHIN = 1.0
_LARGEST_ANSWER = 64 * 2**20
"""Bytes: more than all playheads that a daemon keeps."""

_LONGEST_REFUSAL = 2**16
_LONGEST_REASON = 500
"""Characters: each of daemons that follow each other in a ring would tell the other's reason with its own, for ever."""

_MOST_EVENTS = 2 * MAX_RECORDS
"""How many playheads of a stream may wait to be taken: at its beginning all come at once."""

_UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
"""What httpx raises for a daemon that can't be asked; the last one for a host that no name can be."""

log = logging.getLogger(__name__)


class PlayheadClient:
    """The API of one daemon, a method a request. Made by `connect`."""

    def __init__(self, http: httpx.AsyncClient, where: str) -> None:
        self._http = http
        self.where = where

    async def time(self) -> float:
        """The daemon's time, in seconds since 1970."""
        answer = await self._ask("GET", "/time")
        if not isinstance(answer, dict) or not isinstance(answer.get("utc"), float):
            raise PlayheadUnreachable(self.where, f"the time is no number: {answer!r:.80}")
        return float(answer["utc"])

    async def get(self, record: str) -> Playhead:
        return self._head(await self._ask("GET", _path(record)))

    async def heads(self) -> list[Playhead]:
        """All playheads that somebody has touched."""
        answer = await self._ask("GET", "/playheads")
        if not isinstance(answer, list):
            raise PlayheadUnreachable(self.where, f"the playheads are no list: {answer!r:.80}")
        return [self._head(item) for item in answer]

    async def change(self, record: str, change: Change) -> Playhead:
        """The playhead after the change; PlayheadConflict, PlayheadInvalid, PlayheadUnreachable."""
        return self._head(await self._ask("POST", _path(record), change.as_json()))

    @asynccontextmanager
    async def events(self) -> AsyncIterator[EventStream]:
        """The event stream, open: first what is, then each change. PlayheadUnreachable if it can't be opened."""
        async with contextlib.AsyncExitStack() as stack:
            timeout = httpx.Timeout(10.0, read=_SILENCE)
            try:
                opening = self._http.stream("GET", "/events", timeout=timeout)
                response = await stack.enter_async_context(opening)
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await read_body(response, _LONGEST_REFUSAL) or b"")
                self._require_plain(response)
            except _UNREACHABLE as error:
                raise PlayheadUnreachable(self.where, _told(error)) from error
            nursery = await stack.enter_async_context(trio.open_nursery())
            stream = EventStream(self.where)
            nursery.start_soon(stream.pump, response)
            try:
                yield stream
            finally:
                nursery.cancel_scope.cancel()

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            async with self._http.stream(method, path, json=body) as response:
                raw = await read_body(response, _LARGEST_ANSWER)
        except _UNREACHABLE as error:
            raise PlayheadUnreachable(self.where, _told(error)) from error
        if raw is None:
            raise PlayheadUnreachable(self.where, f"the answer has more than {_LARGEST_ANSWER} bytes")
        if response.status_code != 200:
            raise self._refusal(response.status_code, raw, body)
        return self._json(raw)

    def _require_plain(self, response: httpx.Response) -> None:
        """What is compressed on its way is held back until there is more of it."""
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() not in ("", "identity"):
            raise PlayheadUnreachable(self.where, f"events come as {encoding}, though plain ones were asked for")

    def _json(self, raw: bytes) -> Any:
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise PlayheadUnreachable(self.where, f"the answer is not JSON: {raw[:80]!r}") from None

    def _head(self, data: object) -> Playhead:
        try:
            return Playhead.from_json(data)
        except PlayheadInvalid as error:
            raise PlayheadUnreachable(self.where, f"the answer is no playhead: {error}") from None

    def _refusal(self, status: int, raw: bytes, asked: Mapping[str, Any] | None = None) -> Exception:
        answer = self._json(raw) if raw[:1] == b"{" else {}
        why = str(answer.get("error", f"HTTP status {status}"))[:_LONGEST_REASON]
        if status == 409 and "present" in answer:
            present = self._head(answer["present"])
            expected = (asked or {}).get("if_revision", 0)
            return PlayheadConflict(present.record, expected, present.revision, answer["present"])
        return PlayheadInvalid(why) if status == 400 else PlayheadUnreachable(self.where, why)


class EventStream:
    """Playheads as they come. Iterating it ends with PlayheadUnreachable, which says why there are no more.

    The response is read in a task of its own, which waits for nothing else and is only ever left by cancelling it:
    httpx reads through several async generators, and leaving a loop over one would leave the others to the garbage
    collector.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._why = "the event stream ended"
        self._sending, self._receiving = trio.open_memory_channel[Playhead](_MOST_EVENTS)

    async def pump(self, response: httpx.Response) -> None:
        decoder = events.Decoder()
        with self._sending, trio.CancelScope() as reading:
            try:
                async for chunk in response.aiter_raw():
                    if not self._taken(decoder, chunk):
                        reading.cancel()
            except (httpx.HTTPError, OSError) as error:
                self._why = _told(error)

    def _taken(self, decoder: events.Decoder, chunk: bytes) -> bool:
        try:
            for head in decoder.feed(chunk):
                self._sending.send_nowait(head)
        except PlayheadInvalid as error:
            self._why = f"an event that is none: {error}"
            return False
        except trio.WouldBlock:
            self._why = f"more than {_MOST_EVENTS} events that nobody has taken"
            return False
        return True

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Playhead:
        try:
            return await self._receiving.receive()
        except trio.EndOfChannel:
            raise PlayheadUnreachable(self._where, self._why) from None


def _told(error: Exception) -> str:
    words = str(error) or type(error).__name__
    return f"no daemon answers: {words}; is it mounted?" if isinstance(error, httpx.ConnectError) else words


def _path(record: str) -> str:
    return f"/playheads/{quote(record_name(record))}"


@asynccontextmanager
async def connect(where: Path | str, token: str = "") -> AsyncIterator[PlayheadClient]:
    """A client of the daemon that has this data directory, or this URL.

    PlayheadUnreachable if there is no such directory or URL, or the secret is one that no daemon has.
    """
    headers = {"Accept-Encoding": "identity", **_authorization(where, token)}
    with contextlib.ExitStack() as stack:
        if isinstance(where, Path):
            base, transport = httpx.URL("http://localhost"), httpx.AsyncHTTPTransport(uds=_socket(stack, where))
        else:
            base, transport = _url(where), httpx.AsyncHTTPTransport()  # no proxy: latency is what this is about
        async with httpx.AsyncClient(base_url=base, transport=transport, headers=headers, timeout=_TIMEOUT) as http:
            yield PlayheadClient(http, without_login(str(where)))


def _authorization(where: Path | str, token: str) -> dict[str, str]:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise PlayheadUnreachable(str(where), "a token has printable ASCII characters and no blanks")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _url(where: str) -> httpx.URL:
    try:
        url = httpx.URL(where)
    except httpx.InvalidURL as error:
        raise PlayheadUnreachable(where, f"can't be read as a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise PlayheadUnreachable(where, "is no http:// or https:// URL")
    return url


def _socket(stack: contextlib.ExitStack, data_dir: Path) -> str:
    """The address of a local daemon's socket, valid as long as what is on the stack."""
    try:
        return stack.enter_context(address(data_dir, SOCKET))
    except OSError as error:
        raise PlayheadUnreachable(str(data_dir), f"no data directory: {error.strerror}") from None


class RemoteBoard:
    """A mirror of another daemon's playheads, and its clock. `run` keeps it; `connected` is set while it is fresh."""

    def __init__(self, client: PlayheadClient, counter: Callable[[], float] = steady) -> None:
        self._client = client
        self._counter = counter
        self._clock = FollowedUtc(counter)
        self._heads: dict[str, Playhead] = {}
        self._learnt = False
        self._watchers = Watchers()
        self.connected = trio.Event()
        self.trouble: str | None = None

    def utc(self) -> float:
        """The other daemon's time; PlayheadUnreachable before it has told it once."""
        if not self._clock.known:
            raise PlayheadUnreachable(self._client.where, self.trouble or "it hasn't told the time yet")
        return self._clock()

    @property
    def uncertainty(self) -> float:
        """By how many seconds `utc` may be off."""
        return self._clock.uncertainty

    def get(self, record: str) -> Playhead:
        return self._heads.get(record_name(record)) or Playhead(record)

    def heads(self) -> Mapping[str, Playhead]:
        """All playheads; PlayheadUnreachable before the other daemon has told them once."""
        if not self._learnt:
            raise PlayheadUnreachable(self._client.where, self.trouble or "it hasn't told its playheads yet")
        return self._heads

    def watch(self, record: str | None = None) -> contextlib.AbstractAsyncContextManager[Watch]:
        return self._watchers.watch(record, list(self._heads.values()) if record is None else [self.get(record)])

    async def change(self, record: str, change: Change) -> Playhead:
        self.utc()  # of daemons that follow each other in a ring none ever learns the time, and none hands changes on
        async with self.watch(record) as watch:
            head = await self._client.change(record, change)
            # Events alone make the mirror, for they come in order; whoever asks next should find his change in it.
            with trio.move_on_after(_MIRRORED_WITHIN):
                while (await watch.next()).revision < head.revision:
                    pass
        return head

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the mirror, for ever. Started at once: a daemon must come up while the other one is down."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_time)
            task_status.started()
            pause = _FIRST_PAUSE
            while True:
                self.trouble = await self._connection()
                if self.connected.is_set():
                    where = self._client.where
                    log.warning("playheads: lost %s (%s); music goes on by what is known", where, self.trouble)
                    self.connected, pause = trio.Event(), _FIRST_PAUSE
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _connection(self) -> str:
        """Follow one event stream to its end; why it ended. The clock comes first: without it nothing means much."""
        try:
            async with self._client.events() as stream:
                return await self._mirror(stream)
        except CachefsError as error:
            return str(error)

    async def _mirror(self, stream: EventStream) -> str:
        try:
            for _ in range(_FIRST_SAMPLES):
                await self._sample()
            self._learn(await self._client.heads())
            self.trouble = None
            self.connected.set()
            async for head in stream:
                self._take(head)
        except CachefsError as error:
            return str(error)
        return ""  # never: a stream ends with an error

    def _learn(self, heads: list[Playhead]) -> None:
        """Take what is. What isn't any more becomes what it was before anybody touched it."""
        present = {head.record for head in heads}
        for head in [*heads, *(Playhead(record) for record in self._heads.keys() - present)]:
            self._take(head)
        self._learnt = True

    def _take(self, head: Playhead) -> None:
        if head.revision:
            self._heads[head.record] = head
        else:
            self._heads.pop(head.record, None)
        self._watchers.tell(head)

    async def _keep_time(self) -> None:
        while True:
            await self.connected.wait()
            await trio.sleep(_EVERY)
            with contextlib.suppress(CachefsError):  # the stream notices, and does what is needed
                await self._sample()

    async def _sample(self) -> None:
        asked = self._counter()
        theirs = await self._client.time()
        self._clock.add(asked, theirs, self._counter())
