"""What is known of each name: from the database, from the store, or found on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.errors import MetadataUnavailable, StoreFailed
from cachefs.manifests import Manifests
from cachefs.metainfo import Metainfo
from cachefs.store import ObjectStore, State
from tests.descriptor_kit import no_descriptor_left
from tests.fakes import FakeFinder, content, until

ONE, TWO, THREE = (content(seed, 1000 * seed, name=f"{seed}.seg").info for seed in (1, 2, 3))


class Bench:
    """Manifests over a real store, which can be thrown away and made again as after a restart."""

    def __init__(self, root: Path, *infos: Metainfo) -> None:
        self.root = root
        self.infos = infos
        self.names = {info.name: info.content for info in infos}
        self.state = State.open(root / "state.db")
        self.state.sync_names(self.names, 0.0)
        self.store = ObjectStore(root / "store", self.state)
        self.manifests = Manifests(self.store, self.state, self.names)

    def finder(self, *known: Metainfo) -> FakeFinder:
        finder = FakeFinder(*known)
        finder.manifests = self.manifests
        return finder

    def restarted(self) -> Bench:
        self.state.close()
        bench = Bench(self.root, *self.infos)
        self.state = bench.state
        return bench

    def manifest_path(self, info: Metainfo) -> Path:
        (path,) = self.root.glob(f"store/btih/*/{info.content.hex}/manifest")
        return path


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, ONE, TWO, THREE)
    yield made
    made.state.close()


def test_a_length_is_known_from_the_moment_its_metadata_is_found(bench: Bench) -> None:
    assert bench.manifests.length(ONE.content) is None
    bench.manifests.found(ONE)
    bench.manifests.found(TWO)
    assert bench.manifests.length(ONE.content) == 1000
    assert (bench.manifests.known(), bench.manifests.total()) == (2, 3000)


def test_lengths_survive_a_restart_once_saved(bench: Bench) -> None:
    bench.manifests.found(ONE)
    bench.manifests.save()
    again = bench.restarted()
    assert again.manifests.length(ONE.content) == 1000
    assert again.manifests.length(TWO.content) is None


def test_lengths_are_saved_soon_by_themselves(bench: Bench) -> None:
    def saved() -> bool:
        return {name for name, info in bench.state.infos().items() if info.length} == {ONE.name, TWO.name}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.manifests.run, bench.finder())
            bench.manifests.found(ONE)
            bench.manifests.found(TWO)
            await until(saved)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_database_that_lost_its_lengths_gets_them_back_from_the_store(bench: Bench) -> None:
    bench.manifests.found(ONE)

    async def main() -> None:
        finder = again.finder()
        async with trio.open_nursery() as nursery:
            await nursery.start(again.manifests.run, finder)
            await until(lambda: bool(finder.wanted), every=0.001)
            nursery.cancel_scope.cancel()
        assert finder.wanted == {TWO.name: TWO.content, THREE.name: THREE.content}
        assert not finder.lookups

    again = bench.restarted()
    trio.run(main)
    assert again.manifests.length(ONE.content) == 1000


def test_a_name_looked_up_right_after_the_start_is_waited_for(bench: Bench) -> None:
    async def main() -> None:
        assert await bench.manifests.require_length(ONE.name, bench.finder(ONE)) == 1000

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_metainfo_is_read_from_the_store_and_asked_of_the_finder_only_if_it_is_not_there(bench: Bench) -> None:
    async def main() -> None:
        finder = bench.finder(ONE)
        for _ in range(2):
            assert await bench.manifests.metainfo(ONE.name, finder) == ONE
        assert finder.lookups == [ONE.name]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("damage", [b"", b"d4:info", TWO.raw], ids=["empty", "torn", "another's"])
def test_stored_metadata_that_is_not_whole_is_found_again(bench: Bench, damage: bytes) -> None:
    async def main() -> None:
        bench.manifests.found(ONE)
        bench.manifest_path(ONE).write_bytes(damage)
        assert await bench.manifests.metainfo(ONE.name, bench.finder(ONE)) == ONE
        assert bench.manifest_path(ONE).read_bytes() == ONE.raw

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_metadata_that_cannot_be_read_costs_its_own_name_and_no_other(bench: Bench) -> None:
    bench.manifests.found(ONE)
    bench.manifests.found(TWO)
    path = bench.manifest_path(ONE)
    path.unlink()
    path.mkdir()  # open works, read fails
    with pytest.raises(StoreFailed):
        bench.store.manifest(ONE.content)

    async def main() -> None:
        finder = again.finder()
        async with trio.open_nursery() as nursery:
            await nursery.start(again.manifests.run, finder)
            await until(lambda: bool(finder.wanted), every=0.001)
            nursery.cancel_scope.cancel()

    again = bench.restarted()
    trio.run(main)
    assert again.manifests.length(TWO.content) == 2000
    assert again.manifests.length(ONE.content) is None


def test_metadata_that_this_process_cannot_open_now_is_not_fetched_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.manifests.found(ONE)

    async def main() -> None:
        finder = bench.finder(ONE)
        with no_descriptor_left():
            with pytest.raises(StoreFailed):
                await bench.manifests.metainfo(ONE.name, finder)
            assert bench.manifests.recall(ONE.content) is None
        assert finder.lookups == []
        assert await bench.manifests.metainfo(ONE.name, finder) == ONE

    trio.run(main)
    assert "can't be read now" in caplog.text
    assert "broken" not in caplog.text


def test_a_name_that_nobody_finds_is_an_error_that_names_it(bench: Bench) -> None:
    async def main() -> None:
        for ask in (bench.manifests.require_length, bench.manifests.metainfo):
            with pytest.raises(MetadataUnavailable) as caught:
                await ask(ONE.name, bench.finder())
            assert caught.value.name == ONE.name

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_two_names_of_one_content_share_its_length(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ONE)
    bench.names["copy.seg"] = ONE.content
    bench.state.sync_names(bench.names, 0.0)
    bench.manifests.found(ONE)
    bench.manifests.save()
    assert {name: info.length for name, info in bench.state.infos().items()} == {ONE.name: 1000, "copy.seg": 1000}
    bench.state.close()
