"""Mount and seed box in two networks with a cable between them: read across it, cut in the midst, plugged in again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.counterparts import Seedbox
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    PIECE,
    TRANSACTIONS,
    Library,
    Mount,
    cachefs,
    forget_pages,
    make_library,
    mounted,
    read_error,
    same,
    seeding,
)
from tests.network_kit import FAR_ADDRESS, NEAR_ADDRESS, Network, two_networks

LARGE, LENGTH = DOMAIN, 16 * 2**20
RATE = "48mbit"
"""So slow that the cable is cut in the midst of the large file on every machine, whatever fetches it."""

BEGUN, OVER = "nothing comes from any source", "bytes come again, after"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE + 1, LENGTH)


@contextmanager
def far_away(library: Library) -> Iterator[tuple[Network, Seedbox]]:
    """A seed box at the far end of a cable."""
    listening = ("--listen", f"{FAR_ADDRESS}:0", "--http", f"{FAR_ADDRESS}:0")
    with two_networks(RATE) as network, seeding(library, *listening, http=True, within=network.far) as box:
        yield network, box


@contextmanager
def near(place: Path, library: Library, network: Network, *options: str) -> Iterator[Mount]:
    """A mount at the near end."""
    listening = ("--listen", f"{NEAR_ADDRESS}:0")
    with mounted(place, library.chain, *listening, *options, within=network.near) as mount:
        yield mount


def _sources(box: Seedbox, *kinds: str) -> list[str]:
    return [word for kind in kinds for word in (f"--{kind}", str(box.peer) if kind == "peer" else box.url)]


def _partly_here(mount: Mount, library: Library) -> None:
    mount.child.wait_until("partly here", lambda: len(mount.held_pieces(library, LARGE)) >= 2)
    assert len(mount.held_pieces(library, LARGE)) < LENGTH // PIECE


def _fails_and_is_told(mount: Mount) -> bool:
    assert read_error(mount.snapshots / LARGE, LENGTH - 1, 1) == "EIO"
    return _logged(mount, BEGUN) > 0


def _logged(mount: Mount, words: str) -> int:
    return mount.child.printed().count(words)


def test_a_cut_cable_ends_reads_at_their_deadline_leaves_the_cache_readable_and_is_logged_once(
    library: Library, tmp_path: Path
) -> None:
    with far_away(library) as (network, box), ThreadPoolExecutor(1) as pool:
        with near(tmp_path, library, network, *_sources(box, "peer", "webseed"), "--deadline", "3") as mount:
            assert same(mount, library, [BODIES, TRANSACTIONS])
            reading = pool.submit(read_error, mount.snapshots / LARGE, 0, LENGTH)
            _partly_here(mount, library)
            network.cut()
            start = time.monotonic()
            assert reading.result(30) == "EIO"
            assert time.monotonic() - start < 3 + 4
            mount.child.wait_until("told of the outage", lambda: _fails_and_is_told(mount))
            assert "\noutage     nothing comes from any source, for " in cachefs("status", mount.mountpoint).stdout
            start = time.monotonic()
            forget_pages(mount.snapshots / TRANSACTIONS)
            assert same(mount, library, [BODIES, TRANSACTIONS])
            assert time.monotonic() - start < 3
            network.restore()
            mount.child.wait_until("whole", lambda: read_error(mount.snapshots / LARGE, 0, LENGTH) == "")
            assert same(mount, library)
            mount.child.wait_until("told", lambda: _logged(mount, OVER) > 0)
            assert (_logged(mount, BEGUN), _logged(mount, OVER)) == (1, 1)
            assert mount.status()["outage"] is None


@pytest.mark.parametrize("kind", ["peer", "webseed"])
def test_a_read_that_waits_while_the_cable_is_out_goes_on_when_it_is_back(
    library: Library, tmp_path: Path, kind: str
) -> None:
    with far_away(library) as (network, box), ThreadPoolExecutor(1) as pool:
        with near(tmp_path, library, network, *_sources(box, kind)) as mount:
            reading = pool.submit(read_error, mount.snapshots / LARGE, 0, LENGTH)
            _partly_here(mount, library)
            network.cut()
            mount.child.wait_until("told of the outage", lambda: _logged(mount, BEGUN) > 0)
            assert not reading.done()
            network.restore()
            assert reading.result(60) == ""
            assert same(mount, library)
            mount.child.wait_until("told", lambda: _logged(mount, OVER) > 0)
            assert (_logged(mount, BEGUN), _logged(mount, OVER)) == (1, 1)
