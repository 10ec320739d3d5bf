"""The file behind the state: opened, made, looked through, and set aside when it is damaged.

How it works: a database is used if it has our marks, if SQLite finds its pages, records and indices in order, and if
each value is one that could have been written. SQLite keeps no checksums, so a byte that changed within a value is ours
to find: numbers out of bounds, ids that are none, texts that aren't UTF-8, a bitmap that doesn't make the bytes that
are held. All of that takes a tenth of a second with 18,000 names and 10,000 objects.

What isn't sound is renamed, said in the log, and made anew. It is never deleted, in case someone wants to know what
happened. An error that says nothing about the file's content (a full disk, a file that is locked) sets nothing aside.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from cachefs.content import DIGEST_SIZES, Bitmap

_log = logging.getLogger(__name__)

_APPLICATION_ID = 0x63616368  # "cach"
_VERSION = 1
_SCHEMA = """
CREATE TABLE BittorrentInfo (
    Name TEXT PRIMARY KEY NOT NULL, Hash TEXT NOT NULL, Length INTEGER, Created REAL NOT NULL, Completed REAL
) WITHOUT ROWID;
CREATE INDEX BittorrentInfoHash ON BittorrentInfo (Hash);
CREATE TABLE objects (
    id TEXT PRIMARY KEY NOT NULL, block_length INTEGER NOT NULL, length INTEGER NOT NULL, bitmap BLOB NOT NULL,
    held INTEGER NOT NULL, seal_size INTEGER, seal_mtime_ns INTEGER, seal_inode INTEGER, completed REAL,
    last_used REAL NOT NULL
);
"""
# Made where it is missing, so that a database from before there were these goes on.
_LATER = (
    """CREATE TABLE IF NOT EXISTS pins (
        catalogue TEXT NOT NULL, name TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (catalogue, name)
    ) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS scrubs (id TEXT PRIMARY KEY NOT NULL, scrubbed REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS losses (id TEXT PRIMARY KEY NOT NULL, bitmap BLOB NOT NULL) WITHOUT ROWID",
)

_LONGEST = 2**50
"""Bytes that no content has."""

_LATEST = 2**33
"""Unix seconds that no clock says."""


def _number(column: str, least: int, most: int | str, kind: str = "integer") -> str:
    return f"(typeof({column}) = '{kind}' AND {column} BETWEEN {least} AND {most})"


def _moment(column: str) -> str:
    return _number(column, -_LATEST, _LATEST, "real")


_BITS = "typeof(bitmap) = 'blob'"
_SEAL = " AND ".join(f"typeof({part}) IN ('integer', 'null')" for part in ("seal_size", "seal_mtime_ns", "seal_inode"))
_SOUND = {
    "BittorrentInfo": f"""{_moment("Created")} AND (Completed IS NULL OR {_moment("Completed")})
        AND (Length IS NULL OR {_number("Length", 0, _LONGEST)})""",
    "objects": f"""{_number("block_length", 1, _LONGEST)} AND {_number("length", 1, _LONGEST)}
        AND {_BITS} AND length(bitmap) = ((length - 1) / block_length + 8) / 8 AND {_number("held", 0, "length")}
        AND {_SEAL} AND (completed IS NULL OR {_moment("completed")}) AND {_moment("last_used")}""",
    "scrubs": _moment("scrubbed"),
    "losses": _BITS,
}
"""For each table, what holds for every row of it."""

_ANY = re.compile(r"(?s).*")
_HASH = re.compile("|".join(f"[0-9a-f]{{{2 * size}}}" for size in DIGEST_SIZES.values()))
_ID = re.compile("|".join(f"{algorithm}:[0-9a-f]{{{2 * size}}}" for algorithm, size in DIGEST_SIZES.items()))
_TEXTS = {
    "BittorrentInfo": {"Name": _ANY, "Hash": _HASH},
    "objects": {"id": _ID},
    "pins": {"catalogue": _ANY, "name": _ANY, "content": _ID},
    "scrubs": {"id": _ID},
    "losses": {"id": _ID},
}
"""For each table, its columns of text and what each text is; and all are UTF-8."""

# Errors that are a verdict on the file's content; a disk that is full or a file that is locked says nothing about it.
_VERDICTS = {
    sqlite3.SQLITE_ERROR, sqlite3.SQLITE_INTERNAL, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH,
}  # fmt: skip


class BrokenError(Exception):
    """The file isn't a sound database of ours."""


def opened(path: Path) -> sqlite3.Connection:
    """The database at `path`, new if there is none or none that is sound. sqlite3.Error, OSError."""
    with _alone(path.with_name(f".{path.name}.flock")):
        try:
            return _connect(path)
        except BrokenError as error:
            aside = _move_aside(path)
            _log.error(
                "%s is damaged (%s) and kept as %s; a new one is made: what is held is hashed, pins are lost",
                path, error, aside.name,
            )  # fmt: skip
            return _connect(path)


