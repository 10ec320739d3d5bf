"""The counterparts take our torrents: the .torrent files mean the same to aria2, transmission and nginx."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.counterparts import (
    LOOPBACK,
    CounterpartFailed,
    Peer,
    aria2_seeder,
    make_snapshots,
    nginx,
    refusing_port,
    running,
    transmission_seeder,
)
from tests.origin_kit import HISTORY, Origin, download, seeded_origin


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with seeded_origin(tmp_path_factory.mktemp("origin")) as running_origin:
        yield running_origin


@pytest.mark.parametrize("seeder", [aria2_seeder, transmission_seeder])
def test_other_seeders_seed_our_torrents(
    origin: Origin, tmp_path: Path, seeder: Callable[[Path, Path], AbstractContextManager[Peer]]
) -> None:
    name = "domain/v1-accounts.0-64.kv"
    with seeder(origin.torrent(name), origin.root) as peer:
        assert download(origin.torrent(name), tmp_path, peer=peer) == origin.files[name].read_bytes()


def test_nginx_is_a_web_seed_for_our_torrents(origin: Origin, tmp_path: Path) -> None:
    with nginx(origin.root) as url:
        data = download(origin.torrent(HISTORY), tmp_path, url=f"{url}{HISTORY}")
    assert data == origin.files[HISTORY].read_bytes()


def test_nginx_takes_further_settings(origin: Origin) -> None:
    with nginx(origin.root, location="return 503;") as url:
        assert httpx.get(f"{url}erigondb.toml").status_code == 503


def test_a_refusing_port_refuses() -> None:
    with refusing_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, port), timeout=1)


def test_a_counterpart_that_is_not_installed_or_dies_says_so() -> None:
    with pytest.raises(CounterpartFailed, match="not installed"), running("x", ["no-such-program"]):
        pass
    dying = [sys.executable, "-c", "import sys; print('farewell'); sys.exit(3)"]
    with running("python", dying) as child, pytest.raises(CounterpartFailed, match=r"ended with 3 .*\nfarewell"):
        child.wait_until("ready", lambda: False)


def test_the_same_seed_makes_the_same_snapshots(tmp_path: Path) -> None:
    one, two, other = (make_snapshots(tmp_path / str(n), 100, seed=n // 2) for n in range(3))
    assert [path.read_bytes() for path in one.values()] == [path.read_bytes() for path in two.values()]
    assert one["erigondb.toml"].read_bytes() == other["erigondb.toml"].read_bytes()
    (first, _), (second, _) = one.values(), other.values()
    assert first.read_bytes() != second.read_bytes()


def test_the_demo_imports_nothing_that_is_not_installed_for_it() -> None:
    root = Path(__file__).parents[1]
    installed, development = (
        set(re.findall(r"^([\w-]+)==", (root / "locks" / name).read_text(), re.MULTILINE))
        for name in ("runtime.txt", "dev.txt")
    )
    missing = [name.replace("-", "_") for name in development - installed]
    assert {"pytest", "hypothesis"} <= set(missing)
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import tools.demo"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
