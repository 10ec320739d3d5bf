"""Programs of other makers as the only source: each delivers every file, one in a subfolder included."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.counterparts import LOOPBACK, Peer, aria2_seeder, free_port, nginx, transmission_seeder
from tests.mount_kit import DOMAIN, HEADERS, HISTORY, Library, make_library, mounted, same, seeding

Seeder = Callable[[Path, Path], AbstractContextManager[Peer]]

PATIENT = "[read]\nmetadata_timeout = 60\n"
ONLY_ESCAPED = 'if ($request_uri ~ "^/(domain|history)/") { return 404; }'
ONLY_PLAIN = 'if ($request_uri ~* "%2F") { return 404; }'
NO_MANIFEST = 'if ($request_uri = "/manifest.txt") { return 404; }'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    everything = make_library(tmp_path_factory.mktemp("all"), 5, 100_000, 2**21, 5_000_000, 5 * 2**20)
    # Each seeder of another maker is a process a file.
    return everything.only(tmp_path_factory.mktemp("library"), HEADERS, DOMAIN, HISTORY)


@pytest.mark.parametrize(
    ("seeder", "names"),
    [(aria2_seeder, [HEADERS, DOMAIN, HISTORY]), (transmission_seeder, [HISTORY])],
    ids=["aria2", "transmission"],
)
def test_a_foreign_seeder_alone_delivers_every_file_and_its_metadata(
    library: Library, tmp_path: Path, seeder: Seeder, names: list[str]
) -> None:
    # transmission takes seconds over metadata, lets a new peer have data at its next round of ten seconds, and
    # accepts one handshake at a time from an address: so of it there is one name to be had.
    served = library.only(tmp_path / "served", *names)
    with ExitStack() as stack:
        peers = [stack.enter_context(seeder(served.torrent(name), served.root)) for name in names]
        mount = stack.enter_context(mounted(tmp_path, served.chain, peers=peers, settings=PATIENT))
        assert same(mount, served)


@pytest.mark.parametrize(
    "location",
    ["", NO_MANIFEST, ONLY_ESCAPED, ONLY_PLAIN],
    ids=["with manifest.txt", "without manifest.txt", "knows %2F alone", "knows / alone"],
)
def test_an_nginx_alone_delivers_every_file_and_its_metadata(library: Library, tmp_path: Path, location: str) -> None:
    with nginx(library.merged(tmp_path / "web"), location=location) as url:
        with mounted(tmp_path, library.chain, webseeds=[url]) as mount:
            assert same(mount, library)


@pytest.mark.parametrize("location", [ONLY_ESCAPED, ONLY_PLAIN], ids=["knows %2F alone", "knows / alone"])
def test_an_nginx_delivers_content_whatever_its_slash_when_metadata_came_from_elsewhere(
    library: Library, tmp_path: Path, location: str
) -> None:
    with nginx(library.root, location=location) as url:
        with mounted(tmp_path, library.chain, "--torrent-dir", library.products, webseeds=[url]) as mount:
            assert same(mount, library)


def test_our_own_seed_box_alone_delivers_every_file_over_http(library: Library, tmp_path: Path) -> None:
    with seeding(library, http=True) as box, mounted(tmp_path, library.chain, webseeds=[box.url]) as mount:
        assert same(mount, library)


def test_a_mount_seeds_what_it_holds_also_after_a_restart(library: Library, tmp_path: Path) -> None:
    torrents, port = ("--torrent-dir", library.products), free_port()
    listening = ("--listen", f"{LOOPBACK}:{port}")
    with seeding(library) as box, mounted(tmp_path / "one", library.chain, *torrents, peers=[str(box.peer)]) as one:
        assert same(one, library)
    with ExitStack() as stack:
        stack.enter_context(mounted(tmp_path / "one", library.chain, *listening))
        two = stack.enter_context(mounted(tmp_path / "two", library.chain, *torrents, peers=[f"{LOOPBACK}:{port}"]))
        assert same(two, library)
