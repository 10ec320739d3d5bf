"""What the tests of a real mount share: content with its torrents, a running daemon, and ways to read through it.

How it works: a `Library` is a directory of originals and, apart from it, what a seed box publishes of them; any
source of `tests.counterparts` can serve it. `mounted` runs `cachefs mount` as a child process of its own, in the
foreground, so that its end and its exit code are seen; its control socket is asked directly, because a
test polls it often. Whatever happens in a test, the daemon is ended by its pid and the mount is taken away.

Readers run in threads of a pool. Open the pool outside `mounted`: the mount's end is what frees a reader that
still waits.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from cachefs import metainfo, mountinfo
from cachefs.catalog.chain import format_chain
from cachefs.cli import main
from cachefs.content import ContentId
from cachefs.control import socket as control
from cachefs.origin.torrents import publish
from tests.counterparts import Child, CounterpartFailed, Peer, Seedbox, cachefs_seed, make_snapshots, running

PIECE = metainfo.ERIGON_PIECE_LENGTH
NOBODY = 65534
"""A user who owns nothing."""


def passes_through() -> bool:
    """Whether `cachefs mount --passthrough` may be had here."""
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return os.geteuid() == 0 and release >= (6, 9)


PASSTHROUGH = pytest.mark.skipif(not passes_through(), reason="passthrough needs root and Linux 6.9")
"""Where it isn't to be had, the mount says so; there is nothing else to test."""

DRIVERS = [pytest.param((), id="pyfuse3"), pytest.param(("--passthrough",), id="devfuse", marks=PASSTHROUGH)]
"""The options of a mount with either driver, for what hangs on who speaks to the kernel."""

BOTH_DRIVERS = pytest.mark.parametrize("driver", DRIVERS)

HEADERS, BODIES = "v1-000000-000500-headers.seg", "v1-000000-000500-bodies.seg"
TRANSACTIONS = "v1-000000-000500-transactions.seg"
DOMAIN, HISTORY = "domain/v1-accounts.0-64.kv", "history/v1-accounts.0-64.v"
"""The names of `make_snapshots`, in its order: a library of five sizes has all of these."""


@dataclass(frozen=True, slots=True)
class Library:
    """Originals below `root` by name, and their .torrent files, chain.toml and manifest.txt below `products`."""

    root: Path
    products: Path
    files: dict[str, Path]

    @property
    def chain(self) -> Path:
        return self.products / "chain.toml"

    def torrent(self, name: str) -> Path:
        return self.products / f"{name}.torrent"

    def content(self, name: str) -> ContentId:
        return metainfo.parse(self.torrent(name).read_bytes()).content

    def merged(self, into: Path) -> Path:
        """One directory with originals and products side by side, as a web host has them."""
        for tree in (self.root, self.products):
            shutil.copytree(tree, into, dirs_exist_ok=True, copy_function=os.link)
        return into

    def corrupted(self, into: Path) -> Library:
        """A copy whose files have other bytes of the same length, beside .torrent files that a seed box trusts."""
        root = Path(shutil.copytree(self.root, into / "root"))
        products = Path(shutil.copytree(self.products, into / "products"))
        for name in self.files:
            (root / name).write_bytes(bytes(byte ^ 0x55 for byte in (root / name).read_bytes()))
            later = (root / name).stat().st_mtime_ns + 10**9
            os.utime(products / f"{name}.torrent", ns=(later, later))
        return replace(self, root=root, products=products, files={name: root / name for name in self.files})

    def only(self, into: Path, *names: str) -> Library:
        """A library of the same bytes that has only `names`."""
        for name in names:
            (into / "root" / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.files[name], into / "root" / name)
        return _published(into, {name: into / "root" / name for name in names})


def make_library(into: Path, *sizes: int, seed: int = 1) -> Library:
    """Random files of these sizes with Erigon's names, and erigondb.toml, with everything a seed box publishes."""
    return _published(into, make_snapshots(into / "root", *sizes, seed=seed))


def _published(into: Path, files: dict[str, Path]) -> Library:
    trio.run(publish, into / "root", into / "products")
    return Library(into / "root", into / "products", files)


