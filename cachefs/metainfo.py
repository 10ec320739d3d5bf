"""The .torrent file of one snapshot: reading it strictly, and making it from bytes.

How it works: an info-hash is the SHA-1 of the bencoded info dictionary, byte for byte. The decoder
accepts canonical bencoding only (sorted keys, no leading zeros, nothing after the end), so encoding what
was decoded gives back the same bytes and the hash can be taken from them: no slice of the input needs to
be tracked. A .torrent is data from strangers, so size, depth and the number of values are bounded, and of what stands
around the info dictionary, for which no hash vouches, only trackers and web seeds are kept.

Format: BEP 3. The shape Erigon publishes is a single file whose `name` is the whole relative path.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from cachefs.content import ContentId, Manifest
from cachefs.errors import MetainfoError

MAX_METAINFO = 64 * 2**20
"""The largest .torrent that is read, in bytes."""

MAX_LENGTH = 2**46
"""The longest file that is believed, in bytes (64 TiB)."""

MAX_PIECE_LENGTH = 256 * 2**20
"""The longest piece that is believed, in bytes: a block is fetched, hashed and held whole."""

ERIGON_PIECE_LENGTH = 2 * 2**20
"""Erigon's constant piece length, in bytes, whatever the file's size."""

LARGE_PIECE_LENGTH = 64 * 2**20
"""The piece length, in bytes, that is proposed to follow it: a multiple of it."""

Bencodable: TypeAlias = "int | bytes | list[Bencodable] | dict[bytes, Bencodable]"

_MAX_DEPTH = 32
_MAX_VALUES = 100_000
"""A torrent of one file has some dozens; 64 MiB of empty lists would be 2 GB of objects."""

_AROUND = (b"announce", b"announce-list", b"url-list")
_MOST_AROUND = 2**16
"""The most bytes that any one of these is kept with."""


@dataclass(frozen=True, slots=True)
class Metainfo:
    """One file's torrent: its id, its name in the torrent, and its piece hashes.

    `raw` is a whole .torrent, without what is of no use here; `web_seeds` are the url-list it carries (BEP 19).
    """

    content: ContentId
    name: str
    manifest: Manifest
    raw: bytes
    web_seeds: tuple[str, ...] = ()


def bencode(value: Bencodable) -> bytes:
    """The canonical encoding of ints, bytes, lists and dicts with bytes for keys."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    return b"d" + b"".join(bencode(k) + bencode(v) for k, v in sorted(value.items())) + b"e"


def bdecode(raw: bytes) -> Bencodable:
    """The value that canonical bencoding `raw` stands for; MetainfoError if it is anything else."""
    value, end = _decode(raw, 0, _MAX_DEPTH, iter(range(_MAX_VALUES)))
    if end != len(raw):
        raise MetainfoError(f"{len(raw) - end} bytes after the end of the bencoded value")
    return value


def _decode(raw: bytes, at: int, depth: int, budget: Iterator[int]) -> tuple[Bencodable, int]:
    if next(budget, None) is None:
        raise MetainfoError(f"more than {_MAX_VALUES} values")
    kind = raw[at : at + 1]
    if kind.isdigit():
        return _decode_bytes(raw, at)
    if kind == b"i":
        end = _find(raw, b"e", at)
        return _decimal(raw[at + 1 : end], at), end + 1
    if kind not in (b"l", b"d") or depth == 0:
        raise MetainfoError(f"not bencoded at byte {at}" if depth else f"nested too deeply at byte {at}")
    decode_items = _decode_list if kind == b"l" else _decode_dict
    return decode_items(raw, at + 1, depth - 1, budget)


def _decode_list(raw: bytes, at: int, depth: int, budget: Iterator[int]) -> tuple[list[Bencodable], int]:
    items: list[Bencodable] = []
    while raw[at : at + 1] != b"e":
        item, at = _decode(raw, at, depth, budget)
        items.append(item)
    return items, at + 1


def _decode_dict(raw: bytes, at: int, depth: int, budget: Iterator[int]) -> tuple[dict[bytes, Bencodable], int]:
    entries: dict[bytes, Bencodable] = {}
    last: bytes | None = None
    while raw[at : at + 1] != b"e":
        key, after = _decode_bytes(raw, at)
        if last is not None and key <= last:
            raise MetainfoError(f"dictionary keys not sorted at byte {at}")
        entries[key], at = _decode(raw, after, depth, budget)
        last = key
    return entries, at + 1


