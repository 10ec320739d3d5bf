"""Playing from `records/` in a real mount: the specification's two sequence diagrams and its flowchart, and the faults.

The numbers are those of the promises in docs/records.md. A cold mount is one whose data directory has the lock and
the piece lists of an etcher, and none of the bytes.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, RecordsLock
from cachefs.content import ContentId
from cachefs.control import socket as control
from tests import records_kit
from tests.mount_kit import Mount, cachefs, mounted, pread, read_error, received_in
from tests.records_kit import (
    OPEN_TOML,
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

SONG = song(1, 12 * PIECE + 1000)
OTHER = song(2, len(SONG))
WRONG = f"sha256:{sha256(b'nothing has this')}"


@contextmanager
def playing(place: Path, *options: str | Path, settings: str = "") -> Iterator[Mount]:
    """A mount on `place`, whose data directory has its settings."""
    data = data_dir(place)
    (data / "cachefs.toml").write_text(OPEN_TOML + settings)
    with mounted(place, None, *options) as mount:
        yield mount


def cold(etcher: Path, listener: Path, *, pieces: bool = True) -> Path:
    """A listener's data directory with the etcher's lock, and its piece lists unless told otherwise."""
    data = data_dir(listener)
    shutil.copy(etcher / LOCK_NAME, data)
    if pieces:
        shutil.copytree(etcher / "pieces", data / "pieces")
    return data


def etched(place: Path, host: Host, body: bytes = SONG, name: str = "song.mp3", **how: object) -> Path:
    """The data directory of somebody who has etched `body`."""
    data = data_dir(place / "etcher")
    records_kit.etch(data, host.put(name, body, **how))
    return data


def shown(mount: Mount, name: str = "song.mp3") -> Path:
    return mount.mountpoint / "records" / name


def names(mount: Mount) -> list[str]:
    return sorted(path.name for path in (mount.mountpoint / "records").iterdir())


@dataclass(frozen=True)
class Stage:
    """An etcher and a cold listener's mount that many tests share, each with records of its own."""

    host: Host
    etcher: Path
    mount: Mount

    def record(self, name: str, body: bytes = SONG, **how: object) -> Path:
        """A record that the listener has and whose bytes it hasn't; its path in the mount."""
        records_kit.etch(self.etcher, self.host.put(name, body, **how))
        self.tell()
        return shown(self.mount, name)

    def tell(self) -> None:
        """Give the etcher's lock to the listener."""
        shutil.copytree(self.etcher / "pieces", self.mount.data_dir / "pieces", dirs_exist_ok=True)
        shutil.copy(self.etcher / LOCK_NAME, self.mount.data_dir)
        control.ask(self.mount.data_dir, "records-changed")

    def asked(self, path: Path) -> list[records_kit.Asked]:
        """What the listener asked for, after the etcher's one request."""
        return self.host.asked_for(path.name)[1:]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    place = tmp_path_factory.mktemp("stage")
    with web() as host:
        etcher = data_dir(place / "etcher")
        RecordsLock().save(data_dir(place / "listener") / LOCK_NAME)
        with playing(place / "listener") as mount:
            yield Stage(host, etcher, mount)


def fresh(seed: int, pieces: int = 12) -> bytes:
    """A song that no other test has: the store is shared, and by content."""
    return song(1000 + seed, pieces * PIECE + 1000)


def why(path: Path) -> str:
    """What the mount tells about a failure."""
    return os.getxattr(path, "user.cachefs.error").decode()


def test_13_the_first_diagram_what_was_etched_while_mounted_is_a_hit_for_the_etcher(tmp_path: Path) -> None:
    with web() as host:
        etched(tmp_path, host, song(3, 1000), "before.mp3")
        with playing(tmp_path / "etcher") as mount:
            assert [path.name for path in mount.mountpoint.iterdir()] == ["records"]
            url = host.put("song.mp3", SONG)
            printed = records_kit.etch(mount.data_dir, url)
            asked = len(host.asked)
            assert names(mount) == ["before.mp3", "song.mp3"]
            assert shown(mount).read_bytes() == SONG
            assert len(host.asked) == asked
            assert f'url = "{url}"' in printed


