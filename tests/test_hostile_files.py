"""Files of other users' that the daemon comes upon: none holds it up, and none has it serve what nobody checked."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cachefs.store.lock import holder
from tests.counterparts import cachefs_seed
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HEADERS,
    NOBODY,
    PIECE,
    Library,
    Mount,
    cachefs,
    make_library,
    mount_command,
    mounted,
    pread,
    seeding,
    typed,
)
from tests.origin_kit import download


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


ANOTHER_USER = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def his(library: Library, tmp_path: Path) -> Path:
    """Another user's directory with all files of the library."""
    root = Path(shutil.copytree(library.root, tmp_path / "his"))
    for path in (root, *root.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    return root


@pytest.fixture
def adopted(library: Library, tmp_path: Path, his: Path) -> Path:
    """The same, taken over by hard links."""
    done = typed("adopt", his, "--data-dir", tmp_path / "data", "--chain-toml", library.chain)
    assert f"({len(library.files)} hard link)" in done.stdout
    return his


def _spoil(path: Path) -> None:
    """Change the first bytes of a file, and have it look as before."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"EVIL")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@ANOTHER_USER
@pytest.mark.parametrize("while_mounted", [False, True])
def test_nobody_reads_what_the_owner_of_a_linked_file_wrote_to_it_under_its_old_time(
    library: Library, tmp_path: Path, adopted: Path, while_mounted: bool
) -> None:
    wanted = library.files[BODIES].read_bytes()[:4]
    if not while_mounted:
        _spoil(adopted / BODIES)
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        if while_mounted:
            assert pread(mount.snapshots / BODIES, 0, 4) == wanted
            _spoil(adopted / BODIES)
            # EIO, or the right bytes if the look at what changed, which follows a start, has had it mended already.
            with suppress(OSError):
                assert _past_the_page_cache(mount.snapshots / BODIES)[:4] == wanted
            assert typed("verify", "--repair", "--data-dir", mount.data_dir).returncode == 0
        assert pread(mount.snapshots / BODIES, 0, 4) == wanted
        assert (adopted / BODIES).read_bytes()[:4] == b"EVIL"


def _past_the_page_cache(path: Path) -> bytes:
    """The first bytes of a file, as the daemon gives them now."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        return page[: os.preadv(fd, [page], 0)]
    finally:
        os.close(fd)


@ANOTHER_USER
def test_nobody_reads_what_is_written_to_a_linked_file_whose_owner_has_deleted_its_name_and_kept_it_open(
    library: Library, tmp_path: Path, adopted: Path
) -> None:
    with (adopted / HEADERS).open("r+b", buffering=0) as kept:
        (adopted / HEADERS).unlink()
        with mounted(tmp_path) as mount:
            fd = os.open(mount.snapshots / HEADERS, os.O_RDONLY)
            kept.write(b"E")
            try:
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(fd, 1, 0)
            finally:
                os.close(fd)


@ANOTHER_USER
def test_a_page_that_was_written_to_before_it_was_hashed_cant_be_written_to_unseen_afterwards(
    library: Library, tmp_path: Path, his: Path
) -> None:
    wanted = library.files[BODIES].read_bytes()[:4]
    with (his / BODIES).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:4] = wanted
        done = typed("adopt", his, "--data-dir", tmp_path / "data", "--chain-toml", library.chain)
        assert f"({len(library.files)} hard link)" in done.stdout
        mapped[:4] = b"EVIL"
        with mounted(tmp_path, None, "--deadline", "2") as mount, pytest.raises(OSError, match="Input/output error"):
            pread(mount.snapshots / BODIES, 0, 4)


@ANOTHER_USER
def test_what_was_known_of_another_users_file_is_not_believed_under_its_old_time(
    library: Library, tmp_path: Path, his: Path
) -> None:
    first = typed("adopt", his, "--data-dir", tmp_path / "other", "--chain-toml", library.chain)
    assert first.returncode == 0
    shutil.copy(library.torrent(BODIES), his)
    (tmp_path / "data").mkdir()
    shutil.copy(tmp_path / "other" / "hashes.json", tmp_path / "data")
    _spoil(his / BODIES)
    done = typed("adopt", his, "--data-dir", tmp_path / "data", "--chain-toml", library.chain)
    assert f"{BODIES}: the file has" in done.stdout


def test_a_link_that_was_put_in_the_place_of_what_is_seeded_leads_nobody_anywhere(tmp_path: Path) -> None:
    published, secret = tmp_path / "published", tmp_path / "secret"
    for folder in (published / "domain", secret / "elsewhere"):
        folder.mkdir(parents=True)
    data = os.urandom(100)
    for name in ("a.seg", "domain/a.kv"):
        (published / name).write_bytes(data)
    for path in (secret / "a.seg", secret / "a.kv"):
        path.write_bytes(b"s" * 100)
    with cachefs_seed(published) as box:
        (published / "a.seg").unlink()
        (published / "a.seg").symlink_to(secret / "a.seg")
        (published / "domain").rename(published / "before")
        (published / "domain").symlink_to(secret)
        assert {httpx.get(f"{box.url}{name}").status_code for name in ("a.seg", "domain/a.kv")} == {404}
        torrents = [published / "a.seg.torrent", published / "before" / "a.kv.torrent"]
        for torrent in torrents:
            assert download(torrent, tmp_path, peer=box.peer) == data


