"""Import and export: a list becomes records or nothing, what it didn't know is learnt at the first fetch."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from cachefs.catalog import records
from cachefs.catalog.records import Record
from cachefs.config.records import Records
from cachefs.content import ContentId
from cachefs.errors import CachefsError, CatalogError, RecordMismatch
from cachefs.formats.listing import Listed
from cachefs.records import MusicCache
from cachefs.records.lists import (
    WRITERS,
    Imported,
    export,
    guess_format,
    made_ready,
    make_all_ready,
    playlist,
    take_in,
)
from tests.counterparts import nginx
from tests.mount_kit import cachefs, mounted
from tests.player_kit import cold, make_music
from tests.records_kit import OPEN_TOML

T = TypeVar("T")

LOOPBACK = Records(allow_http=True, allow_private=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records on a web site's disk."""
    root = tmp_path_factory.mktemp("site")
    make_music(root / "Fast Car.ogg", 2)
    make_music(root / "b.flac", 3, noise=True)
    return root


def run(place: Path, work: Callable[[MusicCache], Awaitable[T]]) -> T:
    """What `work` makes of the cache in `place`."""

    async def main() -> T:
        with trio.fail_after(30):
            async with MusicCache.open(place, LOOPBACK) as cache:
                return await work(cache)

    return trio.run(main)


def imported(place: Path, text: str, name: str, *, base_url: str = "", keep: bool = False) -> Imported:
    path = place.parent / name
    path.write_text(text)

    async def work(cache: MusicCache) -> Imported:
        return take_in(cache, path, guess_format(path), base_url=base_url, keep=keep)

    return run(place, work)


def lock(place: Path) -> dict[str, Record]:
    return dict(records.load(place / "records-lock.toml").records)


def old_list(site: Path, url: str) -> str:
    """A (name, url, md5) list of the site."""
    rows = ((path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(site.iterdir()))
    return "name,url,md5\n" + "".join(f"{name},{url}{name.replace(' ', '%20')},{digest}\n" for name, digest in rows)


def test_an_old_list_is_upgraded_to_sha256_at_the_first_fetch(site: Path, tmp_path: Path) -> None:
    with nginx(site) as url:
        done = imported(tmp_path / "data", old_list(site, url), "records.csv")
        assert [record.ready for record in done.taken] == [False, False]
        before = lock(tmp_path / "data")["Fast Car.ogg"]
        after = run(tmp_path / "data", lambda cache: made_ready(cache, before))
    data = (site / "Fast Car.ogg").read_bytes()
    assert after == lock(tmp_path / "data")["Fast Car.ogg"]
    assert after.content == ContentId("sha256", hashlib.sha256(data).digest())
    assert (after.size, after.md5, after.ready, after.media) == (len(data), b"", True, "audio/ogg")
    again = imported(tmp_path / "data", old_list(site, url), "records.csv")
    assert (again.taken, again.known) == ((), 2)
    assert lock(tmp_path / "data")["Fast Car.ogg"] == after


def test_what_is_not_what_the_md5_says_is_never_a_record(site: Path, tmp_path: Path) -> None:
    with nginx(site) as url:
        wrong = old_list(site, url).replace(hashlib.md5((site / "b.flac").read_bytes()).hexdigest(), "0" * 32)
        imported(tmp_path / "data", wrong, "records.csv")
        before = lock(tmp_path / "data")
        with pytest.raises(RecordMismatch, match="md5:" + "0" * 32):
            run(tmp_path / "data", lambda cache: made_ready(cache, before["b.flac"]))
        told: dict[str, CachefsError | None] = {}

        def tell(record: Record, error: CachefsError | None) -> None:
            told[record.name] = error

        assert run(tmp_path / "data", lambda cache: make_all_ready(cache, before.values(), tell)) == 1
    after = lock(tmp_path / "data")
    assert after["b.flac"] == before["b.flac"]
    assert after["Fast Car.ogg"].ready
    assert told["Fast Car.ogg"] is None
    assert isinstance(told["b.flac"], CachefsError)


@pytest.mark.parametrize("form", WRITERS)
def test_what_is_exported_is_imported_as_the_same_content(site: Path, tmp_path: Path, form: str) -> None:
    with nginx(site) as url:
        imported(tmp_path / "one", old_list(site, url), "records.csv")
        run(tmp_path / "one", lambda cache: make_all_ready(cache, lock(tmp_path / "one").values(), lambda *_: None))

        async def work(cache: MusicCache) -> str:
            return export(cache, form)

        text = run(tmp_path / "one", work)
        name = {"sums": "SHA256SUMS", "pooch": "registry.txt", "metalink": "all.meta4"}[form]
        done = imported(tmp_path / "two", text, name, base_url=url)
        ones, twos = lock(tmp_path / "one"), lock(tmp_path / "two")
        assert {name: record.content for name, record in ones.items()} == {
            name: record.content for name, record in twos.items()
        }
        assert {record.url for record in twos.values()} == {record.url for record in ones.values()}
        if form == "metalink":
            assert all(record.ready for record in done.taken)
            assert [record.pieces for record in twos.values()] == [record.pieces for record in ones.values()]
            content = run(tmp_path / "two", lambda cache: cache.request(twos["b.flac"]))
            assert content == ones["b.flac"].content
    if form == "sums":
        (tmp_path / "SUMS").write_text(text)
        subprocess.run(["sha256sum", "--check", "--quiet", "--strict", tmp_path / "SUMS"], cwd=site, check=True)


def test_a_list_that_contradicts_a_record_changes_nothing(tmp_path: Path) -> None:
    digits = hashlib.sha256(b"x").hexdigest()
    imported(tmp_path / "data", f"{digits}  a.ogg\n", "SHA256SUMS", base_url="https://e.org/music/")
    before = lock(tmp_path / "data")
    assert before["a.ogg"].url == "https://e.org/music/a.ogg"
    other = f"{digits}  new.ogg\n{digits[::-1]}  a.ogg\n"
    with pytest.raises(CatalogError, match=r"a\.ogg.*other content"):
        imported(tmp_path / "data", other, "SHA256SUMS", base_url="https://e.org")
    assert lock(tmp_path / "data") == before
    done = imported(tmp_path / "data", other, "SHA256SUMS", base_url="https://e.org", keep=True)
    assert ([record.name for record in done.taken], done.known) == (["new.ogg"], 1)
    assert lock(tmp_path / "data")["a.ogg"] == before["a.ogg"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{0}  ../a.ogg", "'..'"),
        ("{0}  /a.ogg", "absolute"),
        ("{0}  a.ogg\n{0}  a.ogg", "given twice"),
        ("{0}  a.ogg\n{0}  a.ogg/b", "directory"),
        ("SHA512 (a.ogg) = {0}{0}", "neither a SHA-256 nor an MD5"),
    ],
)
def test_a_list_with_one_entry_that_cannot_be_changes_nothing(tmp_path: Path, text: str, said: str) -> None:
    digits = hashlib.sha256(b"x").hexdigest()
    with pytest.raises(CatalogError, match=said):
        imported(
            tmp_path / "data", f"{digits}  ok.ogg\n{text.format(digits)}\n", "SHA256SUMS", base_url="https://e.org"
        )
    with pytest.raises(CatalogError, match="--base-url"):
        imported(tmp_path / "data", f"{digits}  ok.ogg\n", "SHA256SUMS")
    assert lock(tmp_path / "data") == {}


