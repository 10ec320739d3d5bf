"""An object of the store being opened, by a task of the mount's: that may outlast a reader's patience.

How it works: what a crash left is hashed before an object is open, and that goes on when the reader who asked for it
has given up. The next one finds it open, or is told that it takes a while.
"""

from __future__ import annotations

import trio

from cachefs.content import Manifest
from cachefs.store.objects import ObjectStore
from cachefs.store.stored import StoredObject


class Opening:
    """One such task: `run` it in the mount's nursery, and `wait` for it."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._done = trio.Event()
        self._given_up = False
        self._stored: StoredObject | None = None
        self._error: Exception | None = None

    async def run(self) -> None:
        """Open it, and give it back if nobody waits any more."""
        try:
            self._stored = await self._store.open(self._manifest)
        except Exception as error:  # a fault too is the reader's to see: this task has only the mount above it
            self._error = error
        self._done.set()
        if self._given_up and self._stored is not None:
            await self._stored.release()

    async def wait(self) -> StoredObject:
        """The object, once it is open; raises what kept it from being opened. Cancel it to give up."""
        try:
            while not self._done.is_set():
                await self._done.wait()
        except trio.Cancelled:
            self._given_up = True
            if self._stored is not None:  # it came just as we were cancelled
                with trio.CancelScope(shield=True):
                    await self._stored.release()
            raise
        if self._stored is None:
            assert self._error is not None
            raise self._error
        return self._stored
