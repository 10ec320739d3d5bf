"""Where the daemon listens: Unix sockets in a data directory, how they are reached, and clients of any socket.

How it works: a socket's file is there while somebody listens, mode 0600; one that a dead daemon left is replaced. The
addresses of sockets are limited to 107 bytes and data directories are not, so both ends go through a descriptor of the
directory. On a read-only file system there can be no socket: the daemon says so and works without, for what is cached
can still be read. Out of file descriptors, new clients wait in the kernel's queue until there are some.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import trio

_SHORTAGE_PAUSE = 0.1
_SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))

log = logging.getLogger(__name__)

Converse = Callable[[trio.SocketStream], Awaitable[None]]
"""Talks with one client; the stream is its own to close."""


@contextlib.contextmanager
def address(data_dir: Path, name: str) -> Iterator[str]:
    """The address of the socket `name`, valid while this is open. OSError if there is no such directory."""
    directory = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


@contextlib.asynccontextmanager
async def listening(data_dir: Path, name: str) -> AsyncIterator[list[trio.SocketListener]]:
    """Listen on the socket `name`; nothing to listen on where the file system is read-only."""
    path = data_dir / name
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.unlink(missing_ok=True)
            with address(data_dir, name) as where:
                await listener.bind(where)
            path.chmod(0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            log.warning("%s: read-only file system, so there is no socket: commands can't reach this daemon", path)
            yield []
            return
        listener.listen(128)
        try:
            yield [trio.SocketListener(listener)]
        finally:
            with contextlib.suppress(OSError):  # on a disk that is read-only by now: the next to listen replaces it
                path.unlink()


async def serve_clients(listeners: Iterable[trio.SocketListener], converse: Converse) -> None:
    """Have `converse` talk with each client until this is cancelled; the listeners are closed then.

    As trio's `serve_listeners`, which tells of a shortage ten times a second.
    """
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, listener, converse, nursery)


async def _accept(listener: trio.SocketListener, converse: Converse, nursery: trio.Nursery) -> None:
    async with listener:
        while True:
            nursery.start_soon(converse, await _next_client(listener))


async def _next_client(listener: trio.SocketListener) -> trio.SocketStream:
    told = False
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            if error.errno not in _SHORTAGE:
                raise
            if not told:
                log.warning("new clients have to wait: %s", error.strerror)
            told = True
            await trio.sleep(_SHORTAGE_PAUSE)