def copied(path: Path) -> sqlite3.Connection:
    """The database of a read-only file system, copied to memory; an empty one if it isn't there or isn't sound."""
    if path.exists():
        try:
            return _copy(path)
        except BrokenError as error:
            _log.error("%s is damaged (%s): what is held is hashed, pins are not known", path, error)
        except sqlite3.Error as error:
            _log.error("%s can't be read: %s", path, error)
    db = sqlite3.connect(":memory:", isolation_level=None)
    _create(db)
    _create_later(db)
    return db


def looked_at(path: Path) -> sqlite3.Connection:
    """The database as it is, to read only. BrokenError, sqlite3.Error."""
    how = "mode=ro" if os.access(path.parent, os.W_OK) else "mode=ro&immutable=1"  # a log needs a file beside it
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
    with _judged(db, path):
        _check_file(db)
    return db


def _copy(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    with _judged(db, path):
        source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(source):
            source.backup(db)
        _check_file(db)
        _create_later(db)
        _check_rows(db)
    return db


def _connect(path: Path) -> sqlite3.Connection:
    """A sound database of this version, new if there was no file; BrokenError if there is one that isn't sound."""
    fresh = _keep_private(path)
    db = sqlite3.connect(path, isolation_level=None)
    with _judged(db, path):
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if fresh:
            _create(db)
        _check_file(db)
        _require_writable(db)
        _create_later(db)
        _check_rows(db)
    return db


def _keep_private(path: Path) -> bool:
    """Have a file that other users can't read, which SQLite takes for those beside it; whether it is new. OSError.

    Who may read them can hold SQLite's locks, and each of our writes would wait for him.
    """
    with contextlib.suppress(FileExistsError):
        # One that is there isn't opened: to close it would drop the locks of another connection (POSIX).
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660))
        return True
    for each in (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # it may be of somebody of the same group
            mode = stat.S_IMODE(each.stat().st_mode)
            if mode & stat.S_IRWXO:
                each.chmod(mode & ~stat.S_IRWXO)
    return False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a file lock: a database that another process is just making has no tables yet, and is not broken."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _judged(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Close the database if this fails, and turn an error that is a verdict on the file into BrokenError."""
    try:
        yield
    except BaseException as error:
        db.close()
        if isinstance(error, (sqlite3.Error, ValueError)) and _is_verdict(error, path):
            raise BrokenError(str(error)) from error
        raise


def _is_verdict(error: sqlite3.Error | ValueError, path: Path) -> bool:
    # Python's own errors, about a text that isn't UTF-8 say, have no code; SQLite's may be finer than those listed.
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None or code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return True
    if code & 0xFF == sqlite3.SQLITE_READONLY:  # if the file may be written to, it is a byte in it that says so
        return os.access(path, os.W_OK)
    return code & 0xFF in _VERDICTS


def _create(db: sqlite3.Connection) -> None:
    marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_VERSION};"
    db.executescript(f"BEGIN; {_SCHEMA} {marks} COMMIT;")


def _create_later(db: sqlite3.Connection) -> None:
    for table in _LATER:
        db.execute(table)


def _check_file(db: sqlite3.Connection) -> None:
    marks = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if marks != [_APPLICATION_ID, _VERSION]:
        raise BrokenError("it is none of cachefs")
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise BrokenError(found)


def _check_rows(db: sqlite3.Connection) -> None:
    for table, sound in _SOUND.items():
        if db.execute(f"SELECT 1 FROM {table} WHERE NOT coalesce({sound}, 0) LIMIT 1").fetchone():
            raise BrokenError(f"a number in {table} can't be")
    for table, texts in _TEXTS.items():
        for column, form in texts.items():
            for (text,) in db.execute(f"SELECT {column} FROM {table}"):
                if not isinstance(text, str) or not form.fullmatch(text):
                    raise BrokenError(f"a {column} in {table} is none")
    for length, block_length, bitmap, held in db.execute("SELECT length, block_length, bitmap, held FROM objects"):
        if Bitmap.from_bytes(-(-length // block_length), bitmap).held(length, block_length) != held:
            raise BrokenError("a bitmap doesn't make the bytes that are held")


def _require_writable(db: sqlite3.Connection) -> None:
    """sqlite3.Error if nothing can be written; nothing is."""
    db.execute("BEGIN IMMEDIATE")
    db.execute(f"PRAGMA user_version = {_VERSION}")
    db.execute("ROLLBACK")


def _move_aside(path: Path) -> Path:
    """Rename the database with its log: a log left beside a new database would be replayed into it."""
    number = 1
    while path.with_name(f"{path.name}.broken-{number}").exists():
        number += 1
    aside = path.with_name(f"{path.name}.broken-{number}")
    # The log first: a crash in between leaves a database without log, which is broken still or merely older.
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(path.with_name(aside.name + suffix))
    return aside
