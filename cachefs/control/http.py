"""The status over HTTP, if the settings ask for it: a page for people, and what programs want.

    GET /             the status as text, in a page that renews itself
    GET /status.json  what `cachefs status --json` prints
    GET /metrics      numbers, in Prometheus's text format

How it works: each request collects the status anew, as the command does, and nothing can be changed. Whoever reaches
the address may read it: what is read and waited for, and which sources there are. So a loopback address is what is
usually meant. On one, the Host must be an address or `localhost`, so that a page in a local browser, whose name
somebody points at 127.0.0.1, doesn't get in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import h11
import trio

from cachefs.config import Peer
from cachefs.config.values import is_loopback
from cachefs.control import metrics
from cachefs.control.page import page
from cachefs.httpserver import Response, Server, asked_by_address, listen

MAX_CONNECTIONS = 50

log = logging.getLogger(__name__)

Collect = Callable[[], Awaitable[Mapping[str, Any]]]
"""Gives the status, as `cachefs status --json` has it."""


async def serve(
    collect: Collect, address: Peer, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer at `address` for ever; started with the URL. ConfigError if it can't be listened on."""
    listeners, url = await listen(address.host, address.port, "the status")
    local = is_loopback(urlsplit(url).hostname or "")
    log.info("the status is served at %s/", url)
    task_status.started(url)
    await Server(_Status(collect, local=local), MAX_CONNECTIONS).run(listeners)


class _Status:
    """The `Service`; one that is `local` is asked by address only."""

    def __init__(self, collect: Collect, *, local: bool) -> None:
        self._collect = collect
        self._local = local

    async def answer(self, stream: trio.SocketStream, request: h11.Request, body: bytes) -> Response:
        host = dict(request.headers).get(b"host", b"").decode("latin-1")
        if self._local and not asked_by_address(host):
            return _text(403, "ask by address, or as localhost")
        if request.method not in (b"GET", b"HEAD"):
            return _text(405, "GET only", ("Allow", "GET, HEAD"))
        kinds = {b"/": _page, b"/status.json": _json, b"/metrics": _metrics}
        kind = kinds.get(request.target.partition(b"?")[0])
        return _text(404, "there are /, /status.json and /metrics") if kind is None else kind(await self._collect())

    def refusal(self, status: int) -> Response:
        return _text(status, "a fault of the daemon, told in its log" if status == 500 else "this can't be answered")


def _page(status: Mapping[str, Any]) -> Response:
    policy = ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
    return _answer("text/html; charset=utf-8", page(status).encode(errors="replace"), policy)


def _json(status: Mapping[str, Any]) -> Response:
    return _answer("application/json", json.dumps(status).encode() + b"\n")


def _metrics(status: Mapping[str, Any]) -> Response:
    return _answer(metrics.MEDIA_TYPE, metrics.exposition(status))


def _text(status: int, words: str, *more: tuple[str, str]) -> Response:
    return Response(status, [("Content-Type", "text/plain; charset=utf-8"), *more], f"{words}\n".encode())


def _answer(media_type: str, body: bytes, *more: tuple[str, str]) -> Response:
    fixed = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    return Response(200, [("Content-Type", media_type), *fixed, *more], body)
