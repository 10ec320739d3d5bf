"""Manifests, spans and bitmaps: blocks partition a file, and a bitmap behaves like a set."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.content import DIGEST_SIZES, Bitmap, ContentId, Manifest
from cachefs.errors import BlockInvalid

ids = st.sampled_from(sorted(DIGEST_SIZES)).flatmap(
    lambda algorithm: st.binary(min_size=DIGEST_SIZES[algorithm], max_size=DIGEST_SIZES[algorithm]).map(
        lambda digest: ContentId(algorithm, digest)
    )
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    content = draw(ids)
    block_length = draw(st.integers(1, 2**22))
    length = draw(st.integers(1, block_length * 50))
    return Manifest(content, length, block_length, bytes(-(-length // block_length) * DIGEST_SIZES[content.algorithm]))


def manifest_of(data: bytes, block_length: int, algorithm: str) -> Manifest:
    hash_name = {"btih": "sha1", "sha256": "sha256"}[algorithm]
    blocks = [data[at : at + block_length] for at in range(0, len(data), block_length)]
    digests = b"".join(hashlib.new(hash_name, block).digest() for block in blocks)
    return Manifest(ContentId(algorithm, bytes(DIGEST_SIZES[algorithm])), len(data), block_length, digests)


@given(ids)
def test_a_content_id_is_read_as_it_was_written(content: ContentId) -> None:
    assert ContentId.parse(str(content)) == content


def test_an_info_hash_is_a_content_id() -> None:
    assert str(ContentId.btih("0123456789abcdef0123456789abcdef01234567")) == f"btih:{'0123456789abcdef' * 2}01234567"


@pytest.mark.parametrize(
    "text", ["", "btih", "btih:", "btih:00", "sha1:" + "00" * 20, "sha256:" + "00" * 20, "btih:" + "0g" * 20]
)
def test_what_is_not_a_content_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ContentId.parse(text)


@pytest.mark.parametrize("digits", ["00 " * 20, " " + "00" * 20, "00" * 20 + "\n", "00" * 10 + "\t" + "00" * 10])
def test_a_digest_with_blanks_in_it_is_refused(digits: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ContentId.btih(digits)
    with pytest.raises(ValueError, match=r"\S"):
        ContentId.parse(f"btih:{digits}")


@given(manifests())
def test_spans_partition_the_file(manifest: Manifest) -> None:
    spans = [manifest.span(index) for index in range(manifest.blocks)]
    assert spans[0].offset == 0
    assert spans[-1].end == manifest.length
    assert all(one.end == two.offset for one, two in pairwise(spans))
    assert all(span.length == manifest.block_length for span in spans[:-1])
    assert 0 < spans[-1].length <= manifest.block_length


@given(manifests(), st.data())
def test_covering_gives_exactly_the_blocks_that_a_span_touches(manifest: Manifest, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, manifest.length + manifest.block_length))
    size = data.draw(st.integers(0, manifest.length + manifest.block_length))
    end = min(offset + size, manifest.length)
    touched = [
        index
        for index in range(manifest.blocks)
        if max(offset, manifest.span(index).offset) < min(end, manifest.span(index).end)
    ]
    assert list(manifest.covering(offset, size)) == touched


@given(manifests())
def test_there_is_no_block_outside_the_file(manifest: Manifest) -> None:
    assert list(manifest.covering(-1, 2)) == []
    for index in (-1, manifest.blocks):
        with pytest.raises(IndexError):
            manifest.span(index)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 64), st.sampled_from(sorted(DIGEST_SIZES)), st.data())
def test_a_block_is_taken_when_it_is_right_and_never_when_one_byte_is_wrong(
    raw: bytes, block_length: int, algorithm: str, data: st.DataObject
) -> None:
    manifest = manifest_of(raw, block_length, algorithm)
    index = data.draw(st.integers(0, manifest.blocks - 1))
    span = manifest.span(index)
    block = bytearray(raw[span.offset : span.end])
    manifest.verify(index, block)
    manifest.verify(index, memoryview(block))
    block[data.draw(st.integers(0, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlockInvalid) as caught:
        manifest.verify(index, block)
    assert (caught.value.index, caught.value.expected) == (index, manifest.digest(index))


def test_a_block_of_the_wrong_length_is_refused_whatever_its_digest() -> None:
    short = Manifest(ContentId("btih", bytes(20)), 4, 4, hashlib.sha1(b"abc").digest())
    with pytest.raises(BlockInvalid):
        short.verify(0, b"abc")


@pytest.mark.parametrize(
    ("length", "block_length", "digests"), [(0, 4, 0), (-1, 4, 0), (4, 0, 20), (4, 4, 19), (5, 4, 20)]
)
def test_a_manifest_that_does_not_add_up_is_refused(length: int, block_length: int, digests: int) -> None:
    with pytest.raises(ValueError, match="btih"):
        Manifest(ContentId("btih", bytes(20)), length, block_length, bytes(digests))


steps = st.lists(st.tuples(st.sampled_from(["add", "discard"]), st.integers(0, 39)))


@given(st.integers(0, 40), steps)
def test_a_bitmap_is_a_set_of_block_numbers(size: int, steps: list[tuple[str, int]]) -> None:
    bitmap, model = Bitmap(size), set[int]()
    for step, index in steps:
        if index >= size:
            with pytest.raises(IndexError):
                getattr(bitmap, step)(index)
        elif step == "add":
            assert bitmap.add(index) == (index not in model)
            model.add(index)
        else:
            bitmap.discard(index)
            model.discard(index)
    assert list(bitmap) == sorted(model)
    assert len(bitmap) == len(model)
    assert bitmap == Bitmap(size, model)
    assert bitmap.complete == (len(model) == size)
    assert bitmap.missing(range(size)) == [index for index in range(size) if index not in model]
    assert all((index in bitmap) == (index in model) for index in range(-50, 60))


@given(
    st.integers(0, 40).flatmap(
        lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)) if size else st.just(set[int]()))
    )
)
def test_a_bitmap_is_read_as_it_was_written(given_: tuple[int, set[int]]) -> None:
    size, blocks = given_
    bitmap = Bitmap(size, blocks)
    assert len(bytes(bitmap)) == -(-size // 8)
    assert Bitmap.from_bytes(size, bytes(bitmap)) == bitmap
    assert len(Bitmap.from_bytes(size, bytes(bitmap))) == len(blocks)
    copy = bitmap.copy()
    for index in blocks:
        copy.discard(index)
    assert list(bitmap) == sorted(blocks)


@given(st.integers(0, 40), st.binary(max_size=6))
def test_only_bytes_of_the_right_length_and_padding_are_a_bitmap(size: int, raw: bytes) -> None:
    right = len(raw) == -(-size // 8) and int.from_bytes(raw, "big") % 2 ** (len(raw) * 8 - size) == 0
    try:
        bitmap = Bitmap.from_bytes(size, raw)
    except ValueError:
        assert not right
    else:
        assert right
        assert bytes(bitmap) == raw


@given(st.integers(0, 40))
def test_a_full_bitmap_has_every_block(size: int) -> None:
    assert Bitmap.full(size) == Bitmap(size, range(size))
    assert Bitmap.full(size).complete
    assert Bitmap.full(size).missing(range(size)) == []


def test_the_first_block_is_the_most_significant_bit() -> None:
    assert bytes(Bitmap(9, [0, 8])) == b"\x80\x80"
