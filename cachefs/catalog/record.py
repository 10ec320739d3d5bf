"""One record: a name, where to get it, and what it must be; and its `[[record]]` table, read and written.

How it works: a record is the authority on its bytes by SHA-256. One that was imported from an older list may
have only an MD5, or no size yet: it is kept, but stands for no content until it has been fetched once
(`Record.ready`). Each part of a table is checked where it is taken, and a complaint names its line and key. A
key that isn't known is refused, not dropped: the file is written anew at every change, and what somebody
else's version put there must not vanish in silence.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cachefs.catalog.files import line_of
from cachefs.catalog.names import BadName, check_name
from cachefs.config.values import Wrong, checked_url, has_login, lower_scheme, show, without_login
from cachefs.content import ContentId
from cachefs.errors import CatalogError

SCHEMES = ("https", "http", "file", "rclone", "magnet")
"""What a record's URL may begin with. Which of them are used is a matter of the settings."""

MAX_SIZE = 2**50
"""The largest size of a record that is believed, in bytes: 1 PiB."""

HEADER = r"^[ \t]*\[\[[ \t]*record[ \t]*\]\]"
"""Where a record begins, as a regular expression of the line."""

MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
"""A media type, in lower case and without parameters (RFC 6838, 4.2)."""

_KEYS = ("name", "url", "mirrors", "size", "hashes", "pieces", "swarm", "media", "etched_at")


@dataclass(frozen=True, slots=True)
class Pieces:
    """A record's piece list: `length` in bytes of a piece, and the SHA-256 of the list, which is kept in a file
    named by it. The list is the concatenation of the pieces' SHA-256 digests, 32 bytes each."""

    length: int
    digest: bytes

    def __str__(self) -> str:
        return f"sha256:{self.digest.hex()}"


@dataclass(frozen=True, slots=True)
class Record:
    """A name, where to get it, and what it must be.

    `content` is its SHA-256, `size` in bytes; either is None only for a record that was imported and never fetched.
    `swarm` is the info-hash of a torrent of the same bytes. `media` is a media type, "" if none is known.
    `md5` is what an older list said: a check at the first fetch, never an identity.
    """

    name: str
    url: str
    content: ContentId | None
    size: int | None
    mirrors: tuple[str, ...] = ()
    pieces: Pieces | None = None
    swarm: ContentId | None = None
    media: str = ""
    etched_at: datetime | None = None
    md5: bytes = b""

    @property
    def ready(self) -> bool:
        """Whether it stands for content: its checksum and its size are known."""
        return self.content is not None and self.size is not None

    @property
    def urls(self) -> tuple[str, ...]:
        """Its URL, then its mirrors."""
        return (self.url, *self.mirrors)

    @property
    def sidecars(self) -> tuple[str, ...]:
        """The names of its files beside the lock, in `pieces/`: its piece list, its torrent."""
        listed = (self.pieces.digest.hex(),) if self.pieces else ()
        return (*listed, f"{self.swarm.hex}.torrent") if self.swarm else listed

    @property
    def mtime(self) -> float:
        """When it was etched, in Unix seconds; 0 if that isn't known, so that it never changes by itself."""
        return self.etched_at.timestamp() if self.etched_at else 0.0


def dump(record: Record) -> str:
    """The record's table."""
    lines = ["[[record]]", f"name = {_text(record.name)}", f"url = {_text(record.url)}"]
    lines.append(f"mirrors = [{', '.join(map(_text, record.mirrors))}]")
    if record.size is not None:
        lines.append(f"size = {record.size}")
    lines.append(f"hashes = {{ {', '.join(_hashes(record))} }}")
    if record.pieces is not None:
        lines.append(f'pieces = {{ algorithm = "sha256", length = {record.pieces.length}, list = "{record.pieces}" }}')
    if record.swarm is not None:
        lines.append(f'swarm = {{ btih = "{record.swarm.hex}" }}')
    if record.media:
        lines.append(f"media = {{ type = {_text(record.media)} }}")
    if record.etched_at is not None:
        lines.append(f"etched_at = {record.etched_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}")
    return "\n".join(lines) + "\n"


def _hashes(record: Record) -> Iterator[str]:
    if record.content is not None:
        yield f'sha256 = "{record.content.hex}"'
    if record.md5:
        yield f'md5 = "{record.md5.hex()}"'


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, and DEL, which JSON lets through, isn't in any name or URL."""
    return json.dumps(value, ensure_ascii=False)


