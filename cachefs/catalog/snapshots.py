"""snapshot-lock.json, and which of a segment's versions are shown.

How it works: a published chain.toml changes all the time, also for names that stay. So the first start copies
it into a lock, and from then on the lock is read instead: the directory stays what it was until somebody
deletes or edits the lock. Nothing here ever writes over a lock that is there, whatever is wrong with it.

A segment may be listed in several versions. Block files are one level deep (`v1.1-000000-000500-bodies.seg`):
of those that differ in the version alone, the highest that is supported is shown. Everything else is kept:
state files (`domain/`, `history/`, `idx/`, `accessor/`), where a reader may need two versions at once, and
`caplin/`, `salt-*.txt` and `erigondb.toml`, for which Erigon gives no rule.

Format: Erigon's, `{"chain":"mainnet","downloads":{"<name>":"<info-hash>"}}`, compact, keys sorted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cachefs.catalog.chain import checked_entries
from cachefs.catalog.files import is_there, line_of, read_text, replace_text
from cachefs.config import Version
from cachefs.content import ContentId
from cachefs.errors import CatalogError

__all__ = ["LOCK_NAME", "UNKNOWN_CHAIN", "SnapshotLock", "Version", "load", "load_or_create", "parse_lock", "shown"]

LOCK_NAME = "snapshot-lock.json"
"""The lock's file name in the data directory's `snapshots/`."""

UNKNOWN_CHAIN = "unknown"
"""What a lock says when nothing told the chain's name."""

_KEYS = ("chain", "downloads")
_REMAKE = "correct it, or delete it and it is made again from chain.toml"
_BLOCK_FILE = re.compile(r"v([0-9]{1,4})(?:\.([0-9]{1,4}))?-([0-9]+-[0-9]+-[^/]+)")


@dataclass(frozen=True, slots=True)
class SnapshotLock:
    """The chain's name, and for every name in the directory the id of its content."""

    chain: str
    downloads: Mapping[str, ContentId]

    def dump(self) -> str:
        """The lock's text, as Erigon writes it."""
        table = {name: content.hex for name, content in self.downloads.items()}
        lock = {"chain": self.chain, "downloads": table}
        return json.dumps(lock, ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    def save(self, path: Path) -> None:
        """Write the lock in one step that a crash can't tear; CatalogError if it can't be written."""
        replace_text(path, self.dump())


class _Twice(Exception):
    """Carries a key out of the JSON decoder, which has no other way to refuse it."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def load_or_create(path: Path, chain: str | None, make: Callable[[], Mapping[str, ContentId]]) -> SnapshotLock:
    """The lock at `path`; if there is none, a new one of `make()`, which is not called otherwise.

    `chain` is None when nobody has told its name. CatalogError if a lock is there and can't be taken: it is left alone.
    """
    if is_there(path):
        return load(path, chain)
    lock = SnapshotLock(chain or UNKNOWN_CHAIN, make())
    lock.save(path)
    return lock


def load(path: Path, chain: str | None) -> SnapshotLock:
    """The lock at `path`, which must be of `chain` (None: of any); CatalogError if it can't be taken."""
    return parse_lock(read_text(path), path, chain)


def parse_lock(text: str, path: Path, chain: str | None) -> SnapshotLock:
    """The lock that `text` is; `path` is for messages. CatalogError names the line and key where known."""
    lock = _decode(text, path)
    _check_shape(lock, path)
    found, downloads = lock["chain"], lock["downloads"]
    if not isinstance(found, str) or not found:
        raise CatalogError(path, f"must be the chain's name; {_REMAKE}", key="chain")
    if chain is not None and found != chain:
        raise CatalogError(path, _other_chain(found, chain), key="chain")
    if not isinstance(downloads, dict):
        raise CatalogError(path, f"must be an object of names and hashes; {_REMAKE}", key="downloads")

    def refuse(name: str, why: str) -> CatalogError:
        return CatalogError(path, why, line=line_of(text, _key_pattern(name)), key=name)

    return SnapshotLock(found, checked_entries(downloads, path, refuse))


def _decode(text: str, path: Path) -> dict[str, object]:
    try:
        lock = json.loads(text, object_pairs_hook=_unique)
    except _Twice as error:
        line = line_of(text, _key_pattern(error.key), occurrence=2)
        raise CatalogError(path, "given twice; keep the right one", line=line, key=error.key) from None
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} (column {error.colno})"  # a lock as we write it has one line
        raise CatalogError(path, f"{what}; {_REMAKE}", line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise CatalogError(path, f"not a lock: {error}; {_REMAKE}") from None
    if not isinstance(lock, dict):
        raise CatalogError(path, f"not a JSON object; {_REMAKE}")
    return lock


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _Twice(key)
        seen.add(key)
    return table


def _check_shape(lock: Mapping[str, object], path: Path) -> None:
    for key in _KEYS:
        if key not in lock:
            raise CatalogError(path, f"is missing; {_REMAKE}", key=key)
    for key in lock:
        if key not in _KEYS:
            raise CatalogError(path, "not a key of a lock, which has chain and downloads; take it out", key=key)


def _other_chain(found: str, wanted: str) -> str:
    return (
        f"this lock is of chain {found!r}, and {wanted!r} is to be mounted; "
        f"use another data directory, give --chain {found}, or delete the lock to start over"
    )


def _key_pattern(key: str) -> str:
    return rf"{re.escape(json.dumps(key, ensure_ascii=False))}\s*:"


def shown(
    names: Iterable[str],
    *,
    all_versions: bool = False,
    minimum: Version | None = None,
    current: Version | None = None,
) -> list[str]:
    """Those of `names` that the mount shows, in their order.

    Block files outside `minimum` to `current` (None: no bound) are left out; of the others only the highest version of
    each is shown, or all with `all_versions`. All other names are shown.
    """
    kept: list[tuple[str, str]] = []
    highest: dict[str, tuple[Version, str]] = {}
    for name in names:
        match = _BLOCK_FILE.fullmatch(name)
        segment = match[3] if match else ""
        if match:
            version = Version(int(match[1]), int(match[2] or 0))
            if (minimum is not None and version < minimum) or (current is not None and version > current):
                continue
            # Of v1 and v1.0, which are the same, the later spelling wins whatever the order of the names.
            highest[segment] = max(highest.get(segment, (version, name)), (version, name))
        kept.append((name, segment))
    return [name for name, segment in kept if all_versions or not segment or highest[segment][1] == name]
