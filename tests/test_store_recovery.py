"""The store after the worst: killed at every step, power lost, files emptied, database gone.

Two promises are tested throughout. No byte is served that isn't the content's, and nothing good that is on disk
is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from cachefs.content import Bitmap, ContentId, Manifest, Span
from cachefs.errors import StoreFailed
from cachefs.store import ObjectStore, State, StoredObject
from cachefs.store.recovery import judge
from tests.store_kit import BLOCK, BLOCKS, LENGTH, content_of, piece, put, write

MANIFEST, DATA = content_of(1)
ALL = set(range(BLOCKS))


def open_in(root: Path, inspect: Callable[[StoredObject, State], None] | None = None) -> set[int]:
    """The blocks that the object has when it is opened, each of which is read and compared; then a clean close."""

    async def main() -> set[int]:
        state = State.open(root / "state.db")
        store = ObjectStore(root / "store", state)
        stored = await store.open(MANIFEST)
        for index in stored.verified:
            span = MANIFEST.span(index)
            assert await stored.read(span.offset, span.length) == piece(MANIFEST, DATA, index)
        have = set(stored.verified)
        if inspect is not None:
            inspect(stored, state)
        await stored.release()
        state.close()
        return have

    return trio.run(main)


def fill(root: Path, blocks: Iterable[int]) -> Path:
    """An object with these blocks, cleanly closed; the path of its data."""
    paths: list[Path] = []

    def write(stored: StoredObject, state: State) -> None:
        paths.append(stored.path)
        for index in blocks:
            put(stored, DATA, index)
            stored.land(index)

    open_in(root, write)
    return paths[0]


def hashed(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that the next open hashes."""
    asked: list[int] = []
    real = type(MANIFEST).verify

    def verify(manifest: object, index: int, data: bytes) -> None:
        asked.append(index)
        real(MANIFEST, index, data)

    with monkeypatch.context() as patch:
        patch.setattr(type(MANIFEST), "verify", verify)
        open_in(root)
    return asked