@contextmanager
def seeding(library: Library, *options: str, http: bool = False, within: Sequence[str] = ()) -> Iterator[Seedbox]:
    """`cachefs seed` of a library, as a peer; as a web seed too with `http`; `within` another network, if given."""
    with cachefs_seed(library.root, "--out", library.products, *options, http=http, within=within) as box:
        yield box


def dead_chain(path: Path, count: int) -> list[str]:
    """Write a chain.toml of `count` names whose content nobody has; the names."""
    names = [f"v1-{number:06}-{number + 1:06}-bodies.seg" for number in range(count)]
    entries = {name: ContentId("btih", hashlib.sha1(name.encode()).digest()) for name in names}
    path.write_text(format_chain(entries))
    return names


def cachefs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A `cachefs` command run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cachefs", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def typed(*arguments: str | Path) -> Done:
    """The same in this process, which saves a second of starting one."""
    done = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    return Done(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Mount:
    """A running mount; `child` is its daemon."""

    mountpoint: Path
    data_dir: Path
    child: Child

    @property
    def snapshots(self) -> Path:
        return self.mountpoint / "snapshots"

    @property
    def lock(self) -> Path:
        return self.data_dir / "snapshots" / "snapshot-lock.json"

    def status(self) -> dict[str, Any]:
        """What the daemon answers to `status`, as `cachefs status --json` prints it."""
        answer: dict[str, Any] = control.ask(self.data_dir, "status")
        return answer

    def wait_for(self, what: str, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first status for which `condition` holds; CounterpartFailed if none does in time."""
        seen: list[dict[str, Any]] = [{}]

        def holds() -> bool:
            seen[0] = self.status()
            return bool(condition(seen[0]))

        try:
            self.child.wait_until(what, holds)
        except CounterpartFailed as error:
            raise AssertionError(f"{error}\nlast status: {seen[0]}") from error
        return seen[0]

    def received(self, at_least: int = 0) -> int:
        """The bytes that all sources gave, once at least so many were counted, nothing is wanted and nothing comes.

        The sources are measured about once a second, and the rate of one that went still falls with each
        measurement: so bytes that are the same while the rates changed are of two measurements.
        """
        seen: list[tuple[int, float]] = []

        def still(now: dict[str, Any]) -> bool:
            rate, total = sum(source["rate"] for source in now["sources"]), received_in(now)
            seen[:] = [then for then in seen if then[0] == total]
            seen.append((total, rate))
            wanted = now["waiting"] or any(transfer["wanted_blocks"] for transfer in now["transfers"])
            return not wanted and total >= at_least and (rate == 0 or len({rate for _, rate in seen}) > 1)

        return received_in(self.wait_for(f"still with {at_least} bytes received", still))

    def waiting(self, readers: int) -> dict[str, Any]:
        """The status when at least so many reads wait for content."""
        return self.wait_for(
            f"waited for by {readers}",
            lambda now: sum(wait["for"] == "content" for wait in now["waiting"]) >= readers,
        )

    def knows(self, names: int) -> None:
        """Return when the metadata of so many names is known."""
        self.wait_for(f"knowing {names} names", lambda now: now["metadata"]["known"] >= names)

    def object(self, library: Library, name: str) -> Path:
        """The object's directory in the store."""
        content = library.content(name)
        return self.data_dir / "store" / content.algorithm / content.hex[:2] / content.hex

    def held_pieces(self, library: Library, name: str) -> set[int]:
        """The pieces of which the store holds any data, as the file system tells."""
        return pieces_with_data(self.object(library, name) / "data")

    def ended(self) -> int:
        """The daemon's exit code, once it has ended by itself."""
        return self.child.process.wait(20)

    def unmount(self) -> None:
        """`cachefs umount`, which must succeed, and the daemon with it."""
        done = cachefs("umount", self.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        code = self.ended()
        assert code == 0, f"{code}: {self.child.printed()}"

    def kill9(self) -> None:
        """End the daemon with no chance to do anything, and leave its mount dead."""
        self.child.process.kill()
        self.child.process.wait()


def mount_command(
    place: Path,
    chain: Path | None = None,
    *options: str | Path,
    peers: Iterable[Peer | str] = (),
    webseeds: Iterable[str] = (),
    settings: str = "",
) -> list[str | Path]:
    """The arguments of `cachefs mount` for `place`/mnt and `place`/data; `settings` is a cachefs.toml's text."""
    (place / "mnt").mkdir(parents=True, exist_ok=True)
    arguments: list[str | Path] = ["mount", place / "mnt", "--data-dir", place / "data"]
    arguments += ["--listen", "127.0.0.1:0", "--offline-discovery"]
    if chain is not None:
        arguments += ["--chain-toml", chain]
    for peer in peers:
        arguments += ["--peer", str(peer)]
    for url in webseeds:
        arguments += ["--webseed", url]
    if settings:
        (place / "cachefs.toml").write_text(settings)
        arguments += ["--config", place / "cachefs.toml"]
    return [*arguments, *options]


@contextmanager
def mounted(
    place: Path,
    chain: Path | None = None,
    *options: str | Path,
    peers: Iterable[Peer | str] = (),
    webseeds: Iterable[str] = (),
    settings: str = "",
    within: Sequence[str] = (),
) -> Iterator[Mount]:
    """A usable mount on `place`/mnt with its data in `place`/data, as often as wanted one after another.

    `within` comes before the command, to start it in another network.
    """
    arguments = mount_command(place, chain, *options, peers=peers, webseeds=webseeds, settings=settings)
    command = [*within, *command_of(arguments)]
    with cleared(place / "mnt"), running("cachefs mount", command, signal.SIGTERM) as child:
        child.wait_until("ready", lambda: "; ready\n" in child.printed())
        yield Mount(place / "mnt", place / "data", child)


def command_of(arguments: Iterable[str | Path]) -> list[str | Path]:
    return [sys.executable, "-m", "cachefs", *arguments]


@contextmanager
def cleared(mountpoint: Path) -> Iterator[None]:
    """Whatever happens meanwhile, no mount is left there."""
    try:
        yield
    finally:
        while mountinfo.mount_at(mountpoint) is not None:
            mountinfo.unmount_lazily(mountpoint)


def received_in(status: dict[str, Any]) -> int:
    return sum(source["received"] for source in status["sources"])


def source_in(status: dict[str, Any], name: object) -> dict[str, Any]:
    """What the status tells of the source with this name."""
    found: dict[str, Any] = next(source for source in status["sources"] if source["name"] == str(name))
    return found


def same(mount: Mount, library: Library, names: Iterable[str] | None = None) -> bool:
    """Whether `cmp` finds no difference between each name in the mount and its original; prints what it finds."""
    wanted = library.files if names is None else names
    said = next(filter(None, (differs(library.files[name], mount.snapshots / name) for name in wanted)), "")
    print(said, end="")
    return not said


def differs(original: Path, shown: Path) -> str:
    """What `cmp` says; empty when both files are the same."""
    done = subprocess.run(["cmp", original, shown], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr or ("" if done.returncode == 0 else f"cmp ended with {done.returncode}")


def pread(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes at `offset`, by one system call on a descriptor of its own."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


def part(path: Path, offset: int, size: int) -> bytes:
    """The same of an original, however it is read."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def read_error(path: Path, offset: int = 0, size: int = 4096) -> str:
    """The name of the errno that reading ends with, EIO say; empty when all `size` bytes, or the end, are reached."""
    end = offset + size
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    try:
        while offset < end and (data := os.pread(fd, end - offset, offset)):
            offset += len(data)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        with suppress(OSError):  # closing fails too when the daemon is gone
            os.close(fd)
    return ""


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """While this lasts, a directory is on a file system that is mounted read-only. For root alone."""
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def small(directory: Path) -> Iterator[None]:
    """While this lasts, a new directory is a file system of its own, with no room. For root alone."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=700", "none", directory], check=True)
    try:
        (directory / "filling").write_bytes(bytes(4096))
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def forget_pages(path: Path) -> None:
    """Drop what the kernel keeps of a file, so that the next read asks the daemon."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def pieces_with_data(path: Path) -> set[int]:
    """The pieces of a sparse file in which anything was written; none if there is no such file."""
    found: set[int] = set()
    with suppress(FileNotFoundError), path.open("rb") as file:
        end = 0
        with suppress(OSError):  # ENXIO: no data from here on
            while True:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                found.update(range(start // PIECE, (end - 1) // PIECE + 1))
    return found