def test_10_11_the_second_diagram_a_listener_misses_once_and_then_hits(tmp_path: Path) -> None:
    with web() as host:
        cold(etched(tmp_path, host), tmp_path / "listener")
        asked = len(host.asked)
        with playing(tmp_path / "listener") as mount:
            assert shown(mount).read_bytes() == SONG
            assert len(host.asked) > asked
        after = len(host.asked)
        with playing(tmp_path / "listener") as mount:
            assert shown(mount).read_bytes() == SONG
            assert len(host.asked) == after


def test_the_flowchart_of_etching_and_playing_ends_in_each_of_its_ends(tmp_path: Path) -> None:
    with web() as host:
        etcher = data_dir(tmp_path / "etcher")
        assert "HTTP 404" in refused(etcher, f"{host.url}song.mp3")  # etch: the URL is invalid
        etched(tmp_path, host)  # valid, not in the cache: moved there
        records_kit.etch(etcher, host.url + "song.mp3", "--name", "twin.mp3")  # valid, in the cache: not moved
        assert stored(etcher) == [sha256(SONG)]
        cold(etcher, tmp_path / "listener")
        with playing(tmp_path / "listener") as mount:
            assert shown(mount, "twin.mp3").read_bytes() == SONG  # play: a miss that is valid
            assert shown(mount).read_bytes() == SONG  # play: a hit
            host.put("song.mp3", OTHER)
            cold(etcher, tmp_path / "late")
        with playing(tmp_path / "late") as mount:
            assert read_error(shown(mount)) == "EBADMSG"  # play: a miss that is invalid


def test_sizes_and_times_are_known_without_network_and_stay(stage: Stage) -> None:
    body = fresh(1)
    path = stage.record("known.mp3", body)
    status = path.stat()
    record = records.load(stage.etcher / LOCK_NAME).records["known.mp3"]
    assert (status.st_size, status.st_mtime) == (len(body), record.mtime)
    assert os.getxattr(path, "user.cachefs.checksum").decode() == f"sha256:{sha256(body)}"
    assert stage.asked(path) == []


def test_a_cold_record_plays_from_its_first_pieces_on(stage: Stage) -> None:
    body = fresh(2)
    path = stage.record("first.mp3", body)
    page = stage.host.pages["/first.mp3"]
    # The server gives the first piece and then nothing, until it is let.
    page.gate, page.hold = threading.Event(), PIECE
    assert pread(path, 0, 100_000) == body[:100_000]
    assert not page.gate.is_set()
    page.gate.set()
    assert path.read_bytes() == body


def test_a_scanner_fetches_the_head_and_the_tail_and_nothing_else(stage: Stage) -> None:
    body = fresh(3)
    path = stage.record("scanned.mp3", body)
    assert pread(path, len(body) - 32, 32) == body[-32:]
    assert pread(path, 0, 4096) == body[:4096]
    ranges = {asked.headers["range"] for asked in stage.asked(path)}
    assert ranges == {f"bytes=0-{PIECE - 1}", f"bytes={12 * PIECE}-{len(body) - 1}"}


def test_a_seek_is_served_before_what_is_read_ahead(stage: Stage) -> None:
    body = fresh(4)
    path = stage.record("seek.mp3", body)
    assert pread(path, 0, 4096) == body[:4096]
    at = 7 * PIECE + 5
    assert pread(path, at, 4096) == body[at : at + 4096]
    assert stage.asked(path)[-1].headers["range"].startswith(f"bytes={7 * PIECE}-")


def test_a_server_without_ranges_is_played_from_as_it_comes(stage: Stage) -> None:
    body = fresh(5)
    path = stage.record("plain.mp3", body, ranges=False)
    assert pread(path, 5 * PIECE, 4096) == body[5 * PIECE : 5 * PIECE + 4096]
    assert path.read_bytes() == body


def test_12_a_mismatch_is_never_served_and_tells_what_was_expected_what_came_and_from_where(stage: Stage) -> None:
    body = fresh(6)
    path = stage.record("changed.mp3", body)
    url = stage.host.put("changed.mp3", song(7, len(body)))
    assert read_error(path) == "EBADMSG"
    told = why(path)
    assert f"sha256:{sha256(body)}" in told
    assert url in told
    assert str(len(body)) in told
    assert "etch --again" in told
    kept = stage.mount.data_dir / "store" / "sha256" / sha256(body)[:2] / sha256(body) / "data"
    assert kept.stat().st_blocks == 0


FAULTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "shorter": ({"body": OTHER[:-1]}, errno.EBADMSG, f"is {len(SONG) - 1} bytes long, the record says {len(SONG)}"),
    "longer": ({"body": OTHER + b"x"}, errno.EBADMSG, f"is {len(SONG) + 1} bytes long"),
    "checksum": ({"headers": digest_header(OTHER)}, errno.EBADMSG, f"declares sha256:{sha256(OTHER)}"),
    "forbidden": ({"status": 403}, errno.EACCES, "HTTP 403"),
    "missing": ({"status": 404}, errno.EIO, "HTTP 404"),
    "redirect": ({"status": 302, "headers": {"Location": "ftp://h/x"}}, errno.EACCES, "is neither https nor http"),
    "error page": ({"body": b"<html>gone</html>", "media": "text/html"}, errno.EBADMSG, "is 17 bytes long"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_12_15_each_failure_has_its_errno_at_open_and_its_reason(stage: Stage, fault: str) -> None:
    how, number, said = FAULTS[fault]
    name = f"{fault.replace(' ', '-')}.mp3"
    path = stage.record(name, SONG)
    stage.host.pages[f"/{name}"] = replace(stage.host.pages[f"/{name}"], **how)
    with pytest.raises(OSError, match=os.strerror(number)):
        os.open(path, os.O_RDONLY)
    assert said in why(path)


def test_a_failing_record_that_is_opened_in_a_loop_is_asked_for_rarely_and_plays_when_it_is_back(stage: Stage) -> None:
    body = fresh(8)
    path = stage.record("loop.mp3", body)
    pages = stage.host.pages
    page, pages["/loop.mp3"] = pages["/loop.mp3"], replace(pages["/loop.mp3"], status=404)
    assert {read_error(path) for _ in range(50)} == {"EIO"}
    assert len(stage.asked(path)) < 10
    pages["/loop.mp3"] = page
    stage.mount.child.wait_until("playing again", lambda: read_error(path) == "")
    assert path.read_bytes() == body


def test_a_break_in_the_middle_costs_the_rest_only(stage: Stage) -> None:
    body = fresh(9)
    path = stage.record("breaks.mp3", body)
    page = stage.host.pages["/breaks.mp3"]
    page.cut, page.cuts = 2 * PIECE + 1000, 2
    before = received_in(stage.mount.status())
    assert path.read_bytes() == body
    assert received_in(stage.mount.status()) - before < len(body) + 2 * PIECE
    assert page.cuts == 0


def test_a_record_whose_pieces_are_right_and_whose_whole_is_not_is_thrown_away_and_says_so(stage: Stage) -> None:
    body = fresh(15, pieces=2)
    path = stage.record("contradicts.mp3", body)
    lock = stage.mount.data_dir / LOCK_NAME
    records.update(lock, lambda now: now.with_record(replace(now.records[path.name], content=ContentId.parse(WRONG))))
    control.ask(stage.mount.data_dir, "records-changed")
    stage.mount.child.wait_until("refused", lambda: read_error(path, size=len(body)) == "EBADMSG")
    assert "its record contradicts itself" in why(path)
    (kept,) = stage.mount.data_dir.glob(f"store/sha256/*/{WRONG.partition(':')[2]}/data")
    assert kept.stat().st_blocks == 0


def test_a_prefetch_of_a_record_that_contradicts_itself_says_so(stage: Stage) -> None:
    path = stage.record("contradicts-too.mp3", fresh(17, pieces=2))
    lock = stage.mount.data_dir / LOCK_NAME
    wrong = ContentId.parse(f"sha256:{sha256(b'nor has this')}")
    records.update(lock, lambda now: now.with_record(replace(now.records[path.name], content=wrong)))
    control.ask(stage.mount.data_dir, "records-changed")
    done = cachefs("prefetch", f"records/{path.name}", "--data-dir", stage.mount.data_dir)
    assert (done.returncode, "its record contradicts itself" in done.stdout + done.stderr) == (1, True)


def test_mirrors_are_asked_when_the_url_fails_or_lies(stage: Stage) -> None:
    body = fresh(10)
    path = stage.record("mirrored.mp3", body)
    mirror = stage.host.put("mirror.mp3", body)
    records_kit.etch(stage.etcher, stage.host.url + "mirrored.mp3", "--mirror", mirror)
    stage.host.put("mirrored.mp3", song(11, len(body)))
    stage.tell()
    assert path.read_bytes() == body


def test_16_a_record_that_waits_holds_up_nothing_else(stage: Stage) -> None:
    body, other = fresh(12), fresh(13)
    path, ready = stage.record("waits.mp3", body), stage.record("ready.mp3", other)
    with ThreadPoolExecutor(20) as pool:
        stage.host.pages["/waits.mp3"].gate = gate = threading.Event()
        waiting = [pool.submit(pread, path, 0, 4096) for _ in range(20)]
        stage.mount.child.wait_until("asked", lambda: bool(stage.asked(path)))
        assert ready.read_bytes() == other
        assert {"waits.mp3", "ready.mp3"} <= set(names(stage.mount))
        assert path.stat().st_size == len(body)
        done = cachefs("play", "waits.mp3", "--data-dir", stage.mount.data_dir)
        assert done.stdout.strip() == str(path)
        gate.set()
        assert {future.result(20) for future in waiting} == {body[:4096]}
    assert len(stage.asked(path)) == 1


def test_play_waits_if_asked_and_hands_over_to_a_player(stage: Stage) -> None:
    body = fresh(14)
    path = stage.record("waited.mp3", body)
    done = cachefs("play", path.name, "--data-dir", stage.mount.data_dir, "--wait", "--player", "sha256sum --")
    assert done.stdout.split()[0] == sha256(body)


@pytest.mark.parametrize("settings", ["", 'verify = "whole"\n'], ids=["no piece list", "verify whole"])
def test_without_a_piece_list_or_if_wished_nothing_is_served_before_all_was_verified(
    tmp_path: Path, settings: str
) -> None:
    with web() as host, ThreadPoolExecutor(1) as pool:
        etcher = etched(tmp_path, host)
        data = cold(etcher, tmp_path / "listener", pieces=bool(settings))
        page = host.pages["/song.mp3"]
        page.gate, page.hold = threading.Event(), len(SONG) - 1
        with playing(tmp_path / "listener", settings=settings) as mount:
            reading = pool.submit(pread, shown(mount), 0, 4096)
            mount.child.wait_until("all but a byte sent", lambda: any(leftovers(data)) and host.sent > len(SONG))
            assert not reading.done()
            assert shown(mount).stat().st_size == len(SONG)
            page.gate.set()
            assert reading.result(20) == SONG[:4096]
            assert shown(mount).read_bytes() == SONG
    assert leftovers(data) == []


def test_silence_and_size_have_their_errnos_too(tmp_path: Path) -> None:
    with web() as host:
        etcher = etched(tmp_path, host)
        records_kit.etch(etcher, host.put("whole.mp3", OTHER))
        records_kit.etch(etcher, host.put("long.mp3", song(20, len(SONG) + 1)))
        data = cold(etcher, tmp_path / "listener")
        whole = records.load(data / LOCK_NAME).records["whole.mp3"]
        records.update(data / LOCK_NAME, lambda lock: lock.with_record(replace(whole, pieces=None)))
        for name in ("song.mp3", "whole.mp3"):
            host.pages[f"/{name}"].gate = threading.Event()
        with playing(tmp_path / "listener", settings=f"stall_timeout = 1.0\nmax_size = {len(SONG)}\n") as mount:
            assert read_error(shown(mount)) == "ETIMEDOUT"
            assert "silent for 1 s" in why(shown(mount))
            assert read_error(shown(mount, "whole.mp3")) == "ETIMEDOUT"
            assert "silent for 1 s" in why(shown(mount, "whole.mp3"))
            assert read_error(shown(mount, "long.mp3")) == "EFBIG"
            assert "max_size" in why(shown(mount, "long.mp3"))


def test_who_falls_silent_in_the_midst_is_asked_for_the_rest(tmp_path: Path) -> None:
    with web() as host:
        cold(etched(tmp_path, host), tmp_path / "listener")
        page = host.pages["/song.mp3"]
        page.gate, page.hold = threading.Event(), 3 * PIECE + 1000
        with playing(tmp_path / "listener", settings="stall_timeout = 0.5\n") as mount:
            assert shown(mount).read_bytes() == SONG
        beginnings = [asked.headers["range"] for asked in host.asked if asked.headers.get("range")]
        assert len(beginnings) > 2
        page.gate.set()


def test_records_are_verified_with_a_mount_and_without(tmp_path: Path) -> None:
    with web() as host:
        data = cold(etched(tmp_path, host), tmp_path / "listener")
        with playing(tmp_path / "listener") as mount:
            assert shown(mount).read_bytes() == SONG
            assert cachefs("verify", "records/song.mp3", "--data-dir", data).returncode == 0
        (kept,) = data.glob("store/sha256/*/*/data")
        kept.chmod(0o600)
        with kept.open("r+b") as file:
            file.seek(5 * PIECE)
            file.write(bytes(100))
        done = cachefs("verify", "--data-dir", data)
        assert done.returncode == 1
        assert "records/song.mp3" in done.stdout
        with playing(tmp_path / "listener") as mount:
            assert shown(mount).read_bytes() == SONG
            assert host.asked[-1].headers["range"] == f"bytes={5 * PIECE}-{6 * PIECE - 1}"


def test_what_changed_is_a_new_file_and_an_open_one_keeps_its_bytes(tmp_path: Path) -> None:
    with web() as host:
        etcher = etched(tmp_path, host)
        with playing(tmp_path / "etcher") as mount, shown(mount).open("rb") as playing_on:
            first = playing_on.read(1000)
            host.put("song.mp3", OTHER)
            records_kit.etch(etcher, host.url + "song.mp3", "--again")
            assert shown(mount).read_bytes() == OTHER
            assert first + playing_on.read() == SONG


def test_a_record_whose_url_was_edited_by_hand_keeps_its_checksum(tmp_path: Path) -> None:
    with web() as host:
        etcher = etched(tmp_path, host)
        data = cold(etcher, tmp_path / "listener")
        good, bad = host.put("moved.mp3", SONG), host.put("other.mp3", OTHER)
        lock = data / LOCK_NAME
        with playing(tmp_path / "listener") as mount:
            lock.write_text(lock.read_text().replace(f"{host.url}song.mp3", bad))
            assert cachefs("reload", mount.mountpoint).returncode == 0
            assert read_error(shown(mount)) == "EBADMSG"
            lock.write_text(lock.read_text().replace(bad, good))
            assert cachefs("reload", mount.mountpoint).returncode == 0
            assert shown(mount).read_bytes() == SONG


def test_a_reload_tells_which_records_came_and_went(tmp_path: Path) -> None:
    with web() as host:
        etcher = etched(tmp_path, host)
        with playing(tmp_path / "etcher") as mount:
            assert "no difference in 1 names" in cachefs("reload", mount.mountpoint).stdout
            records.update(etcher / LOCK_NAME, lambda lock: RecordsLock())
            told = cachefs("reload", mount.mountpoint).stdout
            assert told == f"- records/song.mp3  {sha256(SONG)}\n0 added, 1 removed, 0 changed, 0 unchanged\n"
            assert names(mount) == []


def test_a_lock_that_is_broken_while_mounted_changes_nothing(tmp_path: Path) -> None:
    with web() as host:
        etcher = etched(tmp_path, host)
        with playing(tmp_path / "etcher") as mount:
            (etcher / LOCK_NAME).write_text("[[record]]\nname = 3\n")
            done = cachefs("reload", mount.mountpoint)
            assert done.returncode == 1
            assert f"{LOCK_NAME}:1: 'hashes': record 1: is missing" in done.stderr
            assert shown(mount).read_bytes() == SONG


def test_play_without_a_mount_fetches_first_and_prints_the_stored_file(tmp_path: Path) -> None:
    with web() as host:
        data = cold(etched(tmp_path, host), tmp_path / "listener")
        done = cachefs("play", "song.mp3", "--data-dir", data)
        assert Path(done.stdout.strip()).read_bytes() == SONG
        asked = len(host.asked)
        assert cachefs("play", "song.mp3", "--data-dir", data).stdout == done.stdout
        assert len(host.asked) == asked
        assert "no such record" in cachefs("play", "sing.mp3", "--data-dir", data).stderr


def test_a_data_directory_with_neither_lock_is_refused_and_an_empty_one_of_records_mounts(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = cachefs("mount", tmp_path / "mnt", "--data-dir", tmp_path / "none")
    assert done.returncode == 1
    assert "chain_toml" in done.stderr
    RecordsLock().save(data_dir(tmp_path) / LOCK_NAME)
    with playing(tmp_path) as mount:
        assert [path.name for path in mount.mountpoint.iterdir()] == ["records"]
        assert names(mount) == []
