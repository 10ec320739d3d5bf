"""Who is asked for parts of files: the web seeds that are known, and remotes of the operator's own.

How it works: a web seed is asked directly, unless the settings say otherwise or a proxy of the environment's stands
before it, which rclone knows how to talk to. Then it becomes a remote of rclone's http kind, described to the child in
environment variables: its URL is never part of a remote string, and neither is a name. Names are percent-encoded
here, because hosts disagree on `/` and rclone would choose one way (`no_escape` tells it to leave paths alone). An
operator's remote is used as he wrote it. Web seeds that a .torrent carries (BEP 19) are strangers' words: how far they
are followed is a setting.

Variables for remotes: https://rclone.org/docs/#environment-variables
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import trio

from cachefs.config import web_seed
from cachefs.errors import NotReached
from cachefs.fetch.base import Item
from cachefs.fetch.health import SourceHealth
from cachefs.fetch.http.addresses import is_public, resolve
from cachefs.fetch.sources import WebSeed

_MOST_CARRIED = 32
_MOST_PER_ITEM = 8


class RemoteSource:
    """A source of ranges: `name` is what the user calls it, `remote` what rclone does, "" if it is asked directly.

    `variables` are the part of rclone's environment that describes it; none for one of the operator's. One that is
    `public` is a stranger's: nothing of it is asked at private addresses.
    """

    def __init__(
        self, name: str, remote: str, seed: WebSeed | None, variables: Mapping[str, str], *, public: bool = False
    ) -> None:
        self.name = name
        self.remote = remote
        self.seed = seed
        self.variables = variables
        self.public = public
        self.health = SourceHealth()
        self.busy = 0
        self.jumps = 0

    def __str__(self) -> str:
        return self.name

    @property
    def direct(self) -> bool:
        """Whether rclone has nothing to do with it."""
        return not self.remote

    def paths(self, name: str) -> list[str]:
        """What to ask for, likeliest first."""
        if self.seed is None:
            return [name]
        return [url.removeprefix(self.seed.base) for url in self.seed.urls(name)]

    def learn(self, name: str, path: str) -> None:
        """Remember that `path` was the right form of `name`."""
        if self.seed is not None:
            self.seed.learn(name, self.seed.base + path)


class Remotes:
    """All sources of ranges, and the environment that describes to rclone those that it is asked for and are ours."""

    def __init__(
        self, web_seeds: Iterable[WebSeed], remotes: Iterable[str], carried: str, *, direct: bool = True
    ) -> None:
        self.environment: dict[str, str] = {}
        self._carried = carried
        self._direct = direct
        self._by_base: dict[str, RemoteSource] = {}
        self._refused: set[str] = set()
        self._news = trio.Event()
        self.sources = [self._of_seed(seed) for seed in web_seeds]
        self.sources += [RemoteSource(remote, remote, None, {}) for remote in remotes]
        self._room = len(self._by_base) + _MOST_CARRIED

    def _of_seed(self, seed: WebSeed, *, public: bool = False) -> RemoteSource:
        number = len(self._by_base)
        remote = "" if self._direct and not _has_proxy(seed) else f"cachefs_web_{number}:"
        variables = _http_remote(f"CACHEFS_WEB_{number}", seed.base) if remote else {}
        source = self._by_base[seed.base] = RemoteSource(str(seed), remote, seed, variables, public=public)
        self.environment |= variables
        self._news.set()
        self._news = trio.Event()
        return source

    def for_rclone(self, *, web_seeds: bool = False) -> bool:
        """Whether there is anything to ask rclone for; of `web_seeds` alone, if that is asked."""
        sources = self._by_base.values() if web_seeds else (*self.sources, *self._by_base.values())
        return any(not source.direct for source in sources)

    async def wait_for_rclone(self) -> None:
        """Return when there is."""
        while not self.for_rclone():
            await self._news.wait()

    def every(self) -> Iterator[RemoteSource]:
        """All sources there are, each once: the operator's remotes and all web seeds."""
        yield from self._by_base.values()
        yield from (source for source in self.sources if source.seed is None)

    def of(self, item: Item) -> list[RemoteSource]:
        """The sources that may have `item`."""
        carried = [self._by_base[base] for base, _ in self._carried_by(item) if base in self._by_base]
        return list(dict.fromkeys([*self.sources, *carried]))

    async def learn(self, item: Item) -> bool:
        """Take over the web seeds that an item's .torrent carries, if they are to be followed; whether any is new."""
        new = False
        for base, host in self._carried_by(item):
            if base in self._by_base or base in self._refused or len(self._by_base) >= self._room:
                continue
            if self._carried == "any" or await _is_public(host):
                self._of_seed(WebSeed(base), public=self._carried == "public")
                new = True
            else:
                self._refused.add(base)
        return new

    def _carried_by(self, item: Item) -> list[tuple[str, str]]:
        """The bases below which its .torrent says that it lies under its name, each with its host."""
        if self._carried == "none" or item.metainfo is None:
            return []
        found = []
        for url in item.metainfo.web_seeds[:_MOST_PER_ITEM]:
            base = url if url.endswith("/") else _base(url, item.name)
            try:
                checked = web_seed(base) + "/"
            except ValueError:
                continue
            found.append((checked, urlsplit(checked).hostname or ""))
        return found


def _base(url: str, name: str) -> str:
    """`url` without `name` at its end, in whatever way that is escaped; empty if it isn't there."""
    longest = 3 * len(name.encode())
    for at in range(len(url) - len(name), max(-1, len(url) - longest - 1), -1):
        if unquote(url[at:]) == name:
            return url[:at]
    return ""


def _has_proxy(seed: WebSeed) -> bool:
    """Whether the environment names a proxy for it."""
    return urlsplit(seed.base).scheme in getproxies() and not proxy_bypass(f"{seed.host}:{seed.port}")


def _http_remote(name: str, url: str) -> Mapping[str, str]:
    prefix = f"RCLONE_CONFIG_{name}_"
    return {f"{prefix}TYPE": "http", f"{prefix}URL": url, f"{prefix}NO_ESCAPE": "true"}


async def _is_public(host: str) -> bool:
    """Whether every address of `host` is one of the public internet."""
    try:
        return all(is_public(ipaddress.ip_address(address)) for address in await resolve(host))
    except NotReached:
        return False
