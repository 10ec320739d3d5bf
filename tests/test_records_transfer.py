"""What goes over the wire while a URL is etched: transfers that break off and go on, and the headers that tell of them.

The numbers are those of the promises in docs/records.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import records_kit
from tests.records_kit import PIECE, Page, data_dir, digest_header, refused, sha256, song, stored, web

SONG = song(1, 3 * PIECE + 1000)


def test_a_transfer_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG, cut=PIECE, cuts=2))
        first, second, third = host.asked_for("song.mp3")
    assert "range" not in first.headers
    assert second.headers["range"] == f"bytes={PIECE}-"
    assert second.headers["if-range"] == f'"{sha256(SONG)[:16]}"'
    assert third.headers["range"] == f"bytes={2 * PIECE}-"
    assert stored(data) == [sha256(SONG)]


@pytest.mark.parametrize("how", [{}, {"etag": '"one"', "headers": {"ETag": '"two"'}}], ids=["by a 200", "by its ETag"])
def test_content_that_changes_while_it_breaks_off_is_begun_anew(tmp_path: Path, how: dict[str, Any]) -> None:
    data, other = data_dir(tmp_path), song(2, len(SONG))
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG, etag='"one"', cut=PIECE, then=Page(other, **how)))
        assert host.asked_for("song.mp3")[1].headers["if-range"] == '"one"'
    assert stored(data) == [sha256(other)]


def test_what_comes_after_a_break_may_come_in_parts_though_the_length_was_not_told_before(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG, chunked=True, cut=PIECE, most=PIECE))
        ranges = [asked.headers.get("range") for asked in host.asked]
    assert ranges == [None, *(f"bytes={number * PIECE}-" for number in (1, 2, 3))]
    assert stored(data) == [sha256(SONG)]


@pytest.mark.parametrize(
    "how", [{"etag": 'W/"weak"'}, {"headers": {"ETag": ('"one"', '"two"')}}], ids=["a weak one", "two of them"]
)
def test_without_a_strong_etag_a_break_means_beginning_anew(tmp_path: Path, how: dict[str, Any]) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG, cut=PIECE, **how))
        assert all("range" not in asked.headers for asked in host.asked_for("song.mp3"))
        assert len(host.asked_for("song.mp3")) == 2
    assert stored(data) == [sha256(SONG)]


@pytest.mark.parametrize("told", ["identity, identity", ("identity", "Identity")], ids=["a line", "lines"])
def test_plain_bytes_may_be_called_so_more_than_once(tmp_path: Path, told: str | tuple[str, ...]) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG, headers={"Content-Encoding": told}))
    assert stored(data) == [sha256(SONG)]


def test_21_the_checksum_header_is_asked_for_and_one_that_fits_is_taken(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG, headers=digest_header(SONG)))
        (asked,) = host.asked
    assert asked.headers["want-repr-digest"] == "sha-256=10"
    assert asked.headers["accept-encoding"] == "identity"


def test_21_a_declared_checksum_that_does_not_fit_is_tried_again_before_it_is_refused(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        error = refused(data, host.put("song.mp3", SONG, headers=digest_header(b"other")))
        assert len(host.asked_for("song.mp3")) == 2
    assert sha256(SONG) in error
    assert sha256(b"other") in error
