"""Which records are meant by what a user typed: a name, a path in the mount, a URL, a folder or a playlist.

How it works: a word is tried in every way in which a record can be called, and the lock alone says whether there is
one: what merely lies in the mount, or anywhere else, is no record. A folder stands for its records by their names, a
playlist file for its entries in their order. Entries that are no record of ours are told apart, so that a caller can
say that they were passed over. Paths are compared without a look at the disk: they may lead into a mount that is dead.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cachefs import layout
from cachefs.catalog import records
from cachefs.catalog.files import is_file
from cachefs.catalog.records import Record, RecordsLock
from cachefs.config.values import lower_scheme, without_login
from cachefs.errors import CachefsError
from cachefs.formats import playlists


@dataclass(frozen=True, slots=True)
class Meant:
    """Records, and what in a playlist is none."""

    records: tuple[Record, ...]
    strange: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(record.name for record in self.records)


def meant(word: str, data_dir: Path, mountpoint: Path | None) -> Meant:
    """The records that `word` means, at least one; CachefsError if it means none, CatalogError for a broken lock."""
    listed = in_playlist(word, data_dir, mountpoint)
    if listed is not None:
        return listed
    path = data_dir / records.LOCK_NAME
    known = _Known(records.load(path), mountpoint, Path.cwd())
    one = known.record(word)
    found = [one] if one is not None else known.folder(word)
    if not found:
        close = difflib.get_close_matches(word, known.lock.records, n=1)
        near = f"; did you mean {close[0]}?" if close else ""
        raise CachefsError(f"{without_login(word)}: no such record in {path}{near}")
    return Meant(tuple(found))


def in_playlist(word: str, data_dir: Path, mountpoint: Path | None) -> Meant | None:
    """The records of the playlist file `word`; None if it isn't one. CachefsError if it names none."""
    path = Path(word)
    if path.suffix.lower() not in playlists.SUFFIXES or not is_file(path):
        return None
    found = names_in(path, records.load(data_dir / records.LOCK_NAME), mountpoint)
    if not found.records:
        raise CachefsError(f"{path}: names no record of {data_dir}")
    return found


def names_in(path: Path, lock: RecordsLock, mountpoint: Path | None) -> Meant:
    """The records of a playlist file. CatalogError if it can't be read."""
    known = _Known(lock, mountpoint, path.parent)
    entries = [entry.location for entry in playlists.load(path)]
    found = [known.record(entry) or known.record(entry.strip()) for entry in entries]
    strange = [entry for entry, record in zip(entries, found, strict=True) if record is None]
    return Meant(tuple(record for record in found if record is not None), tuple(strange))


class _Known:
    """The records of a lock by all that they are called; relative paths start from `base`."""

    def __init__(self, lock: RecordsLock, mountpoint: Path | None, base: Path) -> None:
        self.lock = lock
        self._shown = None if mountpoint is None else mountpoint / layout.RECORDS
        self._base = base
        self._by_url = {url: record for record in lock for url in record.urls}

    def record(self, word: str) -> Record | None:
        """The record of this name, path in the mount, URL or mirror."""
        found = (self.lock.records[name] for name in self._names(word) if name in self.lock.records)
        return next(found, None) or self._by_url.get(lower_scheme(word))

    def folder(self, word: str) -> list[Record]:
        """The records in the folder of this name or path in the mount, by name."""
        folders = tuple(f"{name.rstrip('/')}/" for name in self._names(word))
        return [record for name, record in sorted(self.lock.records.items()) if name.startswith(folders)]

    def _names(self, word: str) -> Iterator[str]:
        """What a record may be called for `word` to mean it."""
        yield word
        yield word.removeprefix(f"{layout.RECORDS}/")
        path = playlists.Entry(word).path(self._base)
        if path is None or self._shown is None:
            return
        path = Path(os.path.abspath(path))  # noqa: PTH100  Path.resolve looks at the disk
        if path.is_relative_to(self._shown):
            yield str(path.relative_to(self._shown))
