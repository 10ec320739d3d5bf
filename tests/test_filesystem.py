"""The operations of the mount, without any kernel: sizes that aren't known yet, handles, and the table of errnos."""

from __future__ import annotations

import errno
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs import errors
from cachefs.cache import Cache
from cachefs.catalog.tree import ROOT_INODE, Tree
from cachefs.config import Read
from cachefs.errors import CachefsError, MetadataUnavailable, Stopping, TooManyWaiting
from cachefs.filesystem import Attributes, Filesystem, NameTooLong, NoSuchEntry, Stale, Usage, errno_of
from cachefs.manifests import Manifests
from cachefs.shelf import SnapshotShelf
from cachefs.store import ObjectStore, State
from tests.fakes import BLOCK, FakeFetcher, FakeFinder, content, until

FILE = content(1, 3 * BLOCK, name="v1-000000-000500-headers.seg")
NESTED = content(2, 1000, name="domain/v1-accounts.0-64.kv")
LOST = content(3, 500, name="v1-000500-001000-headers.seg")
BORN, CREATED = 1000.0, 2000.0


class Bench:
    """A file system of three files, of which the metadata of two can be found."""

    def __init__(self, root: Path, state: State) -> None:
        self.store = ObjectStore(root / "store", state)
        names = {item.info.name: item.info.content for item in (FILE, NESTED, LOST)}
        self.tree = Tree.build({"snapshots": names})
        self.manifests = Manifests(self.store, state, names)
        self.finder = FakeFinder(FILE.info, NESTED.info)
        self.finder.manifests = self.manifests
        self.fetcher = FakeFetcher(FILE, NESTED)
        self.cache = Cache(self.store, self.fetcher, Read(), lambda: "")
        shelf = SnapshotShelf(self.manifests, self.finder, lambda file: CREATED)
        self.fs = Filesystem(self.tree, {"snapshots": shelf}, self.cache, born=BORN)
        self.folder = self.inode("")

    def inode(self, name: str) -> int:
        return _inode(self.tree, name)

    async def open(self, name: str) -> int:
        return await self.fs.open(self.inode(name))

    def listing(self, inode: int = 0) -> list[tuple[str, Attributes, int]]:
        handle = self.fs.open_directory(inode or self.folder)
        listed = list(self.fs.listing(handle, 0))
        self.fs.close_directory(handle)
        return listed


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.cache.run)
        yield
        nursery.cancel_scope.cancel()
    await bench.store.aclose()


def run(root: Path, scenario: Callable[[Bench], Awaitable[None]], rate: float = 20.0) -> None:
    async def main() -> None:
        bench = Bench(root, state)
        async with running(bench):
            await scenario(bench)

    state = State.open(root / "state.db")
    try:
        trio.run(main, clock=trio.testing.MockClock(rate=rate))
    finally:
        state.close()


