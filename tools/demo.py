"""`make demo`: a swarm, a mount and a first read, all on this machine, and every claim checked.

How it works: a folder gets files with Erigon's names, two seed boxes serve them (`cachefs seed`; one is a web seed,
too), and a mount reads from both. The readers are ordinary ones, and what they get is compared with the originals
byte by byte. One file has rotted at the second seed box, which doesn't know and serves it as it is; the
reader must not notice and the status must name the box. Then the boxes are ended, and everything is read again.

The commands shown are the ones that are run. Where something isn't as it should be, the demo says so, clears
up and exits with 1. Nothing stays behind: processes, mount and files belong to contexts, also under Ctrl-C.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Run as `tools/demo.py`: the checkout is what `tools` and `tests` are packages of.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.filesize import decimal

from cachefs.catalog.chain import load_chain
from cachefs.errors import CachefsError
from tests.counterparts import ERIGONDB_TOML, CounterpartFailed, Seedbox, cachefs_seed
from tools import mounting
from tools.demo_screen import Fetching, Screen
from tools.mounting import Failed, Mount

MIB = 2**20
LARGE = "v1-000000-000500-transactions.seg"
ROTTEN = "history/v1-accounts.0-64.v"
FILES = {
    "v1-000000-000500-headers.seg": 7 * MIB + 4_211,
    "v1-000000-000500-bodies.seg": 31 * MIB + 90_007,
    LARGE: 768 * MIB + 123_457,
    "domain/v1-accounts.0-64.kv": 48 * MIB + 31,
    ROTTEN: 128 * MIB + 1_003,
    "idx/v1-accounts.0-64.ef": 5 * MIB + 777,
    "accessor/v1-accounts.0-64.vi": 3 * MIB + 12,
    "caplin/v1-000000-000500-beaconblocks.seg": 12 * MIB + 5,
    "salt-blocks.txt": 4,
}
SIZES = FILES | {"erigondb.toml": len(ERIGONDB_TOML)}
PUBLISHED = "49fd7968"
"""How the info-hash that Erigon publishes for this erigondb.toml begins."""

A_HOST, B_HOST = "127.0.0.1", "127.0.0.2"
"""libtorrent bans wrong bytes' senders by address: on one address both boxes would be banned."""
CATALOGUE = "snapshots"

_CHUNK = MIB
_LOOK_EVERY = 0.1
_ACCOUNT_EVERY = 1.2
"""Longer than the mount takes between asking libtorrent who gave what, in seconds."""
_ACCOUNTED_WITHIN = 5.0


@dataclass(frozen=True, slots=True)
class Boxes:
    """The seed boxes that run: box A's address as a peer and its URL as a web seed, and box B's address."""

    a: str
    a_web: str
    b: str
    processes: tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]

    def names(self) -> dict[str, str]:
        """What the mount's sources are, by the names it calls them."""
        return {
            self.a: f"box A, torrent   {self.a}",
            self.a_web: f"box A, web seed  {self.a_web}",
            self.b: f"box B, torrent   {self.b}",
        }


