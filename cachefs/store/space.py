"""What the store's files take on disk, and giving it back.

How it works: what counts is what the file system has allocated (st_blocks, and SEEK_DATA within a file), never
a sparse file's length. A data file with a second hard link is somebody's own file that the store was given:
deleting our link would free nothing, so it counts nothing and nobody gains by evicting it. Deleting means to
unlink, never to truncate: whoever has the file open, or has it under another name, keeps its bytes. Blocking calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.content import ContentId, Span
from cachefs.store.disk import named

UNIT = 4096
"""Bytes in which file systems allocate."""

_SECTOR = 512  # the unit of st_blocks, whatever the file system's own (stat(2))
_LEFT_BEHIND = 3600.0


def taken(file: Path | int) -> int:
    """The bytes that a file, by path or descriptor, takes; 0 if there is none, or if it has another hard link."""
    try:
        status = os.fstat(file) if isinstance(file, int) else file.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return status.st_blocks * _SECTOR if status.st_nlink < 2 else 0


def cost(span: Span) -> int:
    """The most that writing all of `span` into a hole allocates, in bytes."""
    return -(-span.end // UNIT) * UNIT - span.offset // UNIT * UNIT


def written(fd: int, span: Span) -> int:
    """How many bytes of `span` lie in data that was written."""
    found, at = 0, span.offset
    while at < span.end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: a hole up to the end
                raise
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found += max(0, min(at, span.end) - start)
    return found


def free_on_disk(path: Path) -> int:
    """The bytes that are free for us on the file system of `path`. StoreFailed."""
    with named(path):
        status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@dataclass(slots=True)
class Scan:
    """What all of a store takes: each object's data, and everything else (manifests, directories) together."""

    data: dict[ContentId, int] = field(default_factory=dict)
    other: int = 0


def scan(root: Path) -> Scan:
    """Look at every file of the store; about 10 microseconds each. StoreFailed."""
    found = Scan()
    with named(root):
        for directory in _directories(root):
            found.other += _allocated(directory)
            content = _content(directory)
            for entry in os.scandir(directory):
                if content is not None and entry.name == "data":
                    found.data[content] = taken(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    found.other += _allocated(Path(entry.path))
    return found


def _directories(root: Path) -> Iterator[Path]:
    """The store's directories, three levels deep: algorithm, two hex digits, digest."""
    level = [root] if root.is_dir() else []
    for _ in range(4):
        yield from level
        level = [Path(e.path) for above in level for e in os.scandir(above) if e.is_dir(follow_symlinks=False)]


def _allocated(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat(follow_symlinks=False).st_blocks * _SECTOR
    return 0


def _content(directory: Path) -> ContentId | None:
    with contextlib.suppress(ValueError):
        return ContentId.parse(f"{directory.parts[-3]}:{directory.name}")
    return None


def remove_data(directory: Path) -> int:
    """Delete an object's data; the bytes that frees. StoreFailed."""
    path = directory / "data"
    with named(path):
        freed = taken(path)
        path.unlink(missing_ok=True)
    return freed


def remove_object(directory: Path) -> int:
    """Delete an object with its manifest and directory; the bytes that frees. StoreFailed."""
    freed = remove_data(directory)
    with named(directory):
        if not directory.is_dir():
            return freed
        for entry in list(os.scandir(directory)):
            freed += taken(Path(entry.path))
            Path(entry.path).unlink(missing_ok=True)
        directory.rmdir()
    return freed


def remove_leavings(root: Path) -> int:
    """Delete what an unclean end left half written beside manifests an hour ago or more; the bytes that frees."""
    freed, before = 0, time.time() - _LEFT_BEHIND
    with named(root):
        for path in root.glob("*/??/*/manifest.*"):
            if path.stat(follow_symlinks=False).st_mtime < before:
                freed += taken(path)
                path.unlink(missing_ok=True)
    return freed
