"""Etching by `cachefs etch`: what is written and when, what is refused and why, and that nothing is left behind.

The numbers are those of the promises in docs/records.md.
"""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs import metainfo
from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, Record, RecordsLock
from cachefs.records import MusicCache, Order, etch
from tests import records_kit
from tests.counterparts import running
from tests.dying_etch import STEPS
from tests.mount_kit import command_of
from tests.records_kit import (
    OPEN,
    PIECE,
    Host,
    data_dir,
    digest_header,
    leftovers,
    refused,
    sha256,
    song,
    stored,
    web,
)

SONG = song(1, 3 * PIECE + 1000)


def lock_of(data: Path) -> dict[str, Record]:
    return dict(records.load(data / LOCK_NAME).records)


def test_1_2_4_5_7_a_record_is_written_after_a_real_download_was_verified_and_kept_by_its_checksum(
    tmp_path: Path,
) -> None:
    gate = threading.Event()
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG, gate=gate, hold=PIECE)
        command = command_of(["etch", url, "--data-dir", data])
        with running("cachefs etch", command, signal.SIGTERM) as child:
            child.wait_until("downloading", lambda: bool(leftovers(data)) and host.sent >= PIECE)
            assert any(name.endswith(".part") for name in leftovers(data))
            assert not (data / LOCK_NAME).exists()
            assert stored(data) == []
            gate.set()
            assert child.process.wait(20) == 0
            printed = child.printed()
    (record,) = lock_of(data).values()
    assert (record.name, record.url, record.size, record.media) == ("song.mp3", url, len(SONG), "audio/mpeg")
    assert record.content is not None
    assert record.content.hex == sha256(SONG)
    assert f'sha256 = "{sha256(SONG)}"' in printed
    object_file = data / "store" / "sha256" / sha256(SONG)[:2] / sha256(SONG) / "data"
    assert object_file.read_bytes() == SONG
    assert leftovers(data) == []


def test_the_piece_list_is_that_of_the_bytes_and_named_by_its_own_hash(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG))
    (record,) = lock_of(data).values()
    pieces = [SONG[at : at + PIECE] for at in range(0, len(SONG), PIECE)]
    listed = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert record.pieces is not None
    assert (record.pieces.length, record.pieces.digest) == (PIECE, hashlib.sha256(listed).digest())
    assert (data / "pieces" / record.pieces.digest.hex()).read_bytes() == listed


def test_6_content_that_is_there_is_not_moved_and_two_records_of_it_share_one_object(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("one.mp3", SONG))
        (object_file,) = (data / "store").glob("sha256/*/*/data")
        before = object_file.stat()
        records_kit.etch(data, host.put("two.mp3", SONG))
    assert object_file.stat() == before
    assert stored(data) == [sha256(SONG)]
    assert {record.content for record in lock_of(data).values()} == {lock_of(data)["one.mp3"].content}
    assert leftovers(data) == []


def test_etching_what_is_etched_costs_nothing_and_again_downloads_it(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG)
        first = records_kit.etch(data, url)
        assert records_kit.etch(data, url) == first
        assert len(host.asked_for("song.mp3")) == 1
        assert records_kit.etch(data, url, "--again") == first
        assert len(host.asked_for("song.mp3")) == 2


def test_content_that_changed_needs_again_and_replaces_the_checksum(tmp_path: Path) -> None:
    data, other = data_dir(tmp_path), song(2, 2 * PIECE)
    with web() as host:
        url = host.put("song.mp3", SONG)
        records_kit.etch(data, url)
        host.put("song.mp3", other)
        records_kit.etch(data, url, "--again")
    content = lock_of(data)["song.mp3"].content
    assert content is not None
    assert content.hex == sha256(other)
    assert stored(data) == sorted([sha256(SONG), sha256(other)])


