"""A reload among real parts but for the kernel and the network: what happens when a part fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import trio

from cachefs.cache import Cache
from cachefs.catalog import records
from cachefs.catalog.chain import format_chain
from cachefs.config import Config, Read, Snapshots
from cachefs.content import ContentId
from cachefs.errors import StoreFailed
from cachefs.fetch.metadata.service import MetadataService
from cachefs.fetch.sources import Ledger
from cachefs.filesystem import Filesystem
from cachefs.layout import SNAPSHOTS
from cachefs.locks import LockFile
from cachefs.manifests import Manifests
from cachefs.reload import Parts, Progress, Reloader, Shown
from cachefs.shelf import SnapshotShelf, mtimes
from cachefs.store import ObjectStore, State
from cachefs.store.state import Info
from tests.fakes import FakeFetcher, FakePeers

ONE, TWO = ContentId("btih", bytes([1]) * 20), ContentId("btih", bytes([2]) * 20)


class FailingState(State):
    """A state that can't be written, or read after it was written, while `failing` says so."""

    failing = ""
    when_written: Callable[[], None] = staticmethod(lambda: None)

    def sync_names(self, entries: Mapping[str, ContentId], created: float) -> None:
        self.when_written()
        if self.failing == "write":
            raise StoreFailed("state.db: can't be written")
        super().sync_names(entries, created)

    def infos(self) -> dict[str, Info]:
        if self.failing == "read":
            raise StoreFailed("state.db: can't be read")
        return super().infos()


class Bench:
    """A mount's parts that hold names, showing `a.seg`; `told` is what the kernel was told to forget."""

    def __init__(self, root: Path) -> None:
        self.file = LockFile(root)
        (root / "chain.toml").write_text(format_chain({"a.seg": ONE}))
        config = Config(snapshots=Snapshots(chain_toml=str(root / "chain.toml")))
        shown = Shown.of(config, *trio.run(self.file.load_or_make, config, None))
        state = FailingState.open(root / "state.db")
        assert isinstance(state, FailingState)
        self.state = state
        state.sync_names(shown.lock.downloads, shown.created)
        store = ObjectStore(root / "store", state)
        self.manifests = Manifests(store, state, shown.names)
        metadata = MetadataService(
            Read(), Ledger(), self.manifests.found, directory=None, web_seeds=(), peers=FakePeers()
        )
        shelf = SnapshotShelf(self.manifests, metadata, mtimes(state))
        cache = Cache(store, FakeFetcher(), Read(), lambda: "")
        self.filesystem = Filesystem(shown.tree, {SNAPSHOTS: shelf}, cache, born=shown.created)
        self.told: list[tuple[int, str]] = []
        self.followed = 0
        parts = Parts(state, self.manifests, metadata, shelf, self.filesystem, self.told.extend, (self._follow,))
        self.reloader = Reloader(config, self.file, shown, parts, self._prepare)

    def _follow(self) -> None:
        self.followed += 1
        raise StoreFailed("a follower's own trouble")

    async def _prepare(self, entries: Mapping[str, ContentId], progress: Progress) -> list[str]:
        return []

    def names(self) -> dict[str, ContentId]:
        """What is shown, as the file system lists it."""
        folder = self.reloader.shown.tree.find(SNAPSHOTS)
        assert folder is not None
        listing = self.filesystem.listing(self.filesystem.open_directory(folder.inode), 0)
        return {name: self.reloader.shown.names[name] for name, _, _ in listing}

    def edit(self) -> None:
        self.file.edit(lambda entries: {**entries, "a.seg": TWO, "b.seg": TWO})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.state.close()


@pytest.mark.parametrize("failing", ["write", "read"])
def test_a_database_that_fails_leaves_everything_as_it_was_and_the_next_reload_makes_up_for_it(
    bench: Bench, failing: str
) -> None:
    bench.edit()
    bench.state.failing = failing
    with pytest.raises(StoreFailed):
        trio.run(bench.reloader.reload)
    assert bench.names() == {"a.seg": ONE}
    assert bench.told == []
    bench.state.failing = ""
    trio.run(bench.reloader.reload)
    assert bench.names() == {"a.seg": TWO, "b.seg": TWO}


def test_the_kernel_is_told_of_what_changed_alone_and_a_followers_trouble_is_its_own(bench: Bench) -> None:
    folder = bench.reloader.shown.tree.find(SNAPSHOTS)
    assert folder is not None
    bench.edit()
    difference, remarks = trio.run(bench.reloader.reload)
    assert (list(difference.added), list(difference.changed), remarks) == (["b.seg"], ["a.seg"], [])
    assert bench.told == [(folder.inode, "a.seg")]
    assert bench.followed == 1


def test_a_reload_of_the_same_lock_disturbs_nobody(bench: Bench) -> None:
    difference, _ = trio.run(bench.reloader.reload)
    assert not difference
    assert (bench.told, bench.followed) == ([], 0)


def test_two_reloads_at_once_are_one_after_the_other(bench: Bench) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(bench.reloader.reload)

    bench.edit()
    trio.run(main)
    assert bench.followed == 1
    assert bench.names() == {"a.seg": TWO, "b.seg": TWO}


def test_a_reload_of_records_that_has_begun_to_switch_ends_whoever_asked_for_it(bench: Bench) -> None:
    async def main() -> None:
        with trio.CancelScope() as asking:
            bench.state.when_written = asking.cancel
            await bench.reloader.reload_records()

    for digest, reload in ((bytes(32), bench.reloader.reload_records), (bytes([1] * 32), main)):
        record = records.Record("a.ogg", "https://e.org/a.ogg", ContentId("sha256", digest), 5)
        records.lock_of([record]).save(bench.file.data_dir / records.LOCK_NAME)
        trio.run(reload)
    assert bench.reloader.shown.records["a.ogg"] == record
    assert [name for _, name in bench.told] == ["a.ogg"]


def test_a_hang_up_with_a_bad_lock_is_logged_and_survived(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.file.path.write_text("{")
    trio.run(bench.reloader.hang_up)
    assert "nothing has changed" in caplog.text
    assert bench.names() == {"a.seg": ONE}