def _decode_bytes(raw: bytes, at: int) -> tuple[bytes, int]:
    colon = _find(raw, b":", at)
    length = _decimal(raw[at:colon], at)
    end = colon + 1 + length
    if length < 0 or end > len(raw):
        raise MetainfoError(f"a string of {length} bytes at byte {at} goes past the end")
    return raw[colon + 1 : end], end


def _find(raw: bytes, mark: bytes, at: int) -> int:
    end = raw.find(mark, at, at + 22)
    if end < 0:
        raise MetainfoError(f"not bencoded at byte {at}")
    return end


def _decimal(digits: bytes, at: int) -> int:
    try:
        value = int(digits)
    except ValueError:
        raise MetainfoError(f"not a number at byte {at}") from None
    if b"%d" % value != digits:
        raise MetainfoError(f"a number not in its shortest form at byte {at}")
    return value


def load(path: Path) -> Metainfo:
    """The .torrent at `path`. OSError, MetainfoError.

    It may lie among somebody else's files: to read a pipe would be to wait for a writer, and a device may never end.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a file")
        return parse(file.read(MAX_METAINFO + 1))


def parse(raw: bytes) -> Metainfo:
    """A .torrent of one file; MetainfoError says what is wrong with any other."""
    if len(raw) > MAX_METAINFO:
        raise MetainfoError(f"{len(raw)} bytes; at most {MAX_METAINFO} are read")
    outer = bdecode(raw)
    if not isinstance(outer, dict) or not isinstance(info := outer.get(b"info"), dict):
        raise MetainfoError("no info dictionary")
    content = ContentId("btih", hashlib.sha1(bencode(info), usedforsecurity=False).digest())
    around = {key: outer[key] for key in _AROUND if key in outer and len(bencode(outer[key])) <= _MOST_AROUND}
    kept = bencode({b"info": info, **around})
    return Metainfo(content, _name(info), _manifest(content, info), kept, _web_seeds(around.get(b"url-list")))


def trackers(info: Metainfo) -> list[str]:
    """The trackers that a .torrent names (BEP 3 and 12), each once, in its order."""
    outer = bdecode(info.raw)
    assert isinstance(outer, dict)
    tiers = outer.get(b"announce-list")
    listed = [url for tier in tiers if isinstance(tier, list) for url in tier] if isinstance(tiers, list) else []
    urls = [url.decode("ascii", "replace") for url in [outer.get(b"announce"), *listed] if isinstance(url, bytes)]
    return list(dict.fromkeys(url for url in urls if url))


def magnet(info: Metainfo) -> str:
    """The magnet link (BEP 9) of a .torrent: info-hash, name, trackers and web seeds."""
    parts = [("dn", info.name), *(("tr", url) for url in trackers(info)), *(("ws", url) for url in info.web_seeds)]
    return f"magnet:?xt=urn:btih:{info.content.hex}" + "".join(
        f"&{key}={quote(value, safe='')}" for key, value in parts
    )


def wrap(info: bytes) -> bytes:
    """A whole .torrent around a bencoded info dictionary, as peers send it (BEP 9)."""
    return b"d4:info" + info + b"e"


def build(name: str, length: int, pieces: bytes, piece_length: int = ERIGON_PIECE_LENGTH) -> Metainfo:
    """The torrent of a file from its piece hashes, in exactly the shape that Erigon hashes."""
    info: Bencodable = {b"length": length, b"name": name.encode(), b"piece length": piece_length, b"pieces": pieces}
    return parse(bencode({b"info": info}))


def _name(info: dict[bytes, Bencodable]) -> str:
    name = info.get(b"name")
    if not isinstance(name, bytes):
        raise MetainfoError("no name in the info dictionary")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise MetainfoError(f"the name {name!r} is not UTF-8") from None


def _manifest(content: ContentId, info: dict[bytes, Bencodable]) -> Manifest:
    length, piece_length, pieces = info.get(b"length"), info.get(b"piece length"), info.get(b"pieces")
    if not (isinstance(length, int) and isinstance(piece_length, int) and isinstance(pieces, bytes)):
        raise MetainfoError("not a torrent of a single file")
    if not 0 < length <= MAX_LENGTH:
        raise MetainfoError(f"a length of {length} bytes")
    if piece_length > MAX_PIECE_LENGTH:
        raise MetainfoError(f"a piece length of {piece_length} bytes")
    try:
        return Manifest(content, length, piece_length, pieces)
    except ValueError as error:
        raise MetainfoError(str(error)) from None


def _web_seeds(urls: Bencodable | None) -> tuple[str, ...]:
    listed = urls if isinstance(urls, list) else [urls]
    return tuple(url.decode("ascii", "replace") for url in listed if isinstance(url, bytes) and url)
