"""One request for a stretch of blocks, and what is done with the bytes that come.

How it works: the answer's head is judged before its body: the length of the whole, and the checksum that the server
declares of it, must be the record's. Then bytes are gathered to blocks; each is verified and written in a thread,
and landed. A server that ignores the range sends everything from the beginning: then blocks that are here pass by.
"""

from __future__ import annotations

import re
from typing import Protocol
from urllib.parse import urlsplit

import trio

from cachefs.content import Manifest
from cachefs.errors import BlockInvalid, RecordMismatch, UrlFailed
from cachefs.fetch.base import Job
from cachefs.fetch.digests import WANTED, declared
from cachefs.fetch.web import Answer, Interrupted, WebClient

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Stream:
    """A stretch of blocks under way; `at` is the one that is coming."""

    def __init__(self, blocks: range) -> None:
        self.blocks = blocks
        self.at = blocks.start
        self.scope = trio.CancelScope()

    def covers(self, index: int) -> bool:
        """Whether the block comes with this stretch."""
        return self.at <= index < self.blocks.stop

    def leave(self, index: int) -> None:
        """Leave the block, and what follows, to another request, if they come with this stretch."""
        if self.covers(index):
            self.blocks = range(self.blocks.start, index)


class Download(Protocol):
    """Whom a request works for."""

    job: Job

    def goes_on(self, stream: Stream) -> bool:
        """Whether the rest of the stretch is still wanted from here."""

    def received(self, url: str, size: int) -> None:
        """Bytes came."""

    async def deliver(self, index: int, data: memoryview) -> None:
        """Verify a block, write it and land it. BlockInvalid, StoreFull, StoreFailed."""


class RangeRequest:
    """A stretch asked of one URL; `landed` counts the blocks that came."""

    def __init__(self, client: WebClient, url: str, download: Download, stream: Stream) -> None:
        self.landed = 0
        self._client = client
        self._url = url
        self._download = download
        self._stream = stream

    @property
    def _manifest(self) -> Manifest:
        return self._download.job.item.manifest

    async def run(self) -> None:
        """Fetch the stretch, or as much of it as stays wanted. UrlFailed and its kinds, StoreFull, StoreFailed."""
        manifest, stream = self._manifest, self._stream
        stream.at = next((i for i in stream.blocks if i not in self._download.job.have), stream.blocks.stop)
        if stream.at == stream.blocks.stop:
            return
        start, end = manifest.span(stream.at).offset, manifest.span(stream.blocks.stop - 1).end
        async with self._client.get(self._url, WANTED | {"Range": f"bytes={start}-{end - 1}"}) as answer:
            first = self._judged(answer, start, end)
            await self._take(answer, first)

    def _judged(self, answer: Answer, start: int, end: int) -> int:
        """The first block that this answer brings; RecordMismatch if it is about other bytes."""
        length = self._manifest.length
        total: int | None = length
        begins = 0
        if answer.status == 206:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
            if match is None or int(match[1]) != start or (int(match[2]) != end - 1 and int(match[3]) == length):
                raise UrlFailed(answer.url, f"HTTP 206 with {answer.headers.get('content-range')!r} for {start}-{end}")
            begins, total = start, int(match[3])
        elif answer.length is not None:
            total = answer.length
        if total != length:
            self._mismatch(answer, total or 0, f"is {total} bytes long, the record says {length}")
        told, content = declared(answer.headers), self._manifest.content
        if content.algorithm == "sha256" and told.sha256 and told.sha256 != content.digest:
            self._mismatch(answer, length, f"declares sha256:{told.sha256.hex()} ({told.header}), not {content}")
        return begins // self._manifest.block_length

    def _mismatch(self, answer: Answer, size: int, why: str, got: str = "") -> None:
        raise RecordMismatch(answer.url, str(self._manifest.content), got, size, why)

    async def _take(self, answer: Answer, index: int) -> None:
        """Gather, verify and land blocks from `index` on, until the stretch ends or isn't wanted any more."""
        manifest, stream = self._manifest, self._stream
        buffer = bytearray()
        async for part in answer.body:
            self._download.received(self._url, len(part))
            buffer += part
            while index < manifest.blocks and len(buffer) >= manifest.span(index).length:
                length = manifest.span(index).length
                block = bytes(buffer[:length])
                del buffer[:length]
                await self._land(answer, index, block)
                index += 1
                stream.at = max(stream.at, index)
                if not (stream.at < stream.blocks.stop and self._download.goes_on(stream)):
                    return
        raise Interrupted(answer.url, f"ended within block {index} of {manifest.blocks}")

    async def _land(self, answer: Answer, index: int, block: bytes) -> None:
        if index in self._download.job.have:
            return
        try:
            await self._download.deliver(index, memoryview(block))
        except BlockInvalid as error:
            told = f"block {index} is sha256:{error.got.hex()}, the piece list says {error.expected.hex()}"
            size = self._manifest.length
            self._mismatch(answer, size, f"{told}; the record is {error.content} of {size} bytes", error.got.hex())
        self.landed += 1


def origin_of(url: str) -> str:
    """The server's part of a URL: what the status calls the source."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