def test_a_listing_shows_every_name_at_once_and_sizes_as_far_as_they_are_known(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        bench.manifests.found(FILE.info)
        listed = {name: attributes.size for name, attributes, _ in bench.listing()}
        assert listed == {"domain": 0, FILE.info.name: len(FILE.data), LOST.info.name: None}
        assert not bench.finder.lookups

    run(tmp_path, scenario)


def test_a_listing_goes_on_from_the_position_that_each_entry_gives(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        handle = bench.fs.open_directory(bench.folder)
        whole = list(bench.fs.listing(handle, 0))
        assert len(whole) == 3
        for number, (_, _, after) in enumerate(whole, 1):
            assert list(bench.fs.listing(handle, after)) == whole[number:]
        bench.fs.close_directory(handle)
        with pytest.raises(NoSuchEntry):
            list(bench.fs.listing(handle, 0))

    run(tmp_path, scenario)


def test_the_root_has_the_catalogue_and_dots_lead_up(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        assert [name for name, _, _ in bench.listing(ROOT_INODE)] == ["snapshots"]
        domain = bench.inode("domain")
        for parent, name, expected in [
            (domain, ".", domain),
            (domain, "..", bench.folder),
            (bench.folder, "..", ROOT_INODE),
            (ROOT_INODE, "..", ROOT_INODE),
        ]:
            assert bench.fs.lookup(parent, name) == Attributes(expected, True, 0, BORN)

    run(tmp_path, scenario)


def test_a_look_up_shows_what_is_known_and_only_attributes_wait_for_a_size_which_is_asked_for_once(
    tmp_path: Path,
) -> None:
    async def scenario(bench: Bench) -> None:
        inode = bench.inode(FILE.info.name)
        expected = Attributes(inode, False, len(FILE.data), CREATED)
        assert bench.fs.lookup(bench.folder, FILE.info.name) == replace(expected, size=None)
        assert not bench.finder.lookups
        for _ in range(2):
            assert await bench.fs.attributes(inode) == expected
            assert bench.fs.lookup(bench.folder, FILE.info.name) == expected
        assert bench.finder.lookups == [FILE.info.name]
        assert bench.fs.usage() == Usage(len(FILE.data), len(bench.tree))

    run(tmp_path, scenario)


def test_a_name_whose_size_nobody_knows_fails_and_stays_listed(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        inode = bench.inode(LOST.info.name)
        for ask in (bench.fs.attributes(inode), bench.fs.open(inode)):
            with pytest.raises(MetadataUnavailable, match=LOST.info.name):
                await ask
        assert bench.fs.lookup(bench.folder, LOST.info.name).size is None
        assert LOST.info.name in [name for name, _, _ in bench.listing()]

    run(tmp_path, scenario)


def test_more_requests_for_sizes_than_may_wait_are_refused_and_those_for_known_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.filesystem.MOST_WAITING", 2)

    async def scenario(bench: Bench) -> None:
        lost = bench.inode(LOST.info.name)
        known = await bench.fs.attributes(bench.inode(NESTED.info.name))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_is_unavailable, bench, lost)
            nursery.start_soon(_is_unavailable, bench, lost)
            await until(lambda: bench.finder.lookups.count(LOST.info.name) == 2)
            for ask in (bench.fs.attributes(lost), bench.fs.open(lost)):
                bench.cache.last_error = ""
                with pytest.raises(TooManyWaiting) as refused:
                    await ask
                assert bench.cache.last_error == str(refused.value)
            assert await bench.fs.attributes(known.inode) == known
            bench.fs.close(await bench.fs.open(known.inode))
        await _is_unavailable(bench, lost)

    run(tmp_path, scenario)


async def _is_unavailable(bench: Bench, inode: int) -> None:
    with pytest.raises(MetadataUnavailable):
        await bench.fs.attributes(inode)


def test_what_is_not_there_is_no_such_entry(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        file = bench.inode(FILE.info.name)
        for parent, name in (
            (bench.folder, "absent"), (bench.folder, ""), (bench.folder, "n" * 255),
            (file, "below a file"), (file, ".."), (12345, "."),
        ):  # fmt: skip
            with pytest.raises(NoSuchEntry) as caught:
                bench.fs.lookup(parent, name)
            assert errno_of(caught.value) == errno.ENOENT
        with pytest.raises(NoSuchEntry) as caught:
            await bench.fs.open(bench.folder)
        assert errno_of(caught.value) == errno.ENOENT
        with pytest.raises(NoSuchEntry) as caught:
            await bench.fs.read(12345, 0, 1)
        assert errno_of(caught.value) == errno.ENOENT
        for ask in (bench.fs.attributes(12345), bench.fs.open(12345)):
            with pytest.raises(NoSuchEntry) as caught:
                await ask
            assert errno_of(caught.value) == errno.ESTALE
        for inode, number in ((12345, errno.ESTALE), (file, errno.ENOENT)):
            with pytest.raises(NoSuchEntry) as caught:
                bench.fs.open_directory(inode)
            assert errno_of(caught.value) == number
        with pytest.raises(NameTooLong) as too_long:
            bench.fs.lookup(bench.folder, "n" * 256)
        assert errno_of(too_long.value) == errno.ENAMETOOLONG

    run(tmp_path, scenario)


def test_each_open_is_a_handle_of_its_own_that_lasts_until_its_close(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        first, second = await bench.open(FILE.info.name), await bench.open(FILE.info.name)
        assert first != second
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.fs.read, first, 0, 10)
            await until(lambda: bool(bench.fetcher.jobs and bench.fetcher.last.urgent))
            bench.fetcher.last.land(0)
        bench.fs.close(first)
        with pytest.raises(NoSuchEntry, match=f"handle {first}"):
            bench.fs.read_now(first, 0, 10)
        assert await bench.fs.read(second, 0, 10) == FILE.data[:10]
        bench.fs.close(second)
        bench.fs.close(second)
        bench.fs.close(99)
        third = await bench.open(FILE.info.name)
        assert third not in (first, second)

    run(tmp_path, scenario)


def test_read_now_gives_what_is_in_memory_and_leaves_the_rest_to_read(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        handle = await bench.open(NESTED.info.name)
        assert bench.fs.read_now(handle, 0, 10) is None
        with trio.move_on_after(0.1):
            await bench.fs.read(handle, 0, 10)
        bench.fetcher.last.land(0)
        assert await bench.fs.read(handle, 0, 2000) == NESTED.data
        ready = bench.fs.read_now(handle, 990, 100)
        assert ready is not None
        assert bytes(ready) == NESTED.data[990:]

    run(tmp_path, scenario)


def test_an_open_that_fails_leaves_no_handle_and_nothing_open(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.store.aclose()
        with pytest.raises(Stopping):
            await bench.open(FILE.info.name)
        assert not bench.cache.flows()
        assert not bench.store.opened()

    run(tmp_path, scenario)


def _samples() -> list[CachefsError]:
    """One of each error class, with some evidence for every field."""
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CachefsError)]
    made = []
    for kind in classes:
        error = kind.__new__(kind)
        Exception.__init__(error, "evidence")
        made.append(error)
    return made


@pytest.mark.parametrize("error", _samples(), ids=lambda error: type(error).__name__)
def test_every_error_has_an_errno_that_a_reader_can_act_on(error: CachefsError) -> None:
    told = {
        errors.StoreFull: errno.ENOSPC,
        errors.Abandoned: errno.EINTR,
        errors.SourceRefused: errno.EACCES,
        errors.SourceSilent: errno.ETIMEDOUT,
        errors.SourceTooLarge: errno.EFBIG,
        errors.SourceLied: errno.EBADMSG,
        errors.RecordMismatch: errno.EBADMSG,
        errors.RecordInconsistent: errno.EBADMSG,
    }
    assert errno_of(error) == told.get(type(error), errno.EIO)


def _other_tree() -> Tree:
    """FILE's name with another content, and none of the others."""
    return Tree.build({"snapshots": {FILE.info.name: NESTED.info.content}})


def test_after_a_switch_an_open_file_keeps_attributes_and_bytes_and_its_inode_is_stale_once_it_is_closed(
    tmp_path: Path,
) -> None:
    async def scenario(bench: Bench) -> None:
        inode = bench.inode(FILE.info.name)
        handle = await bench.open(FILE.info.name)
        bench.fs.switch(_other_tree(), BORN + 1)
        assert await bench.fs.attributes(inode) == Attributes(inode, False, len(FILE.data), CREATED)
        assert bench.fs.facts(inode)["user.cachefs.progress"] == f"0/{len(FILE.data)}"
        with pytest.raises(Stale):
            await bench.fs.open(inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_reads, bench, handle)
            await until(lambda: bool(bench.fetcher.jobs and bench.fetcher.last.urgent))
            bench.fetcher.last.land(*range(FILE.blocks))
        bench.fs.close(handle)
        with pytest.raises(Stale):
            await bench.fs.attributes(inode)
        with pytest.raises(Stale):
            bench.fs.facts(inode)

    run(tmp_path, scenario)


def test_a_reload_that_forgets_a_length_for_a_moment_does_not_shrink_what_is_open(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        handle = await bench.open(FILE.info.name)
        bench.manifests.switch({})
        bench.manifests.switch({FILE.info.name: FILE.info.content})
        assert bench.fs.lookup(bench.folder, FILE.info.name).size == len(FILE.data)
        bench.fs.close(handle)

    run(tmp_path, scenario)


def test_an_open_directory_goes_on_through_the_names_that_are_still_there(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        handle, inner = bench.fs.open_directory(bench.folder), bench.fs.open_directory(bench.inode("domain"))
        listing = bench.fs.listing(handle, 0)
        assert next(listing)[0] == "domain"
        bench.fs.switch(_other_tree(), BORN)
        ((name, attributes, _),) = list(listing)
        assert (name, attributes.inode) == (FILE.info.name, _inode(_other_tree(), FILE.info.name))
        assert list(bench.fs.listing(inner, 0)) == []
        assert (await bench.fs.attributes(bench.inode("domain"))).is_directory
        bench.fs.close_directory(inner)
        with pytest.raises(Stale):
            await bench.fs.attributes(bench.inode("domain"))

    run(tmp_path, scenario)


def _inode(tree: Tree, name: str) -> int:
    node = tree.find("snapshots", name)
    assert node is not None
    return node.inode


async def _reads(bench: Bench, handle: int) -> None:
    assert await bench.fs.read(handle, 5, 100) == FILE.data[5:105]


@pytest.mark.parametrize("name", [FILE.info.name, LOST.info.name], ids=["found", "not found"])
def test_whoever_waited_for_a_size_while_the_tree_was_switched_has_to_look_again(tmp_path: Path, name: str) -> None:
    async def scenario(bench: Bench) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_is_stale, bench, name)
            await until(lambda: bool(bench.finder.lookups))
            bench.fs.switch(_other_tree(), BORN)

    run(tmp_path, scenario)


async def _is_stale(bench: Bench, name: str) -> None:
    with pytest.raises(Stale):
        await bench.fs.attributes(bench.inode(name))