class Demo:
    """The story, a method a step; each raises Failed when what it claims doesn't hold."""

    def __init__(self, folder: Path, screen: Screen) -> None:
        self._folder = folder
        self._screen = screen
        self._origin = folder / "origin"
        self._copy = folder / "copy"

    def run(self) -> None:
        self._make_files()
        with ExitStack() as running:
            boxes = running.enter_context(self._boxes())
            with self._first_mount(boxes) as mount:
                self._list()
                self._first_read(mount, boxes)
                running.close()
                self._without_sources(mount, boxes)
            self._unmounted(mount)
        self._rot()
        with self._boxes() as boxes, self._second_mount(boxes) as mount:
            self._lying_source(mount, boxes)
        self._unmounted(mount)

    def _make_files(self) -> None:
        self._screen.step("Snapshot files with Erigon's names, and two seed boxes that have them")
        for name, size in FILES.items():
            mounting.fill(self._origin / name, size)
        (self._origin / "erigondb.toml").write_bytes(ERIGONDB_TOML)
        total = decimal(sum(SIZES.values()))
        self._screen.note(f"origin/ has {len(SIZES)} files, {total} of random bytes; copy/ has the same")

    @contextmanager
    def _boxes(self) -> Iterator[Boxes]:
        """Box A on the origin, a web seed too, and box B on the copy."""
        with self._box(self._origin, A_HOST, "--http", f"{A_HOST}:0") as a:
            if not self._copy.exists():
                self._check_published(a.chain)
                shutil.copytree(self._origin, self._copy, copy_function=os.link)
            with self._box(self._copy, B_HOST) as b:
                yield Boxes(f"{A_HOST}:{_port(a)}", a.url, f"{B_HOST}:{_port(b)}", (a.process, b.process))

    @contextmanager
    def _box(self, directory: Path, host: str, *http: str) -> Iterator[Seedbox]:
        options = ("--listen", f"{host}:0", *http)
        with cachefs_seed(directory, *options, http=bool(http)) as box:
            self._screen.command(f"cachefs seed {directory.name} {' '.join(options)}")
            self._screen.said(f"torrent {host}:{_port(box)}" + (f", http {box.url}" if box.url else ""))
            yield box

    def _check_published(self, chain: Path) -> None:
        info_hash = load_chain(chain)["erigondb.toml"].hex
        _require(info_hash.startswith(PUBLISHED), f"erigondb.toml has info-hash {info_hash}, not {PUBLISHED}…")
        self._screen.holds(f"erigondb.toml has the info-hash that Erigon publishes: {info_hash[:8]}…")

    @contextmanager
    def _first_mount(self, boxes: Boxes) -> Iterator[Mount]:
        self._screen.step("A mount: every name is there with its size, and no content yet")
        chain = ("--chain-toml", "origin/chain.toml", "--chain", "mainnet")
        with self._mount(chain, ("--peer", boxes.a, "--webseed", boxes.a_web, "--peer", boxes.b)) as mount:
            yield mount

    @contextmanager
    def _second_mount(self, boxes: Boxes) -> Iterator[Mount]:
        # Peers are asked first: the only one is the box with wrong bytes, so it is met whatever else happens.
        with self._mount((), ("--peer", boxes.b, "--webseed", boxes.a_web)) as mount:
            yield mount

    @contextmanager
    def _mount(self, *options: tuple[str, ...]) -> Iterator[Mount]:
        first, *others = (" ".join(line) for line in (mounting.PRIVATE, *options) if line)
        self._screen.command(f"cachefs mount mnt --data-dir data --daemon {first}", *others)
        with mounting.mounted(self._folder, *itertools.chain(*options)) as mount:
            self._screen.said(mount.said.replace(f"{self._folder}/", ""))
            yield mount

    def _list(self) -> None:
        listing = self._run("find mnt -type f -printf '%11s  %P\\n'")
        self._screen.said(listing)
        found = {name: int(size) for size, name in (line.split(maxsplit=1) for line in listing.splitlines())}
        expected = {f"{CATALOGUE}/{name}": size for name, size in SIZES.items()}
        _require(found == expected, f"the listing should be {expected}")

    def _first_read(self, mount: Mount, boxes: Boxes) -> None:
        self._screen.step("A first read: fetched from everybody at once, each piece checked before it is handed out")
        self._read_and_compare(mount, boxes, LARGE)

    def _read_and_compare(self, mount: Mount, boxes: Boxes, name: str) -> None:
        size, who, before = FILES[name], boxes.names(), _received(mount)
        with Fetching(self._screen, name, size) as picture:
            started = shown = time.monotonic()
            for done in _compare(self._origin / name, mount.path / CATALOGUE / name):
                if time.monotonic() >= shown + _LOOK_EVERY:
                    picture.update(done, time.monotonic() - started, _gave(mount, who, before))
                    shown = time.monotonic()
            seconds = time.monotonic() - started
            _wait_for("the bytes to be accounted for", lambda: _accounted(mount, before, size))
            picture.update(size, seconds, _gave(mount, who, before))
        self._screen.holds("identical to the original, byte by byte")

    def _without_sources(self, mount: Mount, boxes: Boxes) -> None:
        self._screen.step("Both boxes are ended: what was read is here, and needs no network")
        _require(all(process.poll() is not None for process in boxes.processes), "a seed box still runs")
        before, started = _settled(mount), time.monotonic()
        self._run(f"cmp origin/{LARGE} mnt/{CATALOGUE}/{LARGE}")
        seconds = time.monotonic() - started
        _require(sum(_received(mount).values()) == before, "something was received")
        rate = decimal(int(FILES[LARGE] / seconds))
        self._screen.holds(f"identical, in {seconds:.1f} s ({rate}/s), and nothing was received")

    def _rot(self) -> None:
        """Spoil the copy of one file, and let its box believe the .torrent that it has."""
        self._screen.step("A source with wrong bytes: no reader sees them, and the source is named")
        spoilt = self._copy / ROTTEN
        spoilt.unlink()
        shutil.copyfile(self._origin / ROTTEN, spoilt)
        with spoilt.open("r+b") as file:
            for offset in range(MIB, FILES[ROTTEN], 2 * MIB):
                byte = os.pread(file.fileno(), 1, offset)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
        # A .torrent that is newer than its file is trusted, and the file isn't hashed.
        later = time.time() + 60
        os.utime(self._copy / f"{ROTTEN}.torrent", (later, later))
        self._screen.note(f"copy/{ROTTEN} rots: now one bit of every piece is wrong")

    def _lying_source(self, mount: Mount, boxes: Boxes) -> None:
        self._read_and_compare(mount, boxes, ROTTEN)
        _wait_for("the source with wrong bytes to be named", lambda: _blamed(mount) == {boxes.b})
        self._screen.said(self._run(f"cachefs status mnt | grep {boxes.b}"))
        self._screen.holds("the right bytes, and the wrong ones' source is named")

    def _unmounted(self, mount: Mount) -> None:
        self._screen.command("cachefs umount mnt")
        _require(not any(mount.path.iterdir()), "the mount point is not empty")
        _wait_for(f"the daemon {mount.pid} to end", lambda: mounting.has_ended(mount.pid))

    def _run(self, command: str) -> str:
        self._screen.command(command)
        return mounting.output("sh", "-c", command, cwd=self._folder).rstrip("\n")


