"""Bytes at rest: a sparse file for each content id, and a small database that remembers what is in them.

`objects.py` is the door; `stored.py` one object while it is open; `recovery.py` decides what may be
believed at the next open; `places.py` takes over files that were verified elsewhere; `disk.py` is the only place
that touches data files otherwise; `state.py` the only one that speaks SQL; `lock.py` keeps a second daemon out. The
store knows no fetcher and no catalogue.
"""

from cachefs.store.lock import DataDirLock
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State
from cachefs.store.stored import StoredObject

__all__ = ["DataDirLock", "ObjectStore", "State", "StoredObject"]
