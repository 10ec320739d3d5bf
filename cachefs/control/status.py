"""What `cachefs status` tells: one snapshot of all parts, as plain data.

How it works: the parts hand out frozen reports, which become a dictionary here; the command prints it as it is
(`--json`) or as text. Keys are part of the interface: they are added to, not renamed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from cachefs import __version__
from cachefs.cache import Cache
from cachefs.drivers.driver import Driver
from cachefs.fetch.base import Fetcher
from cachefs.fetch.metadata.service import MetadataService
from cachefs.fetch.outage import Outage
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.routing.router import Router
from cachefs.fetch.sources import Ledger
from cachefs.manifests import Manifests
from cachefs.reload import Shown
from cachefs.store.room import Room
from cachefs.store.state import State
from cachefs.upkeep import Upkeep
from cachefs.waits import Waiting


@dataclass(frozen=True, slots=True)
class StatusSource:
    """The parts of a running mount that have something to tell."""

    mountpoint: Path
    data_dir: Path
    chain_toml: str
    shown: Callable[[], Shown]
    state: State
    manifests: Manifests
    metadata: MetadataService
    cache: Cache
    fetcher: Fetcher
    router: Router
    remote: RemoteFetcher
    ledger: Ledger
    upkeep: Upkeep
    started: float
    outage: Outage
    writable: bool
    room: Room
    driver: Driver

    async def collect(self) -> Mapping[str, Any]:
        """All of it, now. Sizes in bytes, rates in bytes per second, times in seconds."""
        shown = self.shown()
        return {
            "version": __version__,
            "mount": {
                "mountpoint": str(self.mountpoint),
                "data_dir": str(self.data_dir),
                "writable": self.writable,
                "passed_through": self.driver.passed_through,
                "pid": os.getpid(),
                "uptime": time.time() - self.started,
            },
            "catalogue": {
                "chain": shown.lock.chain,
                "names": len(shown.lock.downloads),
                "shown": len(shown.names),
                "chain_toml": self.chain_toml,
            },
            "records": {
                "names": len(shown.records),
                "bytes": sum(record.size or 0 for record in shown.records.values()),
            },
            "metadata": {"known": self.manifests.known(), **asdict(self.metadata.report())},
            "store": self._store(),
            "upkeep": asdict(self.upkeep.report()),
            "limits": self._limits(),
            "sources": [asdict(report) for report in self.ledger.report()],
            "outage": self.outage.seconds(),
            "transfers": self._transfers(),
            "fetched": {choice.value: size for choice, size in self.router.fetched.items()},
            "handed_over": dict(self.router.handed_over),
            "hedging": self._hedging(),
            "rclone": await self.remote.report(),
            "waiting": self._waiting(),
            "last_error": self.cache.last_error,
        }

    def _store(self) -> Mapping[str, int]:
        counts = self.state.counts()
        open_flows = self.cache.flows()
        return {
            "bytes": counts.held,
            "objects": counts.objects,
            "complete": counts.complete,
            "open": len(open_flows),
        }

    def _limits(self) -> Mapping[str, Any]:
        limits = self.room.limits
        return {
            "size": limits.whole.size,
            "free_space": limits.free_space or None,
            "age": limits.whole.age,
            "count": limits.whole.count,
            "catalogues": {name: asdict(bounds) for name, bounds in limits.catalogues.items()},
            "taken": self.room.taken(),
            "pinned": len(self.room.evictor.pinned),
        }

    def _hedging(self) -> Mapping[str, Any]:
        hedging = self.router.hedging
        late_after = hedging.late_after()
        return {
            "requests": hedging.hedged,
            "won": hedging.won,
            "extra_bytes": hedging.extra,
            "received_bytes": hedging.received,
            "late_after": late_after if late_after < float("inf") else None,
        }

    def _transfers(self) -> list[Mapping[str, Any]]:
        held = {flow.item.content: flow.stored for flow in self.cache.flows()}
        transfers: list[Mapping[str, Any]] = []
        for transfer in self.fetcher.transfers():
            stored = held.get(transfer.content)
            have = stored.held if stored else 0
            length = stored.manifest.length if stored else 0
            transfers.append(
                {
                    "name": transfer.name,
                    "content": str(transfer.content),
                    "peers": transfer.peers,
                    "rate": transfer.rate,
                    "wanted_blocks": transfer.wanted,
                    "bytes": have,
                    "length": length,
                    "eta": (length - have) / transfer.rate if transfer.rate > 0 else None,
                    "trouble": transfer.trouble,
                    "by": transfer.by,
                    "because": transfer.because,
                }
            )
        return transfers

    def _waiting(self) -> list[Mapping[str, Any]]:
        now, without = trio.current_time(), without_room(self.cache, self.room)
        waits: list[Mapping[str, Any]] = [
            {
                "name": wait.name,
                "for": "content",
                "blocks": list(wait.blocks),
                "seconds": now - wait.since,
                "no_room": wait in without,
            }
            for wait in self.cache.waiting()
        ]
        waits += [{"name": name, "for": "metadata"} for name in self.metadata.waiting()]
        return waits


def without_room(cache: Cache, room: Room) -> Set[Waiting]:
    """The reads that wait for room: nothing that they miss is being fetched, so no source is to blame."""
    lacking = [(flow, short) for flow in cache.flows() if (short := room.lacking(flow.item.content))]
    return {
        wait
        for wait in (cache.waiting() if lacking else ())
        for flow, short in lacking
        if wait.name == flow.item.name and short >= {*flow.stored.verified.missing(wait.blocks)}
    }
