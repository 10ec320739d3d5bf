"""Piece lists: what lets a record play from its first piece on.

How it works: the list is the SHA-256 of every piece, one after the other. It is kept in a file named by the
list's own SHA-256, which is what the record names: so a list is checked whenever it is read, and one that was
torn or changed is as good as none. Pieces are 256 KiB, or 1 MiB from 256 MB on, so two etchers of one content make
the same list. Content whose record names no list gets one too, once it is here, beside its object.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.catalog.records import Pieces, Record
from cachefs.content import ContentId, Manifest
from cachefs.diskerrors import named
from cachefs.errors import MetainfoError, StoreFailed
from cachefs.metainfo import Metainfo
from cachefs.store import disk
from cachefs.store.vault import Vault

_SMALL, _LARGE = 2**18, 2**20
_LARGE_FROM = 256 * 10**6
_LONGEST_LIST = 64 * 2**20


def piece_length(size: int) -> int:
    """How long the pieces of a record of `size` bytes are, in bytes."""
    return _SMALL if size < _LARGE_FROM else _LARGE


@dataclass(frozen=True, slots=True)
class Listed:
    """The digests of a file's pieces, concatenated: SHA-256 for the record, SHA-1 for a torrent if asked for."""

    length: int
    sha256: bytes
    sha1: bytes = b""

    @property
    def pieces(self) -> Pieces:
        return Pieces(self.length, hashlib.sha256(self.sha256).digest())


def list_pieces(path: Path, size: int, *, with_sha1: bool = False) -> Listed:
    """The pieces of a file. Blocking, and can be cancelled in a thread of trio's; StoreFailed."""
    length = piece_length(size)
    sha256, sha1 = bytearray(), bytearray()
    with named(path), path.open("rb") as file:
        while piece := file.read(length):
            trio.from_thread.check_cancelled()
            sha256 += hashlib.sha256(piece).digest()
            if with_sha1:
                sha1 += hashlib.sha1(piece, usedforsecurity=False).digest()
    return Listed(length, bytes(sha256), bytes(sha1))


class PieceLists:
    """The lists of a data directory: those that records name in `directory`, others beside their objects."""

    def __init__(self, directory: Path, vault: Vault) -> None:
        self._directory = directory
        self._vault = vault

    def manifest(self, record: Record) -> Manifest | None:
        """What the record's content is made of, if its pieces are known. Blocking, short."""
        if record.content is None or record.size is None:
            return None
        named = self._named(record)
        return named or self.own(record.content, record.size)

    def own(self, content: ContentId, size: int) -> Manifest | None:
        """What is known of content that was here whole once. Blocking, short."""
        try:
            manifest = self._vault.manifest(content)
        except StoreFailed:
            return None
        return manifest if manifest is not None and manifest.length == size else None

    def _named(self, record: Record) -> Manifest | None:
        assert record.content is not None
        assert record.size is not None
        if record.pieces is None:
            return None
        listed = self._read(record.pieces.digest.hex())
        if hashlib.sha256(listed).digest() != record.pieces.digest:
            return None
        return _manifest(record.content, record.size, record.pieces.length, listed)

    def save(self, content: ContentId, size: int, listed: Listed) -> Manifest:
        """Keep a list, under its own name and beside the object; the manifest it makes. StoreFull, StoreFailed."""
        manifest = Manifest(content, size, listed.length, listed.sha256)
        self._write(listed.pieces.digest.hex(), listed.sha256)
        self._vault.save_manifest(manifest)
        return manifest

    def remember(self, manifest: Manifest) -> None:
        """Keep what an object is made of beside it, for whoever verifies the store. StoreFull, StoreFailed."""
        if self._vault.manifest(manifest.content) != manifest:
            self._vault.save_manifest(manifest)

    def torrent(self, content: ContentId) -> Metainfo | None:
        """The torrent with this info-hash, if it is kept here. Blocking, short."""
        try:
            info = metainfo.parse(self._read(f"{content.hex}.torrent"))
        except MetainfoError:
            return None
        return info if info.content == content else None

    def save_torrent(self, info: Metainfo) -> None:
        """Keep a torrent. StoreFull, StoreFailed."""
        self._write(f"{info.content.hex}.torrent", info.raw)

    def _read(self, name: str) -> bytes:
        """A file's bytes; b"" for one that isn't there, can't be read or is too long to be a list."""
        path = self._directory / name
        try:
            return path.read_bytes() if path.stat().st_size <= _LONGEST_LIST else b""
        except OSError:
            return b""

    def _write(self, name: str, raw: bytes) -> None:
        path = self._directory / name
        with named(path):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._read(name) != raw or not _made_young(path):
                disk.replace_file(path, raw)


def _made_young(path: Path) -> bool:
    """Have `gc` leave a file that a new record is about to name; False if it went this moment."""
    with suppress(PermissionError):  # another user's copy
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
    return True


def whole(content: ContentId, size: int) -> Manifest:
    """The manifest of content whose pieces aren't known: it is one block."""
    return Manifest(content, size, size, content.digest)


def _manifest(content: ContentId, size: int, length: int, listed: bytes) -> Manifest | None:
    try:
        return Manifest(content, size, length, listed)
    except ValueError:
        return None