@ANOTHER_USER
def test_another_user_who_locks_the_directories_keeps_no_daemon_from_starting(library: Library, tmp_path: Path) -> None:
    for folder in (tmp_path / "mnt", tmp_path / "data"):
        folder.mkdir(mode=0o755)
    code = "import fcntl, sys; [fcntl.flock(int(fd), fcntl.LOCK_EX) for fd in sys.argv[1:]]; print(flush=True); input()"
    # They are opened here, for a user who owns nothing can't get to them through a directory of the tests'.
    folders = [os.open(folder, os.O_RDONLY) for folder in (tmp_path / "mnt", tmp_path / "data")]
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", code, *map(str, folders)], pass_fds=folders, cwd="/",
        user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        for descriptor in folders:
            os.close(descriptor)
        try:
            with mounted(tmp_path, library.chain) as mount:
                mount.kill9()
                assert cachefs("umount", mount.mountpoint).returncode == 0
        finally:
            process.kill()


def test_no_other_user_can_hold_the_databases_locks_or_read_the_log(library: Library, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    command = mount_command(tmp_path, library.chain, "--daemon")
    for _ in range(2):
        assert cachefs(*command).returncode == 0
        try:
            files = [
                path for path in (tmp_path / "data").iterdir() if path.name.startswith(("state.db", "cachefs.log"))
            ]
            assert {path.name for path in files} == {"cachefs.log", "state.db", "state.db-shm", "state.db-wal"}
            assert [path.name for path in files if path.stat().st_mode & 0o007] == []
        finally:
            assert cachefs("umount", tmp_path / "mnt").returncode == 0
        (tmp_path / "data" / "state.db").chmod(0o644)


@ANOTHER_USER
def test_links_of_a_user_who_may_write_beside_the_snapshots_lead_the_daemon_nowhere(
    library: Library, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "mine").write_bytes(b"mine")
    with mounted(tmp_path, library.chain) as mount:
        _place(mount, BODIES, library.files[BODIES].read_bytes())
        for name, target in (("everything", Path("/")), ("domain", elsewhere)):
            link = mount.data_dir / "snapshots" / name
            link.symlink_to(target)
            os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
        done = cachefs("reload", mount.mountpoint)
        assert "everything: is a link of another user's, which isn't followed\n" in done.stdout
        assert mount.status()["store"]["complete"] == 1
        done = cachefs("lock", "override", DOMAIN, tmp_path / "mine", "--data-dir", mount.data_dir)
        assert (done.returncode, [*elsewhere.iterdir()]) == (1, [])
        os.chown(link, 0, 0, follow_symlinks=False)
        done = cachefs("lock", "override", DOMAIN, tmp_path / "mine", "--data-dir", mount.data_dir)
        assert (done.returncode, done.stderr) == (0, "")


@ANOTHER_USER
def test_a_lock_that_a_user_who_may_write_beside_it_puts_there_decides_nothing(
    library: Library, tmp_path: Path
) -> None:
    with mounted(tmp_path, library.chain) as mount:
        mount.lock.parent.chmod(0o1775)  # as for a writable view of his
        names = mount.status()["catalogue"]["names"]
        mount.lock.write_text('{"chain":"unknown","downloads":{"a.seg":"' + "0" * 40 + '"}}')
        os.chown(mount.lock, NOBODY, NOBODY)
        done = cachefs("reload", mount.mountpoint)
        assert (done.returncode, "was put there by the user 65534" in done.stderr) == (1, True)
        assert mount.status()["catalogue"]["names"] == names
        assert cachefs("lock", "show", "--data-dir", mount.data_dir).returncode == 1


@ANOTHER_USER
def test_the_log_is_not_written_through_another_users_link(library: Library, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (tmp_path / "data").mkdir()
    log = tmp_path / "data" / "cachefs.log"
    log.symlink_to(victim)
    os.chown(log, NOBODY, NOBODY, follow_symlinks=False)
    command = mount_command(tmp_path, library.chain, "--daemon")
    try:
        done = cachefs(*command)
        assert (done.returncode, victim.read_text()) == (1, "as it was")
        os.chown(log, 0, 0, follow_symlinks=False)
        assert cachefs(*command).returncode == 0
        assert "made with" in victim.read_text()
    finally:
        cachefs("umount", tmp_path / "mnt")


def test_a_pipe_in_the_place_of_a_data_directorys_lock_is_not_waited_for(tmp_path: Path) -> None:
    _pipe(tmp_path / "lock")
    assert holder(tmp_path) == ""
