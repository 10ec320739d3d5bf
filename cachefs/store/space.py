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
import re
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.content import ContentId, Span
from cachefs.diskerrors import named

UNIT = 4096
"""Bytes in which file systems allocate."""

_SIDECAR = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{40}\.torrent)(?:\.[0-9a-f]{8})?")  # the last part: half written
_DEPTH = 3  # algorithm, two hex digits, digest
_SECTOR = 512  # the unit of st_blocks, whatever the file system's own (stat(2))


def taken(path: Path) -> int:
    """The bytes that a file takes; 0 if there is none, if it has another hard link, or is a link to somewhere else."""
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return _counted(status)


def _counted(status: os.stat_result) -> int:
    return status.st_blocks * _SECTOR if status.st_nlink < 2 else 0


def changed_at(directory: Path) -> float:
    """When a file came into a directory or left it last, in Unix seconds; 0 if there is none. StoreFailed."""
    with named(directory), contextlib.suppress(FileNotFoundError):
        return directory.stat().st_ctime  # a copy of a store may keep other times
    return 0.0


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
    """Look at every file of the store: about 50 microseconds an object. StoreFailed."""
    found = Scan()
    with named(root):
        if root.is_dir():
            found.other += root.stat().st_blocks * _SECTOR
            _scan(found, root, ())
    return found


def _scan(found: Scan, directory: Path | str, above: tuple[str, ...]) -> None:
    """Add what is in a directory; `above` are the names between the root and it."""
    for entry in os.scandir(directory):
        with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
            status = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False) and len(above) < _DEPTH:
                _scan(found, entry.path, (*above, entry.name))
            content = _content(above) if entry.name == "data" else None
            if content is not None:
                found.data[content] = _counted(status)
            else:
                found.other += status.st_blocks * _SECTOR


def _content(above: tuple[str, ...]) -> ContentId | None:
    with contextlib.suppress(ValueError):
        if len(above) == _DEPTH:
            return ContentId.parse(f"{above[0]}:{above[-1]}")
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


def remove_leavings(root: Path, before: float) -> int:
    """Delete what unclean ends left half made beside objects before that time (Unix seconds); the bytes that frees.

    StoreFailed.
    """
    freed = 0
    with named(root):
        for path in (*root.glob("*/??/*/manifest.*"), *root.glob("*/??/*/data.*")):
            with contextlib.suppress(FileNotFoundError):  # it got its name just now
                # Its last change of state, not of content: a link made this moment to an old file is no leaving.
                if path.stat(follow_symlinks=False).st_ctime < before:
                    size = taken(path)
                    path.unlink()
                    freed += size
    return freed


def remove_sidecars(directory: Path, kept: Set[str], before: float) -> dict[str, int]:
    """Delete the piece lists and torrents not among `kept`, as old as that; their names, and the bytes that frees.

    Nothing else in the directory is touched, and nothing at all where the directory is a link: who else uses it, nobody
    here knows. StoreFailed.
    """
    gone: dict[str, int] = {}
    with named(directory):
        if directory.is_symlink() or not directory.is_dir():
            return gone
        for path in sorted(directory.iterdir()):
            # Its last change of state: a copy of somebody's lists, of which the lock comes last, may keep their times.
            if path.name not in kept and _SIDECAR.fullmatch(path.name) and path.lstat().st_ctime < before:
                gone[path.name] = taken(path)
                path.unlink()
    return gone
