"""Providers: ways to get the bytes behind a URL, all behind one small protocol.

How it works: a provider says which URLs it takes, and sends the bytes of one into a `Receiver`, which hashes,
counts and refuses. It raises UrlFailed (or a kind of it) when it can't, and may be cancelled anywhere. So
what a checksum is, and what is too large, is not a provider's business, and a new one inherits the rules.

Here: `HttpProvider` (https, and http where allowed), `LocalProvider` (a file of this machine, by explicit
option only). Others are in `rclone_provider.py` and `torrent_provider.py`.

The HTTP provider goes on after a break with `Range` and `If-Range`, given a strong ETag: 206 appends, unless it is of
another version, and 200 begins anew. Without one it begins anew, a few times. A transfer that makes progress may take
as long as it likes. A host that gets busy in the midst of it is waited for once, if it doesn't ask for long: another
would begin at the first byte.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import trio

from cachefs.errors import RecordMismatch, SourceLied, SourceRefused, SourceSilent, UrlFailed
from cachefs.fetch.http.busy import Busy
from cachefs.fetch.http.client import Answer, Interrupted, RangeRefused, Unreachable, WebClient
from cachefs.fetch.http.digests import WANTED, Declared, declared
from cachefs.fetch.http.wire import ContentRange
from cachefs.fetch.whole.receiver import Fetched, Receiver

_TRIES = 4
_FIRST_PAUSE = 0.25
_PART = 2**18


class Provider(Protocol):
    """A way to get the bytes behind some URLs."""

    def takes(self, url: str) -> bool:
        """Whether this URL, with its scheme in lower case, is one of its kind."""

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        """Send all bytes of `url` into `receiver`, and finish it.

        UrlFailed and its kinds say why that can't be; StoreFull and StoreFailed pass through.
        """


class LocalProvider:
    """`file:///…` URLs, where the settings allow them."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed

    def takes(self, url: str) -> bool:
        return url.startswith("file:///")

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        if not self._allowed:
            raise SourceRefused(url, "is a file of this machine; [records] allow_file = true allows it")
        return await send_file(Path(named_file(url)), url, receiver)


def named_file(url: str) -> str:
    """The path that a URL ends in. UrlFailed if no file can be called that."""
    path = unquote(urlsplit(url).path)
    if "\0" in path:
        raise UrlFailed(url, "has a null byte in it, which no file's name has")
    return path


async def send_file(path: Path, url: str, receiver: Receiver) -> Fetched:
    """Send the file `path`, under the name of `url`. Nothing else that is read like a file: it might never end."""
    try:
        status = await trio.Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise UrlFailed(url, "is not a file")
        receiver.announce(url, status.st_size, Declared())
        async with await trio.open_file(path, "rb") as file:
            while data := await file.read(2**20):
                await receiver.write(url, data)
    except OSError as error:
        raise UrlFailed(url, f"can't be read: {error.strerror}") from error
    return await receiver.finish(url)


class HttpProvider:
    """https and http, with everything of it that `WebClient` judges."""

    def __init__(self, client: WebClient) -> None:
        self._client = client

    def takes(self, url: str) -> bool:
        return url.startswith(("https://", "http://"))

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        try:
            return await _Transfer(self._client, url, receiver).run()
        except RecordMismatch:
            raise
        except SourceLied:
            # What it declares and what it gave differ: one of them may have been cut or mixed up on the way.
            receiver.restart()
            return await _Transfer(self._client, url, receiver).run()


class _Transfer:
    """One download by HTTP, over as many connections as it takes."""

    def __init__(self, client: WebClient, url: str, receiver: Receiver) -> None:
        self._client = client
        self._url = url
        self._receiver = receiver
        self._etag = ""
        self._total: int | None = None
        self._best = 0
        self._failures = 0
        self._waited = False
        self._buffer = memoryview(bytearray(_PART))

    async def run(self) -> Fetched:
        while True:
            try:
                final = await self._once()
            except RangeRefused as error:
                said = f"{self._so_far()}, and has no more"
                self._begin_anew()
                await self._patience(Interrupted(error.url, said))
            except (Interrupted, SourceSilent) as error:
                await self._patience(error)
            except Busy as error:
                await self._come_back(error)
            else:
                return await self._receiver.finish(final)

    async def _once(self) -> str:
        """Ask once, from where we are, and take what comes; the final URL when that was all."""
        async with self._client.get(self._url, self._headers()) as answer:
            self._begin(answer)
            try:
                while count := await answer.read_some(self._buffer):
                    await self._receiver.write(answer.url, self._buffer[:count])
            except Interrupted as error:
                raise Interrupted(answer.url, f"{self._so_far()}: {error.why}") from None
            if self._total is not None and self._receiver.size < self._total:
                raise Interrupted(answer.url, self._so_far())
            return answer.url

    def _so_far(self) -> str:
        return f"ended after {self._receiver.size} of {self._total or 'an unknown number of'} bytes"

    def _headers(self) -> dict[str, str]:
        if not self._receiver.size or not self._etag:
            return dict(WANTED)
        return WANTED | {"Range": f"bytes={self._receiver.size}-", "If-Range": self._etag}

    def _begin(self, answer: Answer) -> None:
        if answer.status == 206:
            self._check_range(answer)
            return
        if self._receiver.size:
            self._receiver.restart()
        self._etag, self._total = answer.etag, answer.length
        media = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._receiver.announce(answer.url, answer.length, declared(answer.headers), media)

    def _check_range(self, answer: Answer) -> None:
        """The rest must begin where we are and be of the same whole and version (RFC 9110, 14.4 and 15.3.7.3)."""
        told, size = answer.range, self._receiver.size
        total = self._total if told is None or told.total is None else told.total
        if not size or told is None or told.first != size or total is None or not self._goes_with(told, total):
            said = answer.headers.get("content-range", "no Content-Range")
            wrong = f"HTTP 206 with {said:.80}, after {size} of {self._total} bytes"
        elif answer.etag not in ("", self._etag):
            wrong = f"HTTP 206 with ETag {answer.etag}, after {size} bytes of {self._etag}"
        else:
            self._total = total
            return
        self._begin_anew()
        raise Interrupted(answer.url, wrong)

    def _goes_with(self, told: ContentRange, total: int) -> bool:
        """Whether a range is of a whole that is as long as we know, and within it."""
        return told.last < total and self._total in (None, total)

    def _begin_anew(self) -> None:
        self._receiver.restart()
        self._etag = ""

    async def _come_back(self, error: Busy) -> None:
        """Wait as long as the host asks for, or raise `error`."""
        long = error.until > trio.current_time() + self._client.rules.stall
        if self._waited or long or not self._receiver.size:
            raise error
        self._waited = True
        await trio.sleep_until(error.until)

    async def _patience(self, error: UrlFailed) -> None:
        """Wait before the next try, or raise `error`: nothing ever came, or nothing new too often."""
        here = self._receiver.size
        if self._best == here == 0 and not isinstance(error, Interrupted):
            raise error
        self._failures = 0 if here > self._best and self._etag else self._failures + 1
        self._best = max(self._best, here)
        if self._failures >= _TRIES or (here == 0 and isinstance(error, Unreachable)):
            raise error
        await trio.sleep(_FIRST_PAUSE * 2 ** max(0, self._failures - 1))