def suggestion(word: str, known: Iterable[str]) -> str:
    """What to say after "unknown key": the one that was meant, or all there are."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


class Entry:
    """One `[[record]]` being read: each part is checked where it is taken, and a complaint names its line."""

    def __init__(self, table: dict[str, Any], text: str, path: Path | str, number: int) -> None:
        self._table = table
        self._text = text
        self._path = path
        self._number = number

    def record(self) -> Record:
        for key in self._table:
            if key not in _KEYS:
                raise self._refuse(key, f"unknown key{suggestion(key, _KEYS)}")
        hashes = self._hashes()
        return Record(
            name=self._take("name", _as_name),
            url=self._take("url", as_url),
            content=ContentId("sha256", hashes["sha256"]) if "sha256" in hashes else None,
            size=self._take("size", _as_size, None),
            mirrors=self._take("mirrors", _as_urls, ()),
            pieces=self._take("pieces", _as_pieces, None),
            swarm=self._take("swarm", _as_swarm, None),
            media=self._take("media", _as_media, ""),
            etched_at=self._take("etched_at", _as_time, None),
            md5=hashes.get("md5", b""),
        )

    def _hashes(self) -> dict[str, bytes]:
        hashes: dict[str, bytes] = self._take("hashes", _as_hashes)
        if "sha256" not in hashes and self._table.keys() & {"pieces", "swarm", "size"}:
            raise self._refuse("hashes", "no sha256, which a record with a size, pieces or a swarm must have")
        return hashes

    def _take(self, key: str, read: Callable[[Any], Any], *default: Any) -> Any:
        if key not in self._table:
            if default:
                return default[0]
            raise self._refuse(key, "is missing")
        try:
            return read(self._table[key])
        except (Wrong, BadName) as error:
            raise self._refuse(key, error.why if isinstance(error, BadName) else str(error)) from None

    def _refuse(self, key: str, why: str) -> CatalogError:
        name = self._table.get("name")
        of = f"record {name}" if isinstance(name, str) else f"record {self._number}"
        return CatalogError(self._path, f"{of}: {why}", line=self._line_of(key), key=key)

    def _line_of(self, key: str) -> int | None:
        """The key's line if it stands in this entry's part of the text, otherwise that of its header."""
        first = line_of(self._text, HEADER, self._number)
        if first is None:
            return None
        after = "\n".join(self._text.splitlines()[first:])
        end = line_of(after, HEADER) or len(after)
        found = line_of(after, rf"^[ \t]*{re.escape(key)}[ \t]*[=.]")
        return first + found if found is not None and found < end else first


def _as_name(value: object) -> str:
    if not isinstance(value, str):
        raise Wrong(f"expected a string, got {show(value)}")
    check_name(value)
    return value


def as_url(value: object) -> str:
    """A record's URL, with its scheme in lower case, if `value` is one; Wrong otherwise. `file:///path`,
    `rclone://remote/path` and `magnet:?…` name no web host. A login is refused: a lock is made to be given away."""
    if not isinstance(value, str):
        raise Wrong(f"expected a URL, got {show(value)}")
    if has_login(value):
        way_out = "give it to an rclone remote: rclone://LABEL/path, with [records] remotes"
        got = show(without_login(value))
        raise Wrong(f"expected a URL without a login, got {got}: all who get the lock would read it; {way_out}")
    value = lower_scheme(value)
    if value.startswith(("file:///", "magnet:?")) and re.fullmatch(r"[!-~]+", value):
        return value
    return checked_url(value, tuple(scheme for scheme in SCHEMES if scheme not in ("file", "magnet")))


def _as_urls(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong(f"expected a list of URLs, got {show(value)}")
    return tuple(dict.fromkeys(map(as_url, value)))


def _as_size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_SIZE:
        raise Wrong(f"expected a size from 1 to {MAX_SIZE} bytes, got {show(value)}")
    return value


def _as_hashes(value: object) -> dict[str, bytes]:
    table = _as_table(value, {"sha256", "md5"}, 'hashes = { sha256 = "64 hex digits" }')
    sizes = {"sha256": 32, "md5": 16}
    if not table:
        raise Wrong("expected a sha256")
    return {name: _digest(digits, sizes[name], name) for name, digits in table.items()}


def _as_pieces(value: object) -> Pieces:
    shape = '{ algorithm = "sha256", length = BYTES, list = "sha256:64 hex digits" }'
    table = _as_table(value, {"algorithm", "length", "list"}, shape)
    length, listed = table.get("length"), table.get("list")
    if table.get("algorithm") != "sha256" or not isinstance(listed, str) or not listed.startswith("sha256:"):
        raise Wrong(f"expected {shape}, got {show(value)}")
    if isinstance(length, bool) or not isinstance(length, int) or not 2**14 <= length <= 2**26:
        raise Wrong(f"expected a piece length from 16 KiB to 64 MiB, got {show(length)}")
    return Pieces(length, _digest(listed.removeprefix("sha256:"), 32, "list"))


def _as_swarm(value: object) -> ContentId:
    table = _as_table(value, {"btih"}, '{ btih = "40 hex digits" }')
    return ContentId("btih", _digest(table.get("btih"), 20, "btih"))


def _as_media(value: object) -> str:
    media = _as_table(value, {"type"}, '{ type = "audio/mpeg" }').get("type")
    if not isinstance(media, str) or not MEDIA_TYPE.fullmatch(media):
        raise Wrong(f"expected a media type like audio/mpeg, got {show(media)}")
    return media


def _as_time(value: object) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise Wrong(f"expected a time with its zone, like 2026-01-01T00:00:00Z, got {show(value)}")
    return value


def _as_table(value: object, keys: set[str], shape: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= keys:
        raise Wrong(f"expected {shape}, got {show(value)}")
    return value


def _digest(value: object, size: int, what: str) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", value):
        raise Wrong(f"expected {what} in {2 * size} hex digits, got {show(value)}")
    return bytes.fromhex(value)
