"""pooch's registry: a name, a checksum and perhaps a URL a line.

Format: fields separated by blanks, in quotes where they hold some (as a shell reads them); the checksum is a SHA-256
unless an algorithm and a colon stand before it; a line that begins with `#` is a comment. A name without a URL
comes from the registry's base URL, which pooch is given elsewhere.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from cachefs.errors import CatalogError
from cachefs.formats.listing import Listed, kept_hash, sha256_of

_LONGEST_LINE = 65_536
"""Characters; shlex takes minutes for millions."""


def parse(text: str, path: Path | str) -> list[Listed]:
    """The files in a registry; CatalogError names the line that isn't an entry."""
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        fields = _fields(line, path, number)
        if fields:
            algorithm, _, digits = fields[1].rpartition(":")
            hashes = kept_hash(algorithm or "sha256", digits, path, number)
            items.append(Listed(fields[0], tuple(fields[2:]), hashes=hashes))
    return items


def _fields(line: str, path: Path | str, number: int) -> list[str]:
    if line.strip().startswith("#"):
        return []
    if len(line) > _LONGEST_LINE:
        raise CatalogError(path, f"a line of {len(line)} characters: {line[:140]!r}", line=number)
    try:
        fields = shlex.split(line)
    except ValueError as error:
        raise CatalogError(path, f"{error}: {line[:140]!r}", line=number) from None
    if len(fields) not in (0, 2, 3):
        raise CatalogError(path, f"expected a name, a checksum and perhaps a URL, got {line[:140]!r}", line=number)
    return fields


def dump(items: Iterable[Listed], path: Path | str = "registry.txt") -> str:
    """The registry of these files, each with its first URL; CatalogError for one without a SHA-256."""
    return "".join(
        " ".join(map(shlex.quote, (item.name, f"sha256:{sha256_of(item, path)}", *item.urls[:1]))) + "\n"
        for item in items
    )
