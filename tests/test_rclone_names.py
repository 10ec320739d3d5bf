"""Names, URLs and remotes crafted against rclone run nothing and fetch nothing; odd names that are allowed work.

How it works: what an attack would do is leave a file, `mark`, and a first test shows that rclone does so when it is
given the attack as a remote. A `Trap` is a server that nobody may call.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs import metainfo
from cachefs.catalog import chain, snapshots
from cachefs.catalog.chain import format_chain
from cachefs.config import Config, load_config, load_webseed_toml, web_seed
from cachefs.errors import CatalogError, ConfigError, SourceFailed
from cachefs.fetch.base import Item
from cachefs.fetch.rclone.diagnosis import diagnose
from cachefs.fetch.remote.remotes import Remotes
from cachefs.fetch.sources import WebSeed
from tests.counterparts import LOOPBACK, nginx
from tests.fakes import content
from tests.mount_kit import Library, cachefs, mount_command, mounted, read_error, same
from tests.rclone_kit import RCLONE, s3_remote, supervised, webdav_remote


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What an attack would make; it must not be there in the end."""
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists()


def attacks(mark: Path) -> list[str]:
    """What rclone, a shell or a URL parser might take for something else than a name."""
    return [
        f":sftp,ssh='touch {mark} --':",
        f":sftp,host=x,ssh='touch {mark} --':/x",
        f":webdav,url='http://{LOOPBACK}:1/',bearer_token_command='touch {mark}':",
        f"--config=|touch {mark}",
        "-x",
        "--rc-no-auth",
        "../../../../etc/passwd",
        "history/../../x",
        "/etc/passwd",
        "a\nb",
        "a\r\nAuthorization: none",
        "a\x00b",
        "a\\b",
        "",
    ]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_attack_works_where_it_is_let_in(tmp_path: Path, number: int) -> None:
    attack = attacks(tmp_path / "made")[number]
    command = [str(RCLONE), "--config=/dev/null", "--retries=1", "--low-level-retries=1", "lsf", attack]
    subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
    assert (tmp_path / "made").exists()


# Where such names could come in


@pytest.mark.parametrize("number", range(len(attacks(Path()))))
def test_a_chain_toml_with_a_crafted_name_is_refused(tmp_path: Path, mark: Path, number: int) -> None:
    quoted = attacks(mark)[number].encode("unicode_escape").decode().replace("\\x", "\\u00").replace("'", "\\u0027")
    text = f'"{quoted}" = "{"0" * 40}"\n'
    with pytest.raises(CatalogError):
        chain.parse_chain(text, "chain.toml")


@pytest.mark.parametrize("number", range(len(attacks(Path()))))
def test_a_lock_with_a_crafted_name_is_refused(tmp_path: Path, mark: Path, number: int) -> None:
    path = tmp_path / "snapshot-lock.json"
    entries = {"v1-000000-000500-headers.seg": content(1, 5).info.content}
    snapshots.load_or_create(path, "unknown", lambda: entries)
    path.write_text(path.read_text().replace("v1-000000-000500-headers.seg", _json(attacks(mark)[number])))
    with pytest.raises(CatalogError):
        snapshots.load(path, "unknown")


def _json(text: str) -> str:
    return json.dumps(text)[1:-1]


NO_WEB_SEEDS = [
    ":sftp,ssh=touch x:",
    "-x",
    "sftp://example.org/",
    "file:///etc/",
    "http:///x",
    "http://exa mple.org/",
    "http://example.org/\nRCLONE_CONFIG_X_TYPE=sftp",
    "http://example.org/?x=",
    "http://example.org/#x",
    "http://[::1/",
]


@pytest.mark.parametrize("url", NO_WEB_SEEDS)
def test_what_is_no_web_seed_is_refused_in_every_place(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="--webseed:"):
        Config().override(webseeds=(url,))
    (tmp_path / "webseed.toml").write_text(f"a = '''{url}'''\n")
    with pytest.raises(ConfigError, match=r"webseed\.toml: a"):
        load_webseed_toml(tmp_path / "webseed.toml")
    remotes = Remotes([], [], "any")
    assert not trio.run(remotes.learn, carrying(url + "/"))
    assert not remotes.environment


@pytest.mark.parametrize(
    "remote", [":sftp,ssh=touch x:", ":local:/etc", "-x", "-x:y", "r2:a\nb", "r2:[x]", "bucket", ""]
)
def test_what_is_no_remote_of_the_operator_s_is_refused(tmp_path: Path, remote: str) -> None:
    (tmp_path / "cachefs.toml").write_text(f"[sources]\nrclone_remotes = ['''{remote}''']\n")
    with pytest.raises(ConfigError, match=r"\[sources\] rclone_remotes"):
        load_config(tmp_path / "cachefs.toml")


def test_a_mount_is_not_begun_with_what_is_no_web_seed(tmp_path: Path) -> None:
    done = cachefs(*mount_command(tmp_path, None, f"--webseed={NO_WEB_SEEDS[0]}"))
    assert done.returncode == 1
    assert "--webseed:" in done.stderr


