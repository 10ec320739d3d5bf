"""Checking a web seed: does it have what its manifest.txt lists, under the right hashes and lengths?

How it works: manifest.txt is read, and for every name of content in it the `.torrent` is fetched and parsed, and one
byte of the content is asked for: the answer tells its length, and whether ranges are answered, which reading from it
needs. A bounded number of requests is under way at a time. What is wrong becomes a fault with the name it is about;
one host's faults never stop the check of another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
import trio

from cachefs import metainfo
from cachefs.content import ContentId
from cachefs.errors import MetainfoError
from cachefs.fetch.http.body import answered, read_body
from cachefs.fetch.http.wire import content_range
from cachefs.fetch.sources import WebSeed
from cachefs.metainfo import MAX_METAINFO, Metainfo

MANIFEST = "manifest.txt"
_MAX_MANIFEST = 32 * 2**20
_AT_ONCE = 16
_GIVEN_UP = 2 * _AT_ONCE
"""So many requests in a row without any answer end the check: there may be thousands more."""
_LISTS = frozenset({MANIFEST, "chain.toml"})
_TORRENT = ".torrent"


Report = Callable[[int, int], None]
"""Told how many names are looked at, and how many there are."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """What is wrong with one name."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A web seed's base URL, how many names of content it lists, and what is wrong, sorted."""

    base: str
    names: int
    faults: tuple[Fault, ...]


class _Wrong(Exception):
    """What is wrong with the name that is being looked at."""


async def check(
    url: str, wanted: Mapping[str, ContentId], patience: float, report: Report = lambda done, total: None
) -> Checked:
    """Check the web seed at `url`; `wanted` has the names and ids it should have, if that is known.

    `patience`: the seconds that each part of an answer may take. ConfigError if it isn't a URL.
    """
    seed = WebSeed(url)
    limits = httpx.Limits(max_connections=_AT_ONCE)
    async with httpx.AsyncClient(limits=limits, timeout=patience) as client:
        return await _Check(seed, client, wanted, report).run()


class _Check:
    def __init__(
        self, seed: WebSeed, client: httpx.AsyncClient, wanted: Mapping[str, ContentId], report: Report
    ) -> None:
        self._report = report
        self._seed = seed
        self._client = client
        self._wanted = wanted
        self._faults: set[Fault] = set()
        self._done = self._silent = 0

    async def run(self) -> Checked:
        try:
            listed = await self._listed()
        except _Wrong as error:
            return Checked(self._seed.base, 0, (Fault(MANIFEST, str(error)),))
        content = sorted(name for name in listed - _LISTS if not name.endswith(_TORRENT))
        torrents = {name.removesuffix(_TORRENT) for name in listed if name.endswith(_TORRENT)}
        self._faults |= {Fault(name, "its .torrent is listed, and it isn't") for name in torrents.difference(content)}
        self._faults |= {Fault(name, "is not listed") for name in self._wanted.keys() - listed}
        queue = iter(content)

        async def work() -> None:
            for name in queue:
                await self._look(name, name in torrents)
                self._done += 1
                self._report(self._done, len(content))
                if self._silent >= _GIVEN_UP:
                    self._faults.add(Fault(MANIFEST, "the host doesn't answer any more; the rest isn't checked"))
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(work)
        return Checked(self._seed.base, len(content), tuple(sorted(self._faults)))

    async def _listed(self) -> frozenset[str]:
        _, raw = await self._get(MANIFEST, _MAX_MANIFEST)
        try:
            names = frozenset(filter(None, (line.strip() for line in raw.decode().splitlines())))
        except UnicodeDecodeError:
            raise _Wrong("not UTF-8") from None
        if not names:
            raise _Wrong("names nothing")
        return names

    async def _look(self, name: str, has_torrent: bool) -> None:
        try:
            if not has_torrent:
                raise _Wrong("its .torrent is not listed")
            info = await self._torrent(name)
            length = await self._length(name)
            if length != info.manifest.length:
                raise _Wrong(f"{length} bytes long, its .torrent says {info.manifest.length}")
        except _Wrong as error:
            self._faults.add(Fault(name, str(error)))

    async def _torrent(self, name: str) -> Metainfo:
        try:
            _, raw = await self._get(name + _TORRENT, MAX_METAINFO)
            info = metainfo.parse(raw)
        except (_Wrong, MetainfoError) as error:
            raise _Wrong(f"its .torrent: {error}") from None
        if info.name != name:
            raise _Wrong(f"its .torrent is of {info.name}")
        wanted = self._wanted.get(name, info.content)
        if info.content != wanted:
            raise _Wrong(f"its .torrent has info-hash {info.content.hex}, chain.toml says {wanted.hex}")
        return info

    async def _length(self, name: str) -> int:
        response, _ = await self._get(name, 0, {"Range": "bytes=0-0", "Accept-Encoding": "identity"})
        told = content_range(response.headers.get("content-range", ""))
        if response.status_code != 206 or told is None or (told.first, told.last) != (0, 0) or told.total is None:
            raise _Wrong("ranges of it are not answered")
        return told.total

    async def _get(
        self, name: str, most: int, headers: Mapping[str, str] | None = None
    ) -> tuple[httpx.Response, bytes]:
        """The first good answer of the URLs under which the host may have `name`, and its body up to `most` bytes."""
        refusal = "has no URL"
        for url in self._seed.urls(name):
            try:
                async with answered(self._client, url, headers) as response:
                    self._silent = 0
                    if response.status_code in (200, 206):
                        self._seed.learn(name, url)
                        return response, await _body(response, most)
                    refusal = f"HTTP {response.status_code}"
            except httpx.HTTPError as error:
                self._silent += 1
                raise _Wrong(str(error) or type(error).__name__) from error
        raise _Wrong(refusal)


async def _body(response: httpx.Response, most: int) -> bytes:
    """The body, if it is at most `most` bytes; nothing of it with 0."""
    if not most:
        return b""
    body = await read_body(response, most)
    if body is None:
        raise _Wrong(f"more than {most} bytes")
    return body
