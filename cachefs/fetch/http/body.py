"""An answer's body, up to a limit: what a host sends is a stranger's, may never end, and may be a bomb.

How it works: a body that comes compressed is unpacked no further than to the limit, and one that was compressed twice
not at all: httpx would make gigabytes of kilobytes, in one step. It would also read the whole body of an answer that
redirects. So redirects are followed here, and their bodies left unread.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import httpx
import trio

from cachefs.fetch.http.connections import MOST_REDIRECTS

_GZIP = 16 + zlib.MAX_WBITS
_Unpack = Callable[[bytes, int], bytes]


@asynccontextmanager
async def answered(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """The answer to a GET of `url`, redirects followed; its body is to be read. httpx.HTTPError, httpx.InvalidURL."""
    request = client.build_request("GET", url, headers={"Accept-Encoding": "gzip", **(headers or {})})
    for _ in range(MOST_REDIRECTS + 1):
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            if response.next_request is None:
                yield response
                return
            request = response.next_request
        finally:
            await response.aclose()
    raise httpx.TooManyRedirects(f"more than {MOST_REDIRECTS} redirects", request=request)


async def read_body(response: httpx.Response, most: int) -> bytes | None:
    """The body of a streamed answer; None if it has more than `most` bytes.

    httpx.HTTPError if it breaks off, or can't be unpacked.
    """
    body, unpack = bytearray(), _unpacker(response)
    with trio.CancelScope() as enough:  # leaving the loop would leave httpx's generators to the garbage collector
        async for part in response.aiter_raw():
            body += unpack(part, most + 1 - len(body))
            if len(body) > most:
                enough.cancel()
    return bytes(body) if len(body) <= most else None


def _unpacker(response: httpx.Response) -> _Unpack:
    """What makes of a part of the body so many bytes at most."""
    coding = response.headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return lambda part, most: part
    if coding not in ("gzip", "x-gzip"):
        raise httpx.DecodingError(f"sent as {coding[:80]!r}, which wasn't asked for", request=response.request)
    packed = zlib.decompressobj(_GZIP)

    def unpack(part: bytes, most: int) -> bytes:
        try:
            return packed.decompress(part, max(1, most))
        except zlib.error as error:
            raise httpx.DecodingError(f"can't be unpacked: {error}", request=response.request) from None

    return unpack