def _port(box: Seedbox) -> int:
    assert box.peer is not None
    return box.peer.port


def _compare(original: Path, copy: Path) -> Iterator[int]:
    """Read both side by side, yielding how many bytes were equal so far; Failed where they differ."""
    with original.open("rb", buffering=0) as left, copy.open("rb", buffering=0) as right:
        for done in itertools.count(0, _CHUNK):
            expected, got = left.read(_CHUNK), right.read(_CHUNK)
            _require(expected == got, f"{copy} differs from {original} after byte {done}")
            if not got:
                return
            yield done + len(got)


def _received(mount: Mount) -> dict[str, int]:
    return {source["name"]: source["received"] for source in mount.status()["sources"]}


def _settled(mount: Mount) -> int:
    """The bytes received, once the account of them stands still."""
    counts = [-1, sum(_received(mount).values())]
    while counts[-1] != counts[-2]:
        time.sleep(_ACCOUNT_EVERY)
        counts.append(sum(_received(mount).values()))
    return counts[-1]


def _accounted(mount: Mount, before: dict[str, int], size: int) -> bool:
    """Whether the status says where `size` bytes came from.

    libtorrent is asked once a second, so the last second's bytes are still to come. It forgets the last bytes of a
    peer that it bans, hence not quite all.
    """
    return sum(_received(mount).values()) - sum(before.values()) >= 0.95 * size


def _gave(mount: Mount, who: dict[str, str], before: dict[str, int]) -> dict[str, tuple[int, float]]:
    """What each source gave since `before`, and its rate, by what it is; those who gave nothing are left out."""
    reports = {source["name"]: source for source in mount.status()["sources"]}
    gave = {name: reports[name]["received"] - before.get(name, 0) for name in who if name in reports}
    return {who[name]: (received, reports[name]["rate"]) for name, received in gave.items() if received}


def _blamed(mount: Mount) -> set[str]:
    """The sources of which the status says that they sent wrong bytes."""
    return {source["name"] for source in mount.status()["sources"] if "wrong bytes" in source["last_error"]}


def _wait_for(what: str, condition: Callable[[], object]) -> object:
    deadline = time.monotonic() + _ACCOUNTED_WITHIN
    while not (value := condition()):
        _require(time.monotonic() < deadline, f"waited in vain for {what}")
        time.sleep(_LOOK_EVERY)
    return value


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failed(otherwise)


def main() -> int:
    """Run the demo; the exit code."""
    mounting.end_on_signals()
    screen, started = Screen(), time.monotonic()
    screen.title("cachefs: a swarm, a mount and a first read, all on this machine")
    try:
        with mounting.scratch("cachefs-demo-", 3 * sum(FILES.values())) as folder:
            Demo(folder, screen).run()
    except (Failed, CachefsError, CounterpartFailed, OSError) as error:
        screen.failed(str(error))
        return 1
    except KeyboardInterrupt:
        screen.failed("interrupted; everything is cleared away")
        return 130
    screen.holds(f"nothing is left behind, after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
