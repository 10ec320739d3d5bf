"""Which objects go when room is needed: least recently used first, whole objects, and only what may go.

How it works: `Held` describes an object: what it takes, when it was last used, and why it has to stay, if it
does. Everything here is a pure function of such descriptions, so the policy can be read, and tested, without a
disk. Nothing is evicted in vain: if all that may go makes less room than one block needs, it stays where it is.

Bounds hold for the whole data directory and, each on its own, for a catalogue: records have a smaller cache of their
own beside snapshots. What a catalogue's own bounds ask for is taken from that catalogue first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cachefs.content import ContentId
from cachefs.layout import RECORDS, SNAPSHOTS

if TYPE_CHECKING:
    from cachefs.config import Limits as Settings
    from cachefs.config.sections import CatalogueLimits as CatalogueSettings


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be kept: bytes on disk, seconds since the last use, objects; None for any."""

    size: int | None = None
    age: float | None = None
    count: int | None = None

    @classmethod
    def of_settings(cls, settings: Settings | CatalogueSettings) -> Bounds:
        """Those of a section, where 0 is no limit."""
        return cls(settings.size or None, settings.age or None, settings.count or None)

    def __bool__(self) -> bool:
        """Whether anything is bounded at all."""
        return (self.size, self.age, self.count) != (None, None, None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept to: bounds of the whole store, bytes to leave free on its disk, bounds of single catalogues."""

    whole: Bounds = Bounds()
    free_space: int = 0
    catalogues: Mapping[str, Bounds] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.whole) or self.free_space > 0 or any(self.catalogues.values())

    @classmethod
    def of_settings(cls, settings: Settings) -> Limits:
        """Those of [limits] in cachefs.toml, where 0 is no limit."""
        own = {RECORDS: settings.records, SNAPSHOTS: settings.snapshots}
        catalogues = {name: bounds for name, told in own.items() if (bounds := Bounds.of_settings(told))}
        return cls(Bounds.of_settings(settings), settings.free_space, catalogues)

    def of(self, catalogue: str) -> Bounds:
        """The bounds of a catalogue, "" for the whole."""
        return self.whole if not catalogue else self.catalogues.get(catalogue, Bounds())


@dataclass(frozen=True, slots=True)
class Held:
    """An object that takes `size` bytes of disk, last used at `last_used` (Unix seconds).

    `stays` says why it can't go: "open", "pinned", "being fetched"; empty if it can.
    """

    content: ContentId
    size: int
    last_used: float
    stays: str = ""
    catalogue: str = ""


@dataclass(frozen=True, slots=True)
class Evicted:
    """What became of a wish to evict: the bytes freed, or why it stays."""

    freed: int = 0
    stays: str = ""


def catalogue_of(content: ContentId) -> str:
    """Whose content it is: snapshots are known by info-hash, records by SHA-256."""
    return SNAPSHOTS if content.algorithm == "btih" else RECORDS


def least_recent(held: Iterable[Held]) -> list[Held]:
    """Those that may go, the least recently used first."""
    return sorted((item for item in held if not item.stays), key=lambda item: (item.last_used, item.content))


def to_free(held: Iterable[Held], needed: int, at_least: int = 0) -> list[Held]:
    """The least recently used that together take `needed` bytes, or all that may go if that is less.

    None at all if nothing is needed, or if all together take less than `at_least`: they would go in vain.
    """
    chosen: list[Held] = []
    freed = 0
    for item in least_recent(item for item in held if item.size > 0):
        if freed >= needed:
            break
        chosen.append(item)
        freed += item.size
    return chosen if freed >= min(needed, at_least) else []


def expired(held: Sequence[Held], bounds: Bounds, now: float) -> list[Held]:
    """Those that nobody has used for longer than `bounds.age`, and the least recent beyond `bounds.count`."""
    going = least_recent(held)
    surplus = max(0, len(held) - bounds.count) if bounds.count is not None else 0
    age = float("inf") if bounds.age is None else bounds.age
    return [item for number, item in enumerate(going) if number < surplus or now - item.last_used > age]


def occupied(held: Iterable[Held]) -> str:
    """What takes the room, in words, largest first: `12.0 GB open, 3.1 GB pinned`."""
    sums: dict[str, int] = {}
    for item in held:
        if item.size > 0:
            word = item.stays or "not in use"
            sums[word] = sums.get(word, 0) + item.size
    largest = sorted(sums.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{in_words(size)} {word}" for word, size in largest) or "nothing held"


def in_words(size: int) -> str:
    """A number of bytes as people say it: `1.5 GB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
