"""Files of other users' that the daemon comes upon: none holds it up, and none has it serve what nobody checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount_kit import BODIES, DOMAIN, PIECE, Library, Mount, cachefs, make_library, mounted, pread, typed


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        if Path(name).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is on the file system of the tests")
        yield Path(name)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


NO_TORRENTS = pytest.mark.parametrize("no_torrent", [_pipe, _endless, _huge])


@NO_TORRENTS
def test_what_only_looks_like_a_torrent_beside_a_file_holds_up_no_daemon(
    library: Library, tmp_path: Path, no_torrent: Callable[[Path], None]
) -> None:
    with mounted(tmp_path, library.chain) as mount:
        _place(mount, DOMAIN, library.files[DOMAIN].read_bytes())
        no_torrent(mount.data_dir / "snapshots" / f"{DOMAIN}.torrent")
        assert cachefs("reload", mount.mountpoint).returncode == 0
        assert mount.status()["store"]["complete"] == 1
        assert pread(mount.snapshots / DOMAIN, 0, 100) == library.files[DOMAIN].read_bytes()[:100]


def _place(mount: Mount, name: str, data: bytes) -> None:
    path = mount.data_dir / "snapshots" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@NO_TORRENTS
def test_what_only_looks_like_a_torrent_is_none_for_who_makes_some(
    tmp_path: Path, no_torrent: Callable[[Path], None]
) -> None:
    (tmp_path / "a.seg").write_bytes(b"a")
    no_torrent(tmp_path / "a.seg.torrent")
    done = cachefs("torrent-hashes", tmp_path)
    assert (done.returncode, done.stdout[:11]) == (0, "'a.seg' = '"), done.stderr


def test_a_pipe_in_the_place_of_a_file_that_was_taken_over_in_place_is_not_waited_for(
    library: Library, tmp_path: Path, elsewhere: Path
) -> None:
    (elsewhere / BODIES).write_bytes(library.files[BODIES].read_bytes())
    adopted = typed("adopt", elsewhere, "--data-dir", tmp_path / "data", "--chain-toml", library.chain)
    assert "1 in place" in adopted.stdout
    (elsewhere / BODIES).unlink()
    _pipe(elsewhere / BODIES)
    with mounted(tmp_path, None, "--torrent-dir", library.products, "--deadline", "1") as mount:
        mount.knows(len(library.files))
        with pytest.raises(OSError, match="Input/output error"):
            pread(mount.snapshots / BODIES, 0, 1)
        assert mount.status()["store"]["complete"] == 0
