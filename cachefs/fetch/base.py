"""What a fetcher is: something that lands verified blocks of one content id in a file.

How it works: the cache describes a `Job` and a `Taker`; the fetcher answers with a `Download`, to which the cache
tells what it wants now (`urgent`: a reader waits for it) and soon (`ahead`: readahead). The sets replace each other
whole, so nothing has to be cancelled piece by piece. A fetcher that writes the file itself calls `Sink.landed` for a
block that was verified *and* whose bytes can be read from the file; one that has bytes in its hands gives them to
`Taker.deliver`, which does all that, or claims blocks and writes them in a thread of its own. All but that is called
from the mount's event loop and never blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cachefs.content import Bitmap, ContentId, Manifest
from cachefs.layout import SNAPSHOTS
from cachefs.metainfo import Metainfo


@dataclass(frozen=True, slots=True)
class Item:
    """One name's content: what it is made of, and how it can be asked for."""

    name: str
    """The name in the catalogue: what a web seed calls the file."""
    manifest: Manifest
    metainfo: Metainfo | None = None
    """Its torrent, if it has one."""
    urls: tuple[str, ...] = ()
    """Where these very bytes lie, if the catalogue says so: best first."""
    catalogue: str = SNAPSHOTS
    fails_early: bool = False
    """Whether opening it waits for its first block: some readers take a failed open better than a failed read."""
    frugal: bool = False
    """Whether nothing but what is read may be fetched until somebody reads in order: scanners look at everything."""

    @property
    def content(self) -> ContentId:
        return self.manifest.content


@dataclass(frozen=True, slots=True)
class Job:
    """What to fetch, into which existing sparse file, and what is there already."""

    item: Item
    where: Callable[[], Path]
    have: Bitmap
    """Which blocks are there: the object's own bitmap, which grows as `Sink.landed` is called."""

    @property
    def path(self) -> Path:
        """The file as of now: an object that was in its user's own file gets one of its own to be mended in."""
        return self.where()


class Sink(Protocol):
    """Who is told what became of a job."""

    def landed(self, index: int) -> None:
        """Block `index` is verified and can be read from the file."""

    def failed(self, error: Exception) -> None:
        """The job can't go on by itself, because the disk is full, say: whoever waits should be told."""

    def ended(self) -> None:
        """The fetcher has let go of the file; nothing lands any more."""


class Claim:
    """Blocks that nobody but who holds this writes to; once it is `recalled`, it is to be released in a moment."""

    def __init__(self, blocks: range) -> None:
        self.blocks = blocks
        self.recalled = False


class Taker(Sink, Protocol):
    """A sink that takes blocks from memory."""

    async def deliver(self, index: int, data: memoryview) -> None:
        """Verify block `index`, write it to the file and land it. BlockInvalid, StoreFull, StoreFailed."""

    def claim(self, blocks: range) -> Claim | None:
        """The right to `write` these; None if somebody else may be writing to them: `deliver` knows what to do then."""

    def has_room(self, index: int) -> bool:
        """Whether a block that comes without being wanted may be given here: if so, room is kept for it."""

    def write(self, index: int, data: memoryview) -> None:
        """Verify a claimed block and write it to the file, in a thread; `landed` follows. Raises as `deliver` does."""

    def release(self, claim: Claim) -> None:
        """Nothing is written any more by this claim."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one download does right now; rates in bytes per second."""

    content: ContentId
    name: str
    peers: int
    rate: float
    wanted: int
    trouble: str
    by: str = ""
    """Which back end fetches what is wanted."""
    because: str = ""
    """Why that one."""


class Download(Protocol):
    """One content id being fetched."""

    def demand(self, urgent: Set[int], ahead: Set[int]) -> None:
        """Replace what is wanted: block numbers, `urgent` first, then `ahead` in order."""

    def moved_at(self) -> float:
        """When a byte last came for it, on trio's clock; minus infinity if none has."""

    def sources(self) -> list[str]:
        """Who gave some of it, by the names that the status uses."""

    def trouble(self) -> str:
        """Why nothing comes, in words for the user; empty when nothing is known to be wrong."""

    def restart(self) -> None:
        """Forget which sources were given up, and try them all again."""

    def doubted(self) -> None:
        """Blocks were taken out of what we have: offer them to nobody, and fetch them again when they are wanted."""

    def open(self) -> None:
        """Somebody reads it again."""

    def close(self) -> None:
        """Nobody reads it now. It may stay to be seeded; `Sink.ended` follows when it doesn't."""

    def leave(self) -> None:
        """Nobody reads it and its bytes are to go: don't seed it any more. `Sink.ended` follows, unless `open` does."""


class Fetcher(Protocol):
    """A back end that turns jobs into downloads."""

    def download(self, job: Job, sink: Taker) -> Download:
        """Start on a job; at most one download a content id, from this call to `Sink.ended`."""

    def transfers(self) -> list[Transfer]:
        """What is being fetched now, for the status."""