@pytest.mark.parametrize("size", [0, 2**50 + 1])
def test_a_metalink_with_a_size_that_no_record_has_changes_nothing(tmp_path: Path, size: int) -> None:
    item = Listed("a.ogg", ("https://e.org/a",), size, {"sha256": bytes(32)})
    with pytest.raises(CatalogError, match=rf"all\.meta4: 'a\.ogg': {size} bytes, where a record has 1 to"):
        imported(tmp_path / "data", WRITERS["metalink"]([item]), "all.meta4")
    assert lock(tmp_path / "data") == {}


def test_of_a_metalinks_urls_those_are_taken_that_can_be_used(tmp_path: Path) -> None:
    urls = ("ftp://e.org/a", "HTTPS://e.org/a", "https://e.org/a", "https://mirror.e.org/a")
    item = Listed("a.ogg", urls, 5, {"sha256": bytes(32)})
    imported(tmp_path / "data", WRITERS["metalink"]([item]), "all.meta4")
    assert lock(tmp_path / "data")["a.ogg"].urls == ("https://e.org/a", "https://mirror.e.org/a")
    with pytest.raises(CatalogError, match=r"'b\.ogg': expected a URL that begins with https://.*ftp://"):
        imported(tmp_path / "data", WRITERS["metalink"]([replace(item, name="b.ogg", urls=urls[:1])]), "all.meta4")


@pytest.mark.parametrize("name", ["SHA256SUMS", "registry.txt", "all.csv", "all.json", "all.meta4"])
def test_a_byte_order_mark_belongs_to_no_name(tmp_path: Path, name: str) -> None:
    item, digits = Listed("a.ogg", ("https://e.org/a.ogg",), 5, {"sha256": bytes(32)}), bytes(32).hex()
    text = {
        "SHA256SUMS": WRITERS["sums"]([item]),
        "registry.txt": WRITERS["pooch"]([item]),
        "all.csv": f"a.ogg,https://e.org/a.ogg,{digits}\n",
        "all.json": f'[["a.ogg", "https://e.org/a.ogg", "{digits}"]]',
        "all.meta4": WRITERS["metalink"]([item]),
    }[name]
    imported(tmp_path / "data", f"\ufeff{text}", name, base_url="https://e.org")
    assert list(lock(tmp_path / "data")) == ["a.ogg"]


