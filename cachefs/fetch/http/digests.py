"""The checksum headers: what a server declares of a whole representation, in the standard form and in older ones.

How it works: a request says that it would like a SHA-256 of the representation (`Want-Repr-Digest`), and that
the representation should be the plain bytes (`Accept-Encoding: identity`). What the answer declares is read by
`declared`, the best form first: `Repr-Digest` (RFC 9530), `Digest` (RFC 3230), S3's and Google's own. All of
them are about the whole, on a 206 and on the answer to a HEAD too. `Content-Digest` is not: it is about the
bytes of one message. An ETag is none either. A header that can't be read says nothing, as RFC 9530 has it.

A declaration is never trusted instead of hashing: it is used to refuse early, and to notice a bad transfer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

WANTED = {"Want-Repr-Digest": "sha-256=10", "Want-Digest": "SHA-256"}
"""The request headers that ask for it; the second is for servers of the older form."""

_SIZES = {"sha-256": 32, "md5": 16}
# A structured-field dictionary (RFC 8941) of byte sequences; parameters after a `;` are allowed and mean nothing here.
_MEMBER = re.compile(r'\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):(?:;[^,"]*)?\s*(?:,|$)')


@dataclass(frozen=True, slots=True)
class Declared:
    """What a server says that the whole is: digests, b"" where it says nothing, and the header that said it.

    The MD5 finds a transfer that went wrong and is no identity.
    """

    sha256: bytes = b""
    md5: bytes = b""
    header: str = ""


def declared(headers: Mapping[str, str]) -> Declared:
    """What the answer's `headers` (lower-case names) declare of the whole representation."""
    found: dict[str, bytes] = {}
    said = ""
    for header, algorithm, text in _all(headers):
        digest = _decoded(text, _SIZES.get(algorithm, 0))
        if digest and algorithm not in found:
            found[algorithm] = digest
            said = said or header
    return Declared(found.get("sha-256", b""), found.get("md5", b""), said)


def _all(headers: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Every digest that is declared, as header, algorithm and base64, the best form first."""
    for algorithm, text in _dictionary(headers.get("repr-digest", "")):
        yield "Repr-Digest", algorithm, text
    for algorithm, text in _pairs(headers.get("digest", "")):
        yield "Digest", algorithm, text
    # A composite checksum is one of the parts' checksums, not of the bytes.
    if headers.get("x-amz-checksum-type", "").upper() != "COMPOSITE":
        yield "x-amz-checksum-sha256", "sha-256", headers.get("x-amz-checksum-sha256", "")
    for algorithm, text in _pairs(headers.get("x-goog-hash", "")):
        yield "x-goog-hash", algorithm, text


def _dictionary(text: str) -> Iterator[tuple[str, str]]:
    """The members of a dictionary of byte sequences; nothing at all if any part of it is malformed (RFC 8941, 4.2)."""
    members, at = [], 0
    while at < len(text):
        match = _MEMBER.match(text, at)
        if match is None:
            return
        members.append((match[1], match[2]))
        at = match.end()
    yield from members


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """`SHA-256=…,md5=…` of the older forms; the algorithm's name in any case."""
    for part in text.split(","):
        algorithm, equals, value = part.strip().partition("=")
        if equals:
            yield algorithm.lower(), value


def _decoded(text: str, size: int) -> bytes:
    """The digest, or b"" if it isn't base64 of `size` bytes."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return digest if len(digest) == size else b""
