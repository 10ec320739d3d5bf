"""An answer's body, up to a limit: what a host sends is a stranger's, and may never end."""

from __future__ import annotations

import httpx
import trio


async def read_body(response: httpx.Response, most: int) -> bytes | None:
    """The body of a streamed answer; None if it has more than `most` bytes. httpx.HTTPError if it breaks off."""
    body = bytearray()
    with trio.CancelScope() as enough:  # leaving the loop would leave httpx's generators to the garbage collector
        async for part in response.aiter_bytes():
            body += part
            if len(body) > most:
                enough.cancel()
    return bytes(body) if len(body) <= most else None
