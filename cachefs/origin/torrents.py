"""What a seed box publishes: a .torrent beside every file, chain.toml and manifest.txt.

How it works: the files are cut into spans of pieces, and as many workers as there are cores take spans
from one queue and hash them in threads (hashlib lets go of the interpreter), so that one large file
keeps all cores as busy as many small ones.

Hashing terabytes at every start is out of the question, so a .torrent is trusted instead of its file
being read when it has the file's name and length and is newer than the file, by mtime *and* ctime: ctime
moves with every write, rename or touch and can't be set back, so a replacement with an old mtime is seen.
The .torrent's own mtime is set to a moment before hashing began, and a change during or after hashing is
therefore newer than it. Doubt always means hashing again. A bit that flips on the disk goes unseen here,
and is refused by whoever fetches it.

A file that can't be published (unreadable, empty, changing, without room for a .torrent beside it) is left out with a
reason, and so is a directory that can't be read; the others go on.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.catalog.chain import format_chain
from cachefs.catalog.files import replace_bytes
from cachefs.content import ContentId
from cachefs.errors import CatalogError, ConfigError, MetainfoError
from cachefs.metainfo import ERIGON_PIECE_LENGTH, Metainfo

CHAIN_NAME = "chain.toml"
MANIFEST_NAME = "manifest.txt"
LEFT_OUT = (".torrent", ".tmp", ".part", ".lock")
"""Suffixes of files that are products of ours or of a downloader, not content."""

_LEFT_OUT_NAMES = frozenset({CHAIN_NAME, MANIFEST_NAME, "snapshot-lock.json"})
_SPAN = 64 * 2**20
_CHUNK = 2 * 2**20
_CLOCK_SLACK = 20_000_000
"""Nanoseconds. A file's times come from the kernel's coarse clock, which lags the one we read by up to a tick."""

_NO_PLACE = frozenset((errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTDIR))
"""The errnos of a .torrent's path at which nothing can ever be written."""

_ANY_CONTENT = ContentId("btih", bytes(20))
"""Stands for a file's content while only its name is looked at."""

Report = Callable[[int, int], None]
"""Told the bytes that are hashed so far and the bytes that are to be hashed."""


