"""Retry-After: a host that asks to be left alone is; a short wait is waited for, and others are asked before that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
import trio

from cachefs.errors import UrlFailed
from cachefs.fetch.http.busy import Busy, seconds_until
from cachefs.records import MusicCache
from tests import records_kit
from tests.mount_kit import mounted, read_error
from tests.player_kit import cold
from tests.records_kit import OPEN, OPEN_TOML, PIECE, data_dir, refused, sha256, song, stored, web

SONG = song(1, 3 * PIECE + 1000)
SOON = {"Retry-After": "1"}
LATE = {"Retry-After": "300"}


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_an_etch_comes_back_when_it_was_asked_to(tmp_path: Path) -> None:
    with web() as host:
        url = host.put("song.mp3", SONG, busy=1, headers=SOON)
        assert timed(lambda: records_kit.etch(data_dir(tmp_path), url)) >= 1
        assert len(host.asked) == 2


def test_an_etch_waits_once_and_then_says_so(tmp_path: Path) -> None:
    with web() as host:
        said = refused(data_dir(tmp_path), host.put("song.mp3", SONG, busy=9, headers=SOON))
        assert len(host.asked) == 2
    assert said.endswith("song.mp3: HTTP 503: busy; asks to come back in 1 s")


def test_what_takes_too_long_is_said_at_once_and_asked_once(tmp_path: Path) -> None:
    with web() as host:
        url = host.put("song.mp3", status=429, body=b"", headers=LATE)
        assert "HTTP 429: busy; asks to come back in 5 min" in refused(data_dir(tmp_path), url)
        assert len(host.asked) == 1


def test_the_patience_is_that_of_the_settings(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    (data / "cachefs.toml").write_text(f"{OPEN_TOML}stall_timeout = 0.5\n")
    with web() as host:
        assert "in 1 s" in refused(data, host.put("song.mp3", SONG, busy=1, headers=SOON))
        assert len(host.asked) == 1


@pytest.mark.parametrize("wish", ["20", "300"])
def test_a_mirror_is_asked_before_anything_is_waited_for(tmp_path: Path, wish: str) -> None:
    data = data_dir(tmp_path)
    with web() as host, web() as other:
        url = host.put("song.mp3", SONG, busy=9, headers={"Retry-After": wish})
        mirror = other.put("song.mp3", SONG)
        assert timed(lambda: records_kit.etch(data, url, "--mirror", mirror)) < 10
        assert len(host.asked) == 1
    assert stored(data) == [sha256(SONG)]


def test_a_mirror_that_fails_is_told_beside_a_host_that_stays_busy(tmp_path: Path) -> None:
    with web() as host, web() as other:
        url = host.put("song.mp3", SONG, busy=9, headers=SOON)
        said = refused(data_dir(tmp_path), url, "--mirror", f"{other.url}gone.mp3")
    assert "asks to come back in 1 s" in said
    assert f"{other.url}gone.mp3: HTTP 404" in said


def test_a_transfer_that_breaks_off_into_a_busy_host_goes_on_where_it_was(tmp_path: Path) -> None:
    with web() as host:
        records_kit.etch(data_dir(tmp_path), host.put("song.mp3", SONG, cut=PIECE, busy=1, headers=SOON))
        assert [asked.headers.get("range") for asked in host.asked] == [None, *[f"bytes={PIECE}-"] * 2]


def test_a_host_is_left_alone_for_as_long_as_it_asks(tmp_path: Path) -> None:
    async def main() -> None:
        async with MusicCache.open(data_dir(tmp_path), OPEN) as cache:
            with pytest.raises(Busy):
                await cache.request_by_url(host.put("song.mp3", b"", status=503, headers={"Retry-After": "40"}))
            with pytest.raises(Busy, match=r"left alone, as its host is busy; asks to come back in (40|39) s"):
                await cache.request_by_url(host.put("other.mp3", SONG))
            with pytest.raises(UrlFailed, match="404"):
                await cache.request_by_url(f"{other.url}missing.mp3")

    with web() as host, web() as other:
        trio.run(main)
        assert [asked.path for asked in host.asked] == ["/song.mp3"]


def test_a_play_comes_back_when_it_was_asked_to_and_not_before(tmp_path: Path) -> None:
    with web() as host:
        urls = {name: host.put(name, SONG + name.encode()) for name in ("soon.mp3", "late.mp3")}
        cold(tmp_path, urls)
        host.asked.clear()
        host.put("soon.mp3", SONG + b"soon.mp3", busy=1, headers=SOON)
        host.put("late.mp3", b"", status=429, headers=LATE)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            shown = mount.mountpoint / "records"
            assert timed(lambda: (shown / "soon.mp3").read_bytes()) >= 1
            assert {read_error(shown / "late.mp3") for _ in range(5)} == {"EIO"}
            assert b"busy; asks to come back in 5 min" in os.getxattr(shown / "late.mp3", "user.cachefs.error")
            assert len(host.asked_for("late.mp3")) == 1


def test_what_a_retry_after_says() -> None:
    assert seconds_until("120") == 120
    assert 50 < seconds_until(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [seconds_until(value) for value in ("", "-1", "soon", "²", formatdate(0, usegmt=True))] == [0.0] * 5
    dates = ("Mon, 99999999999999999999 Jan 2020 00:00:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "x" * 10_000)
    assert [seconds_until(value) for value in dates] == [0.0] * 3
