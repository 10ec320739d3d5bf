"""A login in a URL: refused wherever a record could get one, with a way out, and never printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME
from cachefs.config.values import has_login, without_login
from cachefs.errors import CatalogError, SourceRefused
from cachefs.records import MusicCache
from tests import records_kit
from tests.mount_kit import cachefs
from tests.records_kit import OPEN, Host, data_dir, refused, song, stored, web

SONG = song(1, 10_000)
SECRET = "s3cret"
WAY_OUT = "rclone://LABEL/path"


def with_login(url: str) -> str:
    return url.replace("://", f"://me:{SECRET}@")


def etched(place: Path, host: Host) -> tuple[Path, str]:
    """A data directory with a record of SONG, and the record's URL."""
    data, url = data_dir(place), host.put("song.mp3", SONG)
    records_kit.etch(data, url)
    return data, url


@pytest.mark.parametrize("secret", [SECRET, f"{SECRET} x", f"{SECRET}/x", f"{SECRET}\\x", ""])
def test_an_etch_refuses_a_login_and_asks_nobody(tmp_path: Path, secret: str) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG).replace("://", f"://me:{secret}@")
        for refusal in (refused(data, url), refused(data, host.url + "song.mp3", "--mirror", url)):
            assert "a URL without a login" in refusal
            assert WAY_OUT in refusal
            assert SECRET not in refusal
        assert host.asked == []
    assert not (data / LOCK_NAME).exists()


def test_a_local_file_is_not_etched_for_a_url_with_a_login(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(SONG)
    said = refused(data_dir(tmp_path), str(tmp_path / "song.mp3"), "--url", with_login("https://example.org/song.mp3"))
    assert WAY_OUT in said
    assert SECRET not in said


def test_an_import_refuses_a_login(tmp_path: Path) -> None:
    data, listed = data_dir(tmp_path), tmp_path / "list.csv"
    listed.write_text(f"song.mp3,{with_login('https://example.org/song.mp3')},{'0' * 32}\n")
    done = cachefs("import", listed, "--data-dir", data)
    assert done.returncode == 1
    assert WAY_OUT in done.stderr
    assert SECRET not in done.stderr
    assert not (data / LOCK_NAME).exists()


def test_a_lock_with_a_login_is_refused_by_line(tmp_path: Path) -> None:
    with web() as host:
        data, url = etched(tmp_path, host)
    lock = data / LOCK_NAME
    text = lock.read_text().replace(url, with_login(url))
    lock.write_text(text)
    with pytest.raises(CatalogError) as raised:
        records.load(lock)
    assert (raised.value.key, SECRET in text.splitlines()[(raised.value.line or 0) - 1]) == ("url", True)
    assert WAY_OUT in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_redirect_to_a_login_is_not_followed(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        moved = host.put("moved.mp3", b"", status=302, headers={"Location": with_login(host.put("song.mp3", SONG))})
        said = refused(data, moved)
        assert host.asked_for("song.mp3") == []
    assert "has a login in it" in said
    assert SECRET not in said
    assert stored(data) == []


def test_a_program_is_refused_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with MusicCache.open(data_dir(tmp_path), OPEN) as cache:
            for url in (with_login(host.put("song.mp3", SONG)), f"rclone://me:{SECRET}@music/song.mp3"):
                with pytest.raises(SourceRefused) as raised:
                    await cache.request_by_url(url)
                assert SECRET not in str(raised.value) + raised.value.url

    with web() as host:
        trio.run(main)
        assert host.asked == []


def test_an_at_sign_is_no_login_after_the_host() -> None:
    for url in ("https://h/@me/song.mp3", "https://h:443/a:b@c", "https://h?a@b", "https://[::1]:80/@x", "magnet:?x=@"):
        assert not has_login(url)
        assert without_login(url) == url
    assert without_login("https://me:pass@h/@me") == "https://***@h/@me"
