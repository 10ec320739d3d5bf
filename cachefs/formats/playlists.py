"""Playlists: m3u, m3u8 and pls, read and written.

Format: m3u is a path or URL a line; `#EXTINF:SECONDS,TITLE` before one says more of it, other lines with `#` are
comments. m3u8 is m3u in UTF-8; a plain m3u that isn't UTF-8 is Latin-1, as its first writers had it. pls is an INI
file whose section `playlist` has File1, Title1 and Length1, and so on. Relative paths start from the playlist.

Lines end as on any system, and nowhere else; blanks around a path are kept, for they may be part of a file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cachefs.errors import CatalogError

SUFFIXES = (".m3u", ".m3u8", ".pls")
MAX_PLAYLIST = 16 * 2**20
"""The largest playlist that is read, in bytes."""

_LINE_ENDS = re.compile(r"[\r\n]+")
_FILE_URL = re.compile(r"file:(?://[^/?#]*)?([^?#]*)", re.IGNORECASE)
_INFO = re.compile(r"#EXTINF:\s*(-?\d{1,9})(?:\.\d+)?[^,]*,(.*)")
_PLS = re.compile(r"(File|Title|Length)(\d{1,9})\s*=\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A path or URL, as it stands in the playlist; `seconds` and `title` as it tells, -1 and "" if it doesn't."""

    location: str
    title: str = ""
    seconds: int = -1

    def path(self, base: Path) -> Path | None:
        """The file that is meant, relative ones seen from `base`; None for a URL that names no file."""
        if match := _FILE_URL.match(self.location):
            return base / unquote(match[1])
        return None if "://" in self.location else base / self.location


def load(path: Path) -> list[Entry]:
    """The entries of a playlist file; CatalogError if it can't be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_PLAYLIST + 1)
    except OSError as error:
        raise CatalogError(path, f"can't be read: {error.strerror}") from error
    if len(raw) > MAX_PLAYLIST:
        raise CatalogError(path, f"larger than {MAX_PLAYLIST} bytes, which no playlist is")
    return parse(raw, path)


def parse(raw: bytes, path: Path | str) -> list[Entry]:
    """The entries of a playlist; CatalogError if it is none."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if "\0" in text:
        raise CatalogError(path, "not a playlist: it has NUL characters")
    if text.lstrip()[:10].lower() == "[playlist]":
        return _pls(text)
    return _m3u(text)


def _m3u(text: str) -> list[Entry]:
    entries, title, seconds = [], "", -1
    for line in _LINE_ENDS.split(text):
        if match := _INFO.fullmatch(line.strip()):
            seconds, title = int(match[1]), match[2].strip()
        elif line.strip() and not line.lstrip().startswith("#"):
            entries.append(Entry(line, title, seconds))
            title, seconds = "", -1
    return entries


def _pls(text: str) -> list[Entry]:
    found: dict[int, dict[str, str]] = {}
    for line in _LINE_ENDS.split(text):
        if match := _PLS.fullmatch(line.lstrip()):
            found.setdefault(int(match[2]), {})[match[1].lower()] = match[3]
    return [
        Entry(told["file"], told.get("title", "").strip(), _seconds(told.get("length", "").strip()))
        for _, told in sorted(found.items())
        if told.get("file")
    ]


def _seconds(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else -1


def dump_m3u(entries: Iterable[Entry]) -> str:
    """The entries as an m3u8."""
    lines = (f"#EXTINF:{entry.seconds},{entry.title}\n{_plain(entry.location)}\n" for entry in entries)
    return "#EXTM3U\n" + "".join(lines)


def _plain(location: str) -> str:
    """A path that begins like a comment is written so that it doesn't."""
    return f"./{location}" if location.lstrip().startswith("#") else location
