"""Web seeds asked directly: a file, or a part of it, over connections that are kept.

How it works: one GET for each request, with its redirects followed here, because each of them is a URL that a server
chose. The head of an answer tells all that can be told of a source before its bytes are verified: that it doesn't have
the file, has another one of this name, wants to be left alone, or ignores ranges.

Ranges: RFC 9110, 14. Redirects: 15.4. Retry-After: 10.2.3.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11

from cachefs.content import Span
from cachefs.errors import IgnoresRanges, NotAtSource, OtherContent, SourceBusy, SourceFailed
from cachefs.fetch.http.busy import seconds_until
from cachefs.fetch.http.connections import MOST_REDIRECTS, REDIRECTS, Connections, Target, header, redirected
from cachefs.fetch.http.wire import Body


class Direct:
    """The connections to web seeds; `open` asks for a file's bytes."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._connections = Connections(tls)

    @asynccontextmanager
    async def open(self, url: str, span: Span | None, *, public: bool = False) -> AsyncIterator[Body]:
        """The bytes of a file, or of a span of it; `public`: nothing is asked at private addresses.

        Of a span the body may be the beginning alone: then it is `whole` before all of the span has come.
        SourceFailed, and what it is more exactly: NotAtSource, OtherContent, IgnoresRanges, SourceBusy.
        """
        target = Target.of(url)
        for _ in range(MOST_REDIRECTS + 1):
            async with self._connections.asked(target, _headers(target, span), public=public) as (response, body):
                if response.status_code not in REDIRECTS:
                    _check(response, body, span)
                    yield body
                    return
                url = redirected(url, response.status_code, header(response, b"location"))
                target = _next(target, url)
        raise SourceFailed(f"more than {MOST_REDIRECTS} redirects")

    def tidy(self) -> None:
        """Close connections that were kept for nothing."""
        self._connections.tidy()

    def close(self) -> None:
        """Close all connections that nobody uses."""
        self._connections.close()


def _headers(target: Target, span: Span | None) -> dict[str, str]:
    headers = {} if span is None else {"Range": f"bytes={span.offset}-{span.end - 1}"}
    if target.credentials:
        headers["Authorization"] = f"Basic {b64encode(target.credentials.encode()).decode()}"
    return headers


def _next(before: Target, url: str) -> Target:
    """Where a redirect leads; what let us in is told to the same host only."""
    target = Target.of(url)
    if target.credentials or target.place != before.place:
        return target
    return Target(target.secure, target.host, target.port, target.path, target.authority, before.credentials)


def _check(response: h11.Response, body: Body, span: Span | None) -> None:
    """Whether the body that follows is what was asked for."""
    status = response.status_code
    if status in (404, 410):
        raise NotAtSource(f"HTTP {status}")
    if status == 416:
        raise OtherContent(f"has {body.total} bytes under this name, too few for what was asked for")
    if status not in (200, 206):
        reason = f"HTTP {status} {bytes(response.reason).decode('latin-1')}".rstrip()
        raise SourceBusy(reason, seconds_until(header(response, b"retry-after")), status=status)
    if (encoding := header(response, b"content-encoding").lower()) not in ("", "identity"):
        raise SourceFailed(f"sends the bytes as {encoding}, though plain ones were asked for")
    if span is not None and status == 200 and (span.offset, span.length) != (0, body.length):
        raise IgnoresRanges("does not answer ranges")
    # Fewer bytes than were asked for are an answer, too (RFC 9110, 15.3.7): some hosts bound what one request gets.
    if span is not None and (body.start != span.offset or not (body.length == -1 or 0 < body.length <= span.length)):
        told = header(response, b"content-range") or "no Content-Range"
        raise SourceFailed(f"sent {told:.80} for {span.length} bytes from {span.offset} on")
