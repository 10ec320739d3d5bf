"""Records from other people's lists, and lists of ours: import, export, playlists.

How it works: an import is all or nothing. Every entry becomes a record or says why it can't, and one that
contradicts a record that is there stops the import before anything is written. What a list doesn't know is found
out when the record is fetched for the first time: an MD5 is compared with what came, and replaced by the SHA-256
(`made_ready`), so an old list becomes a trustworthy one as it is used.

A record whose list gave checksum and size stands for content at once, and needs no fetch to be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import trio

from cachefs import layout
from cachefs.catalog import records
from cachefs.catalog.files import read_text
from cachefs.catalog.names import BadName, check_names
from cachefs.catalog.record import MAX_SIZE, SCHEMES
from cachefs.catalog.records import Record, RecordsLock, as_url, lock_of
from cachefs.config.values import Wrong
from cachefs.content import ContentId
from cachefs.errors import CachefsError, CatalogError
from cachefs.formats import columns, metalink, playlists, pooch, sums
from cachefs.formats.listing import Listed
from cachefs.records.etching import Order, etch
from cachefs.records.music_cache import MusicCache
from cachefs.records.pieces import Listed as PieceList

PARSERS: Mapping[str, Callable[[str, Path | str], list[Listed]]] = {
    "sums": sums.parse,
    "pooch": pooch.parse,
    "metalink": metalink.parse,
    "columns": columns.parse,
}
"""Format -> its reader."""

WRITERS: Mapping[str, Callable[[Iterable[Listed]], str]] = {
    "sums": sums.dump,
    "pooch": pooch.dump,
    "metalink": metalink.dump,
}
"""Format -> its writer; an m3u needs a mount, too, and is apart."""

_BY_SUFFIX = {".meta4": "metalink", ".metalink": "metalink", ".csv": "columns", ".tsv": "columns", ".json": "columns"}
_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did: the records that are new or have learnt something, and how many were there already.

    `unready` are those of the list, new or not, that were never fetched.
    """

    taken: tuple[Record, ...]
    known: int
    unready: tuple[Record, ...] = ()


def guess_format(path: Path) -> str:
    """The format of a list, by its name; CatalogError if that doesn't tell."""
    name = path.name.lower()
    if name.endswith("sums") or path.suffix in (".sha256", ".md5"):
        return "sums"
    if "registry" in name:
        return "pooch"
    if path.suffix.lower() not in _BY_SUFFIX:
        raise CatalogError(path, f"its name doesn't tell what it is: --format {'|'.join(PARSERS)}")
    return _BY_SUFFIX[path.suffix.lower()]


def take_in(cache: MusicCache, path: Path, form: str, *, base_url: str = "", keep: bool = False) -> Imported:
    """Write the files of a list to the lock, or nothing. Blocking, short.

    `base_url` is where files are whose list gives no URL; `keep`: leave records that the list contradicts as they are.
    CatalogError, StoreFull, StoreFailed.
    """
    listed = PARSERS[form](read_text(path).removeprefix("\ufeff"), path)
    wanted = [_record(item, base_url, path) for item in listed]
    _refuse_clashes(wanted, path)
    _write_pieces(cache, listed)
    taken: list[Record] = []

    def change(lock: RecordsLock) -> RecordsLock:
        taken[:] = [new for record in wanted if (new := _merged(lock, record, path, keep)) is not None]
        replaced = {record.name: record for record in taken}
        old = [replaced.pop(record.name, record) for record in lock]
        return lock_of([*old, *replaced.values()])

    lock = records.update(cache.lock_path, change)
    of_list = (lock.records[record.name] for record in wanted)
    return Imported(tuple(taken), len(wanted) - len(taken), tuple(each for each in of_list if not each.ready))


def _refuse_clashes(wanted: Iterable[Record], path: Path) -> None:
    try:
        check_names(record.name for record in wanted)
    except BadName as error:
        raise CatalogError(path, error.why, key=error.name) from None


def _write_pieces(cache: MusicCache, listed: Iterable[Listed]) -> None:
    for item in listed:
        pieces = _pieces(item)
        if pieces is not None and item.size is not None:
            cache.pieces.save(ContentId("sha256", item.hashes["sha256"]), item.size, pieces)


def _pieces(item: Listed) -> PieceList | None:
    """The item's piece list, if a record can have it."""
    if item.pieces is None or item.size is None or "sha256" not in item.hashes or not 2**14 <= item.pieces[0] <= 2**26:
        return None
    return PieceList(*item.pieces)


