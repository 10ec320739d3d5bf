"""Whether complete content is, as a whole, what it is named by.

How it works: blocks are checked against a list. The list of a snapshot is what its info-hash is made of, so right
blocks make a right whole. The list of a record came with the record, which may contradict itself: its content is
hashed once more as a whole, when the last block is there and before it is sealed. What is wrong then is thrown away,
all of it, and never served again by this process.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from cachefs.content import Bitmap, Manifest
from cachefs.diskerrors import named
from cachefs.errors import RecordInconsistent
from cachefs.store.vault import sha256_of

_log = logging.getLogger(__name__)


async def condemn_unless_whole(path: Path, fd: int, manifest: Manifest, verified: Bitmap) -> RecordInconsistent | None:
    """None if the file is its content; otherwise the file and its bits are emptied, and this is why. StoreFailed."""
    content = manifest.content
    if content.algorithm != "sha256" or manifest.blocks == 1:
        return None
    with named(path):
        if await trio.to_thread.run_sync(sha256_of, fd, manifest.length) == content.digest:
            return None
        for index in range(manifest.blocks):
            verified.discard(index)
        os.ftruncate(fd, 0)
        os.ftruncate(fd, manifest.length)
    why = f"{content}: all {manifest.blocks} pieces are right, and the whole is something else"
    error = RecordInconsistent(f"{why}: its record contradicts itself; etch it again")
    _log.error("%s", error)
    return error
