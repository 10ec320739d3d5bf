"""The policy by itself: what goes first, what never goes, and that nothing goes in vain."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cachefs.content import ContentId, Span
from cachefs.errors import CachefsError
from cachefs.keeper import Keeper
from cachefs.store import ObjectStore, State, space
from cachefs.store.claims import Nobody
from cachefs.store.eviction import Bounds, Held, Limits, expired, in_words, occupied, to_free
from cachefs.store.room import Room
from cachefs.store.state import Pin


def held(number: int, size: int = 10, used: float | None = None, stays: str = "") -> Held:
    return Held(ContentId.btih(f"{number:040x}"), size, float(number) if used is None else used, stays)


items = st.lists(
    st.builds(held, st.integers(0, 10**6), st.integers(0, 100), st.floats(0, 100), st.sampled_from(["", "", "open"])),
    unique_by=lambda item: item.content,
)


@given(items, st.integers(-10, 500), st.integers(0, 200))
def test_what_goes_is_enough_or_all_there_is_the_oldest_first_and_never_what_stays(
    things: list[Held], needed: int, at_least: int
) -> None:
    going = to_free(things, needed, at_least)
    freed = sum(item.size for item in going)
    stay = [item for item in things if item not in going and not item.stays and item.size]
    assert not any(item.stays for item in going)
    if going:
        assert freed >= min(needed, at_least)
        assert freed - going[-1].size < needed, "one too many"
        assert freed >= needed or not stay
        assert all(item.last_used <= min((other.last_used for other in stay), default=1e9) for item in going)
    else:
        assert needed <= 0 or sum(item.size for item in stay) < max(1, min(needed, at_least))


def test_what_nobody_used_for_too_long_goes_and_the_oldest_beyond_the_count() -> None:
    things = [held(1), held(2, stays="pinned"), held(3), held(9)]
    assert expired(things, Bounds(age=5), 10.0) == [things[0], things[2]]
    assert expired(things, Bounds(count=3), 10.0) == [things[0]]
    assert expired(things, Bounds(count=0), 10.0) == [things[0], things[2], things[3]]
    assert expired(things, Bounds(size=5), 10.0) == []


def test_what_takes_the_room_is_told_largest_first() -> None:
    things = [held(1, 10**9), held(2, 3 * 10**9, stays="open"), held(3, 5 * 10**8, stays="open"), held(4, 0)]
    assert occupied(things) == "3.5 GB open, 1.0 GB not in use"
    assert occupied([]) == "nothing held"
    assert [in_words(size) for size in (5, 2048, 10**15)] == ["5 B", "2.0 kB", "1000.0 TB"]


def test_limits_that_limit_nothing_are_none() -> None:
    assert not Limits()
    assert not Limits(Bounds(), 0, {"records": Bounds()})
    assert Limits(catalogues={"records": Bounds(count=1)})
    assert Limits(free_space=1)


def test_what_is_written_of_a_span_is_told_by_the_file_system(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("w+b") as file:
        file.truncate(2**20)
        assert space.written(file.fileno(), Span(0, 2**20)) == 0
        file.seek(2**16)
        file.write(b"x" * 2**16)
        file.flush()
        assert space.written(file.fileno(), Span(0, 2**20)) == 2**16
        assert space.written(file.fileno(), Span(2**16 + 4096, 2**20 - 2**16 - 4096)) == 2**16 - 4096
        assert space.taken(path) == 2**16
    assert space.cost(Span(4095, 2)) == 8192
    (tmp_path / "other").hardlink_to(path)
    assert space.taken(path) == 0
    assert space.taken(tmp_path / "none") == 0


def test_everything_in_a_store_is_counted_once(tmp_path: Path) -> None:
    one, other = tmp_path / "btih" / "11" / ("11" * 20), tmp_path / "sha256" / "22" / ("22" * 32)
    for directory in (one, other):
        directory.mkdir(parents=True)
        (directory / "data").write_bytes(b"x" * 10_000)
        (directory / "manifest").write_bytes(b"y")
    (tmp_path / "btih" / "33" / "not-a-digest").mkdir(parents=True)
    found = space.scan(tmp_path)
    everything = [path.stat() for path in (tmp_path, *tmp_path.rglob("*"))]
    assert set(found.data.values()) == {12_288}
    assert {content.hex for content in found.data} == {"11" * 20, "22" * 32}
    assert sum(found.data.values()) + found.other == sum(status.st_blocks * 512 for status in everything)


def test_half_made_files_are_deleted_once_nobody_can_be_at_work_on_them(tmp_path: Path) -> None:
    directory = tmp_path / "btih" / "11" / ("11" * 20)
    directory.mkdir(parents=True)
    for name in ("data", "manifest", "manifest.abc", "data.def"):
        (directory / name).write_bytes(b"x")
    assert space.remove_leavings(tmp_path, time.time() - 3600) == 0
    assert space.remove_leavings(tmp_path, time.time() + 1) == 2 * 4096
    assert sorted(path.name for path in directory.iterdir()) == ["data", "manifest"]


def test_a_pin_follows_its_name_to_the_content_that_the_lock_gives_it(tmp_path: Path) -> None:
    one, other = held(1).content, held(2).content
    state = State.open(tmp_path / "state.db")
    store = ObjectStore(tmp_path / "store", state)
    lock = {"a": one, "b": one}
    room = Room(store, state)
    keeper = Keeper(store, state, room, lambda: {"snapshots": lock})
    assert keeper.pin(["a"]) == ["a"]
    assert room.evictor.pinned == {one}
    lock["a"] = other
    keeper.refresh()
    assert room.evictor.pinned == {other}
    assert state.pins() == [Pin("snapshots", "a", other)]
    del lock["a"]
    keeper.refresh()
    assert keeper.unpin(["snapshots/*"]) == ["a"]
    assert room.evictor.pinned == set()
    with pytest.raises(CachefsError, match="no name matches a"):
        keeper.pin(["b", "a"])
    state.close()


class PinsMeanwhile(Nobody):
    """A user of the store that needs a moment to let go, in which somebody pins the object."""

    def __init__(self, pinned: set[ContentId]) -> None:
        self.pinned = pinned

    async def let_go(self, content: ContentId) -> bool:
        self.pinned.add(content)
        return True


def test_what_is_pinned_while_it_is_let_go_of_stays(tmp_path: Path) -> None:
    async def main() -> None:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state)
        evictor = Room(store, state).evictor
        evictor.users = PinsMeanwhile(evictor.pinned)
        assert (await evictor.evict(held(1).content)).stays == "pinned"
        state.close()

    trio.run(main)


def test_garbage_is_judged_only_where_the_catalogue_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state)
        one, other = held(1).content, held(2).content
        for content in (one, other, ContentId("sha256", bytes(32))):
            store.save_manifest(content, b"x")
        assert await names(store, state, {"a": one}) == {one, ContentId("sha256", bytes(32))}
        assert await names(store, state, {}) == {one, ContentId("sha256", bytes(32))}
        state.close()

    async def names(store: ObjectStore, state: State, lock: dict[str, ContentId]) -> set[ContentId]:
        await Keeper(store, state, Room(store, state), lambda: {"snapshots": lock}).collect(lambda done, of: None)
        return set(store.known())

    trio.run(main)


def test_what_cannot_be_deleted_stays_and_the_others_go(tmp_path: Path) -> None:
    async def main() -> None:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state)
        contents = {name: held(number).content for number, name in enumerate("abc")}
        for content in contents.values():
            store.save_manifest(content, b"x")
            (store.root / "btih" / content.hex[:2] / content.hex / "data").write_bytes(b"x" * 4096)
        stuck = store.root / "btih" / "00" / contents["b"].hex / "data"
        stuck.unlink()
        stuck.mkdir()
        keeper = Keeper(store, state, Room(store, state), lambda: {"snapshots": contents})
        outcome = await keeper.evict(["*"], lambda done, of: None)
        assert outcome.gone == {"a": 4096, "c": 4096}
        assert outcome.stays == {"b": f"{stuck}: Is a directory"}
        contents = {"z": held(9).content}
        collected = await keeper.collect(lambda done, of: None)
        assert (len(collected.nameless.gone), [*collected.nameless.stays.values()]) == (2, [f"{stuck}: Is a directory"])
        state.close()

    trio.run(main)


def test_a_half_made_file_that_gets_its_name_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "btih" / "11" / ("11" * 20)
    directory.mkdir(parents=True)
    for name in ("data.abc", "manifest.abc", "manifest.def"):
        (directory / name).write_bytes(b"x")
    found = Path.glob

    def and_then_renamed(self: Path, pattern: str) -> list[Path]:
        paths = sorted(found(self, pattern))
        if pattern.endswith("manifest.*"):
            paths[0].rename(directory / "manifest")
        return paths

    monkeypatch.setattr(Path, "glob", and_then_renamed)
    assert space.remove_leavings(tmp_path, time.time() + 1) == 2 * 4096
    assert [path.name for path in directory.iterdir()] == ["manifest"]
