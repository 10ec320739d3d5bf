"""The commands about what stays and what goes, for a running mount and for a data directory that nobody works on.

How it works: the same functions answer both. `perform` takes the data directory's lock and does the work itself; if a
daemon has the lock, that one is asked instead, for it knows what is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio

from cachefs.control import socket as control
from cachefs.errors import DataDirBusy
from cachefs.keeper import Keeper, Progress, idle
from cachefs.store.eviction import Limits

Tell = Callable[[Any], None]


def commands(keeper: Keeper) -> dict[str, control.Command | control.Job]:
    """`pin`, `unpin`, `pins`, `evict` and `gc`, as the control socket takes them."""

    async def pin(patterns: Sequence[str]) -> Sequence[str]:
        return keeper.pin(patterns)

    async def unpin(patterns: Sequence[str]) -> Sequence[str]:
        return keeper.unpin(patterns)

    async def pins() -> Sequence[str]:
        return keeper.pins()

    async def evict(tell: Tell, patterns: Sequence[str]) -> Mapping[str, Any]:
        outcome = await keeper.evict(patterns, _told(tell))
        return asdict(outcome) | {"freed": outcome.freed}

    async def gc(tell: Tell) -> Mapping[str, Any]:
        collected = await keeper.collect(_told(tell))
        return asdict(collected) | {"freed": collected.freed}

    return {"pin": pin, "unpin": unpin, "pins": pins, "evict": control.Job(evict), "gc": control.Job(gc)}


def _told(tell: Tell) -> Progress:
    return lambda done, total: tell({"done": done, "total": total})


def perform(data_dir: Path, command: str, told: Tell, *, limits: Limits | None = None, **arguments: Any) -> Any:
    """Do a command here, to `limits`, or have the daemon do it, to its own; the result, as plain data. Blocks."""
    try:
        with idle(data_dir, limits) as keeper:
            chosen = commands(keeper)[command]
            if isinstance(chosen, control.Job):
                return trio.run(partial(chosen.run, told, **arguments))
            return trio.run(partial(chosen, **arguments))
    except DataDirBusy:
        return control.follow(data_dir, command, told, **arguments)