def test_a_mirror_is_asked_when_the_url_fails_and_is_in_the_record(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        mirror = host.put("mirror.mp3", SONG)
        records_kit.etch(data, f"{host.url}gone.mp3", "--name", "song.mp3", "--mirror", mirror)
    assert lock_of(data)["song.mp3"].mirrors == (mirror,)


@pytest.mark.parametrize(
    ("told", "media"),
    [("audio/x-new", "audio/x-new"), ("mp3", "audio/mpeg"), ("audio/x y", "audio/mpeg"), ('audio/x-f"o', "audio/mpeg")],
)
def test_a_servers_word_is_the_media_type_if_it_is_one(tmp_path: Path, told: str, media: str) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", bytes(1000), media=told))
    assert lock_of(data)["song.mp3"].media == media


def test_a_scheme_in_upper_case_is_the_same_url(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG)
        first = records_kit.etch(data, url.replace("http:", "HTTP:"))
        assert records_kit.etch(data, url) == first
        assert len(host.asked) == 1
    assert lock_of(data)["song.mp3"].url == url


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"status": 404}, "HTTP 404"),
    "forbidden": ({"status": 403}, "HTTP 403: it won't let us in"),
    "empty": ({"body": b""}, "gave no bytes at all"),
    "an error page": ({"body": b"<!DOCTYPE html><h1>Gone", "media": "text/html"}, "the bytes are text/html"),
    "an error page that lies": ({"body": b"<html>no such song</html>"}, "the bytes are text/html"),
    "text of no known kind": ({"body": b"no such song", "media": "text/plain"}, "the server says text/plain"),
    "another checksum": ({"headers": digest_header(b"other")}, "declares sha256:"),
    "another checksum in one of two lines": (
        {"headers": {"Repr-Digest": (digest_header(b"other")["Repr-Digest"], "sha-512=:AAAA:")}},
        "declares sha256:",
    ),
    "compressed": ({"headers": {"Content-Encoding": "gzip"}}, "sends the bytes as gzip"),
    "a redirect to a file": (
        {"status": 302, "headers": {"Location": "file:///etc/passwd"}},
        "is neither https nor",
    ),
    "a redirect without end": ({"status": 302, "headers": {"Location": "/song.mp3"}}, "more than 4 redirects"),
    "too few bytes": ({"declared": len(SONG) + 10}, f"ended after {len(SONG)} of {len(SONG) + 10} bytes"),
}


@pytest.mark.parametrize("fault", INVALID)
def test_8_15_what_cannot_be_etched_says_why_and_changes_nothing(tmp_path: Path, fault: str) -> None:
    how, said = INVALID[fault]
    data = data_dir(tmp_path)
    with web() as host:
        kept = records_kit.etch(data, host.put("kept.mp3", song(2, 1000)))
        before = (data / LOCK_NAME).read_bytes(), stored(data)
        error = refused(data, host.put("song.mp3", **{"body": SONG, **how}))
        assert said in error
        assert host.url in error or "file:" in error
    assert ((data / LOCK_NAME).read_bytes(), stored(data)) == before
    assert leftovers(data) == []
    assert kept


