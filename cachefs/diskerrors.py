"""What an OSError of the disk means: StoreFull when there is no room, StoreFailed for any other reason.

How it works: whoever writes bytes that are to be kept, the store as well as a fetcher, wraps it in `named`. So that a
full disk is told from a broken one is decided here, by errno, and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from cachefs.errors import StoreFailed, StoreFull

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))
"""The errnos of a file system without room, and of a user without any left."""


_SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))


def is_shortage(error: StoreFailed) -> bool:
    """Whether it was this process that lacked descriptors or memory, which says nothing about the file."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _SHORTAGE


def kind_of(code: int | None) -> type[StoreFull | StoreFailed]:
    """The error that an errno of the disk's becomes."""
    return StoreFull if code in NO_ROOM else StoreFailed


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn an OSError into StoreFull or StoreFailed that names `path`."""
    try:
        yield
    except OSError as error:
        raise kind_of(error.errno)(f"{path}: {error.strerror or error}") from error