@dataclass(frozen=True, slots=True)
class SeededFile:
    """A file that is published: its name (path below the root, with `/`), where it is, and its torrent."""

    name: str
    path: Path
    torrent: Path
    content: ContentId
    length: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is not published, or a directory, with a `/` at its end, that can't be read; and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Described:
    """The files of a directory with their torrents, what was left out, and the names of those that were hashed."""

    files: tuple[SeededFile, ...]
    skipped: tuple[Skipped, ...]
    hashed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What a directory became: its files, what was left out, the products, and how many files were hashed."""

    files: tuple[SeededFile, ...]
    skipped: tuple[Skipped, ...]
    chain: Path
    manifest: Path
    hashed: int

    def assets(self) -> dict[str, Path]:
        """Every name that is served over HTTP, and its file."""
        served = {file.name: file.path for file in self.files}
        served |= {f"{file.name}.torrent": file.torrent for file in self.files}
        return served | {CHAIN_NAME: self.chain, MANIFEST_NAME: self.manifest}


async def publish(root: Path, out: Path | None = None, report: Report | None = None) -> Published:
    """Make the .torrent files, chain.toml and manifest.txt of `root`, beside the files or below `out`.

    ConfigError if there is nothing to publish, or the products can't be written.
    """
    out = out or root
    found = await describe(root, out, report)
    await trio.to_thread.run_sync(_write_lists, out, found.files)
    return Published(found.files, found.skipped, out / CHAIN_NAME, out / MANIFEST_NAME, len(found.hashed))


async def describe(
    root: Path, out: Path | None = None, report: Report | None = None, *, write: bool = True
) -> Described:
    """Find the torrent of every file of `root`, hashing where none that is trusted lies beside it or below `out`.

    New ones are put there if `write`. ConfigError if there is nothing to describe, or that can't be done.
    """
    jobs, unreadable = await trio.to_thread.run_sync(_examine_all, root, out or root, write)
    await _hash_all([job for job in jobs if job.wanted], report)
    files = tuple(SeededFile(job.name, job.path, job.torrent, job.known.content, job.size) for job in jobs if job.known)
    if not files:
        raise ConfigError(str(root), "holds no file that could be seeded")
    skipped = [*unreadable, *(Skipped(job.name, job.failure) for job in jobs if job.failure)]
    return Described(files, tuple(skipped), tuple(job.name for job in jobs if job.known and job.began))


def list_names(root: Path) -> list[str]:
    """What manifest.txt says of `root`: the names of content and of the .torrent files beside it, sorted.

    No file is opened, nor asked for its size: that would have a mount fetch it. ConfigError if it can't be read.
    """
    try:
        return sorted(_walk(root, root, torrents=True))
    except OSError as error:
        raise ConfigError(str(error.filename or root), f"can't be read: {_why(error)}") from error


def _walk(root: Path, out: Path, unreadable: list[Skipped] | None = None, *, torrents: bool = False) -> Iterator[str]:
    """The names below `root` that are content: regular files, nothing hidden, no symlink, none of our products.

    OSError if a directory can't be read; one below `root` is put into `unreadable` instead, if that is given.
    """
    pending = [root]
    while pending:
        directory = pending.pop()
        try:
            entries = _entries(directory, out)
        except OSError as error:
            if unreadable is None or directory == root:
                raise
            unreadable.append(Skipped(f"{directory.relative_to(root).as_posix()}/", _why(error)))
            continue
        for path, is_directory in entries:
            if is_directory:
                pending.append(path)
            elif could_be_content(path.name) or (torrents and path.name.endswith(".torrent")):
                yield path.relative_to(root).as_posix()


def _entries(directory: Path, out: Path) -> list[tuple[Path, bool]]:
    """The files and directories in one, but for `out` and hidden ones, each with whether it is a directory."""
    with os.scandir(directory) as entries:  # which knows files from directories without asking each
        shown = [entry for entry in entries if not entry.name.startswith(".") and Path(entry.path) != out]
        kinds = [
            (entry.path, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)) for entry in shown
        ]
    return [(Path(path), is_directory) for path, is_directory, is_file in kinds if is_directory or is_file]


def could_be_content(name: str) -> bool:
    """Whether a file is called neither like a product of ours nor like a downloader's."""
    return name not in _LEFT_OUT_NAMES and not name.endswith(LEFT_OUT)


