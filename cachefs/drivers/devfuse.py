"""The driver that speaks to /dev/fuse itself, so that the kernel can read complete files without asking (passthrough).

How it works: one task reads requests as they come. A read that memory can answer is answered on the spot; every other
request gets a task of its own. When a file is opened of which everything is here and checked, the kernel is given
that file of the store, and reads and maps it as it does any file of that disk: nothing is copied or kept twice in
memory, and this process isn't asked any more. libfuse 3.14 and pyfuse3 know nothing of that, hence this driver.

Between a read's getting its bytes out of the page cache and its reply nothing is awaited: that is what lets all reads
share one buffer.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import trio

from cachefs import mountinfo
from cachefs.content import Span
from cachefs.drivers import notices, protocol, syscalls
from cachefs.drivers.lending import Lending
from cachefs.drivers.looks import Look
from cachefs.drivers.overlay import Owner
from cachefs.drivers.protocol import Op, Request
from cachefs.errors import CachefsError, ConfigError
from cachefs.filesystem import Filesystem, errno_of

log = logging.getLogger(__name__)

_DEVICE = Path("/dev/fuse")
_TURN = 0.001
"""For how many seconds requests are looked at before others of the daemon's tasks have their turn."""

_GONE = {errno.ENODEV, errno.ECONNABORTED}  # unmounted, or aborted under /sys/fs/fuse
_WITHDRAWN = {errno.ENOENT, errno.EINTR}  # whoever asked was killed before the request was read

_Answer = bytes | memoryview