def test_a_url_never_becomes_a_remote_or_a_variable_s_name(mark: Path) -> None:
    urls = [f"http://{LOOPBACK}/x:,ssh=touch${{IFS}}{mark}:/", f"http://{LOOPBACK}/RCLONE_CONFIG_Y_TYPE=sftp/"]
    remotes = Remotes([WebSeed(web_seed(url)) for url in urls], [], "any", direct=False)
    assert [source.remote for source in remotes.sources] == ["cachefs_web_0:", "cachefs_web_1:"]
    assert set(remotes.environment) == {
        f"RCLONE_CONFIG_CACHEFS_WEB_{number}_{key}" for number in (0, 1) for key in ("TYPE", "URL", "NO_ESCAPE")
    }


def test_a_name_that_slipped_through_would_still_be_only_a_path(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "web").mkdir()
    tried = [*attacks(mark), *(f"]/[{attack}]/x" for attack in attacks(mark)), "../" * 20 + "etc/passwd", "x?y=z#"]

    async def main(url: str) -> None:
        environment = {"RCLONE_CONFIG_WEB_TYPE": "http", "RCLONE_CONFIG_WEB_URL": url}
        async with supervised(tmp_path / "rclone", environment) as child:
            for name in tried:
                got = b""
                with suppress(SourceFailed):
                    async with child.open("web:", name, None) as body:
                        view = memoryview(bytearray(100))
                        got = bytes(view[: await body.read_some(view)])
                assert b"root:" not in got, name
            assert (child.ready, child.restarts) == (True, 0)

    with nginx(tmp_path / "web") as url:
        trio.run(main, url)


# Web seeds that a .torrent carries


