"""One listed file, whatever list it comes from, and what every list's reader needs.

How it works: lists know different things, so every field but the name may be empty. Names and URLs are taken as
they stand: whoever makes records of them checks them, as he does all names. Only SHA-256 and MD5 are kept of the
checksums; the first is an identity, the second good for comparing the first download with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.errors import CatalogError

DIGEST_SIZES = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}
"""Bytes of each digest that lists name; `md5` and `sha256` are kept."""

_HEX = re.compile(r"[0-9a-fA-F]*")


@dataclass(frozen=True, slots=True)
class Listed:
    """A file in a list: `size` in bytes, None if the list doesn't say; `hashes` by algorithm, `sha256` or `md5`.

    `pieces` is a piece length in bytes and the pieces' SHA-256 digests, concatenated.
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    hashes: Mapping[str, bytes] = field(default_factory=dict)
    pieces: tuple[int, bytes] | None = None


def kept_hash(algorithm: str, digits: str, path: Path | str, line: int | None) -> dict[str, bytes]:
    """The hash, if it is of a kind that is kept; CatalogError if it isn't one of its algorithm."""
    name = algorithm.lower().replace("-", "")
    size = DIGEST_SIZES.get(name)
    if size is None:
        return {}
    if len(digits) != 2 * size or not _HEX.fullmatch(digits):
        raise CatalogError(path, f"expected {algorithm} in {2 * size} hex digits, got {digits[:140]!r}", line=line)
    return {name: bytes.fromhex(digits)} if name in ("sha256", "md5") else {}


def by_length(digits: str, path: Path | str, line: int | None) -> dict[str, bytes]:
    """The hash that so many hex digits are; CatalogError if none that is kept has that length."""
    found = [name for name in ("sha256", "md5") if 2 * DIGEST_SIZES[name] == len(digits)]
    if not found:
        raise CatalogError(path, f"expected a SHA-256 or an MD5 in hex, got {digits[:140]!r}", line=line)
    return kept_hash(found[0], digits, path, line)


def sha256_of(item: Listed, path: Path | str) -> str:
    """The SHA-256 in hex; CatalogError if the file has none, which a list of checksums needs."""
    if "sha256" not in item.hashes:
        raise CatalogError(path, "has no SHA-256 yet; etch it first", key=item.name)
    return item.hashes["sha256"].hex()
