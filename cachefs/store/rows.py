"""What the state's rows are to the rest of the store: frozen, and free of SQL."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cachefs.content import ContentId


@dataclass(frozen=True, slots=True)
class Info:
    """A name's row in BittorrentInfo; times are Unix seconds, `length` is bytes and None until known."""

    name: str
    hash: str
    length: int | None
    created: float
    completed: float | None


@dataclass(frozen=True, slots=True)
class Seal:
    """How a data file looked when the store had last finished with it: size in bytes, mtime, inode number.

    Of another user's file the mtime is its ctime, for he can set the mtime back, and nobody the other.
    """

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Seal:
        """How a file looks that has this status."""
        changed = status.st_mtime_ns if status.st_uid == os.geteuid() else status.st_ctime_ns
        return cls(status.st_size, changed, status.st_ino)


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """What is known of an object on disk.

    `bitmap`: a bit for each block that was verified and synced. `held`: the bytes in those blocks. `seal`: None
    while the file may be written to, that is from open to a clean close, or until it is complete.
    """

    block_length: int
    length: int
    bitmap: bytes
    held: int
    seal: Seal | None
    completed: float | None
    last_used: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals for the status: objects, complete ones, bytes held."""

    objects: int
    complete: int
    held: int


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """A name that is pinned, and the content it had when that was last looked at."""

    catalogue: str
    name: str
    content: ContentId
