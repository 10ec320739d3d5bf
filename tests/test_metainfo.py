"""The .torrent file: Erigon's hashes are reproduced, and nothing a stranger sends raises anything unforeseen."""

from __future__ import annotations

import hashlib

import libtorrent as lt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cachefs.content import ContentId
from cachefs.errors import MetainfoError
from cachefs.metainfo import (
    ERIGON_PIECE_LENGTH,
    MAX_LENGTH,
    MAX_METAINFO,
    Bencodable,
    Metainfo,
    bdecode,
    bencode,
    build,
    parse,
    trackers,
    wrap,
)

values: st.SearchStrategy[Bencodable] = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=5), inner, max_size=4),
)


def torrent_of(name: str, data: bytes, piece_length: int = ERIGON_PIECE_LENGTH) -> Metainfo:
    pieces = [data[at : at + piece_length] for at in range(0, len(data), piece_length)]
    return build(name, len(data), b"".join(hashlib.sha1(piece).digest() for piece in pieces), piece_length)


GOOD = torrent_of("history/v1-accounts.0-64.v", bytes(100), 16)


@pytest.mark.parametrize(("steps", "starts"), [(256, "49fd7968"), (8, "27be8293")])
def test_the_published_check_vectors_are_reproduced(steps: int, starts: str) -> None:
    content = f"step_size = 390625\nsteps_in_frozen_file = {steps}\n".encode()
    assert torrent_of("erigondb.toml", content).content.hex.startswith(starts)


@given(values)
def test_what_was_encoded_is_decoded(value: Bencodable) -> None:
    assert bdecode(bencode(value)) == value


@given(st.binary() | st.text("ilde0123456789:-").map(str.encode))
def test_only_canonical_bencoding_is_decoded(raw: bytes) -> None:
    try:
        value = bdecode(raw)
    except MetainfoError:
        return
    assert bencode(value) == raw


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"i", b"ie", b"i-0e", b"i01e", b"i1_0e", b"i 1e", b"i+1e", b"i" + b"9" * 5000 + b"e"),
        *(b"00:", b"01:a", b"2:a", b"-1:", b"1", b"\xb2:ab", b"99999999999999999999:"),
        *(b"l", b"d", b"d1:a", b"d1:ae", b"di1e1:ae", b"d1:bi1e1:ai1ee", b"d1:ai1e1:ai1ee"),
        *(b"i1ei1e", b"e", b"x", b"l" * 1000 + b"e" * 1000, b"d1:a" * 1000),
        *(b"l" + b"le" * 200_000 + b"e", b"l" + b"0:" * 200_000 + b"e"),
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_other_encodings_are_refused(raw: bytes) -> None:
    with pytest.raises(MetainfoError):
        bdecode(raw)


@given(st.binary())
def test_no_bytes_raise_anything_but_a_metainfo_error(raw: bytes) -> None:
    with pytest.raises(MetainfoError):
        parse(raw)


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD.raw)), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3)
)
def test_a_damaged_torrent_is_refused_or_has_its_own_id(edits: list[tuple[int, int, bytes]]) -> None:
    raw = GOOD.raw
    for at, removed, added in edits:
        raw = raw[:at] + added + raw[at + removed :]
    try:
        metainfo = parse(raw)
    except MetainfoError:
        return
    assert parse(metainfo.raw) == metainfo
    assert (metainfo.content == GOOD.content) == (metainfo.raw == GOOD.raw)


info_values = st.sampled_from([b"length", b"name", b"piece length", b"pieces", b"url-list"])


@given(st.dictionaries(info_values, values), values)
def test_any_well_formed_dictionary_is_taken_or_refused_with_a_metainfo_error(
    info: dict[bytes, Bencodable], urls: Bencodable
) -> None:
    right: dict[bytes, Bencodable] = {b"length": 5, b"name": b"a", b"piece length": 8, b"pieces": bytes(20)}
    for chosen in (info, right | info):
        outer: Bencodable = {b"info": chosen, b"url-list": urls}
        try:
            metainfo = parse(bencode(outer))
        except MetainfoError:
            continue
        assert metainfo.manifest.length > 0


@given(st.text("ab/.é", min_size=1), st.binary(min_size=1, max_size=100), st.integers(1, 64))
def test_a_torrent_is_read_as_it_was_made(name: str, data: bytes, piece_length: int) -> None:
    made = torrent_of(name, data, piece_length)
    assert parse(made.raw) == made
    assert (made.name, made.manifest.length, made.manifest.block_length) == (name, len(data), piece_length)
    for index in range(made.manifest.blocks):
        span = made.manifest.span(index)
        made.manifest.verify(index, data[span.offset : span.end])


