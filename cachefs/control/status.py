"""What `cachefs status` tells: one snapshot of all parts, as plain data.

How it works: the parts hand out frozen reports, which become a dictionary here; the command prints it as it is
(`--json`) or as text. Keys are part of the interface: they are added to, not renamed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from cachefs import __version__
from cachefs.drivers.driver import Driver
from cachefs.engine import Engine
from cachefs.reload import Shown
from cachefs.upkeep import Upkeep


@dataclass(frozen=True, slots=True)
class StatusSource:
    """What has something to tell: where the mount is and since when, what it shows, and its parts."""

    mountpoint: Path
    data_dir: Path
    chain_toml: str
    writable: bool
    started: float
    shown: Callable[[], Shown]
    engine: Engine
    upkeep: Upkeep
    driver: Driver

    async def collect(self) -> Mapping[str, Any]:
        """All of it, now. Sizes in bytes, rates in bytes per second, times in seconds."""
        shown, engine, sources = self.shown(), self.engine, self.engine.sources
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
            "metadata": {"known": engine.manifests.known(), **asdict(engine.metadata.report())},
            "store": self._store(),
            "upkeep": asdict(self.upkeep.report()),
            "limits": self._limits(),
            "sources": [asdict(report) for report in sources.ledger.report()],
            "outage": engine.outage.seconds(),
            "transfers": self._transfers(),
            "fetched": {choice.value: size for choice, size in sources.router.fetched.items()},
            "handed_over": dict(sources.router.handed_over),
            "hedging": self._hedging(),
            "rclone": await sources.remote.report(),
            "waiting": self._waiting(),
            "failed_reads": engine.cache.failed_reads,
            "last_error": engine.cache.last_error,
        }

    def _store(self) -> Mapping[str, int]:
        counts = self.engine.state.counts()
        return {
            "bytes": counts.held,
            "objects": counts.objects,
            "complete": counts.complete,
            "open": len(self.engine.cache.flows()),
        }

    def _limits(self) -> Mapping[str, Any]:
        limits = self.engine.room.limits
        return {
            "size": limits.whole.size,
            "free_space": limits.free_space or None,
            "age": limits.whole.age,
            "count": limits.whole.count,
            "catalogues": {name: asdict(bounds) for name, bounds in limits.catalogues.items()},
            "taken": self.engine.room.taken(),
            "pinned": len(self.engine.room.evictor.pinned),
        }

    def _hedging(self) -> Mapping[str, Any]:
        hedging = self.engine.sources.router.hedging
        late_after = hedging.late_after()
        return {
            "requests": hedging.hedged,
            "won": hedging.won,
            "extra_bytes": hedging.extra,
            "received_bytes": hedging.received,
            "late_after": late_after if late_after < float("inf") else None,
        }

    def _transfers(self) -> list[Mapping[str, Any]]:
        transfers: list[Mapping[str, Any]] = []
        for transfer in self.engine.fetcher.transfers():
            flow = self.engine.cache.flow(transfer.content)
            stored = flow.stored if flow else None
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
        now, without = trio.current_time(), self.engine.without_room()
        waits: list[Mapping[str, Any]] = [
            {
                "name": wait.name,
                "for": "content",
                "blocks": list(wait.blocks),
                "seconds": now - wait.since,
                "no_room": wait in without,
            }
            for wait in self.engine.cache.waiting()
        ]
        waits += [{"name": name, "for": "metadata"} for name in self.engine.metadata.waiting()]
        return waits