def test_an_exported_playlist_has_what_the_mount_shows() -> None:
    content = ContentId("sha256", hashlib.sha256(b"x").digest())
    listed = [Record("dir/a b.ogg", "https://e.org/a", content, 5), Record("old.mp3", "https://e.org/b", None, None)]
    text = playlist(records.lock_of(listed), Path("/mnt/music"))
    assert text == "#EXTM3U\n#EXTINF:-1,a b\n/mnt/music/records/dir/a b.ogg\n"


def test_an_imported_record_is_played_by_its_name_with_and_without_a_mount(site: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "cachefs.toml").write_text(OPEN_TOML)
    with nginx(site) as url:
        imported(data, old_list(site, url), "records.csv")
        alone = cachefs("play", "b.flac", "--data-dir", data)
        assert Path(alone.stdout.strip()).read_bytes() == (site / "b.flac").read_bytes(), alone.stderr
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            assert [path.name for path in (mount.mountpoint / "records").iterdir()] == ["b.flac"]
            shown = cachefs("play", "Fast Car.ogg", "--data-dir", data)
            assert shown.stdout == f"{mount.mountpoint}/records/Fast Car.ogg\n", shown.stderr
            assert Path(shown.stdout.strip()).read_bytes() == (site / "Fast Car.ogg").read_bytes()
            (tmp_path / "all.m3u").write_text(cachefs("export", "m3u", "--data-dir", data).stdout)
            paths = [str(mount.mountpoint / "records" / name) for name in ("Fast Car.ogg", "b.flac")]
            assert sorted(cachefs("play", tmp_path / "all.m3u", "--data-dir", data).stdout.splitlines()) == paths


def test_18_a_playlist_is_fetched_before_it_is_played(site: Path, tmp_path: Path) -> None:
    """What is picked up together is prefetched together."""
    (tmp_path / "party.pls").write_text("[playlist]\nFile1=b.flac\nFile2=Fast Car.ogg\nFile3=/none.ogg\n")
    with nginx(site) as url:
        data = cold(tmp_path, {name: url + name.replace(" ", "%20") for name in ("Fast Car.ogg", "b.flac")})
        (data / "cachefs.toml").write_text(OPEN_TOML)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            done = cachefs("play", tmp_path / "party.pls", "--wait", "--data-dir", data)
            assert done.stdout.splitlines() == [f"{mount.mountpoint}/records/{n}" for n in ("b.flac", "Fast Car.ogg")]
            assert mount.status()["store"]["complete"] == 2
    shutil.rmtree(data / "store")
    (data / "state.db").unlink()
    with nginx(site, port=int(url.rstrip("/").rpartition(":")[2])), mounted(tmp_path, settings=OPEN_TOML):
        done = cachefs("prefetch", tmp_path / "party.pls", "--data-dir", data)
        assert done.stdout.startswith("2 of 2 files here"), done.stderr
    (tmp_path / "strange.m3u").write_text("none.ogg\n")
    done = cachefs("play", tmp_path / "strange.m3u", "--data-dir", data)
    assert (done.returncode, "names no record" in done.stderr) == (1, True)


def test_the_commands_import_fetch_and_export(site: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "cachefs.toml").write_text(OPEN_TOML)
    with nginx(site) as url:
        (tmp_path / "list.json").write_text(old_list(site, url))
        first = cachefs("import", tmp_path / "list.json", "--format", "columns", "--data-dir", data)
        assert first.stdout == "2 taken, 0 known already, 2 to be fetched first\n", first.stderr
        done = cachefs("import", tmp_path / "list.json", "--format", "columns", "--fetch", "--data-dir", data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "0 taken, 2 known already, 2 to be fetched first"
    sums = cachefs("export", "sums", "--data-dir", data).stdout
    assert (
        sums.splitlines()
        == subprocess.check_output(["sha256sum", "Fast Car.ogg", "b.flac"], cwd=site, text=True).splitlines()
    )
    nameless = cachefs("import", site / "b.flac", "--data-dir", data)
    assert (nameless.returncode, "--format" in nameless.stderr) == (1, True)
    unmounted = cachefs("export", "m3u", "--data-dir", data)
    assert (unmounted.returncode, "not mounted" in unmounted.stderr) == (1, True)
