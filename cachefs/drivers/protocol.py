"""The FUSE protocol, as far as a read-only file system needs it: what the kernel asks, and how it is answered.

How it works: a request is a header and a body, an answer a header and what was asked for, each one read or write on
/dev/fuse. Both sides put their version and their abilities into the first exchange, INIT. Passthrough came
with version 7.40, in Linux 6.9; whoever answers with that version gets the structures of that version, also
from a later kernel.

Format: linux/fuse.h, in native byte order.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from cachefs.drivers import looks
from cachefs.drivers.looks import Look
from cachefs.errors import CachefsError
from cachefs.filesystem import Attributes, Usage

LONGEST_REQUEST = 8192
"""The least buffer that the kernel accepts. Only writes are longer, and there are none."""

_LARGEST_WRITE = 4096
"""The least that can be agreed on; the buffer has to hold one, also where a page is larger than that."""

LARGEST_READ = 2**20

_VERSION, _REVISION = 7, 40
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BLOCK, _LONGEST_NAME = 4096, 255

_IN_HEADER = struct.Struct("=IIQQIIIHH")
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
_ATTRIBUTES = struct.Struct("=QQQqqqIIIIIIIIII")  # a time before 1970 is negative
_ENTRY_HEAD = struct.Struct("=QQQQII")
_ATTRIBUTES_HEAD = struct.Struct("=QII")
_OPEN_IN, _OPEN_OUT = struct.Struct("=II"), struct.Struct("=QIi")
_READ_IN = struct.Struct("=QQI")
_HANDLE = struct.Struct("=Q")
_XATTR = struct.Struct("=II")
_STATFS = struct.Struct("=QQQQQIIII24x")
_ENTRY_TAIL = struct.Struct("=QQII")
_BACKING = struct.Struct("=iIQ")
_BACKING_ID = struct.Struct("=I")

_DIRECTORY, _FILE = 4, 8  # DT_DIR, DT_REG


class Op(IntEnum):
    """The requests that are answered; the kernel does without the others once it was told ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    RELEASEDIR = 29
    BATCH_FORGET = 42
    READDIRPLUS = 44


UNANSWERED = frozenset({Op.FORGET, Op.BATCH_FORGET})
"""Inode numbers stand for names of the tree, not for what the kernel remembers: there is nothing to count."""


class _Can:
    """Abilities, bits of INIT's flags."""

    ASYNC_READ = 1 << 0
    LOOKUP_DOTS = 1 << 4
    READDIRPLUS = 1 << 13
    ASYNC_DIRECT = 1 << 15
    PARALLEL_DIRECTORIES = 1 << 18
    MAX_PAGES = 1 << 22
    MORE_FLAGS = 1 << 30
    PASSTHROUGH = 1 << 37


_WANTED = (
    _Can.ASYNC_READ | _Can.LOOKUP_DOTS | _Can.READDIRPLUS | _Can.ASYNC_DIRECT | _Can.PARALLEL_DIRECTORIES
    | _Can.MAX_PAGES | _Can.MORE_FLAGS | _Can.PASSTHROUGH
)  # fmt: skip

_KEEP_CACHE, _NO_FLUSH, _PASS_THROUGH = 1 << 1, 1 << 5, 1 << 7
"""How a file is open, bits of OPEN's answer."""


class Request(NamedTuple):
    """One request: `process` asks for `operation`, a number of `Op` or another, on `inode`."""

    operation: int
    unique: int
    inode: int
    process: int
    body: bytes

    @classmethod
    def parse(cls, message: bytes) -> Request:
        _, operation, unique, inode, _, _, process, _, _ = _IN_HEADER.unpack_from(message)
        return cls(operation, unique, inode, process, message[_IN_HEADER.size :])

    def name(self, skip: int = 0) -> bytes:
        """The name that the body has after `skip` bytes."""
        return self.body[skip : self.body.index(b"\0", skip)]

    def handle(self) -> int:
        """The open file that it is about, the first field of every body that has one."""
        return int(_HANDLE.unpack_from(self.body)[0])

    def read(self) -> tuple[int, int, int]:
        """Handle, offset and size of a READ or READDIRPLUS."""
        return _READ_IN.unpack_from(self.body)

    def open_flags(self) -> int:
        return int(_OPEN_IN.unpack_from(self.body)[0])

    def wanted_xattr(self) -> tuple[bytes, int]:
        """The name that a GETXATTR asks for, and how many bytes it takes; 0 if it only asks how many there are."""
        return self.name(_XATTR.size), self.xattr_room()

    def xattr_room(self) -> int:
        return int(_XATTR.unpack_from(self.body)[0])