def kill_child(root: Path, step: str, blocks: Iterable[int]) -> None:
    """Run a child that works on the object and dies by SIGKILL at `step`."""
    program = [sys.executable, "-m", "tests.store_kit", str(root), step, *map(str, blocks)]
    child = subprocess.run(program, cwd=Path(__file__).parent.parent, check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL


STEPS = [
    "before-land",
    "after-land",
    "before-sync",
    "after-sync",
    "before-bits",
    "after-bits",
    "after-commit",
    "after-close",
]


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_a_commit_nothing_written_is_lost(tmp_path: Path, step: str) -> None:
    kill_child(tmp_path, step, [0, 3])
    assert open_in(tmp_path) == {0, 3}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_of_the_last_commit_the_object_is_complete(tmp_path: Path, step: str) -> None:
    fill(tmp_path, [0, 1])
    kill_child(tmp_path, step, [2, 3, 4, 5])

    def sealed(stored: StoredObject, state: State) -> None:
        assert stored.complete
        assert stored.sealed
        assert state.counts().complete == 1

    assert open_in(tmp_path, sealed) == ALL


def test_killed_with_a_torn_block_on_disk_only_that_block_is_absent(tmp_path: Path) -> None:
    kill_child(tmp_path, "after-land", [0, 3])
    path = next(tmp_path.glob("store/*/*/*/data"))
    with path.open("r+b") as file:
        file.seek(3 * BLOCK + BLOCK // 2)
        file.write(bytes(BLOCK // 2))
    assert open_in(tmp_path) == {0}


def test_after_a_clean_close_nothing_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [1, 2])
    assert hashed(tmp_path, monkeypatch) == []
    fill(tmp_path, [0, 3, 4, 5])
    assert hashed(tmp_path, monkeypatch) == []


def test_after_a_crash_only_what_has_no_bit_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, [1, 2])
    kill_child(tmp_path, "after-land", [4])
    assert hashed(tmp_path, monkeypatch) == [4]
    assert hashed(tmp_path, monkeypatch) == []


@pytest.mark.parametrize("blocks", [[1, 2], list(ALL)], ids=["partial", "complete"])
def test_a_lost_database_costs_hashing_not_fetching(tmp_path: Path, blocks: list[int]) -> None:
    fill(tmp_path, blocks)
    for path in tmp_path.glob("state.db*"):
        path.unlink()
    assert open_in(tmp_path) == set(blocks)


def test_a_garbage_database_costs_hashing_not_fetching(tmp_path: Path) -> None:
    fill(tmp_path, ALL)
    (tmp_path / "state.db").write_bytes(b"garbage" * 1000)
    assert open_in(tmp_path) == ALL
    assert (tmp_path / "state.db.broken-1").exists()


@pytest.mark.parametrize("blocks", [[1, 2], list(ALL)], ids=["partial", "complete"])
def test_an_emptied_file_is_noticed_and_made_again_at_full_length(tmp_path: Path, blocks: list[int]) -> None:
    path = fill(tmp_path, blocks)
    path.chmod(0o600)
    path.write_bytes(b"")
    assert open_in(tmp_path) == set()
    assert path.stat().st_size == LENGTH
    fill(tmp_path, ALL)
    assert open_in(tmp_path) == ALL


@pytest.mark.parametrize("blocks", [[1, 2], list(ALL)], ids=["partial", "complete"])
def test_a_missing_file_is_noticed_and_made_again(tmp_path: Path, blocks: list[int]) -> None:
    fill(tmp_path, blocks).unlink()
    assert open_in(tmp_path) == set()
    fill(tmp_path, ALL)
    assert open_in(tmp_path) == ALL


@pytest.mark.parametrize("length", [2 * BLOCK + 10, LENGTH - 1, LENGTH + 1, LENGTH + BLOCK])
def test_a_file_of_another_length_keeps_its_good_blocks(tmp_path: Path, length: int) -> None:
    path = fill(tmp_path, ALL)
    os.truncate(path, length)
    good = {index for index in ALL if MANIFEST.span(index).end <= length}
    assert open_in(tmp_path) == good
    assert path.stat().st_size == LENGTH


def test_bits_over_a_hole_are_not_believed_after_a_crash(tmp_path: Path) -> None:
    fill(tmp_path, [0, 1, 2])
    kill_child(tmp_path, "after-commit", [3])
    path = next(tmp_path.glob("store/*/*/*/data"))
    os.truncate(path, BLOCK)
    os.truncate(path, LENGTH)
    assert open_in(tmp_path) == {0}


def test_zero_filled_blocks_are_found_and_their_names_no_longer_completed(tmp_path: Path) -> None:
    path = fill(tmp_path, ALL)
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": MANIFEST.content}, 1.0)
    assert state.infos()["a"].completed is not None
    state.close()
    with path.open("r+b") as file:
        file.seek(BLOCK)
        file.write(bytes(2 * BLOCK))

    def incomplete(stored: StoredObject, state: State) -> None:
        assert not stored.complete
        assert state.infos()["a"].completed is None
        for index in (1, 2):
            put(stored, DATA, index)
            stored.land(index)

    assert open_in(tmp_path, incomplete) == ALL - {1, 2}
    assert open_in(tmp_path) == ALL


def test_a_touched_seal_is_verified_again_and_sealed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path, ALL)
    os.utime(path, (1, 1))
    assert sorted(hashed(tmp_path, monkeypatch)) == sorted(ALL)
    assert hashed(tmp_path, monkeypatch) == []


def test_a_file_put_in_the_place_of_a_sealed_one_is_verified(tmp_path: Path) -> None:
    path = fill(tmp_path, ALL)
    status = path.stat()
    other = path.with_name("other")  # made before the first is gone, or it might get the same inode number
    other.write_bytes(piece(MANIFEST, DATA, 0) + content_of(2)[1][BLOCK:])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert open_in(tmp_path) == {0}


def test_an_open_cancelled_while_hashing_keeps_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path, ALL)
    os.utime(path, (1, 1))
    asked: list[int] = []
    real = type(MANIFEST).verify

    async def main() -> None:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state)
        with trio.CancelScope() as scope:

            def verify(manifest: object, index: int, data: bytes) -> None:
                asked.append(index)
                real(MANIFEST, index, data)
                if index == 2:
                    trio.from_thread.run_sync(scope.cancel)

            with monkeypatch.context() as patch:
                patch.setattr(type(MANIFEST), "verify", verify)
                await store.open(MANIFEST)
        assert scope.cancelled_caught
        assert store.opened() == []
        state.close()

    trio.run(main)
    assert asked == [0, 1, 2]
    assert hashed(tmp_path, monkeypatch) == [3, 4, 5]


@pytest.mark.parametrize(
    ("bits", "gaps", "believed", "suspects"),
    [
        ([], [(0, LENGTH)], [], []),
        ([], [], [], [0, 1, 2, 3, 4, 5]),
        ([0, 1], [(BLOCK, LENGTH - BLOCK)], [0], [1]),
        ([0], [(BLOCK, 4 * BLOCK)], [0], [5]),
        ([0], [(BLOCK + 1, LENGTH - BLOCK - 1)], [0], [1]),
        ([5], [(0, 5 * BLOCK)], [5], []),
        ([5], [(0, LENGTH)], [], [5]),
    ],
)
def test_data_without_a_bit_and_bits_without_data_are_hashed_and_nothing_else(
    bits: list[int], gaps: list[tuple[int, int]], believed: list[int], suspects: list[int]
) -> None:
    verdict = judge(MANIFEST, Bitmap(BLOCKS, bits), [Span(*gap) for gap in gaps])
    assert verdict == (Bitmap(BLOCKS, believed), suspects)


