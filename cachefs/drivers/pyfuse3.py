"""The driver for Linux FUSE through pyfuse3 (libfuse's low-level interface).

How it works: each handler translates arguments, calls the file system and translates the result. A known
error becomes the errno of the file system's table; an unknown one is logged with its traceback and
becomes EIO, because an exception that leaves a handler would end the mount for everybody.

Between a read's getting its bytes out of the page cache and its reply nothing is awaited, also when it had to wait for
them to be fetched before: that is what lets all reads share one buffer.

When the kernel has cut the connection, pyfuse3 ends, but not before the last handler has; and a read may wait for ever,
though nobody can be told its bytes any more. So that is watched for as well.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from cachefs import mountinfo
from cachefs.content import Span
from cachefs.drivers import looks, notices
from cachefs.drivers.looks import Look
from cachefs.drivers.overlay import Owner
from cachefs.errors import CachefsError
from cachefs.filesystem import Attributes, Filesystem, errno_of

log = logging.getLogger(__name__)

MAX_TASKS = 70_000
"""Requests under way at once. Reads and requests for a size that wait are limited below it by themselves, so that
others find a task free."""

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
        self._look = Look.of(owner)

    def _entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(attributes.inode)
        entry.generation = 0
        entry.st_mode = pyfuse3.ModeT(self._look.mode(attributes))
        entry.st_nlink = looks.links(attributes)
        entry.st_uid, entry.st_gid = self._look.uid, self._look.gid
        entry.st_size = looks.size(attributes)
        entry.st_blksize = looks.PREFERRED_READ
        entry.st_blocks = looks.sectors(attributes)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = int(attributes.mtime * 1e9)
        entry.entry_timeout = entry.attr_timeout = looks.lifetime(attributes)
        return entry

    @guarded
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._fs.lookup(parent_inode, os.fsdecode(name)))

    @guarded
    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.attributes(inode))

    @guarded
    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(self._fs.open_directory(inode))

    @guarded
    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for name, attributes, after in self._fs.listing(fh, start_id):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(os.fsencode(name)), self._entry(attributes), after):
                return

    @guarded
    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        self._fs.close_directory(fh)

    @guarded
    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        handle = await self._fs.open(inode, ctx.pid, direct=bool(flags & os.O_DIRECT))
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)

    @guarded
    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        fact = self._fs.fact(inode, os.fsdecode(name))
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
        self._device = -1
        source = mountinfo.source_of(data_dir)
        options = {"default_permissions", "ro", "nosuid", "nodev", "subtype=cachefs", f"fsname={source}"}
        self._options = options | ({"allow_other"} if allow_other else set())

    @property
    def passed_through(self) -> None:
        """libfuse knows no passthrough."""

    def mount(self) -> None:
        """Mount; the kernel's first request waits for `serve`. CachefsError if the kernel or fusermount3 refuses."""
        try:
            pyfuse3.init(self._operations, str(self._mountpoint), self._options)
        except RuntimeError as error:
            raise CachefsError(
                f"{self._mountpoint}: can't be mounted ({error}); fusermount3's message is above. "
                "Is fuse3 installed, /dev/fuse accessible and the directory yours?"
            ) from error
        try:
            self._device = _descriptor()  # now: later there may be no descriptor left to look with
        except OSError as error:
            pyfuse3.close()
            raise CachefsError(f"{self._mountpoint}: can't be mounted: {error.strerror}") from error

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone or this is cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_when_cut, nursery.cancel_scope)
                await pyfuse3.main(max_tasks=MAX_TASKS)
                nursery.cancel_scope.cancel()
        except* ConnectionAbortedError:
            # What the kernel answers instead of ENODEV if a request was about to be read when the mount went.
            log.debug("the mount went while a request was being read")

    async def _end_when_cut(self, serving: trio.CancelScope) -> None:
        """Cancel when the kernel has cut the connection: the mount is gone, or was aborted under /sys/fs/fuse."""
        with select.epoll() as device:
            device.register(self._device, 0)  # an error is told unasked
            await trio.lowlevel.wait_readable(device.fileno())
        serving.cancel()

    async def forget_pages(self, inode: int, spans: Iterable[Span]) -> None:
        """Have the kernel drop what it has read of an inode in `spans`, mapped pages too.

        Waits for reads of these pages that are under way, so it isn't for a handler to call.
        """
        await notices.forget_pages(lambda: self._device, inode, spans)

    def forget(self, entries: Iterable[tuple[int, str]]) -> None:
        """Have the kernel look these names (directory inode, name) up anew.

        Blocks while a request for the same directory is unanswered: run it in a thread.
        """
        notices.forget_entries(lambda: self._device, entries)

    def close(self) -> None:
        """Cut the connection: open files get errors from now on."""
        self._device = -1
        pyfuse3.close(unmount=False)  # it would go by path, whatever is there now


def _descriptor() -> int:
    """The descriptor of this process's one mount, which pyfuse3 keeps to itself. OSError if there is none."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if entry.readlink() == Path("/dev/fuse"):
                return int(entry.name)
    raise OSError(errno.ENODEV, "no descriptor of /dev/fuse")
