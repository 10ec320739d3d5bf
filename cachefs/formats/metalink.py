"""Metalink 4: files with their sizes, checksums, piece lists and all the places to get them from.

Format: RFC 5854. Read are `name`, `size`, `hash` (sha-256 and md5), `pieces` (sha-256) and `url` in the order of their
priorities; what else a file may say is passed over. A metalink of version 3 has another namespace and is refused.

How it works: a foreign document is read by expat, element by element. One that has a DOCTYPE is refused before
anything of it is used: entities are declared there, and entities are how a small document becomes a large one or
names files of the reader's machine. A valid Metalink has none. Depth and the length of texts are bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from cachefs.errors import CatalogError
from cachefs.formats.listing import Listed, kept_hash

NAMESPACE = "urn:ietf:params:xml:ns:metalink"
_LAST = 999_999
"""RFC 5854, 4.2.16.1: the lowest priority, and that of a URL without one."""

_DEEPEST = 16
_LONGEST_TEXT = 64 * 2**10
_FILE = ("metalink", "file")
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""The characters that XML 1.0 has no way to write (2.2); of surrogates, UTF-8 has none."""


@dataclass(slots=True)
class _File:
    """A file that is being read."""

    name: str
    size: int | None = None
    hashes: dict[str, bytes] = field(default_factory=dict)
    urls: list[tuple[int, str]] = field(default_factory=list)
    piece_length: int = 0
    pieces: bytearray = field(default_factory=bytearray)

    def listed(self) -> Listed:
        urls = tuple(dict.fromkeys(url for _, url in sorted(self.urls, key=lambda pair: pair[0])))
        fits = self.size is not None and self.piece_length and self._wanted_pieces() == len(self.pieces)
        pieces = (self.piece_length, bytes(self.pieces)) if fits else None
        return Listed(self.name, urls, self.size, self.hashes, pieces)

    def _wanted_pieces(self) -> int:
        return -(-(self.size or 0) // self.piece_length) * hashlib.sha256().digest_size


def parse(text: str, path: Path | str) -> list[Listed]:
    """The files in a Metalink document; CatalogError names the line of what can't be taken."""
    reader = _Reader(path)
    reader.read(text)
    return [file.listed() for file in reader.files]


class _Reader:
    """A document being read: where we are in it, and what was found."""

    def __init__(self, path: Path | str) -> None:
        self.files: list[_File] = []
        self._path = path
        self._stack: list[str] = []
        self._attributes: dict[str, str] = {}
        self._text: list[str] = []
        self._sha256_pieces = False
        self._parser = parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        self._ends: dict[tuple[str, ...], Callable[[_File, str], None]] = {
            (*_FILE, "size"): self._size,
            (*_FILE, "hash"): self._hash,
            (*_FILE, "url"): self._url,
            (*_FILE, "pieces", "hash"): self._piece,
        }

    def read(self, text: str) -> None:
        try:
            # As UTF-8, whatever the document says of itself: it was decoded when it was read.
            self._parser.Parse(re.sub(r"^<\?xml[^>]*\?>", "", text), True)
        except expat.ExpatError as error:
            why = expat.errors.messages.get(error.code, str(error.code))
            raise CatalogError(self._path, f"not XML: {why}", line=error.lineno) from None

    def _refuse(self, why: str) -> CatalogError:
        return CatalogError(self._path, why, line=self._parser.CurrentLineNumber)

    def _doctype(self, *_: object) -> None:
        raise self._refuse("has a DOCTYPE, which no Metalink needs and which can hide anything")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        namespace, _, local = name.rpartition(" ")
        self._stack.append(local if namespace == NAMESPACE else name)
        if self._stack[0] != "metalink":
            raise self._refuse(f"expected a Metalink 4 document ({NAMESPACE}), got <{name[:140]}>")
        if len(self._stack) > _DEEPEST:
            raise self._refuse(f"more than {_DEEPEST} elements inside each other")
        self._attributes, self._text = attributes, []
        if tuple(self._stack) == _FILE:
            if "name" not in attributes:
                raise self._refuse("a file without a name")
            self.files.append(_File(attributes["name"]))
        elif tuple(self._stack) == (*_FILE, "pieces"):
            self._sha256_pieces = attributes.get("type") == "sha-256"
            if self._sha256_pieces:
                self.files[-1].piece_length = self._number(attributes.get("length", ""), "a piece length", 1)

    def _data(self, text: str) -> None:
        self._text.append(text)
        if sum(map(len, self._text)) > _LONGEST_TEXT:
            raise self._refuse(f"a text of more than {_LONGEST_TEXT} characters")

    def _end(self, name: str) -> None:
        end = self._ends.get(tuple(self._stack))
        if end is not None:
            end(self.files[-1], "".join(self._text).strip())
        self._stack.pop()
        self._text = []

    def _number(self, text: str, what: str, least: int) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise self._refuse(f"expected {what}, got {text[:140]!r}")
        return int(text)

    def _size(self, file: _File, text: str) -> None:
        file.size = self._number(text, "a size in bytes", 0)

    def _hash(self, file: _File, text: str) -> None:
        algorithm = self._attributes.get("type", "")
        file.hashes.update(kept_hash(algorithm, text, self._path, self._parser.CurrentLineNumber))

    def _piece(self, file: _File, text: str) -> None:
        if self._sha256_pieces:
            file.pieces += kept_hash("sha-256", text, self._path, self._parser.CurrentLineNumber)["sha256"]

    def _url(self, file: _File, text: str) -> None:
        given = self._attributes.get("priority")
        priority = _LAST if given is None else self._number(given, "a priority", 1)
        file.urls.append((priority, text))


def dump(items: Iterable[Listed], path: Path | str = "metalink") -> str:
    """The document of these files, each with its URLs in this order; CatalogError for one that it can't hold."""
    head = f'<?xml version="1.0" encoding="UTF-8"?>\n<metalink xmlns="{NAMESPACE}">\n'
    return head + "".join(_element(item, path) for item in items) + "</metalink>\n"


def _element(item: Listed, path: Path | str) -> str:
    if not item.urls:
        raise CatalogError(path, "has no URL, and a Metalink is there to tell one", key=item.name)
    if found := _UNWRITABLE.search("".join((item.name, *item.urls))):
        raise CatalogError(path, f"has {found[0]!a} in its name or in a URL, which XML can't hold", key=item.name)
    lines = [f"  <file name={quoteattr(item.name)}>"]
    if item.size is not None:
        lines.append(f"    <size>{item.size}</size>")
    names = {"sha256": "sha-256", "md5": "md5"}
    lines += [f'    <hash type="{names[kind]}">{digest.hex()}</hash>' for kind, digest in item.hashes.items()]
    if item.pieces is not None:
        length, listed = item.pieces
        lines.append(f'    <pieces length="{length}" type="sha-256">')
        lines += [f"      <hash>{listed[at : at + 32].hex()}</hash>" for at in range(0, len(listed), 32)]
        lines.append("    </pieces>")
    lines += [f'    <url priority="{rank}">{escape(url)}</url>' for rank, url in enumerate(item.urls, 1)]
    return "\n".join([*lines, "  </file>\n"])
