"""What lies where: a mount's folders, and what a data directory has of which more than one room must know."""

from __future__ import annotations

SNAPSHOTS = "snapshots"
"""The snapshots' folder in a mount, and in a data directory the one of their lock and of files that lie over them."""

RECORDS = "records"
"""The records' folder in a mount."""

STATE = "state.db"
"""What is remembered of names and objects (store/state.py)."""

STORE = "store"
"""The objects (store/objects.py)."""


def label(catalogue: str, name: str) -> str:
    """What the user calls a file: snapshots as in the lock, others with their folder."""
    return name if catalogue == SNAPSHOTS else f"{catalogue}/{name}"
