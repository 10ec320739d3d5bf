"""What the kernel is told unasked: to forget pages of a file, or what a name stands for.

How it works: a notification is a reply with the unique number 0 and its code in place of the error, written to the
mount's descriptor of /dev/fuse. pyfuse3 can't name a range of pages. It matters: dropping a page waits for whoever
is reading it, and a reader that waits for another block of the same file must not keep bad pages alive.

Format: fuse_out_header, fuse_notify_inval_inode_out and fuse_notify_inval_entry_out in linux/fuse.h.
"""

from __future__ import annotations

import os
import struct

from cachefs.content import Span

_HEADER = struct.Struct("=IiQ")
_PAGES = struct.Struct("=Qqq")
_ENTRY = struct.Struct("=QII")
_INVAL_INODE, _INVAL_ENTRY = 2, 3


def forget_pages(device: int, inode: int, span: Span) -> None:
    """Drop what the kernel has read of an inode in `span`. Blocks while such a page is being read. OSError."""
    _send(device, _INVAL_INODE, _PAGES.pack(inode, span.offset, span.length))


def forget_entry(device: int, directory: int, name: bytes) -> None:
    """Have the kernel look a name up anew. Blocks while a request for its directory is unanswered. OSError."""
    _send(device, _INVAL_ENTRY, _ENTRY.pack(directory, len(name), 0) + name + b"\0")


def _send(device: int, code: int, body: bytes) -> None:
    os.write(device, _HEADER.pack(_HEADER.size + len(body), code, 0) + body)
