"""The addresses of the peers and web seeds that the settings name, looked up now and then.

How it works: libtorrent dials addresses, not names, and tells of a web seed by its address. A name that can't be
resolved keeps the addresses it had, and is tried again sooner.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from cachefs.errors import NotReached
from cachefs.fetch.http.addresses import resolve
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.fetch.torrent.download import Swarm

if TYPE_CHECKING:
    from cachefs.config import Peer

_EVERY = 60.0
_FIRST = 2.0
"""Seconds that the start waits for names to be resolved; a dead name server must not hold up the mount."""


class Hosts:
    """Keeps `swarm.peers`, and knows web seeds by their addresses."""

    def __init__(self, peers: Iterable[Peer], swarm: Swarm, ledger: Ledger) -> None:
        self._peers = tuple(peers)
        self._swarm = swarm
        self._ledger = ledger
        self._peer_addresses: dict[Peer, tuple[str, int]] = {}
        self._seed_addresses: dict[tuple[str, int], WebSeed] = {}

    def __bool__(self) -> bool:
        """Whether there is any peer."""
        return bool(self._peers)

    def seed_at(self, address: tuple[str, int]) -> WebSeed | None:
        """The web seed that has this address and port, if it is known which."""
        seeds = [seed for seed in self._swarm.web_seeds if seed.port == address[1]]
        return seeds[0] if len(seeds) == 1 else self._seed_addresses.get(address)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look them up for ever; started after the first look, or a moment."""
        with trio.move_on_after(_FIRST):
            await self._resolve()
        task_status.started()
        while True:
            all_known = len(self._peer_addresses) == len(self._peers)
            await trio.sleep(_EVERY if all_known else _FIRST)
            await self._resolve()

    async def _resolve(self) -> None:
        """Find the addresses of all hosts, each on its own; what can't be found stays as it was."""
        async with trio.open_nursery() as nursery:
            for peer in self._peers:
                nursery.start_soon(self._resolve_peer, peer)
            for seed in self._swarm.web_seeds:
                nursery.start_soon(self._resolve_seed, seed)

    async def _resolve_peer(self, peer: Peer) -> None:
        found = await self._addresses(str(peer), peer.host, peer.port)
        if found:
            self._peer_addresses[peer] = found[0]
            self._swarm.peers = list(dict.fromkeys(self._peer_addresses.values()))

    async def _resolve_seed(self, seed: WebSeed) -> None:
        for address in await self._addresses(str(seed), seed.host, seed.port):
            self._seed_addresses[address] = seed

    async def _addresses(self, source: str, host: str, port: int) -> list[tuple[str, int]]:
        try:
            return [(address, port) for address in await resolve(host)]
        except NotReached as error:
            self._ledger.failed(source, str(error))
            return []
