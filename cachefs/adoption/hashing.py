"""What local files are: their info-hash from their bytes, and whether that is what the lock says of their name.

How it works: an info-hash depends on the bytes, the name and the piece length. The piece length is that of the
content the lock names, where its metadata is known, from the store or from a .torrent beside the file; otherwise
2 MiB, and if that isn't the lock's hash, 64 MiB. Where metadata is known, a file that differs is told with
the pieces that do. A .torrent of another hash than the lock's says nothing.

As many workers as there are cores take spans of pieces from one queue, so that one large file keeps all cores as
busy as many small ones. A file that was written to in the last moments is waited for before it is looked at: within one
tick of the kernel's clock two writes leave the same mtime, and the second could pass unseen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.adoption.memory import Known, Memory
from cachefs.catalog.files import is_strangers
from cachefs.content import ContentId
from cachefs.errors import MetainfoError
from cachefs.metainfo import ERIGON_PIECE_LENGTH, LARGE_PIECE_LENGTH, Metainfo
from cachefs.origin.torrents import could_be_content, hash_pieces
from cachefs.store import places
from cachefs.store.state import Seal

_SPAN = 64 * 2**20
_TICK = 20_000_000  # nanoseconds; the kernel's coarse clock moves every 1 to 10 ms

Recall = Callable[[ContentId], Metainfo | None]
Report = Callable[[int, int], None]
"""Told the bytes that are hashed so far and the bytes that are to be hashed."""


@dataclass(frozen=True, slots=True)
class Local:
    """A local file and what it is.

    `expected` is the lock's content for its name, None if the lock doesn't have the name. `info` is what the
    file is, None if it wasn't hashed; `wrong` are the pieces that differ from the lock's content, where that is known.
    `failure` says why it can't be told.
    """

    name: str
    path: Path
    seal: Seal
    expected: ContentId | None
    info: Metainfo | None = None
    wrong: tuple[int, ...] = ()
    failure: str = ""

    @property
    def matches(self) -> bool:
        return self.info is not None and self.info.content == self.expected


def local_files(
    root: Path, entries: Mapping[str, ContentId], home: Path | None = None
) -> tuple[list[Local], dict[str, str]]:
    """The files below `root` that could be content, sorted by name; and what can't be looked at, with the reason.

    Links are followed; in a `home`, only its owner's, root's and ours. OSError if `root` itself can't be read.
    """
    found, unreadable = [], dict[str, str]()
    for name, path in sorted(_Walk(home, unreadable).below(root.resolve())):
        try:
            found.append(Local(name, path, seal_of(path), entries.get(name)))
        except FileNotFoundError:  # deleted meanwhile
            continue
        except OSError as error:
            unreadable[name] = f"can't be read: {error.strerror}"
    return found, unreadable


def seal_of(path: Path) -> Seal:
    """How a file looks now. OSError."""
    return Seal.of(path.stat())


class _Walk:
    """Looks for files. A folder that is linked to twice is seen once."""

    def __init__(self, home: Path | None, unreadable: dict[str, str]) -> None:
        self._home = home
        self._unreadable = unreadable
        self._seen: set[Path] = set()

    def below(self, folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
        """Names below `folder` with the real path of each."""
        if folder in self._seen:
            return
        self._seen.add(folder)
        try:
            with os.scandir(folder) as found:  # which knows files from directories without asking each
                entries = sorted(found, key=lambda each: each.name)
        except OSError as error:
            if not prefix:
                raise
            self._unreadable[prefix] = f"can't be read: {error.strerror}"
            return
        for entry in entries:
            if not entry.name.startswith("."):
                yield from self._at(entry, prefix + entry.name)

    def _at(self, entry: os.DirEntry[str], name: str) -> Iterator[tuple[str, Path]]:
        linked, path = entry.is_symlink(), Path(entry.path)
        try:
            if linked:
                if self._home is not None and is_strangers(path, self._home):
                    self._unreadable[name] = "is a link of another user's, which isn't followed"
                    return
                path = Path(os.path.realpath(path))  # resolve() raises for a link to itself
            is_folder = path.is_dir() if linked else entry.is_dir()
            is_file = not is_folder and (path.is_file() if linked else entry.is_file())
        except OSError as error:
            self._unreadable[name] = f"can't be looked at: {error.strerror}"
            return
        if is_folder:
            yield from self.below(path, f"{name}/")
        elif is_file and could_be_content(entry.name):
            yield name, path


async def identify(
    files: Sequence[Local], recall: Recall, memory: Memory, *, done: Callable[[Local], None], report: Report | None
) -> None:
    """Tell `done`, on the event loop, what each file that the lock has a name for is, as soon as that is known.

    `recall` gives metadata that is known by content id.
    """
    queue = []
    for file in files:
        if file.expected is None:
            continue
        expected = _known(file, recall)
        job = _Job(file, expected, expected.manifest.block_length if expected else ERIGON_PIECE_LENGTH)
        remembered = memory.recall(file.path, file.seal)
        info = _remembered(job, remembered, recall)
        if info is not None:
            done(replace(file, info=info, wrong=_different(info, expected)))
        elif file.seal.size == 0:
            done(replace(file, failure="it is empty"))
        else:
            queue.append(job)
        await trio.lowlevel.checkpoint()
    try:
        await _Crew(queue, memory, done, report).run()
    finally:
        memory.save()


def _known(file: Local, recall: Recall) -> Metainfo | None:
    """The metadata of what the lock says the file is, if that is known."""
    assert file.expected is not None
    info = recall(file.expected)
    if info is None:
        try:
            info = metainfo.load(file.path.with_name(f"{file.path.name}.torrent"))
        except (OSError, MetainfoError):
            return None
    return info if info.content == file.expected else None


def _remembered(job: _Job, known: Known | None, recall: Recall) -> Metainfo | None:
    """What the file was found to be before; None if it has to be hashed."""
    if known is None or (job.known is not None and known.piece_length != job.piece_length):
        return None
    return job.known if job.known is not None and known.content == job.known.content else recall(known.content)


@dataclass(slots=True)
class _Job:
    """A file to hash. `known`: what it should be, as far as that is known."""

    file: Local
    known: Metainfo | None
    piece_length: int
    first: Local | None = None
    """What it was found to be with the usual piece length, when this is the second try."""
    digests: dict[int, bytes] = field(default_factory=dict)
    left: int = 0
    failure: str = ""

    def __post_init__(self) -> None:
        self.left = len(self.spans)

    @property
    def spans(self) -> range:
        return range(0, self.file.seal.size, max(1, _SPAN // self.piece_length) * self.piece_length)


class _Crew:
    """The workers, and how far they are."""

    def __init__(self, jobs: list[_Job], memory: Memory, done: Callable[[Local], None], report: Report | None) -> None:
        self._queue = _spans(jobs)
        self._again: list[_Job] = []
        self._memory = memory
        self._done = done
        self._report = report or (lambda done, total: None)
        self._total = sum(job.file.seal.size for job in jobs)
        self._hashed = 0

    async def run(self) -> None:
        while True:
            async with trio.open_nursery() as nursery:
                for _ in range(os.cpu_count() or 1):
                    nursery.start_soon(self._work)
            if not self._again:
                return
            self._total += sum(job.file.seal.size for job in self._again)
            self._queue, self._again = _spans(self._again), []

    async def _work(self) -> None:
        for job, offset in self._queue:
            end = min(offset + job.spans.step, job.file.seal.size)
            result = await trio.to_thread.run_sync(_hash, job, offset, end, job.left == 1)
            self._hashed += end - offset
            self._report(self._hashed, self._total)
            job.left -= 1
            if not job.left:
                self._finish(job, result if result is not None else await trio.to_thread.run_sync(_result, job))

    def _finish(self, job: _Job, result: Local) -> None:
        if result.info is not None and not result.matches:
            if job.known is None and job.first is None:
                self._again.append(_Job(job.file, None, LARGE_PIECE_LENGTH, first=result))
                return
            result = job.first or result
        if result.info is not None:
            known = Known(result.seal, result.info.manifest.block_length, result.info.content)
            self._memory.note(result.path, known)
        self._done(result)


def _spans(jobs: Sequence[_Job]) -> Iterator[tuple[_Job, int]]:
    return iter([(job, offset) for job in jobs for offset in job.spans])


def _hash(job: _Job, offset: int, end: int, last: bool) -> Local | None:
    """Hash a span, in a thread; what the file is if it is the `last`, for that costs less than another thread."""
    rest = job.file.seal.mtime_ns + _TICK - time.time_ns()
    if 0 < rest <= _TICK:
        time.sleep(rest / 1e9)
    if not job.failure:
        try:
            places.settle_file(job.file.path)
            job.digests[offset] = hash_pieces(job.file.path, offset, end, job.piece_length)
        except OSError as error:
            job.failure = error.strerror or str(error)
    return _result(job) if last else None


def _result(job: _Job) -> Local:
    """What the file is, once all of it is hashed."""
    file = job.file
    if job.failure:
        return replace(file, failure=job.failure)
    digests = b"".join(job.digests[offset] for offset in job.spans)
    try:
        now = seal_of(file.path)
        info = metainfo.build(file.name, file.seal.size, digests, job.piece_length)
    except (OSError, MetainfoError) as error:
        return replace(file, failure=str(error))
    if now != file.seal:
        return replace(file, failure="it changed while it was hashed")
    if job.known is None:
        return replace(file, info=info)
    expected = job.known.manifest
    if expected.length == file.seal.size and expected.digests == digests:
        return replace(file, info=job.known)  # whatever else its info dictionary says
    return replace(file, info=info, wrong=_different(info, job.known))


def _different(info: Metainfo, known: Metainfo | None) -> tuple[int, ...]:
    """The pieces in which a file isn't what it should be; none where that isn't known, or of another length."""
    if known is None or known.manifest.length != info.manifest.length:
        return ()
    return tuple(i for i in range(info.manifest.blocks) if info.manifest.digest(i) != known.manifest.digest(i))