class _Refused(Exception):
    """A request is answered with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


def require_rights() -> None:
    """ConfigError if this process may not have files passed through."""
    if not syscalls.may_mount():
        raise ConfigError(
            "--passthrough",
            "only root, or a process with CAP_SYS_ADMIN, may have the kernel read files of the store. Start it with "
            "sudo or as a systemd service (docs/operating.md has a unit), or leave it off",
        )


class DevFuseDriver:
    """Mounts a `Filesystem` whose complete files are passed through. With an `owner`, see `Look.of`."""

    def __init__(
        self, filesystem: Filesystem, mountpoint: Path, data_dir: Path, *, allow_other: bool, owner: Owner | None = None
    ) -> None:
        self._fs = filesystem
        self._mountpoint = mountpoint
        self._data_dir = data_dir
        self._allow_other = allow_other
        self._look = Look.of(owner)
        self._device = -1
        self._lending = Lending(-1)
        self._handlers: dict[int, Callable[[Request], Awaitable[_Answer]]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._release,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.FLUSH: self._flush,
            Op.OPENDIR: self._opendir,
            Op.RELEASEDIR: self._releasedir,
            Op.READDIRPLUS: self._readdirplus,
        }

    @property
    def passed_through(self) -> int:
        """How many files the kernel reads by itself now."""
        return self._lending.files

    # The mount's life

    def mount(self) -> None:
        """Mount, and agree with the kernel; other requests wait for `serve`. CachefsError if it can't be done."""
        try:
            self._device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            source, options = mountinfo.source_of(self._data_dir), self._options()
            syscalls.mount(mountinfo.TYPE, source, self._mountpoint, options, syscalls.MS_RDONLY)
            self._begin()
        except OSError as error:
            raise CachefsError(
                f"{self._mountpoint}: can't be mounted ({error.strerror}). Is {_DEVICE} there and accessible?"
            ) from error

    def _begin(self) -> None:
        """Agree with the kernel, which asks as soon as it is mounted, before anybody can use it."""
        self._lending = Lending(self._device)
        try:
            asked = Request.parse(os.read(self._device, protocol.LONGEST_REQUEST))
            self._reply(asked, protocol.negotiate(asked))
        except BaseException:
            syscalls.umount(self._mountpoint, syscalls.MNT_DETACH)
            self.close()
            raise

    def _options(self) -> str:
        options = f"fd={self._device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
        return f"{options},allow_other" if self._allow_other else options

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone or this is cancelled."""
        async with trio.open_nursery() as nursery:
            while self._take(nursery):
                await trio.lowlevel.wait_readable(self._device)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Cut the connection: open files get errors from now on, but for those that are passed through."""
        # A thread may be about to tell the kernel more: not what has this number next.
        device, self._device = self._device, -1
        os.close(device)

    async def forget_pages(self, inode: int, spans: Iterable[Span]) -> None:
        """Have the kernel drop what it has read of an inode in `spans`, mapped pages too.

        Waits for reads of these pages that are under way, so it isn't for a handler to call. Of a file that is passed
        through it has read nothing; there the pages are the disk's.
        """
        await notices.forget_pages(lambda: self._device, inode, spans)

    def forget(self, entries: Iterable[tuple[int, str]]) -> None:
        """Have the kernel look these names (directory inode, name) up anew.

        Blocks while a request for the same directory is unanswered: run it in a thread.
        """
        notices.forget_entries(lambda: self._device, entries)

    # Requests and answers

    def _take(self, nursery: trio.Nursery) -> bool:
        """Answer the requests that are there, or give them to tasks of `nursery`; False if the mount is gone."""
        end = time.monotonic() + _TURN
        while time.monotonic() < end:
            try:
                request = Request.parse(os.read(self._device, protocol.LONGEST_REQUEST))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _GONE:
                    return False
                if error.errno not in _WITHDRAWN:
                    raise
                continue
            handler = self._handlers.get(request.operation)
            if handler is not None:
                if request.operation != Op.READ or not self._read_now(request):
                    nursery.start_soon(self._handle, request, handler)
            elif request.operation not in protocol.UNANSWERED:
                self._refuse(request, errno.ENOSYS)
        return True

    async def _handle(self, request: Request, handler: Callable[[Request], Awaitable[_Answer]]) -> None:
        try:
            answer = await handler(request)
        except Exception as error:
            self._refuse(request, self._errno(request, error))
        else:
            self._reply(request, answer)

    def _errno(self, request: Request, error: Exception) -> int:
        if isinstance(error, _Refused):
            return error.number
        if isinstance(error, CachefsError):
            log.debug("request %d: %s", request.operation, error)
            return errno_of(error)
        log.error("request %d on inode %d failed; answered EIO", request.operation, request.inode, exc_info=error)
        return errno.EIO

    def _reply(self, request: Request, answer: _Answer) -> None:
        self._send([protocol.header(request.unique, len(answer)), answer])

    def _refuse(self, request: Request, number: int) -> None:
        self._send([protocol.header(request.unique, error=number)])

    def _send(self, parts: list[_Answer]) -> None:
        try:
            os.writev(self._device, parts)
        except OSError as error:
            if error.errno != errno.ENOENT:  # ENOENT: nobody waits for it any more
                log.error("the kernel didn't take an answer: %s", error.strerror)

    def _read_now(self, request: Request) -> bool:
        """Answer a read if memory has what it asks for."""
        try:
            ready = self._fs.read_now(*request.read())
        except Exception as error:
            self._refuse(request, self._errno(request, error))
            return True
        if ready is None:
            return False
        self._reply(request, ready)
        return True

    # What is asked

    async def _lookup(self, request: Request) -> bytes:
        return protocol.entry(self._fs.lookup(request.inode, os.fsdecode(request.name())), self._look)

    async def _getattr(self, request: Request) -> bytes:
        return protocol.attributes(await self._fs.attributes(request.inode), self._look)

    async def _open(self, request: Request) -> bytes:
        flags = request.open_flags()
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _Refused(errno.EROFS)
        handle = await self._fs.open(request.inode, request.process, direct=bool(flags & os.O_DIRECT))
        try:
            if self._lending.lent(request.inode):
                await self._fs.complete(handle)  # a block of it may have been found wrong meanwhile
            backing = self._lending.opened(request.inode, self._fs.descriptor(handle))
        except BaseException:
            self._fs.close(handle)
            raise
        return protocol.opened(handle, backing)

    async def _read(self, request: Request) -> bytes | memoryview:
        return await self._fs.read(*request.read(), request.process)

    async def _release(self, request: Request) -> bytes:
        self._fs.close(request.handle())
        self._lending.closed(request.inode)
        return b""

    async def _flush(self, request: Request) -> bytes:
        self._fs.flushed(request.handle())
        return b""

    async def _opendir(self, request: Request) -> bytes:
        return protocol.opened_directory(self._fs.open_directory(request.inode))

    async def _releasedir(self, request: Request) -> bytes:
        self._fs.close_directory(request.handle())
        return b""

    async def _readdirplus(self, request: Request) -> bytes:
        handle, position, room = request.read()
        return protocol.listing(self._fs.listing(handle, position), self._look, room)

    async def _getxattr(self, request: Request) -> bytes:
        name, room = request.wanted_xattr()
        fact = self._fs.fact(request.inode, os.fsdecode(name))
        if fact is None:
            raise _Refused(errno.ENODATA)
        return _fitting(os.fsencode(fact), room)

    async def _listxattr(self, request: Request) -> bytes:
        names = b"".join(name.encode() + b"\0" for name in self._fs.facts(request.inode))
        return _fitting(names, request.xattr_room())

    async def _statfs(self, request: Request) -> bytes:
        return protocol.statfs(self._fs.usage())


def _fitting(value: bytes, room: int) -> bytes:
    """The value of an attribute; its size if no room was given."""
    if not room:
        return protocol.xattr_size(len(value))
    if len(value) > room:
        raise _Refused(errno.ERANGE)
    return value
