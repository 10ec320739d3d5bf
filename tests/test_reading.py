"""Blocks are read as memory has them or as the disk has them, and the latter leaves memory as it was."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from contextlib import closing
from pathlib import Path

import pytest

from cachefs.content import Span
from cachefs.store import disk
from cachefs.store.reading import Reading

BLOCK = 2**16
LENGTH = 5 * BLOCK + 1234


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(random.Random(1).randbytes(LENGTH))
    return path


def blocks(length: int = LENGTH) -> list[Span]:
    return [Span(offset, min(BLOCK, length - offset)) for offset in range(0, length, BLOCK)]


def read_all(path: Path, spans: list[Span], *, past_memory: bool) -> list[bytes | None]:
    with path.open("rb") as file, closing(Reading(file.fileno(), BLOCK, past_memory=past_memory)) as reading:
        views = map(reading.read, spans)
        return [None if view is None else bytes(view) for view in views]


def in_memory(path: Path) -> bool:
    """Whether memory has any page of the file (mincore(2), which asks without reading)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        there = (ctypes.c_ubyte * -(-LENGTH // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        assert ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(LENGTH), there) == 0
        del first  # which would keep it mapped
        return any(page & 1 for page in there)


@pytest.mark.parametrize("past_memory", [False, True])
def test_every_block_and_the_short_last_one_are_read_and_what_is_cut_off_is_missing(
    data: Path, past_memory: bool
) -> None:
    raw = data.read_bytes()
    assert read_all(data, blocks(), past_memory=past_memory) == [raw[s.offset : s.end] for s in blocks()]
    os.truncate(data, 4 * BLOCK + 10)
    assert read_all(data, blocks(), past_memory=past_memory)[3:] == [raw[3 * BLOCK : 4 * BLOCK], None, None]


@pytest.mark.parametrize("past_memory", [False, True])
def test_a_span_that_no_sector_begins_is_read_all_the_same(data: Path, past_memory: bool) -> None:
    assert read_all(data, [Span(77, 1000)], past_memory=past_memory) == [data.read_bytes()[77:1077]]


def test_the_disk_is_asked_past_memory_which_stays_as_it_is(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with data.open("rb") as file:
        os.fsync(file.fileno())
        disk.forget_pages(file.fileno(), Span(0, 0))
    if in_memory(data):
        pytest.skip("this file system has nothing but memory")
    monkeypatch.setattr(disk, "read_into", None)  # which is what asks memory
    read = read_all(data, blocks(), past_memory=True)
    assert not in_memory(data)
    with data.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert b"".join(part or b"" for part in read) == mapped[:]
        assert read_all(data, blocks(), past_memory=True) == read, "mapped pages don't matter"
        assert in_memory(data)
