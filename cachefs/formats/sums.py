r"""SHA256SUMS: checksums and names, as `sha256sum` of GNU coreutils writes and checks them.

Format: `DIGEST`, a space, a space or `*`, NAME; a line that begins with a backslash has `\\`, `\n` and `\r` for these
characters in its name. Also the form of `--tag` and the BSDs: `SHA256 (NAME) = DIGEST`. MD5SUMS is the same with
shorter digests. Comments begin with `#`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cachefs.errors import CatalogError
from cachefs.formats.listing import Listed, by_length, kept_hash, sha256_of

_PLAIN = re.compile(r"(\\?)([0-9a-fA-F]{32,128}) [ *](.+)")
_TAGGED = re.compile(r"(\\?)([A-Z0-9-]{3,12}) \((.+)\) = ([0-9a-fA-F]+)")
_ESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_ESCAPE = re.compile(r"\\.")


def parse(text: str, path: Path | str) -> list[Listed]:
    """The files in a list of checksums; CatalogError names the line that isn't one."""
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if line and not line.startswith("#"):
            items.append(_item(line, path, number))
    return items


def _item(line: str, path: Path | str, number: int) -> Listed:
    if match := _PLAIN.fullmatch(line):
        escaped, digits, name = match.groups()
        hashes = by_length(digits, path, number)
    elif match := _TAGGED.fullmatch(line):
        escaped, algorithm, name, digits = match.groups()
        hashes = kept_hash(algorithm, digits, path, number)
    else:
        raise CatalogError(path, f"expected a checksum and a name, got {line[:140]!r}", line=number)
    if escaped:
        name = _ESCAPE.sub(lambda found: _ESCAPED.get(found[0], found[0]), name)
    return Listed(name.removeprefix("./"), hashes=hashes)


def dump(items: Iterable[Listed], path: Path | str = "SHA256SUMS") -> str:
    """The list of these files; CatalogError for one without a SHA-256."""
    return "".join(_line(sha256_of(item, path), item.name) for item in items)


def _line(digits: str, name: str) -> str:
    written = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if written == name else chr(92)}{digits}  {written}\n"
