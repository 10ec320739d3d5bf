"""Two web seeds, one of which is broken in every way that web hosts are: reads are right, and the culprit is named.

Each case prints its worst stall: the longest that a single read of 64 KiB took.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.counterparts import LOOPBACK, free_port, nginx, refusing_port, silent_server
from tests.mount_kit import PIECE, Library, Mount, make_library, mounted, part, read_error, same, source_in

SIZE = 6 * PIECE + 1
STEP = 2**16
WORST = 12.0
"""Seconds that no read may take, whatever a source does, on however busy a machine; most take less than two."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), SIZE, 5, PIECE)


@pytest.fixture(scope="module")
def large(library: Library) -> str:
    return max(library.files, key=lambda name: library.files[name].stat().st_size)


@contextmanager
def dead(library: Library, place: Path) -> Iterator[str]:
    with refusing_port() as port:
        yield f"http://{LOOPBACK}:{port}/"


@contextmanager
def silent(library: Library, place: Path) -> Iterator[str]:
    with silent_server() as port:
        yield f"http://{LOOPBACK}:{port}/"


def configured(location: str) -> Callable[[Library, Path], AbstractContextManager[str]]:
    return lambda library, place: nginx(library.root, location=location)


def wrong(library: Library, place: Path) -> AbstractContextManager[str]:
    return nginx(library.corrupted(place / "wrong").root)


@contextmanager
def truncating(library: Library, place: Path) -> Iterator[str]:
    """A host that promises a whole answer, sends half of it and hangs up."""

    class Half(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = library.root / self.path.lstrip("/")
            size = path.stat().st_size
            ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start = int(ranged[1]) if ranged else 0
            end = int(ranged[2] or size - 1) + 1 if ranged else size
            self.send_response(206 if ranged else 200)
            if ranged:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if body:
                self.wfile.write(part(path, start, (end - start) // 2))
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            return None

    with ThreadingHTTPServer((LOOPBACK, 0), Half) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


FAULTS: dict[str, tuple[Callable[[Library, Path], AbstractContextManager[str]], str]] = {
    "dead": (dead, "refused"),
    "silent after accept": (silent, "silent"),
    "403": (configured("return 403;"), "403"),
    "404": (configured("return 404;"), "does not have it"),
    "503 with Retry-After": (configured("add_header Retry-After 30 always; return 503;"), "503.*asked again in 30 s"),
    "truncating": (truncating, "cut short"),
    "without Range": (configured("max_ranges 0;"), "does not answer ranges"),
    "wrong bytes": (wrong, "wrong bytes"),
    "20 KB/s": (configured("limit_rate 20k;"), "slow"),
}


def worst_stall(mount: Mount, library: Library, name: str) -> float:
    """Read a file in small steps from its middle on, and then from its start; the longest step in seconds."""
    worst = 0.0
    fd = os.open(mount.snapshots / name, os.O_RDONLY)
    try:
        for offset in [*range(3 * PIECE, SIZE, STEP), *range(0, 3 * PIECE, STEP)]:
            before = time.monotonic()
            got = os.pread(fd, STEP, offset)
            worst = max(worst, time.monotonic() - before)
            assert got == part(library.files[name], offset, STEP)
    finally:
        os.close(fd)
    return worst


@pytest.mark.parametrize("settings", ["", "[fetch]\ndirect = false\n"], ids=["directly", "through rclone"])
@pytest.mark.parametrize("fault", FAULTS)
def test_beside_a_broken_web_seed_every_byte_is_right_the_stall_is_bounded_and_it_is_named(
    library: Library, large: str, tmp_path: Path, fault: str, settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, words = FAULTS[fault]
    with broken(library, tmp_path) as bad, nginx(library.root) as good:
        torrents = ("--torrent-dir", library.products)
        with mounted(tmp_path, library.chain, *torrents, webseeds=[bad, good], settings=settings) as mount:
            stall = worst_stall(mount, library, large)
            assert same(mount, library)
            mount.wait_for("naming the culprit", lambda now: re.search(words, source_in(now, bad)["last_error"]))
            assert source_in(mount.status(), good)["failures"] == 0
    with capsys.disabled():
        print(f" worst stall beside a web seed that is {fault}: {stall:.2f} s ", end="")
    assert stall < WORST


@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_source_without_ranges_is_enough_if_it_is_the_only_one(
    library: Library, large: str, tmp_path: Path, from_the_start: bool
) -> None:
    with nginx(library.root, location="max_ranges 0;") as web:
        with mounted(tmp_path, library.chain, "--torrent-dir", library.products, webseeds=[web]) as mount:
            assert from_the_start or worst_stall(mount, library, large) < WORST
            assert same(mount, library)


def test_when_all_sources_lie_reads_end_in_eio_with_few_tries_and_mended_sources_are_used_at_once(
    library: Library, large: str, tmp_path: Path
) -> None:
    liar, ports = library.corrupted(tmp_path / "wrong"), [free_port(), free_port()]
    torrents = ("--torrent-dir", library.products, "--deadline", "3")
    seeds = [f"http://{LOOPBACK}:{port}/" for port in ports]
    with mounted(tmp_path, library.chain, *torrents, webseeds=seeds) as mount:
        with nginx(liar.root, port=ports[0]), nginx(liar.root, port=ports[1]), ThreadPoolExecutor(4) as pool:
            errors = list(pool.map(lambda at: read_error(mount.snapshots / large, at * PIECE), range(4)))
            assert set(errors) == {"EIO"}
            status = mount.status()
            assert sum(source_in(status, seed)["received"] for seed in seeds) <= 4 * SIZE
            assert status["store"]["bytes"] == 0
            assert mount.held_pieces(library, large) == set()
        with nginx(library.root, port=ports[0]), nginx(library.root, port=ports[1]):
            assert same(mount, library)
