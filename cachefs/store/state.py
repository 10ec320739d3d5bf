"""What the store remembers between starts: SQLite in WAL mode, in one file.

How it works: `BittorrentInfo` has a row for each name of the lock (Erigon's columns); `objects` has one for
each content id, with a bit for every block known to be good **on disk**; `scrubs` says when an object was last
read again, `losses` which of its blocks were found wrong since it was complete. Nothing here is precious: names come
back from the lock, lengths from the manifests, bits by hashing the data files. So `synchronous=NORMAL` is enough (a
power cut may lose the last commits, never the database's consistency), but for taking a bit back: the bit that was
written before must not return. `database.py` has the file: how it is made, and what becomes of a damaged one. On a
read-only file system a copy in memory is used: reads work, nothing is kept.

All calls are synchronous and quick, and belong to the thread that called `open`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cachefs.content import ContentId
from cachefs.diskerrors import kind_of
from cachefs.errors import StoreFailed, StoreFull
from cachefs.layout import STATE
from cachefs.store import database
from cachefs.store.rows import Counts, Info, ObjectRow, Pin, Seal

__all__ = ["Counts", "Info", "ObjectRow", "Pin", "Seal", "State"]

# What was just completed was hashed as it came.
_LONGEST_UNREAD = """
SELECT id, coalesce(scrubbed, completed, 0) AS at FROM objects LEFT JOIN scrubs USING (id) WHERE held > 0
ORDER BY at, id LIMIT 1
"""
# A new name, or one with a new hash: what the store already has under that hash is known at once.
_UPSERT = """
INSERT INTO BittorrentInfo (Name, Hash, Length, Created, Completed) VALUES (:name, :hash,
    (SELECT length FROM objects WHERE id = :id), :created, (SELECT completed FROM objects WHERE id = :id))
ON CONFLICT (Name) DO UPDATE SET Hash = excluded.Hash, Length = excluded.Length, Created = excluded.Created,
    Completed = excluded.Completed