def test_8_an_endless_body_ends_at_the_largest_size_that_is_taken(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with (data / "cachefs.toml").open("a") as settings:
        settings.write("max_size = 1000000\n")
    with web() as host:
        assert "max_size" in refused(data, host.put("song.mp3", song(1, 1000), endless=True))
        assert host.sent < 2**24
        assert "max_size" in refused(data, host.put("long.mp3", song(1, 1_000_001)))
    assert leftovers(data) == stored(data) == []


def test_15_a_host_that_does_not_answer_is_said_in_the_systems_words(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/song.mp3"
        assert refused(data_dir(tmp_path), url) == f"cachefs: {url}: Connection refused"


def test_plain_http_and_private_addresses_need_leave_at_every_redirect(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG)
        (data / "cachefs.toml").write_text("[records]\nallow_private = true\n")
        assert "allow_http = true" in refused(data, url)
        (data / "cachefs.toml").write_text("[records]\nallow_http = true\n")
        assert "a private address; [records] allow_private = true" in refused(data, url)
        assert host.asked == []
    assert not (data / LOCK_NAME).exists()


def test_a_redirect_is_followed_and_the_record_keeps_the_url_that_was_etched(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        host.put("real.mp3", SONG)
        url = host.put("song.mp3", b"", status=302, headers={"Location": "real.mp3"})
        records_kit.etch(data, url)
    assert lock_of(data)["song.mp3"].url == url


def test_twenty_processes_that_etch_one_url_share_one_download_and_make_one_record(tmp_path: Path) -> None:
    data, gate = data_dir(tmp_path), threading.Event()
    with web() as host:
        url = host.put("song.mp3", SONG, gate=gate)
        command = [str(part) for part in command_of(["etch", url, "--data-dir", data])]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(20)]
        gate.set()
        printed = {process.communicate(timeout=60)[0] for process in started}
        assert [process.returncode for process in started] == [0] * 20
        assert len(host.asked_for("song.mp3")) == 1
    assert len(printed) == 1
    assert list(lock_of(data)) == ["song.mp3"]
    assert leftovers(data) == []


def test_processes_that_etch_other_urls_at_once_lose_no_record(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        urls = [host.put(f"{number}.mp3", song(number, 1000)) for number in range(6)]
        started = [subprocess.Popen(list(map(str, command_of(["etch", url, "--data-dir", data])))) for url in urls]
        assert [process.wait(60) for process in started] == [0] * 6
    assert set(lock_of(data)) == {f"{number}.mp3" for number in range(6)}
    assert len(stored(data)) == 6


def test_an_etch_that_is_killed_leaves_no_record_and_no_file_after_the_next_start(tmp_path: Path) -> None:
    data, gate = data_dir(tmp_path), threading.Event()
    with web() as host:
        url = host.put("song.mp3", SONG, gate=gate, hold=2 * PIECE)
        with running("cachefs etch", command_of(["etch", url, "--data-dir", data]), signal.SIGKILL) as child:
            child.wait_until("downloading", lambda: host.sent >= 2 * PIECE and bool(leftovers(data)))
        assert leftovers(data)
        assert not (data / LOCK_NAME).exists()
        gate.set()
        records_kit.etch(data, host.put("other.mp3", song(2, 1000)))
        assert leftovers(data) == []
        assert list(lock_of(data)) == ["other.mp3"]
        records_kit.etch(data, url)
    assert set(lock_of(data)) == {"other.mp3", "song.mp3"}


@pytest.mark.parametrize("step", STEPS)
def test_an_etch_that_is_killed_at_any_step_leaves_no_half_record_and_can_be_done_again(
    tmp_path: Path, step: str
) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG)
        command = [sys.executable, "-m", "tests.dying_etch", step, str(data), url]
        child = subprocess.run(command, check=False, cwd=Path(__file__).parents[1])
        assert child.returncode == -signal.SIGKILL
        assert not (data / LOCK_NAME).exists()
        records_kit.etch(data, url)
    assert list(lock_of(data)) == ["song.mp3"]
    assert stored(data) == [sha256(SONG)]
    assert leftovers(data) == []


def test_a_swarm_is_a_torrent_of_the_same_bytes_in_the_records_pieces(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG), "--swarm")
    swarm = lock_of(data)["song.mp3"].swarm
    assert swarm is not None
    info = metainfo.parse((data / "pieces" / f"{swarm.hex}.torrent").read_bytes())
    assert (info.content, info.name, info.manifest.length) == (swarm, "song.mp3", len(SONG))
    for index in range(info.manifest.blocks):
        span = info.manifest.span(index)
        info.manifest.verify(index, SONG[span.offset : span.end])


def test_a_record_that_has_only_an_md5_is_upgraded_when_it_is_etched(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    md5 = hashlib.md5(SONG, usedforsecurity=False).digest()
    with web() as host:
        good, bad = host.put("good.mp3", SONG), host.put("bad.mp3", song(2, 1000))
        for name, url in (("good.mp3", good), ("bad.mp3", bad)):
            imported = Record(name, url, None, None, md5=md5)
            records.update(data / LOCK_NAME, partial(RecordsLock.with_record, record=imported))
        records_kit.etch(data, good)
        assert f"expected md5:{md5.hex()}" in refused(data, bad)
    content = lock_of(data)["good.mp3"].content
    assert content is not None
    assert content.hex == sha256(SONG)
    assert lock_of(data)["bad.mp3"].content is None


def test_etching_through_the_api_reports_progress(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []

    async def main(host: Host) -> None:
        async with MusicCache.open(tmp_path / "data", OPEN) as cache:
            etched = await etch(
                cache, Order(host.put("song.mp3", SONG)), lambda done, total: told.append((done, total))
            )
            assert etched.downloaded
            assert cache.path(sha256(SONG)) is not None

    with web() as host:
        trio.run(main, host)
    assert told[-1] == (len(SONG), len(SONG))
