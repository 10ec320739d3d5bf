"""The driver for Linux FUSE through pyfuse3 (libfuse's low-level interface).

How it works: each handler translates arguments, calls the file system and translates the result. A known
error becomes the errno of the file system's table; an unknown one is logged with its traceback and
becomes EIO, because an exception that leaves a handler would end the mount for everybody.

Attributes never change while a name keeps its inode number, so the kernel may keep them for ever, and pages
too (`keep_cache`): a second read costs the kernel alone. The exception is a size that isn't known: it is
given out for listings with a lifetime of zero, so that a `stat` comes back and asks.

Between a read's getting its bytes out of the page cache and its reply nothing is awaited, also when it had to wait for
them to be fetched before: that is what lets all reads share one buffer.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import struct
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from cachefs import mountinfo
from cachefs.content import Span
from cachefs.drivers.overlay import Owner
from cachefs.errors import CachefsError
from cachefs.filesystem import Attributes, Filesystem, errno_of

log = logging.getLogger(__name__)

LASTING = 86_400.0
"""For how long, in seconds, the kernel may keep what doesn't change."""

MAX_TASKS = 2_000
"""Requests under way at once. Blocked reads are limited well below it, so that others find a task free."""

_OURS = b"user.cachefs."

_NOTIFICATION = struct.Struct("=IiQQqq")
_INVAL_INODE = 2

P = ParamSpec("P")
T = TypeVar("T")


def guarded(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let nothing but FUSEError out of a handler."""

    @wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except CachefsError as error:
            log.debug("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(errno_of(error)) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s%r failed; answered EIO", handler.__name__, args[1:4])
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapper


class Operations(pyfuse3.Operations):
    """pyfuse3's view of a `Filesystem`."""

    supports_dot_lookup = True

    def __init__(self, filesystem: Filesystem, owner: Owner | None) -> None:
        super().__init__()
        self._fs = filesystem
        self._uid, self._gid = (owner.uid, owner.gid) if owner else (os.getuid(), os.getgid())
        self._directory_mode = stat.S_IFDIR | (0o755 if owner else 0o555)

    def _entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(attributes.inode)
        entry.generation = 0
        directory = attributes.is_directory
        entry.st_mode = pyfuse3.ModeT(self._directory_mode if directory else stat.S_IFREG | 0o444)
        entry.st_nlink = 2 if directory else 1
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_size = attributes.size or 0
        entry.st_blksize = 2**20
        entry.st_blocks = -(-entry.st_size // 512)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = int(attributes.mtime * 1e9)
        entry.entry_timeout = entry.attr_timeout = 0.0 if attributes.size is None else LASTING
        return entry

    @guarded
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.lookup(parent_inode, os.fsdecode(name)))

    @guarded
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.attributes(inode))

    @guarded
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    @guarded
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for name, attributes, after in self._fs.listing(fh, start_id):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(os.fsencode(name)), self._entry(attributes), after):
                return

    @guarded
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        return None

    @guarded
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        handle = await self._fs.open(inode, ctx.pid, direct=bool(flags & os.O_DIRECT))
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)

    @guarded
    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        # The kernel asks for others too, security.capability for one, before it does anything with a file.
        fact = self._fs.facts(inode).get(os.fsdecode(name)) if name.startswith(_OURS) else None
        if fact is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return os.fsencode(fact)

    @guarded
    async def listxattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> list[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name.encode()) for name in self._fs.facts(inode)]

    @guarded
    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> Any:
        ready = self._fs.read_now(fh, off, size)
        return ready if ready is not None else await self._fs.read(fh, off, size)

    @guarded
    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.close(fh)

    @guarded
    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.flushed(fh)

    @guarded
    async def forget(self, inode_list: Any) -> None:
        # Inode numbers stand for names of the tree, not for what the kernel remembers: nothing to count.
        return None

    @guarded
    async def access(self, inode: pyfuse3.InodeT, mode: pyfuse3.ModeT, ctx: pyfuse3.RequestContext) -> bool:
        return True

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        usage = self._fs.usage()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = -(-usage.size // 4096)
        data.f_bfree = data.f_bavail = 0
        data.f_files = usage.files
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data


class Pyfuse3Driver:
    """Mounts a `Filesystem` with pyfuse3, which serves one mount a process.

    With an `owner`, everything is that owner's, and the directories look writable: an overlayfs takes their modes over.
    """

    def __init__(
        self, filesystem: Filesystem, mountpoint: Path, data_dir: Path, *, allow_other: bool, owner: Owner | None = None
    ) -> None:
        self._operations = Operations(filesystem, owner)
        self._mountpoint = mountpoint
        source = mountinfo.source_of(data_dir)
        options = {"default_permissions", "ro", "nosuid", "nodev", "subtype=cachefs", f"fsname={source}"}
        self._options = options | ({"allow_other"} if allow_other else set())

    def mount(self) -> None:
        """Mount; the kernel's first request waits for `serve`. CachefsError if the kernel or fusermount3 refuses."""
        try:
            pyfuse3.init(self._operations, str(self._mountpoint), self._options)
        except RuntimeError as error:
            raise CachefsError(
                f"{self._mountpoint}: can't be mounted ({error}); fusermount3's message is above. "
                "Is fuse3 installed, /dev/fuse accessible and the directory yours?"
            ) from error

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone or this is cancelled."""
        await pyfuse3.main(max_tasks=MAX_TASKS)

    async def forget_pages(self, inode: int, spans: Iterable[Span]) -> None:
        """Have the kernel drop what it has read of an inode in `spans`, mapped pages too.

        Waits for reads of these pages that are under way, so it isn't for a handler to call.
        """
        for span in spans:
            with contextlib.suppress(OSError):  # the kernel doesn't know the inode any more
                await trio.to_thread.run_sync(_forget_pages, inode, span, abandon_on_cancel=True)

    def forget(self, entries: Iterable[tuple[int, str]]) -> None:
        """Have the kernel look these names (directory inode, name) up anew.

        Blocks while a request for the same directory is unanswered: run it in a thread.
        """
        for directory, name in entries:
            try:
                pyfuse3.invalidate_entry(pyfuse3.InodeT(directory), pyfuse3.FileNameT(os.fsencode(name)))
            except OSError as error:
                if error.errno != errno.ENOENT:  # ENOENT: the kernel doesn't remember it
                    log.warning("%s: the kernel may show what the name stood for before: %s", name, error)

    def close(self) -> None:
        """Unmount, even while files are open: they get errors from now on."""
        pyfuse3.close()


def _forget_pages(inode: int, span: Span) -> None:
    """FUSE_NOTIFY_INVAL_INODE, whose range libfuse passes on and pyfuse3 doesn't. OSError.

    The range matters: dropping a page waits for whoever is reading it, and a reader that waits for another block of
    the same file must not keep bad pages alive. Format: fuse_out_header and fuse_notify_inval_inode_out in
    linux/fuse.h; a notification has the unique number 0 and its code in place of the error.
    """
    size = _NOTIFICATION.size
    os.write(_connection(), _NOTIFICATION.pack(size, _INVAL_INODE, 0, inode, span.offset, span.length))


@functools.cache
def _connection() -> int:
    """The descriptor of this process's one mount, which pyfuse3 keeps to itself. OSError if there is none."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if entry.readlink() == Path("/dev/fuse"):
                return int(entry.name)
    raise OSError(errno.ENODEV, "no descriptor of /dev/fuse")