class Trap:
    """A server that nobody may call."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.url = f"http://{LOOPBACK}:{server.getsockname()[1]}/"

    @property
    def sprung(self) -> bool:
        """Whether anybody did."""
        try:
            self._server.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@contextmanager
def trap() -> Iterator[Trap]:
    with socket.create_server((LOOPBACK, 0)) as server:
        server.setblocking(False)
        yield Trap(server)


def carrying(*urls: str) -> Item:
    """An item whose .torrent names these web seeds."""
    item = content(1, 5).item
    assert item.metainfo is not None
    raw = carried_by(item.metainfo.raw, urls)
    return Item(item.name, item.manifest, metainfo.parse(raw))


def carried_by(raw: bytes, urls: Iterable[str]) -> bytes:
    """A .torrent with this url-list."""
    outer = metainfo.bdecode(raw)
    assert isinstance(outer, dict)
    return metainfo.bencode(outer | {b"url-list": [url.encode() for url in urls]})


PRIVATE = [
    "http://127.0.0.1:8080/",
    "http://localhost/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://0.0.0.0/",
    "http://10.1.2.3/",
    "http://192.168.0.1/",
    "http://172.16.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://127.1/",
    "http://user@127.0.0.1/",
    "http://93.184.215.14@127.0.0.1/",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_a_carried_web_seed_at_a_private_address_is_followed_only_if_any_may_be(url: str) -> None:
    async def main() -> None:
        for setting, followed in (("public", False), ("none", False), ("any", True)):
            remotes = Remotes([], [], setting, direct=False)
            assert await remotes.learn(carrying(url)) is followed, setting
            assert bool(remotes.of(carrying(url))) is followed
            assert bool(remotes.environment) is followed

    trio.run(main)


def test_a_carried_web_seed_at_a_public_address_is_followed_unless_none_may_be() -> None:
    async def main() -> None:
        for setting, followed in (("public", True), ("none", False), ("any", True)):
            remotes = Remotes([], [], setting)
            assert await remotes.learn(carrying("http://93.184.215.14/x/")) is followed, setting
            assert not await remotes.learn(carrying("http://93.184.215.14/x/")), "it is known already"

    trio.run(main)


def test_a_carried_url_counts_as_a_directory_or_as_the_file_itself_and_as_nothing_else() -> None:
    async def main() -> None:
        for url, base in [
            ("http://93.184.215.14/d/", "http://93.184.215.14/d/"),
            ("http://93.184.215.14/d/v1-000000-000500-headers.seg", "http://93.184.215.14/d/"),
            ("http://93.184.215.14/d/v1%2D000000-000500-headers.seg", "http://93.184.215.14/d/"),
            ("http://93.184.215.14/d", None),
            ("http://93.184.215.14/other.seg", None),
        ]:
            remotes = Remotes([], [], "public")
            await remotes.learn(carrying(url))
            assert [source.name for source in remotes.of(carrying(url))] == ([base] if base else [])

    trio.run(main)


ODD_HOSTS = ["http://xn--/", "http://a..b/", "http://[v1.x]/", f"http://{'a' * 300}/", "http://a%b/", "http://-/"]


@pytest.mark.parametrize("url", ODD_HOSTS)
def test_a_host_that_can_be_none_is_a_source_that_fails_and_nothing_more(url: str) -> None:
    async def main() -> None:
        remotes = Remotes([], [], "public")
        assert not await remotes.learn(carrying(url))
        assert await diagnose(url) is None

    trio.run(main)


def test_torrents_can_not_fill_the_list_of_remotes() -> None:
    async def main() -> None:
        remotes = Remotes([], [], "public", direct=False)
        for batch in range(20):
            await remotes.learn(carrying(*(f"http://93.184.215.14/{batch}/{number}/" for number in range(100))))
        assert len(remotes.environment) == 3 * 32

    trio.run(main)


@pytest.mark.parametrize("setting", ["public", "none"])
def test_a_mount_calls_no_private_web_seed_that_a_torrent_carries(tmp_path: Path, setting: str) -> None:
    library = made_library(tmp_path / "library", ["v1-000000-000500-headers.seg"])
    with trap() as trapped:
        carry(library, trapped.url)
        settings = f'[sources]\ncarried_webseeds = "{setting}"\n[read]\ndeadline = 1.5\n'
        with mounted(tmp_path, library.chain, "--torrent-dir", library.products, settings=settings) as mount:
            assert read_error(mount.snapshots / "v1-000000-000500-headers.seg") == "EIO"
            assert not trapped.sprung


def test_a_mount_reads_from_a_private_web_seed_that_a_torrent_carries_if_any_may_be_used(tmp_path: Path) -> None:
    library = made_library(tmp_path / "library", ["v1-000000-000500-headers.seg"])
    with nginx(library.root) as url:
        carry(library, url)
        settings = '[sources]\ncarried_webseeds = "any"\n'
        with mounted(tmp_path, library.chain, "--torrent-dir", library.products, settings=settings) as mount:
            assert same(mount, library)


def carry(library: Library, *urls: str) -> None:
    for name in library.files:
        library.torrent(name).write_bytes(carried_by(library.torrent(name).read_bytes(), urls))


# Odd names that are allowed

ODD_NAMES = [
    "a b.seg",
    "a:b",
    "x,ssh=touch mark:y",
    "[x]",
    "]x[",
    "100%",
    "100%25.kv",
    "%2e%2e%2fmark",
    "q?x=1&y=2",
    "h#fragment",
    "$(touch mark)",
    "`touch mark`;touch mark",
    'say "quoted"',
    "p+l+u+s",
    "tilde~ and @ and =",
    "ünï/çodé ☃.kv",
    "sub dir/[y]#?%.kv",
    "remote:path/c:d",
]


def made_library(into: Path, names: Iterable[str]) -> Library:
    """Files with these names, their .torrent files, and a chain.toml."""
    files, entries = {}, {}
    for number, name in enumerate(names):
        data = random.Random(number).randbytes(10_000 + number)
        made = content_of(name, data)
        files[name], entries[name] = into / "root" / name, made.content
        for path, raw in ((files[name], data), (into / "products" / f"{name}.torrent", made.raw)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
    (into / "products" / "chain.toml").write_text(format_chain(entries))
    return Library(into / "root", into / "products", files)


def content_of(name: str, data: bytes) -> metainfo.Metainfo:
    return metainfo.build(name, len(data), hashlib.sha1(data).digest())


def total(library: Library) -> int:
    return sum(path.stat().st_size for path in library.files.values())


@pytest.mark.parametrize("settings", ["", "[fetch]\ndirect = false\n"])
def test_odd_names_are_read_right_from_a_web_seed(tmp_path: Path, settings: str) -> None:
    library = made_library(tmp_path / "library", ODD_NAMES)
    with nginx(library.root) as url:
        given = ("--torrent-dir", library.products)
        with mounted(tmp_path, library.chain, *given, webseeds=[url], settings=settings) as mount:
            assert same(mount, library)
            assert mount.status()["fetched"] == {"torrent": 0, "web": total(library)}
    assert not list(tmp_path.rglob("mark"))


@pytest.mark.parametrize("kind", [webdav_remote, s3_remote])
def test_odd_names_are_read_right_from_a_remote_of_the_operator_s(tmp_path: Path, kind: Callable[..., Any]) -> None:
    library = made_library(tmp_path / "library", ODD_NAMES)
    shutil.copytree(library.root, tmp_path / "served" / "bucket")
    with kind(tmp_path / "served", tmp_path / "rclone.conf") as remote:
        settings = (
            f'[sources]\nrclone_remotes = ["{remote}bucket"]\n[rclone]\nconfig = "rclone.conf"\n[read]\ndeadline = 10\n'
        )
        with mounted(tmp_path, library.chain, "--torrent-dir", library.products, settings=settings) as mount:
            assert same(mount, library)
            assert mount.status()["fetched"] == {"torrent": 0, "web": total(library)}
    assert not list(tmp_path.rglob("mark"))


def test_files_whose_torrents_nobody_has_are_read_right_from_a_remote_under_odd_names(tmp_path: Path) -> None:
    library = made_library(tmp_path / "library", ODD_NAMES)
    with webdav_remote(library.root, tmp_path / "rclone.conf") as remote:
        settings = (
            f'[sources]\nrclone_remotes = ["{remote}"]\n[rclone]\nconfig = "rclone.conf"\n[read]\ndeadline = 10\n'
        )
        with mounted(tmp_path, library.chain, settings=settings) as mount:
            assert same(mount, library)
    assert not list(tmp_path.rglob("mark"))