class PowerCuts(RuleBasedStateMachine):
    """Land, commit, close, die and lose power in any order, against a model of the disk.

    A power cut leaves of the file what the last sync saw; of the database, the worst case, every commit.
    `written` are the blocks in the file and `synced` those a power cut leaves; `known` must be there at the next
    open: all that is written after a crash, all that landed after a clean close.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place = TemporaryDirectory()
        self.root = Path(self.place.name)
        self.session: list[tuple[str, int]] = []
        self.written: set[int] = set()
        self.known: set[int] = set()
        self.synced: set[int] = set()
        self.image = b""
        self.power = True

    @rule(step=st.sampled_from(["land", "write", "commit"]), index=st.sampled_from(sorted(ALL)))
    def work(self, step: str, index: int) -> None:
        self.session.append((step, index))

    @rule()
    def close_cleanly(self) -> None:
        trio.run(self._play, True)

    @rule()
    def die(self) -> None:
        trio.run(self._play, False)
        self.known = set(self.written)

    @rule(in_sync=st.booleans())
    def cut_power(self, in_sync: bool) -> None:
        trio.run(self._play, False, in_sync)
        path = next(self.root.glob("store/*/*/*/data"))
        path.chmod(0o600)
        path.write_bytes(self.image)
        self.written = set(self.synced)
        self.known = set(self.synced)

    @rule()
    def lose_database(self) -> None:
        trio.run(self._play, True)
        for path in self.root.glob("state.db*"):
            path.unlink()
        self.known = set(self.written)

    async def _play(self, cleanly: bool, in_sync: bool = False) -> None:
        """Open what is there, check it against the model, do what the session says, and end."""
        state = State.open(self.root / "state.db")
        store = ObjectStore(self.root / "store", state, sync=self._sync)
        stored = await store.open(MANIFEST)
        await self._check(stored)
        for step, index in self.session:
            await self._step(stored, step, index)
        if in_sync:
            self.power = False
            with contextlib.suppress(StoreFailed):
                await stored.commit()
            self.power = True
        self.session = []
        self.known = set(stored.verified)
        if cleanly:
            await stored.release()
        else:
            stored.abandon()
        state.close()

    async def _check(self, stored: StoredObject) -> None:
        assert self.known <= set(stored.verified) <= self.written
        for index in stored.verified:
            span = MANIFEST.span(index)
            assert await stored.read(span.offset, span.length) == piece(MANIFEST, DATA, index)

    async def _step(self, stored: StoredObject, step: str, index: int) -> None:
        if step == "commit":
            await stored.commit()
            return
        if index not in stored.verified:
            put(stored, DATA, index)
            self.written.add(index)
        if step == "land":
            stored.land(index)

    def _sync(self, fd: int) -> None:
        if not self.power:
            raise OSError(errno.EIO, "no power")
        self.image = os.pread(fd, LENGTH, 0)
        self.synced = set(self.written)

    def teardown(self) -> None:
        self.place.cleanup()


def test_power_lost_in_a_sync_leaves_no_bit_without_its_data() -> None:
    cuts = PowerCuts()
    for step, index in (("land", 0), ("commit", 0), ("land", 1)):
        cuts.work(step=step, index=index)
    cuts.cut_power(in_sync=True)
    assert cuts.known == {0}
    cuts.close_cleanly()
    cuts.teardown()


PowerCuts.TestCase.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
TestNoOrderOfCrashesLosesGoodBlocksOrBelievesBadOnes = PowerCuts.TestCase


def test_a_complete_file_with_a_hole_for_zeros_is_whole_again_when_it_was_only_touched(tmp_path: Path) -> None:
    zeros = bytes(BLOCK)
    digest = hashlib.sha1(zeros, usedforsecurity=False).digest()
    manifest = Manifest(ContentId("btih", bytes(20)), 2 * BLOCK, BLOCK, digest * 2)

    async def fill() -> None:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state)
        stored = await store.open(manifest)
        for index in range(2):
            await write(stored, index, zeros)
        os.truncate(stored.path, 0)
        os.truncate(stored.path, 2 * BLOCK)
        await store.aclose()
        state.close()
        os.utime(stored.path, ns=(0, 0))

    async def look() -> set[int]:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state)
        stored = await store.open(manifest)
        have = set(stored.verified)
        await store.aclose()
        state.close()
        return have

    trio.run(fill)
    assert trio.run(look) == {0, 1}
