"""Bytes at rest: a sparse file for each content id, and a small database that remembers what is in them.

objects      the door: opens, closes, commits and deletes objects
stored       one object while it is open; served: what of it is read; datafile: its file, which may come to be another
mending      who is told when what went bad is mended
recovery     what may be believed at the next open
wholeness    records are looked at as a whole, too
scrub        reading again what is held; reading: how; losses: what was found wrong and hasn't come again
places       files that were verified elsewhere, taken over; guard: serving what somebody else may change
vault        whole objects in and out, without opening them
state        what is remembered; rows: its values; database: the file, made, judged and set aside; these two speak SQL
room         who gets how much of the disk: claims, tally, eviction, evictor; space: what files take
disk         small acts on files; lock: keeps a second daemon out

The store knows no fetcher and no catalogue.
"""

from cachefs.store.lock import DataDirLock
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State
from cachefs.store.stored import StoredObject

__all__ = ["DataDirLock", "ObjectStore", "State", "StoredObject"]