@dataclass(slots=True)
class _Job:
    """One file on its way to a .torrent. `known` is its torrent at last, or `failure` says why there is none."""

    name: str
    path: Path
    torrent: Path
    write: bool
    state: os.stat_result | None = None
    piece_length: int = ERIGON_PIECE_LENGTH
    old: Metainfo | None = None
    known: Metainfo | None = None
    failure: str = ""
    began: int = 0
    parts: dict[int, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.state.st_size if self.state else 0

    @property
    def inode(self) -> int:
        return self.state.st_ino if self.state else 0

    @property
    def wanted(self) -> bool:
        return self.known is None and not self.failure

    @property
    def spans(self) -> range:
        """The offsets at which a worker's share of the file starts: whole pieces."""
        return range(0, self.size, max(1, _SPAN // self.piece_length) * self.piece_length)


def _examine_all(root: Path, out: Path, write: bool) -> tuple[list[_Job], list[Skipped]]:
    root, out = root.absolute(), out.absolute()
    unreadable: list[Skipped] = []
    try:
        names = sorted(_walk(root, out, unreadable))
    except OSError as error:
        raise ConfigError(str(error.filename or root), f"can't be read: {_why(error)}") from error
    return [_examine(_Job(name, root / name, out / f"{name}.torrent", write)) for name in names], unreadable


def _examine(job: _Job) -> _Job:
    try:
        format_chain({job.name: _ANY_CONTENT})
        job.state = job.path.stat(follow_symlinks=False)
    except (OSError, CatalogError) as error:
        job.failure = _why(error)
        return job
    if job.size == 0:
        job.failure = "it is empty"
    else:
        _look_for_torrent(job)
    return job


def _look_for_torrent(job: _Job) -> None:
    try:
        old, modified = _read_torrent(job.torrent)
    except MetainfoError:
        return
    except OSError as error:
        if job.write and error.errno in _NO_PLACE:
            job.failure = f"its .torrent can't be written: {_why(error)}"
        return
    if old.name != job.name or old.manifest.length != job.size:
        return
    # The piece length is kept when hashing again, for the published hash depends on it.
    job.old, job.piece_length = old, old.manifest.block_length
    if _newest(job.state) < modified:
        job.known = old


def _read_torrent(path: Path) -> tuple[Metainfo, int]:
    """What a .torrent says, and its mtime in nanoseconds. OSError, MetainfoError."""
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):  # to read a pipe would be to wait for a writer
        raise OSError(errno.EEXIST, "something else has its name")
    return metainfo.load(path), state.st_mtime_ns


def _newest(state: os.stat_result | None) -> int:
    return max(state.st_mtime_ns, state.st_ctime_ns) if state else 0


async def _hash_all(jobs: list[_Job], report: Report | None) -> None:
    total, done = sum(job.size for job in jobs), 0

    async def work(spans: Iterator[tuple[_Job, int]]) -> None:
        nonlocal done
        for job, offset in spans:
            await _hash_span(job, offset)
            done += min(job.spans.step, job.size - offset)
            if report is not None:
                report(done, total)

    shared = iter([(job, offset) for job in jobs for offset in job.spans])
    async with trio.open_nursery() as nursery:
        for _ in range(os.cpu_count() or 1):
            nursery.start_soon(work, shared)


async def _hash_span(job: _Job, offset: int) -> None:
    if job.failure:
        return
    job.began = job.began or time.time_ns() - _CLOCK_SLACK
    end = min(offset + job.spans.step, job.size)
    try:
        job.parts[offset] = await trio.to_thread.run_sync(hash_pieces, job.path, offset, end, job.piece_length)
    except OSError as error:
        job.failure = _why(error)
    if len(job.parts) == len(job.spans):
        await trio.to_thread.run_sync(_finish, job)


def hash_pieces(path: Path, offset: int, end: int, piece_length: int = ERIGON_PIECE_LENGTH) -> bytes:
    """The SHA-1 of every piece from byte `offset` (the start of a piece) to `end` or the end of the file, concatenated.

    OSError if the file can't be read.
    """
    digests: list[bytes] = []
    buffer = memoryview(bytearray(min(_CHUNK, piece_length)))
    # O_NONBLOCK: its owner may have put a pipe there since it was found.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        file.seek(offset)
        while offset < end:
            sha1, piece_end = hashlib.sha1(usedforsecurity=False), min(offset + piece_length, end)
            while offset < piece_end:
                got = file.readinto(buffer[: piece_end - offset])
                if not got:
                    return b"".join(digests)
                sha1.update(buffer[:got])
                offset += got
            digests.append(sha1.digest())
    return b"".join(digests)


def _finish(job: _Job) -> None:
    pieces = b"".join(job.parts[offset] for offset in job.spans)
    try:
        now = job.path.stat(follow_symlinks=False)
        made = metainfo.build(job.name, job.size, pieces, job.piece_length)
    except (OSError, MetainfoError) as error:
        job.failure = _why(error)
        return
    if (now.st_ino, now.st_size, _newest(now)) != (job.inode, job.size, _newest(job.state)):
        job.failure = "it changed while it was hashed"
        return
    # A .torrent of the same hash keeps what else it says, its trackers say.
    job.known = job.old if job.old and job.old.content == made.content else made
    if not job.write:
        return
    _write(job.torrent, job.known.raw)
    os.utime(job.torrent, ns=(job.began, job.began))


def _why(error: Exception) -> str:
    if isinstance(error, CatalogError):
        return error.why
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _write_lists(out: Path, files: Iterable[SeededFile]) -> None:
    names = sorted(name for file in files for name in (file.name, f"{file.name}.torrent"))
    _write(out / CHAIN_NAME, format_chain({file.name: file.content for file in files}).encode())
    _write(out / MANIFEST_NAME, "".join(f"{name}\n" for name in names).encode())


def _write(path: Path, data: bytes) -> None:
    """Write `path` as a whole or not at all, durably. ConfigError if it can't be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, data)
    except OSError as error:
        raise ConfigError(str(path), f"can't be written: {_why(error)}; choose another --out") from error
