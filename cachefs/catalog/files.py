"""Reading and replacing the small text files that catalogues live in.

How it works: a file is read whole, up to a limit, and is UTF-8 or refused. It is replaced the only way that
survives a crash at any step: a new file in the same directory is written and synced, renamed over the old
one, and the directory is synced. Whoever reads meanwhile sees the old text or the new, never a part.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from cachefs.errors import CatalogError

MAX_TEXT = 64 * 2**20
"""The largest chain.toml or lock that is read, in bytes: some 800,000 names."""


def read_text(path: Path) -> str:
    """The text of a file; CatalogError if it can't be read, isn't UTF-8 or is larger than MAX_TEXT."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TEXT + 1)
    except OSError as error:
        raise CatalogError(path, f"can't be read: {error.strerror}") from error
    if len(raw) > MAX_TEXT:
        raise CatalogError(path, f"larger than {MAX_TEXT} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CatalogError(path, "not UTF-8", line=line) from None


def replace_text(path: Path, text: str) -> None:
    """Put `text` in place of what `path` holds, all or nothing; CatalogError if that fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        _write_synced(temporary, text.encode())
        temporary.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CatalogError(path, f"can't be written: {error.strerror}") from error


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
    """The line, from 1, on which the nth match of the regular expression `pattern` ends; None if there are fewer."""
    for number, match in enumerate(re.finditer(pattern, text, re.MULTILINE), 1):
        if number == occurrence:
            return text.count("\n", 0, match.end()) + 1
    return None