def _record(item: Listed, base_url: str, path: Path) -> Record:
    given = item.urls or ((f"{base_url.rstrip('/')}/{quote(item.name)}",) if base_url else ())
    try:
        urls = tuple(dict.fromkeys(map(as_url, _usable(given))))
    except Wrong as error:
        raise CatalogError(path, str(error), key=item.name) from None
    if not urls:
        raise CatalogError(path, "no URL, and the list tells none: --base-url URL", key=item.name)
    if item.size is not None and not 0 < item.size <= MAX_SIZE:
        raise CatalogError(path, f"{item.size} bytes, where a record has 1 to {MAX_SIZE}", key=item.name)
    if not item.hashes:
        raise CatalogError(path, "neither a SHA-256 nor an MD5", key=item.name)
    sha256, pieces = item.hashes.get("sha256"), _pieces(item)
    return Record(
        name=item.name,
        url=urls[0],
        content=ContentId("sha256", sha256) if sha256 else None,
        size=item.size if sha256 else None,
        mirrors=tuple(urls[1:]),
        pieces=pieces.pieces if pieces else None,
        md5=b"" if sha256 else item.hashes["md5"],
    )


def _usable(urls: Sequence[str]) -> Sequence[str]:
    """Those of a scheme that a record may have; all if there is none, for somebody to refuse them."""
    return [url for url in urls if url.partition(":")[0].lower() in SCHEMES] or urls


def _merged(lock: RecordsLock, record: Record, path: Path, keep: bool) -> Record | None:
    """What is to be written for `record`; None if nothing is. CatalogError if it contradicts the one that is there."""
    old = lock.records.get(record.name)
    if old is None:
        return record
    if _contradicts(old, record):
        if keep:
            return None
        why = f"is a record already, with other content ({old.content or 'md5:' + old.md5.hex()}); --keep leaves it"
        raise CatalogError(path, why, key=record.name)
    mirrors = dict.fromkeys((*old.mirrors, *(url for url in record.urls if url != old.url)))
    new = replace(
        old,
        mirrors=tuple(mirrors),
        content=old.content or record.content,
        size=old.size if old.size is not None else record.size,
        pieces=old.pieces or record.pieces,
    )
    return None if new == old else new


def _contradicts(old: Record, new: Record) -> bool:
    if old.content and new.content:
        return old.content != new.content or (None not in (old.size, new.size) and old.size != new.size)
    if old.md5 and new.md5:
        return old.md5 != new.md5
    # An MD5 on one side and a SHA-256 on the other say nothing of each other: the same URL must do.
    return old.url != new.url


async def made_ready(cache: MusicCache, record: Record) -> Record:
    """The record as it stands for content: one that never was fetched is fetched, and has its SHA-256 from then on.

    RecordMismatch if its MD5 isn't that of what came; SourceFailed and its kinds, StoreFull, StoreFailed.
    """
    if record.ready:
        return record
    return (await etch(cache, Order(record.url, record.name, record.mirrors))).record


async def make_all_ready(
    cache: MusicCache, wanted: Iterable[Record], told: Callable[[Record, CachefsError | None], None]
) -> int:
    """Fetch those that never were, a few at a time; each is `told`, with what went wrong. How many failed."""
    limit, failed = trio.CapacityLimiter(_AT_A_TIME), []

    async def one(record: Record) -> None:
        async with limit:
            try:
                told(await made_ready(cache, record), None)
            except CachefsError as error:
                failed.append(record)
                told(record, error)

    async with trio.open_nursery() as nursery:
        for record in wanted:
            if not record.ready:
                nursery.start_soon(one, record)
    return len(failed)


def export(cache: MusicCache, form: str) -> str:
    """All records as a list. Blocking. CatalogError for one that the format can't hold."""
    lock = records.load(cache.lock_path)
    return WRITERS[form](_listed(cache, record) for record in lock)


def _listed(cache: MusicCache, record: Record) -> Listed:
    hashes = {"sha256": record.content.digest} if record.content else {"md5": record.md5}
    manifest = cache.pieces.manifest(record)
    pieces = (manifest.block_length, manifest.digests) if manifest else None
    return Listed(record.name, record.urls, record.size, hashes, pieces)


def playlist(lock: RecordsLock, mountpoint: Path) -> str:
    """An m3u8 of the records that the mount shows."""
    shown = lock.ready().values()
    return playlists.dump_m3u(
        playlists.Entry(str(mountpoint / layout.RECORDS / record.name), Path(record.name).stem) for record in shown
    )
