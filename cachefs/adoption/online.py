"""Adopting a directory while the data directory is mounted: the daemon does it, and readers go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cachefs.adoption.takeover import Takeover
from cachefs.control.socket import Job
from cachefs.reload import Shown
from cachefs.store.state import State


def adopting(takeover: Takeover, shown: Callable[[], Shown], state: State) -> Job:
    """The control socket's `adopt`; its progress is in bytes hashed."""

    async def adopt(tell: Callable[[Any], None], directory: str) -> Mapping[str, Any]:
        entries = shown().lock.downloads
        takeover.memory.refresh()
        adoption = await takeover.directory(
            Path(directory), entries, lambda done, total: tell({"done": done, "total": total})
        )
        complete = {info.name for info in state.infos().values() if info.completed is not None}
        adoption.missing = [name for name in shown().names if name not in complete]
        return adoption.answer()

    return Job(adopt)
