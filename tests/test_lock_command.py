"""`cachefs lock`, as its user types it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from cachefs.catalog.chain import format_chain
from cachefs.cli import main
from cachefs.config import Config, Snapshots
from cachefs.content import ContentId
from cachefs.errors import CatalogError
from cachefs.locks import LockFile, fetch_chain
from cachefs.store import DataDirLock
from tests.mount_kit import DOMAIN, HEADERS, Library, make_library, mounted, typed

ONE, TWO = ContentId("btih", bytes([1]) * 20), ContentId("btih", bytes([2]) * 20)


class Bench:
    """A data directory with a lock, and a chain.toml."""

    def __init__(self, root: Path) -> None:
        self.chain = root / "mainnet.toml"
        self.file = LockFile(root / "data")
        self.publish({"a.seg": ONE, "b/c.kv": ONE})
        settings = Snapshots(chain_toml=str(self.chain))
        trio.run(self.file.load_or_make, Config(snapshots=settings), settings.chain_name)

    def publish(self, entries: dict[str, ContentId]) -> None:
        self.chain.write_text(format_chain(entries))

    def run(self, *arguments: str | Path, code: int = 0) -> Result:
        words = ["lock", "--data-dir", str(self.file.data_dir), *map(str, arguments)]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == code, done.output
        return done

    def lines(self, *arguments: str | Path) -> list[str]:
        return self.run(*arguments).stdout.splitlines()

    @property
    def entries(self) -> dict[str, ContentId]:
        return dict(self.file.load().downloads)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_show_prints_the_lock_as_a_chain_toml_or_some_of_it_or_as_json(bench: Bench) -> None:
    assert bench.run("show").stdout == bench.chain.read_text()
    assert bench.lines("show", "b/c.kv")[0] == f"'b/c.kv' = '{ONE.hex}'"
    assert json.loads(bench.run("show", "--json").stdout) == json.loads(bench.file.path.read_text())
    assert "'x': not in the lock" in bench.run("show", "x", code=1).stderr


def test_diff_shows_what_update_would_change_and_changes_nothing(bench: Bench) -> None:
    before = bench.file.path.read_bytes()
    bench.publish({"a.seg": TWO, "d.seg": ONE})
    expected = [
        f"~ a.seg  {ONE.hex} -> {TWO.hex}",
        f"- b/c.kv  {ONE.hex}",
        f"+ d.seg  {ONE.hex}",
        "1 added, 1 removed, 1 changed, 0 unchanged",
    ]
    assert sorted(bench.lines("diff", "--chain-toml", bench.chain)) == sorted(expected)
    assert json.loads(bench.run("diff", "--json", "--chain-toml", bench.chain).stdout)["added"] == {"d.seg": ONE.hex}
    assert bench.file.path.read_bytes() == before
    assert bench.lines("update", "--chain-toml", bench.chain) == [*expected, "not mounted: the next mount uses it"]
    assert bench.entries == {"a.seg": TWO, "d.seg": ONE}


def test_update_of_some_names_leaves_the_others(bench: Bench) -> None:
    bench.publish({"a.seg": TWO, "b/c.kv": TWO, "d.seg": TWO})
    bench.run("update", "a.seg", "--chain-toml", bench.chain)
    assert bench.entries == {"a.seg": TWO, "b/c.kv": ONE}
    bench.publish({"a.seg": TWO})
    bench.run("update", "b/c.kv", "--chain-toml", bench.chain)
    assert bench.entries == {"a.seg": TWO}
    assert "neither" in bench.run("update", "x", "--chain-toml", bench.chain, code=1).stderr


@pytest.mark.parametrize("host", ["...", "xn--zzzzzzzz--a.example"])
def test_a_chain_toml_at_a_host_that_cannot_be_is_an_error_that_names_it(host: str) -> None:
    with pytest.raises(CatalogError, match=re.escape(f"http://{host}/chain.toml: can't be fetched: ")):
        trio.run(fetch_chain, f"http://{host}/chain.toml")


def test_without_a_chain_toml_diff_and_update_say_what_is_needed(bench: Bench) -> None:
    assert "--chain-toml" in bench.run("diff", code=1).stderr
    assert "--chain-toml" in bench.run("update", code=1).stderr


def test_set_changes_the_hashes_given_and_refuses_unknown_names_and_bad_hashes(bench: Bench) -> None:
    bench.run("set", "a.seg", TWO.hex, "b/c.kv", TWO.hex.upper())
    assert bench.entries == {"a.seg": TWO, "b/c.kv": TWO}
    before = bench.file.path.read_bytes()
    assert "'x.seg': not in the lock" in bench.run("set", "x.seg", ONE.hex, code=1).stderr
    assert "40 hex digits: 'abc'" in bench.run("set", "a.seg", "abc", code=1).stderr
    assert "in pairs" in bench.run("set", "a.seg", code=2).stderr
    assert bench.file.path.read_bytes() == before
    bench.run("set", "--new", "x.seg", ONE.hex)
    assert bench.entries["x.seg"] == ONE


def test_a_change_while_a_daemon_is_starting_says_what_to_do(bench: Bench) -> None:
    with DataDirLock(bench.file.data_dir):
        assert "`cachefs reload`" in bench.lines("set", "a.seg", TWO.hex)[-1]


def test_rollback_lists_what_there_is_and_goes_back(bench: Bench) -> None:
    bench.run("set", "a.seg", TWO.hex)
    bench.run("set", "--new", "x.seg", ONE.hex)
    assert [line.split()[0] for line in bench.lines("rollback", "--list")] == ["1", "2"]
    assert f"+ x.seg  {ONE.hex}" in bench.lines("diff", "--back", "2")
    bench.run("rollback", "2")
    assert bench.entries == {"a.seg": ONE, "b/c.kv": ONE}
    bench.run("rollback")
    assert bench.entries["x.seg"] == ONE
    assert "not 5" in bench.run("rollback", "5", code=1).stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, 5, 300_000)


def test_a_change_is_in_use_when_the_command_returns_and_knows_the_daemons_chain_toml(
    library: Library, tmp_path: Path
) -> None:
    with mounted(tmp_path, library.chain, "--torrent-dir", library.products) as mount:
        size = (mount.snapshots / DOMAIN).stat().st_size
        done = typed("lock", "--mount", mount.mountpoint, "set", HEADERS, library.content(DOMAIN).hex)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "in use")
        assert (mount.snapshots / HEADERS).stat().st_size == size
        assert typed("lock", "--mount", mount.mountpoint, "update").returncode == 0
        assert (mount.snapshots / HEADERS).stat().st_size == 5


def test_the_lock_that_is_meant_is_named_before_the_command_or_after_it(bench: Bench, tmp_path: Path) -> None:
    for named in (("--data-dir", bench.file.data_dir), ("--mountpoint", tmp_path)):
        before, after = typed("lock", *named, "show", "a.seg"), typed("lock", "show", "a.seg", *named)
        assert before == after
        assert (before.returncode == 0) == (named[0] == "--data-dir"), before.stderr


@pytest.mark.parametrize("words", ["lock set", "lock rollback", "db show"])
def test_help_needs_no_mount(words: str) -> None:
    done = typed(*words.split(), "--help")
    assert (done.returncode, done.stdout.startswith(f"Usage: main {words} [OPTIONS]")) == (0, True)
