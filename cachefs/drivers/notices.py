"""What the kernel is told unasked: to forget pages of a file, or what a name stands for.

How it works: a notification is a reply with the unique number 0 and its code in place of the error, written to the
mount's descriptor of /dev/fuse. pyfuse3 can't name a range of pages. It matters: dropping a page waits for whoever
is reading it, and a reader that waits for another block of the same file must not keep bad pages alive.

Format: fuse_out_header, fuse_notify_inval_inode_out and fuse_notify_inval_entry_out in linux/fuse.h.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import struct
from collections.abc import Callable, Iterable

import trio

from cachefs.content import Span

log = logging.getLogger(__name__)

_HEADER = struct.Struct("=IiQ")
_PAGES = struct.Struct("=Qqq")
_ENTRY = struct.Struct("=QII")
_INVAL_INODE, _INVAL_ENTRY = 2, 3
_NOBODY_TO_TELL = {errno.ENOENT, errno.EBADF, errno.ENODEV}  # not remembered; not mounted any more

_WAITING = trio.CapacityLimiter(100)
"""Threads that wait for the kernel to drop a page: of their own, because each may wait as long as a read does."""


Device = Callable[[], int]
"""Gives the mount's descriptor of /dev/fuse as it is now: after the mount's end its number may be another file's."""


async def forget_pages(device: Device, inode: int, spans: Iterable[Span]) -> None:
    """Drop what the kernel has read of an inode in `spans`. Waits while such a page is being read."""
    for span in spans:
        body = _PAGES.pack(inode, span.offset, span.length)
        send = functools.partial(_send, device(), _INVAL_INODE, body)
        try:
            await trio.to_thread.run_sync(send, abandon_on_cancel=True, limiter=_WAITING)
        except OSError as error:
            if error.errno not in _NOBODY_TO_TELL:
                log.warning("the kernel may keep what it has read of inode %d: %s", inode, error)


def forget_entries(device: Device, entries: Iterable[tuple[int, str]]) -> None:
    """Have names (directory inode, name) looked up anew. Blocks while a request for their directory is unanswered."""
    for directory, name in entries:
        encoded = os.fsencode(name)
        try:
            _send(device(), _INVAL_ENTRY, _ENTRY.pack(directory, len(encoded), 0) + encoded + b"\0")
        except OSError as error:
            if error.errno not in _NOBODY_TO_TELL:
                log.warning("%s: the kernel may show what the name stood for before: %s", name, error)


def _send(device: int, code: int, body: bytes) -> None:
    os.write(device, _HEADER.pack(_HEADER.size + len(body), code, 0) + body)