"""
_COMPLETED = "UPDATE BittorrentInfo SET Completed = ?1 WHERE Hash = ?2 AND Completed IS NOT ?1"
_FIELDS = "block_length, length, bitmap, held, seal_size, seal_mtime_ns, seal_inode, completed, last_used"


class State:
    """The database; not `lasting`: it is a copy in memory."""

    def __init__(self, db: sqlite3.Connection, *, lasting: bool = True) -> None:
        self._db = db
        self.lasting = lasting

    @classmethod
    def open(cls, path: Path) -> State:
        """The database at `path`, made if it isn't there or is damaged. StoreFailed or StoreFull if it can't be."""
        with _translated(f"{path}"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(path.parent, os.W_OK):
                try:
                    return cls(database.opened(path))
                except OSError as error:
                    if error.errno != errno.EROFS:  # to which an error of the disk may have turned it, unseen by access
                        raise
            return cls(database.copied(path), lasting=False)

    @classmethod
    def look(cls, path: Path) -> State:
        """The database as it is, to read only, also beside the daemon that has it open.

        StoreFailed if it isn't there or isn't sound: nothing is mended here.
        """
        if not path.exists():
            raise StoreFailed(f"{path} isn't there; the first mount makes it, or `cachefs adopt`")
        try:
            with _translated():
                return cls(database.looked_at(path))
        except database.BrokenError as error:
            raise StoreFailed(f"{path}: not a sound database of cachefs; the next mount makes it anew") from error

    def close(self) -> None:
        self._db.close()

    def sync_names(self, entries: Mapping[str, ContentId], created: float) -> None:
        """Make the names those of the lock: new ones added at `created`, changed ones reset, gone ones removed."""
        with self._transaction() as db:
            before = dict(db.execute("SELECT Name, Hash FROM BittorrentInfo"))
            changed = [
                {"name": name, "hash": content.hex, "id": str(content), "created": created}
                for name, content in entries.items()
                if before.get(name) != content.hex
            ]
            gone = [(name,) for name in before if name not in entries]
            db.executemany("DELETE FROM BittorrentInfo WHERE Name = ?", gone)
            db.executemany(_UPSERT, changed)

    def infos(self) -> dict[str, Info]:
        """Every name's row."""
        with _translated():
            rows = self._db.execute("SELECT Name, Hash, Length, Created, Completed FROM BittorrentInfo ORDER BY Name")
            return {row[0]: Info(*row) for row in rows}

    def complete_hashes(self) -> set[str]:
        """The hashes, in hex, of the names that are complete."""
        with _translated():
            rows = self._db.execute("SELECT Hash FROM BittorrentInfo WHERE Completed IS NOT NULL")
            return {row[0] for row in rows}

    def set_lengths(self, lengths: Mapping[str, int]) -> None:
        """Record lengths in bytes by name; names that aren't there are passed over."""
        with self._transaction() as db:
            pairs = [(length, name) for name, length in lengths.items()]
            db.executemany("UPDATE BittorrentInfo SET Length = ? WHERE Name = ?", pairs)

    def load_object(self, content: ContentId) -> ObjectRow | None:
        """What is known of an object, or None."""
        with _translated():
            row = self._db.execute(f"SELECT {_FIELDS} FROM objects WHERE id = ?", (str(content),)).fetchone()
        if row is None:
            return None
        block_length, length, bitmap, held, size, mtime_ns, inode, completed, last_used = row
        seal = None if size is None else Seal(size, mtime_ns, inode)
        return ObjectRow(block_length, length, bitmap, held, seal, completed, last_used)

    def save_object(self, content: ContentId, row: ObjectRow) -> None:
        """Record an object and, in the same transaction, the completion of the names that have it."""
        seal = (row.seal.size, row.seal.mtime_ns, row.seal.inode) if row.seal else (None, None, None)
        values = (str(content), row.block_length, row.length, row.bitmap, row.held, *seal, row.completed, row.last_used)
        with self._transaction() as db:
            db.execute(f"INSERT OR REPLACE INTO objects (id, {_FIELDS}) VALUES (?,?,?,?,?,?,?,?,?,?)", values)
            if row.completed is not None:
                db.execute("DELETE FROM losses WHERE id = ?", (str(content),))
            db.execute(_COMPLETED, (row.completed, content.hex))

    def save_object_synced(self, content: ContentId, row: ObjectRow) -> None:
        """The same, so that not even a power cut brings back the row that was there before."""
        with _translated():
            self._db.execute("PRAGMA synchronous = FULL")
        try:
            self.save_object(content, row)
        finally:
            with _translated():
                self._db.execute("PRAGMA synchronous = NORMAL")

    def seals(self) -> dict[ContentId, Seal | None]:
        """Every object, and how its data file looked when it was last closed; None if it wasn't closed cleanly."""
        with _translated():
            rows = self._db.execute("SELECT id, seal_size, seal_mtime_ns, seal_inode FROM objects")
            return {ContentId.parse(row[0]): None if row[1] is None else Seal(*row[1:]) for row in rows}

    def touch_object(self, content: ContentId, last_used: float) -> None:
        """Record when an object was last used."""
        with self._transaction() as db:
            db.execute("UPDATE objects SET last_used = ? WHERE id = ?", (last_used, str(content)))

    def forget_object(self, content: ContentId) -> None:
        """Drop an object's row; its names are no longer completed."""
        with self._transaction() as db:
            db.execute("DELETE FROM objects WHERE id = ?", (str(content),))
            db.execute("DELETE FROM scrubs WHERE id = ?", (str(content),))
            db.execute("DELETE FROM losses WHERE id = ?", (str(content),))
            db.execute(_COMPLETED, (None, content.hex))

    def losses(self, content: ContentId) -> bytes | None:
        """A bit for each block of an object that was found wrong since it was complete; None if there are none."""
        with _translated():
            row = self._db.execute("SELECT bitmap FROM losses WHERE id = ?", (str(content),)).fetchone()
        return None if row is None else bytes(row[0])

    def save_losses(self, content: ContentId, bitmap: bytes) -> None:
        """Record these until the object is complete or forgotten."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO losses (id, bitmap) VALUES (?, ?)", (str(content), bitmap))

    def save_scrubbed(self, content: ContentId, when: float) -> None:
        """Record when all that is held of an object was read again."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO scrubs (id, scrubbed) VALUES (?, ?)", (str(content), when))

    def longest_unread(self) -> tuple[ContentId, float] | None:
        """The object that was hashed the longest time ago, and when (0: never); None if nothing is held."""
        with _translated():
            row = self._db.execute(_LONGEST_UNREAD).fetchone()
            return None if row is None else (ContentId.parse(row[0]), row[1])

    def held(self) -> dict[ContentId, int]:
        """Every object, and how many bytes of it are known to be good on disk."""
        with _translated():
            return {ContentId.parse(row[0]): row[1] for row in self._db.execute("SELECT id, held FROM objects")}

    def last_used(self) -> dict[ContentId, float]:
        """When each object was last used, in Unix seconds."""
        with _translated():
            return {ContentId.parse(row[0]): row[1] for row in self._db.execute("SELECT id, last_used FROM objects")}

    def pins(self) -> list[Pin]:
        """Every pin, sorted by catalogue and name."""
        with _translated():
            rows = self._db.execute("SELECT catalogue, name, content FROM pins ORDER BY catalogue, name")
            return [Pin(catalogue, name, ContentId.parse(content)) for catalogue, name, content in rows]

    def set_pins(self, pins: Iterable[Pin]) -> None:
        """Add pins; a name that is pinned is from now on pinned with this content."""
        rows = [(pin.catalogue, pin.name, str(pin.content)) for pin in pins]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO pins (catalogue, name, content) VALUES (?, ?, ?)", rows)

    def drop_pins(self, pins: Iterable[Pin]) -> None:
        """Take pins away, by catalogue and name."""
        with self._transaction() as db:
            rows = [(pin.catalogue, pin.name) for pin in pins]
            db.executemany("DELETE FROM pins WHERE catalogue = ? AND name = ?", rows)

    def counts(self) -> Counts:
        """Totals over all objects: no data file is looked at."""
        with _translated():
            objects = self._db.execute("SELECT count(*), count(completed), coalesce(sum(held), 0) FROM objects")
            return Counts(*objects.fetchone())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _translated(what: str = STATE) -> Iterator[None]:
    """Turn what SQLite and the disk say into StoreFull or StoreFailed; so it is with a value that is none of ours."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        kind = StoreFull if full else kind_of(getattr(error, "errno", None))
        words = getattr(error, "strerror", None) or error
        raise kind(f"{what}: {words}") from error