def header(unique: int, length: int = 0, error: int = 0) -> bytes:
    """What goes before an answer of `length` bytes; `error` is an errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + length, -error, unique)


def negotiate(request: Request) -> bytes:
    """The answer to INIT; CachefsError if this kernel has no passthrough."""
    version, revision, readahead, flags, more = _INIT_IN.unpack_from(request.body)
    offered = flags | (more << 32 if flags & _Can.MORE_FLAGS else 0)
    if (version, revision) < (_VERSION, _REVISION) or not offered & _Can.PASSTHROUGH:
        raise CachefsError(
            f"this kernel ({os.uname().release}) has no FUSE passthrough; Linux has it from 6.9 on, where it was built "
            "with CONFIG_FUSE_PASSTHROUGH. Leave --passthrough off"
        )
    agreed, deepest = offered & _WANTED, 1
    return _INIT_OUT.pack(
        _VERSION, _REVISION, readahead, agreed & 0xFFFFFFFF, 0, 0, _LARGEST_WRITE, 1, LARGEST_READ // _PAGE, 0,
        agreed >> 32, deepest,
    )  # fmt: skip


def attributes(shown: Attributes, look: Look) -> bytes:
    """The answer to GETATTR."""
    return _ATTRIBUTES_HEAD.pack(looks.lifetime(shown), 0, 0) + _attributes(shown, look)


def entry(shown: Attributes, look: Look) -> bytes:
    """The answer to LOOKUP."""
    lifetime = looks.lifetime(shown)
    return _ENTRY_HEAD.pack(shown.inode, 0, lifetime, lifetime, 0, 0) + _attributes(shown, look)


def _attributes(shown: Attributes, look: Look) -> bytes:
    seconds, nanoseconds = divmod(int(shown.mtime * 1e9), 10**9)
    return _ATTRIBUTES.pack(
        shown.inode, looks.size(shown), looks.sectors(shown), seconds, seconds, seconds, nanoseconds, nanoseconds,
        nanoseconds, look.mode(shown), looks.links(shown), look.uid, look.gid, 0, looks.PREFERRED_READ, 0,
    )  # fmt: skip


def listing(entries: Iterable[tuple[str, Attributes, int]], look: Look, room: int) -> bytes:
    """The answer to READDIRPLUS: as many entries as go into `room` bytes."""
    answer = bytearray()
    for name, shown, after in entries:
        encoded = os.fsencode(name)
        kind = _DIRECTORY if shown.is_directory else _FILE
        one = entry(shown, look) + _ENTRY_TAIL.pack(shown.inode, after, len(encoded), kind) + encoded
        one += bytes(-len(one) % 8)
        if len(answer) + len(one) > room:
            break
        answer += one
    return bytes(answer)


def opened(handle: int, backing: int = 0) -> bytes:
    """The answer to OPEN; with `backing`, the number of a file that the kernel is to read instead of asking."""
    flags = _PASS_THROUGH | _NO_FLUSH if backing else _KEEP_CACHE
    return _OPEN_OUT.pack(handle, flags, backing)


def opened_directory(handle: int) -> bytes:
    """The answer to OPENDIR."""
    return _OPEN_OUT.pack(handle, 0, 0)


def xattr_size(size: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR when only the size was asked for."""
    return _XATTR.pack(size, 0)


def statfs(usage: Usage) -> bytes:
    """The answer to STATFS."""
    blocks = -(-usage.size // _BLOCK)
    return _STATFS.pack(blocks, 0, 0, usage.files, 0, _BLOCK, _LONGEST_NAME, _BLOCK, 0)


@dataclass(frozen=True, slots=True)
class Backing:
    """A file that the kernel may read for an inode, and the number under which it knows it."""

    number: int
    device: int

    @classmethod
    def register(cls, device: int, descriptor: int) -> Backing:
        """Make an open file known to the mount of `device`. OSError; ELOOP for a file on a stacked file system."""
        # A bytearray, because for bytes it is they that ioctl returns, and not the number.
        return cls(fcntl.ioctl(device, _ioctl(1, _BACKING.size), bytearray(_BACKING.pack(descriptor, 0, 0))), device)

    def withdraw(self) -> None:
        """Have it forgotten, but by those files that are open with it. OSError."""
        fcntl.ioctl(self.device, _ioctl(2, _BACKING_ID.size), _BACKING_ID.pack(self.number))


def _ioctl(number: int, size: int) -> int:
    writes, magic = 1, 229
    return writes << 30 | size << 16 | magic << 8 | number
