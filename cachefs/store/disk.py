"""The data files themselves: open, look, read, write. Blocking calls; run them in a thread.

How it works: a file is always as long as its content, and sparse; what was never written is a hole that
takes no room, and SEEK_DATA tells holes from data without reading. Files are opened by digest in directories
of mode 0700. A symbolic link is followed in one case only: to read a file that was taken over in place
(`places`), and then only that one link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

from cachefs.content import ContentId, Span
from cachefs.diskerrors import named
from cachefs.errors import StoreFailed
from cachefs.store.state import Seal

_COMMON = os.O_CLOEXEC | os.O_NOFOLLOW
_OURS = 0o600
_NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM}


def directory_of(root: Path, content: ContentId) -> Path:
    """Where an object lives under the store's root."""
    return root / content.algorithm / content.hex[:2] / content.hex


def make_directory(path: Path) -> None:
    """Make an object's directory and those above it, each 0700 (`mkdir(parents=True)` does that for the last only)."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        for part in (*reversed(path.parents[:3]), path):
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode=0o700)


def open_sealed(path: Path) -> int | None:
    """A descriptor to read from, or None if there is no such file, also at the end of a link to one in place.

    Where the file is somebody else's, a pipe may have come in its place: to open that isn't waited for.
    """
    reading = os.O_RDONLY | os.O_NONBLOCK | _COMMON
    try:
        return os.open(path, reading)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP or path.name.startswith("manifest"):
            raise
    try:
        return os.open(path.readlink(), reading)
    except (FileNotFoundError, NotADirectoryError):
        return None


def open_writable(path: Path) -> int:
    """A descriptor to read from and write to; the file is made if need be, and made writable if it was sealed.

    On a read-only file system it is one to read from only: what is cached can still be served.
    """
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _COMMON, _OURS)
    fd = os.open(path, os.O_RDONLY | _COMMON)
    try:
        if stat.S_IMODE(os.fstat(fd).st_mode) != _OURS:
            os.fchmod(fd, _OURS)
        writable = os.open(path, os.O_RDWR | _COMMON)
    except OSError as error:
        if error.errno in _NO_WRITING:
            return fd
        os.close(fd)
        raise
    os.close(fd)
    return writable


def reopen(path: Path, fd: int, length: int) -> None:
    """Have the descriptor `fd` be of the file at `path`, writable, `length` long, and made if need be.

    Whoever reads in a thread meanwhile goes on with the file that it was of before.
    """
    new = open_writable(path)
    try:
        if os.fstat(new).st_size != length:
            os.ftruncate(new, length)
        os.dup2(new, fd, inheritable=False)
    finally:
        os.close(new)


def is_still(path: Path, fd: int) -> bool:
    """Whether `path` names the open file, and nobody has put another there or taken it away."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except OSError:
        return False


def forget_pages(fd: int, span: Span) -> None:
    """Drop what memory holds of a span, if it is on disk as well and not mapped: the next read asks the disk."""
    os.posix_fadvise(fd, span.offset, span.length, os.POSIX_FADV_DONTNEED)


def seal_of(fd: int) -> Seal:
    """How the file looks now."""
    return Seal.of(os.fstat(fd))


def holes(fd: int, size: int) -> list[Span]:
    """The stretches below `size` that were never written, in order. Only a hint: zeros may be written too."""
    found: list[Span] = []
    at = 0
    while at < size:
        start = os.lseek(fd, at, os.SEEK_HOLE)
        if start >= size:
            break
        try:
            at = min(os.lseek(fd, start, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: a hole up to the end
                raise
            at = size
        found.append(Span(start, at - start))
    return found


def read_into(fd: int, buffer: memoryview, offset: int) -> bool:
    """Fill `buffer` from `offset` on; False if the file ends before it is full."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            return False
        done += count
    return True


def read_exactly(path: Path, fd: int, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on of the open file `path`; StoreFailed rather than fewer."""
    data = bytearray(size)
    with named(path):
        if not read_into(fd, memoryview(data), offset):
            raise StoreFailed(f"{path}: ends before byte {offset + size}; it was cut short behind our back")
    return bytes(data)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count


def replace_file(path: Path, raw: bytes) -> None:
    """Make `path` a file of `raw`, whole or not at all to anyone who opens it meanwhile. Not synced."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _COMMON, _OURS)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(raw)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_manifest(root: Path, content: ContentId, raw: bytes) -> None:
    """Keep a manifest that was checked in the store below `root`. StoreFull, StoreFailed."""
    path = directory_of(root, content) / "manifest"
    with named(path):
        make_directory(path.parent)
        replace_file(path, raw)


def read_file(path: Path) -> bytes | None:
    """All of a file, or None if there isn't one."""
    fd = open_sealed(path)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read()
