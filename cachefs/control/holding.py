"""Room for what another process downloads into a mount's data directory, asked of the daemon, which has the limits.

How it works: `hold` is a job that lasts for as long as the room is needed, so a process that dies gives its room back:
the daemon notices that nobody listens any more. `came` ends such jobs, by the keys that they were given, and tells that
the bytes are in the store, both at once. Where no daemon answers, or nothing is limited, there is room: without a
mount only `gc` keeps to the limits.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from cachefs.content import ContentId
from cachefs.control import socket as control
from cachefs.errors import ControlError, StoreFull
from cachefs.layout import RECORDS
from cachefs.store.claims import Hold
from cachefs.store.room import Room


def commands(room: Room) -> dict[str, control.Command | control.Job]:
    """`hold` and `came`, as the control socket takes them."""
    holds: dict[str, Hold] = {}

    async def hold(tell: Callable[[Any], None], size: int, key: str) -> Mapping[str, Any]:
        if not room.limits:
            return {}
        try:
            async with room.holding(size, RECORDS) as holds[key]:
                tell({"held": size})
                await trio.sleep_forever()
        except StoreFull as error:
            return {"full": str(error)}
        finally:
            holds.pop(key, None)

    async def came(content: str, keys: Sequence[str]) -> None:
        for key in holds.keys() & keys:
            holds[key].end()
        room.came(ContentId.parse(content))

    return {"hold": control.Job(hold), "came": came}


class _Over(Exception):
    """The room isn't needed any more."""


@dataclass
class _Lease:
    """One wish for room: when it was answered, `full` says why there is none."""

    key: str = field(default_factory=lambda: secrets.token_hex(8))
    answered: trio.Event = field(default_factory=trio.Event)
    full: str = ""
    over: bool = False


class MountsRoom:
    """The room that the daemon of `data_dir` has, if there is one; `nursery` is for its connections."""

    def __init__(self, data_dir: Path, nursery: trio.Nursery) -> None:
        self._data_dir = data_dir
        self._nursery = nursery
        self._ended: list[str] = []

    @asynccontextmanager
    async def holding(self, size: int, catalogue: str = "") -> AsyncIterator[Hold]:
        """Room for so many bytes of a record, once it is made, until the end. StoreFull."""
        lease = _Lease()
        try:
            self._nursery.start_soon(self._hold, lease, size)
            await lease.answered.wait()
            if lease.full:
                raise StoreFull(lease.full)
            yield Hold(lambda: self._ended.append(lease.key))
        finally:
            lease.over = True

    async def _hold(self, lease: _Lease, size: int) -> None:
        def told(progress: Any) -> None:
            if lease.over:
                raise _Over
            if progress is not None:
                trio.from_thread.run_sync(lease.answered.set)

        def follow() -> None:
            answer = control.follow(self._data_dir, "hold", told, size=size, key=lease.key)
            lease.full = answer.get("full", "")

        with suppress(ControlError, _Over):  # nobody is there who keeps to limits, or not any more
            await trio.to_thread.run_sync(follow, abandon_on_cancel=True)
        lease.answered.set()

    def came(self, content: ContentId) -> None:
        """All of this is in the store now, and what was held for it has ended. Blocking, short."""
        ended, self._ended = self._ended, []
        with suppress(ControlError):
            control.ask(self._data_dir, "came", content=str(content), keys=ended)


@asynccontextmanager
async def mounts_room(data_dir: Path) -> AsyncIterator[MountsRoom]:
    """The room of whatever mount there is, for as long as this lasts."""
    async with trio.open_nursery() as nursery:
        yield MountsRoom(data_dir, nursery)
        nursery.cancel_scope.cancel()