def test_the_id_is_the_hash_of_the_info_dictionary_as_erigon_lays_it_out() -> None:
    info = b"d6:lengthi3e4:name1:a12:piece lengthi2097152e6:pieces20:%be" % hashlib.sha1(b"abc").digest()
    made = torrent_of("a", b"abc")
    assert made.content == ContentId("btih", hashlib.sha1(info).digest())
    assert made.raw == wrap(info)


def test_what_stands_around_the_info_dictionary_does_not_change_the_id() -> None:
    outer = bdecode(GOOD.raw)
    assert isinstance(outer, dict)
    decorated = parse(bencode(outer | {b"announce": b"udp://x", b"url-list": [b"https://a/", b"", 5, b"http://b"]}))
    assert decorated.content == GOOD.content
    assert decorated.web_seeds == ("https://a/", "http://b")
    assert parse(bencode(outer | {b"url-list": b"https://one"})).web_seeds == ("https://one",)


def test_of_what_stands_around_the_info_dictionary_trackers_and_web_seeds_are_kept() -> None:
    outer = bdecode(GOOD.raw)
    assert isinstance(outer, dict)
    around: dict[bytes, Bencodable] = {
        b"announce": b"udp://x",
        b"announce-list": [[b"udp://x", b"udp://y"]],
        b"url-list": [b"https://a/"],
    }
    other: dict[bytes, Bencodable] = {b"nodes": [[b"192.0.2.1", 6881]], b"padding": bytes(2**20), b"a": {b"b": b"c"}}
    read = parse(bencode(outer | around | other))
    assert bdecode(read.raw) == outer | around
    assert (read.content, read.manifest) == (GOOD.content, GOOD.manifest)
    assert trackers(read) == ["udp://x", "udp://y"]
    assert parse(read.raw) == read
    restored = lt.load_torrent_buffer(read.raw)
    assert restored.ti is not None
    assert restored.ti.info_hashes().v1.to_bytes() == GOOD.content.digest


@pytest.mark.parametrize("key", [b"announce", b"announce-list", b"url-list"])
def test_nothing_around_the_info_dictionary_is_kept_that_takes_much_room(key: bytes) -> None:
    outer = bdecode(GOOD.raw)
    assert isinstance(outer, dict)
    assert parse(bencode(outer | {key: [bytes(2**10)] * 2**10})) == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {b"length": 0},
        {b"length": -1},
        {b"length": MAX_LENGTH + 1},
        {b"length": b"100"},
        {b"piece length": 0},
        {b"piece length": -16},
        {b"piece length": 17},
        {b"pieces": b""},
        {b"pieces": bytes(139)},
        {b"name": 5},
        {b"name": b"\xff"},
    ],
)
def test_an_info_dictionary_that_does_not_add_up_is_refused(change: dict[bytes, Bencodable]) -> None:
    outer = bdecode(GOOD.raw)
    assert isinstance(outer, dict)
    info = outer[b"info"]
    assert isinstance(info, dict)
    with pytest.raises(MetainfoError):
        parse(bencode({b"info": info | change}))


def test_a_torrent_of_several_files_is_refused() -> None:
    several: Bencodable = {b"files": [], b"name": b"a", b"piece length": 16, b"pieces": b""}
    with pytest.raises(MetainfoError, match="single file"):
        parse(bencode({b"info": several}))


def test_a_torrent_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(MetainfoError, match="at most"):
        parse(bytes(MAX_METAINFO + 1))


@given(st.integers(1, 2**40), st.integers(14, 27), st.text("abcdefghijklmnopqrstuvwxyz0123456789-.", min_size=3))
def test_libtorrent_finds_the_same_hash_length_and_pieces_in_what_is_built(
    length: int, exponent: int, name: str
) -> None:
    piece_length = 2**exponent
    assume(length <= 1000 * piece_length)
    pieces = bytes(20 * -(-length // piece_length))
    info = build(name, length, pieces, piece_length)
    read = lt.load_torrent_buffer(info.raw).ti
    assert read is not None
    assert read.info_hashes().v1.to_bytes() == info.content.digest
    assert (read.total_size(), read.piece_length(), read.num_pieces()) == (length, piece_length, len(pieces) // 20)
