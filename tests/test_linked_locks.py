"""A lock that is a symbolic link, into a git repository say: it is written where it leads, and stays a link."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from cachefs.catalog import records
from cachefs.catalog.chain import format_chain
from cachefs.catalog.files import replace_text
from cachefs.catalog.records import LOCK_NAME
from cachefs.cli import main
from cachefs.config import Config, Snapshots
from cachefs.content import ContentId
from cachefs.errors import CatalogError
from cachefs.locks import LockFile
from tests import records_kit
from tests.mount_kit import cachefs, read_only
from tests.records_kit import data_dir, refused, song

ONE, TWO = ContentId("btih", bytes([1]) * 20), ContentId("btih", bytes([2]) * 20)
URL = "https://example.org/"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A directory of the user's, away from the data directory."""
    path = tmp_path / "repository"
    path.mkdir()
    return path


def etch(data: Path, name: str) -> None:
    """Etch a file of its own bytes."""
    mine = data.parent / name
    mine.write_bytes(song(len(name), 1000))
    records_kit.etch(data, str(mine), "--url", URL + name)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_records_are_etched_into_the_file_that_the_lock_is_a_link_to(tmp_path: Path, repository: Path) -> None:
    data = data_dir(tmp_path)
    etch(data, "first.mp3")
    (data / LOCK_NAME).rename(repository / "music.toml")
    (data / LOCK_NAME).symlink_to("../repository/music.toml")
    etch(data, "second.mp3")
    assert str((data / LOCK_NAME).readlink()) == "../repository/music.toml"
    assert list(records.load(repository / "music.toml").records) == ["first.mp3", "second.mp3"]
    assert names(repository) == ["music.toml"]
    assert not list(data.glob("*.tmp"))


def test_where_the_link_leads_and_nothing_can_be_written_nothing_is_and_what_is_etched_stays_so(
    tmp_path: Path, repository: Path
) -> None:
    data = data_dir(tmp_path)
    etch(data, "first.mp3")
    (data / LOCK_NAME).rename(repository / "music.toml")
    (data / LOCK_NAME).symlink_to(repository / "music.toml")
    with read_only(repository):
        etch(data, "first.mp3")
        (tmp_path / "second.mp3").write_bytes(song(2, 1000))
        said = refused(data, str(tmp_path / "second.mp3"), "--url", URL + "second.mp3")
    assert f"can't be written: it is a link to {repository}/music.toml: Read-only file system" in said
    assert list(records.load(repository / "music.toml").records) == ["first.mp3"]


def test_a_link_that_leads_nowhere_is_refused_with_both_paths_and_stays(tmp_path: Path) -> None:
    data, mine = data_dir(tmp_path), tmp_path / "mine.mp3"
    mine.write_bytes(song(1, 1000))
    link, gone = data / LOCK_NAME, tmp_path / "gone.toml"
    link.symlink_to(gone)
    (tmp_path / "mnt").mkdir()
    told = f"{link}: can't be read: it is a link to {gone}: No such file or directory"
    assert told in refused(data, str(mine), "--url", URL + "mine.mp3")
    assert told in cachefs("mount", tmp_path / "mnt", "--data-dir", data).stderr
    assert link.is_symlink()
    assert not gone.exists()


@pytest.mark.parametrize(
    "command", [("gc",), ("verify",), ("pin", "records/*"), ("evict", "*"), ("export", "sums")], ids=" ".join
)
def test_no_command_takes_a_link_that_leads_nowhere_for_no_lock(tmp_path: Path, command: tuple[str, ...]) -> None:
    data = data_dir(tmp_path)
    etch(data, "first.mp3")
    (data / LOCK_NAME).unlink()
    (data / LOCK_NAME).symlink_to(tmp_path / "gone.toml")
    done = CliRunner().invoke(main, [*command, "--data-dir", str(data)])
    assert f"can't be read: it is a link to {tmp_path / 'gone.toml'}" in done.output
    assert done.exit_code == 1
    assert list(data.glob("store/sha256/*/*/data"))


def test_the_snapshots_lock_is_edited_and_rolled_back_through_a_link(tmp_path: Path, repository: Path) -> None:
    file, chain, target = LockFile(tmp_path / "data"), tmp_path / "chain.toml", repository / "mainnet.json"
    chain.write_text(format_chain({"a.seg": ONE}))
    trio.run(file.load_or_make, Config(snapshots=Snapshots(chain_toml=str(chain))), None)
    file.path.rename(target)
    file.path.symlink_to(target)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["lock", "--data-dir", str(file.data_dir), *arguments], catch_exceptions=False)

    assert run("set", "a.seg", TWO.hex).exit_code == 0
    assert TWO.hex in target.read_text()
    assert run("rollback").exit_code == 0
    assert ONE.hex in target.read_text()
    assert file.path.readlink() == target
    assert names(repository) == [target.name]
    assert names(file.path.parent) == [file.path.name]


def test_links_are_followed_to_their_end_and_a_ring_of_them_is_refused(tmp_path: Path, repository: Path) -> None:
    link, middle = tmp_path / "lock.toml", repository / "middle"
    link.symlink_to("repository/middle")
    middle.symlink_to("end")
    replace_text(link, "text")
    assert (repository / "end").read_text() == "text"
    assert middle.is_symlink()
    middle.unlink()
    middle.symlink_to(link)
    with pytest.raises(CatalogError, match=r"can't be written: it is a link to .*: Too many levels of symbolic links"):
        replace_text(link, "text")


def test_what_is_no_file_is_not_replaced_through_a_link(tmp_path: Path) -> None:
    device, link = tmp_path / "device", tmp_path / "lock.toml"
    os.mkfifo(device)  # as /dev/null is, which nobody wants to see replaced
    link.symlink_to(device)
    with pytest.raises(CatalogError, match=f"it is a link to {device}: not a file"):
        replace_text(link, "text")
    assert device.is_fifo()


def test_a_link_of_another_user_in_a_directory_that_is_not_his_is_not_written_through(
    tmp_path: Path, repository: Path
) -> None:
    shared, target = tmp_path / "shared", repository / "theirs"
    shared.mkdir()
    link = shared / "lock.toml"
    link.symlink_to(target)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    with pytest.raises(CatalogError, match=f"it is a link to {target}: {link} is a link of another user's"):
        replace_text(link, "text")
    assert not target.exists()
    os.chown(shared, 65534, 65534)
    replace_text(link, "text")
    assert target.read_text() == "text"
