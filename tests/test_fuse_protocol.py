"""What is said to the kernel in bytes, where a real mount can't be brought to show it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.drivers import protocol
from cachefs.drivers.looks import Look
from cachefs.drivers.protocol import Op, Request
from cachefs.errors import CachefsError
from cachefs.filesystem import Attributes

LOOK = Look.of(None)
MORE, PASSTHROUGH = 1 << 30, 1 << 5  # of the first and of the second word of flags
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)


def init(version: int, revision: int, flags: int, more: int) -> Request:
    body = struct.pack("=IIIII44x", version, revision, 128 * 1024, flags, more)
    return Request(Op.INIT, 1, 0, 0, body)


def test_a_later_kernel_is_answered_with_our_version_and_what_both_can() -> None:
    answer = struct.unpack("=IIIIHHIIHHII24x", protocol.negotiate(init(7, 99, 0xFFFFFFFF, 0xFFFFFFFF)))
    version, revision, _, flags, _, _, _, _, pages, _, more, deepest = answer
    assert (version, revision) == (7, 40)
    assert flags & MORE
    assert (more, deepest) == (PASSTHROUGH, 1)
    assert pages * 4096 == protocol.LARGEST_READ


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_the_buffer_for_requests_is_what_the_kernel_demands_whatever_the_size_of_a_page(
    page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_PAGE", page)
    answer = protocol.negotiate(init(7, 40, 0xFFFFFFFF, 0xFFFFFFFF))
    _, largest_write, _, pages = struct.unpack_from("=HIIH", answer, 18)
    assert pages * page == protocol.LARGEST_READ
    assert 80 + largest_write <= protocol.LONGEST_REQUEST  # fuse_dev_do_read: two headers and the largest write


@pytest.mark.parametrize(
    "asked",
    [init(7, 38, MORE, PASSTHROUGH), init(7, 40, MORE, 0), init(7, 40, 0, PASSTHROUGH)],
    ids=["older", "built without it", "flags that don't count"],
)
def test_a_kernel_without_passthrough_is_refused_with_what_to_do(asked: Request) -> None:
    with pytest.raises(CachefsError, match=r"no FUSE passthrough; .* Leave --passthrough off"):
        protocol.negotiate(asked)


@given(st.lists(NAMES, max_size=30), st.integers(0, 5000))
def test_a_listing_has_as_many_whole_entries_as_there_is_room_for(names: list[str], room: int) -> None:
    entries = [(name, Attributes(number + 2, False, number, 1.5), number + 1) for number, name in enumerate(names)]
    answer = protocol.listing(entries, LOOK, room)
    assert len(answer) <= room
    found, at = [], 0
    while at < len(answer):
        inode, after, length, kind = struct.unpack_from("=QQII", answer, at + 128)
        found.append((answer[at + 152 : at + 152 + length].decode(), inode, after, kind))
        at += -(-(152 + length) // 8) * 8
    assert found == [(name, shown.inode, after, 8) for name, shown, after in entries][: len(found)]
    if len(found) < len(names):
        assert at + 152 + len(names[len(found)].encode()) > room - 8


def test_a_size_that_is_not_known_is_not_kept_by_the_kernel() -> None:
    unknown, known = (protocol.attributes(Attributes(5, False, size, 0.0), LOOK) for size in (None, 7))
    assert struct.unpack_from("=Q", unknown) == (0,)
    assert struct.unpack_from("=Q", known)[0] > 0


def test_a_time_before_1970_is_told_as_it_is() -> None:
    told = protocol.attributes(Attributes(5, False, 7, -1000.5), LOOK)
    assert struct.unpack_from("=24xq16xI", told, 16) == (-1001, 500_000_000)
