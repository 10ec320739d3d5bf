"""Reading and replacing the small files that catalogues live in.

How it works: a file is read whole, up to a limit, and is UTF-8 or refused. It is replaced the only way that
survives a crash at any step: a new file in the same directory is written and synced, renamed over the old
one, and the directory is synced. Whoever reads meanwhile sees the old text or the new, never a part.

Where such a file is a symbolic link, into a git repository say, that is done where the link leads, and the link stays.
A link is written through only if we, root or the directory's owner made it: in a directory that a group may write to
(a writable mount's snapshots/), anybody else's could have root write anywhere.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from cachefs.errors import CatalogError

MAX_TEXT = 64 * 2**20
"""The largest chain.toml or lock that is read, in bytes: some 800,000 names."""

_ROOT = 0
_LONGEST_PATTERN = 16_384
_MOST_LINKS = 40
"""How many links may lead from one to the next, as in the kernel (path_resolution(7))."""


def is_there(path: Path) -> bool:
    """Whether there is a file, or a link: one that leads nowhere is told of when it is read, not taken for no file."""
    return os.path.lexists(path)


def is_file(path: Path) -> bool:
    """Whether there is a file; what can't be looked at, for its name is too long, say, is none."""
    with suppress(OSError):
        return path.is_file()
    return False


def is_named(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that has this name. OSError, but if there is none."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    return False


def is_strangers(path: Path, home: Path) -> bool:
    """Whether what is at `path`, or the link that is, is neither ours, root's nor the owner of `home`'s. OSError."""
    return path.lstat().st_uid not in (_ROOT, os.geteuid(), home.stat().st_uid)


def read_text(path: Path) -> str:
    """The text of a file; CatalogError if it can't be read, isn't UTF-8 or is larger than MAX_TEXT."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise CatalogError(path, f"can't be read: {_why(path, error)}") from error
    if len(raw) > MAX_TEXT:
        raise CatalogError(path, f"larger than {MAX_TEXT} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CatalogError(path, "not UTF-8", line=line) from None


def replace_text(path: Path, text: str) -> None:
    """Put `text` in place of what `path` holds, or what a link there leads to, all or nothing.

    CatalogError if that fails.
    """
    try:
        replace_bytes(followed(path), text.encode())
    except OSError as error:
        raise CatalogError(path, f"can't be written: {_why(path, error)}") from error


def followed(path: Path) -> Path:
    """`path`, or the file that a link there leads to, which need not be there. OSError if it isn't to be written."""
    start = path
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            break
        if is_strangers(path, path.parent):
            raise OSError(errno.EPERM, f"{path} is a link of another user's")
        path = path.parent / path.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if path is not start and path.exists() and not path.is_file():  # /dev/null, which a rename would replace
        raise OSError(errno.EINVAL, "not a file")
    return path


def _why(path: Path, error: OSError) -> str | None:
    if os.path.islink(path):  # noqa: PTH114  where nothing can be looked at, Path.is_symlink raises
        return f"it is a link to {os.path.realpath(path)}: {error.strerror}"
    return error.strerror


def replace_bytes(path: Path, raw: bytes) -> None:
    """Put a file of `raw` in place of what `path` is, a link too, all or nothing. OSError if that fails."""
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")  # short: `path` may be as long as a name can be
    try:
        _write_synced(temporary, raw)
        temporary.rename(path)
        _sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _write_synced(path: Path, raw: bytes) -> None:
    with path.open("xb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def line_of(text: str, pattern: str, occurrence: int = 1) -> int | None:
    """The line, from 1, on which the nth match of the regular expression `pattern` ends; None if there are fewer.

    None also for a pattern of somebody's megabytes, which would take minutes.
    """
    if len(pattern) > _LONGEST_PATTERN:
        return None
    for number, match in enumerate(re.finditer(pattern, text, re.MULTILINE), 1):
        if number == occurrence:
            return text.count("\n", 0, match.end()) + 1
    return None
