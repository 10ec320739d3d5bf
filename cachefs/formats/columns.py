"""Lists of (name, url, md5), as older record caches kept them: CSV, TSV or JSON.

Format: three columns, separated by commas (quoted as in RFC 4180) or tabs, with or without a first line that names
them; or a JSON array of objects with these keys, or of arrays of three strings. The third may also be called
`checksum`, and may be a SHA-256: its length tells.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cachefs.errors import CatalogError
from cachefs.formats.listing import Listed, by_length

_NAMES = ("name", "url", "md5")


def parse(text: str, path: Path | str) -> list[Listed]:
    """The files in such a list; CatalogError names the line, or the number of the entry."""
    if text.lstrip()[:1] == "[":
        return _from_json(text, path)
    return [
        Listed(name, (url,), hashes=by_length(digits, path, line)) for line, (name, url, digits) in _rows(text, path)
    ]


def _rows(text: str, path: Path | str) -> Iterator[tuple[int, list[str]]]:
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",", strict=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            heading = reader.line_num == 1 and [value.lower() for value in values[:2]] == ["name", "url"]
            if not any(values) or heading:
                continue
            if len(values) != len(_NAMES):
                raise CatalogError(path, f"expected {', '.join(_NAMES)}, got {row!r:.140}", line=reader.line_num)
            yield reader.line_num, values
    except csv.Error as error:
        raise CatalogError(path, f"not CSV: {error}", line=reader.line_num) from None


def _from_json(text: str, path: Path | str) -> list[Listed]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise CatalogError(path, f"not JSON: {error.msg}", line=error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise CatalogError(path, f"not JSON: {error}") from None
    return [_entry(entry, number, path) for number, entry in enumerate(entries, 1)]


def _entry(entry: Any, number: int, path: Path | str) -> Listed:
    name, url, digits = _values(entry, number, path)
    try:
        return Listed(name, (url,), hashes=by_length(digits, path, None))
    except CatalogError as error:
        raise CatalogError(path, error.why, key=str(number)) from None


def _values(entry: Any, number: int, path: Path | str) -> list[str]:
    if isinstance(entry, dict):
        entry = [entry.get("name"), entry.get("url"), entry.get("md5", entry.get("checksum"))]
    if not isinstance(entry, list) or len(entry) != len(_NAMES) or not all(isinstance(part, str) for part in entry):
        raise CatalogError(path, f"expected {', '.join(_NAMES)}, all strings, got {entry!r:.140}", key=str(number))
    return entry
