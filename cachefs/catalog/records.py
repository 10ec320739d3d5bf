"""records-lock.toml: the records of a data directory.

How it works: a lock is read whole and checked whole, into frozen values; a change makes another lock, whose text is
read as strictly before it replaces the file in one step. `update` does that under a file lock of its own, so that many
processes can etch at once and none loses another's record. The file lock is there only while it is held, beside the
file that is replaced: where the lock is a symbolic link, other data directories may have links to the same file.

Format: names of PEP 751 where it has them.

    lock-version = "1.0"

    [[record]]
    name = "Fast Car.mp3"
    url = "https://example.org/fastcar.mp3"
    mirrors = []
    size = 5242880
    hashes = { sha256 = "…" }
    pieces = { algorithm = "sha256", length = 262144, list = "sha256:…" }
    swarm = { btih = "…" }
    media = { type = "audio/mpeg" }
    etched_at = 2026-01-01T00:00:00Z
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from cachefs.catalog.files import followed, is_named, is_there, line_of, read_text, replace_text
from cachefs.catalog.names import BadName, check_names
from cachefs.catalog.record import HEADER, Entry, Pieces, Record, as_url, dump, suggestion
from cachefs.config.values import show
from cachefs.content import ContentId
from cachefs.errors import CatalogError

__all__ = [
    "LOCK_NAME",
    "SIDECARS",
    "Pieces",
    "Record",
    "RecordsLock",
    "as_url",
    "load",
    "lock_of",
    "parse",
    "update",
]

LOCK_NAME = "records-lock.toml"
"""The lock's file name, in the data directory itself."""

SIDECARS = "pieces"
"""The folder of piece lists and torrents, beside the lock."""

_VERSION = "1.0"
_HEAD = f'# Written by cachefs; edit names and URLs if you like, comments are not kept.\nlock-version = "{_VERSION}"\n'
_KEYS = ("lock-version", "record")


@dataclass(frozen=True, slots=True)
class RecordsLock:
    """All records of a lock, in the order of the file, by name."""

    records: Mapping[str, Record] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())

    def ready(self) -> dict[str, Record]:
        """The records that stand for content."""
        return {record.name: record for record in self if record.ready}

    def contents(self) -> dict[str, ContentId]:
        """The content of every name that stands for one."""
        return {record.name: record.content for record in self if record.ready and record.content is not None}

    def with_record(self, record: Record) -> RecordsLock:
        """This lock with `record`, in the place of the one of its name if there is one. CatalogError if it can't be."""
        return lock_of([record if old.name == record.name else old for old in self], [record])

    def dump(self) -> str:
        """The lock's text."""
        return "\n".join([_HEAD, *map(dump, self)])

    def save(self, path: Path) -> None:
        """Write the lock in one step that a crash can't tear; CatalogError if it can't be, or couldn't be read then."""
        text = self.dump()
        try:
            parse(text, path)
        except CatalogError as error:
            why = f"not written, for it could not be read again: {error.why}"
            raise CatalogError(path, why, key=error.key) from None
        replace_text(path, text)


def lock_of(records: Iterable[Record], more: Iterable[Record] = ()) -> RecordsLock:
    """A lock of `records` and those of `more` whose names are not among them; CatalogError for a name that can't be."""
    listed = list(records)
    names = [record.name for record in listed]
    listed += [record for record in more if record.name not in names]
    try:
        check_names(record.name for record in listed)
    except BadName as error:
        raise CatalogError(LOCK_NAME, error.why, key=error.name) from None
    return RecordsLock({record.name: record for record in listed})


def load(path: Path) -> RecordsLock:
    """The lock at `path`, an empty one if there is none; CatalogError if it can't be taken."""
    return parse(read_text(path), path) if is_there(path) else RecordsLock()


def update(path: Path, change: Callable[[RecordsLock], RecordsLock]) -> RecordsLock:
    """Replace the lock by `change` of what it is now, alone among all processes; the new lock.

    Blocking, short; `change` must not wait. What it raises leaves the lock as it is. CatalogError.
    """
    with _alone(_flock(path)):
        before = load(path)
        after = change(before)
        if after != before or not path.exists():
            after.save(path)
        return after


def _flock(path: Path) -> Path:
    """The file lock that goes with the lock at `path`."""
    target = path
    with suppress(OSError):  # a link that isn't to be written through is told of by whoever writes
        target = followed(path)
    beside = target if os.access(target.parent, os.W_OK) else path  # where nothing can be written nothing is lost
    return beside.with_name(f".{beside.name}.flock")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file lock; the kernel drops it with the process, so none is ever stale."""
    while not is_named(descriptor := _opened(path), path):  # whoever had it has removed it
        os.close(descriptor)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _opened(path: Path) -> int:
    """A descriptor of the file `path`, made if need be, once it has its lock. CatalogError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CatalogError(path, f"can't be locked: {error.strerror}") from error
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def parse(text: str, path: Path | str) -> RecordsLock:
    """The lock that `text` is; `path` is for messages. CatalogError names the line and key where known."""
    table = _decode(text, path)
    for key in table:
        if key not in _KEYS:
            raise CatalogError(path, f"unknown key{suggestion(key, _KEYS)}", line=_line(text, key), key=key)
    version = table.get("lock-version", _VERSION)
    if not isinstance(version, str) or version.partition(".")[0] != _VERSION.partition(".")[0]:
        raise CatalogError(path, f"is {show(version)}, this cachefs reads {_VERSION}", key="lock-version")
    entries = table.get("record", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CatalogError(path, "must be tables: [[record]]", line=_line(text, "record"), key="record")
    records = [Entry(entry, text, path, number).record() for number, entry in enumerate(entries, 1)]
    _refuse_clashes(records, text, path)
    return RecordsLock({record.name: record for record in records})


def _decode(text: str, path: Path | str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise CatalogError(path, f"not TOML: {error.msg}", line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise CatalogError(path, f"not TOML: {error}") from None


def _refuse_clashes(records: list[Record], text: str, path: Path | str) -> None:
    try:
        check_names(record.name for record in records)
    except BadName as error:
        last = max(number for number, record in enumerate(records, 1) if record.name == error.name)
        raise CatalogError(path, error.why, line=line_of(text, HEADER, last), key=error.name) from None


def _line(text: str, key: str) -> int | None:
    return line_of(text, rf"^[ \t]*\[*[ \t]*{re.escape(key)}\b")
