"""What content is: an id, the manifest it expands to, blocks, and which of them are there.

How it works: a `ContentId` is an algorithm and a digest. For BitTorrent content it is the SHA-1 of the
info dictionary, which in turn lists a SHA-1 for every piece: a `Manifest` is that list with the length.
A block is a span of the file with its own digest and is the unit of everything: fetched, verified,
counted and served whole. `Bitmap` says which blocks are there. All of it is pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cachefs.errors import BlockInvalid

DIGEST_SIZES = {"btih": 20, "sha256": 32}
_BLOCK_HASHES = {"btih": "sha1", "sha256": "sha256"}


@dataclass(frozen=True, slots=True, order=True)
class ContentId:
    """An algorithm (`btih` or `sha256`) and a digest: the identity of some bytes."""

    algorithm: str
    digest: bytes

    def __post_init__(self) -> None:
        size = DIGEST_SIZES.get(self.algorithm)
        if size is None or len(self.digest) != size:
            raise ValueError(f"not a content id: {self.algorithm}:{self.digest.hex()}")

    @classmethod
    def btih(cls, hexdigest: str) -> ContentId:
        """The id of a v1 info-hash in 40 hex digits; ValueError if it isn't one."""
        return cls("btih", _from_hex(hexdigest))

    @classmethod
    def parse(cls, text: str) -> ContentId:
        """The id that `str()` wrote; ValueError if it isn't one."""
        algorithm, _, digest = text.partition(":")
        return cls(algorithm, _from_hex(digest))

    @property
    def hex(self) -> str:
        return self.digest.hex()

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def _from_hex(digits: str) -> bytes:
    digest = bytes.fromhex(digits)
    if len(digits) != 2 * len(digest):  # fromhex skips blanks
        raise ValueError(f"not hex digits only: {digits!r}")
    return digest


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes, `offset` up to but not including `end`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a content id expands to: `length` bytes in blocks of `block_length`, and each block's digest.

    `digests` is their concatenation (20 bytes a block for `btih`). The last block may be shorter.
    """

    content: ContentId
    length: int
    block_length: int
    digests: bytes

    def __post_init__(self) -> None:
        if self.length <= 0 or self.block_length <= 0:
            raise ValueError(f"{self.content}: length {self.length}, block length {self.block_length}")
        if len(self.digests) != self.blocks * DIGEST_SIZES[self.content.algorithm]:
            raise ValueError(f"{self.content}: {len(self.digests)} bytes of digests for {self.blocks} blocks")

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.length // self.block_length)

    def span(self, index: int) -> Span:
        """Where block `index` lies in the file; IndexError if there is no such block."""
        if not 0 <= index < self.blocks:
            raise IndexError(f"{self.content}: block {index} of {self.blocks}")
        offset = index * self.block_length
        return Span(offset, min(self.block_length, self.length - offset))

    def covering(self, offset: int, size: int) -> range:
        """The blocks that hold `size` bytes at `offset`, clamped to the file."""
        end = min(offset + size, self.length)
        if offset < 0 or offset >= end:
            return range(0)
        return range(offset // self.block_length, (end - 1) // self.block_length + 1)

    def held(self, bits: Bitmap) -> int:
        """The bytes in the blocks of `bits`."""
        return bits.held(self.length, self.block_length)

    def digest(self, index: int) -> bytes:
        """The digest that block `index` must have."""
        size = DIGEST_SIZES[self.content.algorithm]
        return self.digests[index * size : (index + 1) * size]

    def verify(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Return if `data` is block `index`; otherwise raise BlockInvalid."""
        got = hashlib.new(_BLOCK_HASHES[self.content.algorithm], data, usedforsecurity=False).digest()
        if len(data) != self.span(index).length or got != self.digest(index):
            raise BlockInvalid(self.content, index, self.digest(index), got)


class Bitmap:
    """A set of block numbers below `size`, one bit each; most significant bit first, as peers send it."""

    __slots__ = ("_bits", "_count", "size")

    def __init__(self, size: int, blocks: Iterable[int] = ()) -> None:
        self.size = size
        self._bits = bytearray(-(-size // 8))
        self._count = 0
        for index in blocks:
            self.add(index)

    @classmethod
    def from_bytes(cls, size: int, raw: bytes) -> Bitmap:
        """The bitmap that `bytes()` wrote; ValueError if length or padding is not right for `size`."""
        bitmap = cls(size)
        if len(raw) != len(bitmap._bits) or (size % 8 and raw[-1] & (0xFF >> size % 8)):
            raise ValueError(f"not a bitmap of {size} bits: {len(raw)} bytes")
        bitmap._bits[:] = raw
        bitmap._count = int.from_bytes(raw, "big").bit_count()
        return bitmap

    @classmethod
    def full(cls, size: int) -> Bitmap:
        bitmap = cls(size)
        bitmap._bits[:] = b"\xff" * len(bitmap._bits)
        if size % 8:
            bitmap._bits[-1] = 0xFF & ~(0xFF >> size % 8)
        bitmap._count = size
        return bitmap

    def _check(self, index: int) -> None:
        if not 0 <= index < self.size:
            raise IndexError(f"bit {index} of {self.size}")

    def add(self, index: int) -> bool:
        """Set a bit; True if it was not set before."""
        self._check(index)
        if index in self:
            return False
        self._bits[index >> 3] |= 0x80 >> (index & 7)
        self._count += 1
        return True

    def discard(self, index: int) -> None:
        self._check(index)
        if index in self:
            self._bits[index >> 3] &= ~(0x80 >> (index & 7)) & 0xFF
            self._count -= 1

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.size and bool(self._bits[index >> 3] & (0x80 >> (index & 7)))

    def __len__(self) -> int:
        return self._count

    def __bytes__(self) -> bytes:
        return bytes(self._bits)

    def __iter__(self) -> Iterator[int]:
        return (index for index in range(self.size) if index in self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitmap) and (self.size, self._bits) == (other.size, other._bits)

    @property
    def complete(self) -> bool:
        return self._count == self.size

    def held(self, length: int, block_length: int) -> int:
        """The bytes in these blocks of a file of `length` bytes: all blocks are of one length but the last."""
        missing_tail = self.size * block_length - length
        return len(self) * block_length - (missing_tail if self.size - 1 in self else 0)

    def copy(self) -> Bitmap:
        return Bitmap.from_bytes(self.size, bytes(self))

    def missing(self, blocks: Iterable[int]) -> list[int]:
        """Those of `blocks` that are not set, in their order."""
        if self.complete:
            return []
        return [index for index in blocks if index not in self]
