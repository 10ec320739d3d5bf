"""The temporary files of downloads, and the flights that make many askers share one: across processes.

How it works: a temporary file lies in `<data-dir>/incoming`, on the store's own file system, so that keeping it
is a rename. Whoever writes it holds a file lock on it. The kernel drops the lock with the process, however that
dies, so a file that nobody holds is a dead download's, and the next start removes it.

A flight is a file too, named by a hash of what is fetched (a URL, or a checksum). Who locks it downloads; who
comes meanwhile waits, and finds in it what became of the download. The file is removed before it is let go, so
it means "under way, or just ended", never "once fetched".
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cachefs.catalog.files import is_named
from cachefs.content import ContentId
from cachefs.diskerrors import named

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOOK_EVERY = 0.05


@dataclass
class Flight:
    """One download under way. `landed` is what another process just fetched, if it did; `failed` why it couldn't.

    `alone`: what others fetched says nothing of it, and it tells them nothing.
    """

    fd: int
    alone: bool = False
    shared: bool = False
    landed: ContentId | None = None
    failed: str = ""

    def note(self, *, landed: ContentId | None = None, failed: str = "") -> None:
        """Leave word for those who wait. They do without it if the disk has no room: then they look for themselves."""
        if self.alone:
            return
        word = {"landed": str(landed) if landed else "", "failed": failed}
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, json.dumps(word).encode(), 0)

    def read(self) -> None:
        """Find the word that was left; one that isn't whole is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            word = json.loads(os.pread(self.fd, 2**16, 0))
            self.landed = ContentId.parse(word["landed"]) if word["landed"] else None
            self.failed = str(word["failed"])


@dataclass
class Incoming:
    """The directory of temporary files and flights."""

    path: Path
    _held: dict[Path, int] = field(default_factory=dict)

    def make_file(self) -> Path:
        """A new, empty file that is ours until `release`; StoreFull, StoreFailed."""
        while True:
            path = self.path / f"{secrets.token_hex(8)}.part"
            fd = self._open(path)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if is_named(fd, path):  # nobody took it for a dead one's in between
                self._held[path] = fd
                return path
            os.close(fd)

    def release(self, path: Path) -> None:
        """Be done with a file, and remove it if it is still there."""
        path.unlink(missing_ok=True)
        fd = self._held.pop(path, None)
        if fd is not None:
            os.close(fd)

    @contextmanager
    def files(self) -> Iterator[Incoming]:
        """A view of this directory whose files all end with it."""
        view = Incoming(self.path)
        try:
            yield view
        finally:
            for path in list(view._held):
                view.release(path)

    def clear(self) -> int:
        """Remove what dead downloads left; how many files that were. Blocking, short."""
        removed = 0
        for path in sorted(self.path.glob("*.*")):
            # What stands beside a temporary file, under its name and more, lives as long as it does.
            if path.suffix in (".part", ".flight") or not path.with_suffix("").exists():
                with contextlib.suppress(OSError):
                    removed += _remove_if_dead(path)
        return removed

    def _open(self, path: Path) -> int:
        with named(path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, _FLAGS, 0o600)

    @asynccontextmanager
    async def flight(self, key: str, *, alone: bool = False) -> AsyncIterator[Flight]:
        """Be the only one, of all processes, who fetches `key`; wait for another who does.

        `shared` says that somebody else was at it when we came and has left word, which `alone` doesn't heed.
        Cancel it to stop waiting.
        """
        path = self.path / f"{hashlib.sha256(key.encode()).hexdigest()}.flight"
        flight = await self._board(path, alone=alone)
        try:
            yield flight
        finally:
            if is_named(flight.fd, path):  # who came to share a word holds a file that has no name any more
                path.unlink(missing_ok=True)
            os.close(flight.fd)

    async def _board(self, path: Path, *, alone: bool) -> Flight:
        waited = False
        while True:
            flight = Flight(self._open(path), alone)
            try:
                waited |= await _lock(flight.fd)
                if waited and not alone:
                    flight.read()
                named = is_named(flight.fd, path)
                flight.shared = waited and bool(flight.landed or flight.failed)
                if named and not flight.shared:
                    os.ftruncate(flight.fd, 0)  # the word of somebody who died before removing it
                if named or flight.shared:
                    return flight
            except BaseException:
                os.close(flight.fd)
                raise
            os.close(flight.fd)


async def _lock(fd: int) -> bool:
    """Take the file lock; whether somebody had it. Looks again and again: a blocked thread couldn't be cancelled."""
    waited = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            await trio.sleep(_LOOK_EVERY)
        else:
            return waited


def _remove_if_dead(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
