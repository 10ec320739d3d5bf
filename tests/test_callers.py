"""Who reads: processes and threads that are alive, killed while they wait, or gone; and what a read makes of that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cachefs.callers import Caller
from cachefs.config import Read
from cachefs.errors import Abandoned, Unavailable
from cachefs.flow import Reader
from tests import cache_kit
from tests.cache_kit import FILE, Bench
from tests.fakes import BLOCK


def test_nobody_in_particular_is_neither_killed_nor_gone() -> None:
    nobody = Caller()
    assert (nobody.process, nobody.killed(), nobody.gone()) == (0, False, False)


def test_a_thread_is_known_by_its_process_also_when_it_has_ended() -> None:
    callers: list[Caller] = []
    thread = threading.Thread(target=lambda: callers.append(Caller(threading.get_native_id())))
    thread.start()
    thread.join()
    (caller,) = callers
    assert (caller.process, caller.killed(), caller.gone()) == (os.getpid(), False, False)


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A child that waits for its input to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_process_that_has_ended_is_gone_before_and_after_its_parent_took_note() -> None:
    with process() as child:
        caller = Caller(child.pid)
        assert (caller.process, caller.killed(), caller.gone()) == (child.pid, False, False)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert caller.gone()
        child.wait()
        assert caller.gone()


@pytest.mark.parametrize("pending", ["SigPnd", "ShdPnd"])
def test_sigkill_among_the_pending_signals_is_a_kill_and_no_other_signal_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending: str
) -> None:
    caller = Caller(os.getpid())
    status = tmp_path / "proc" / str(os.getpid()) / "status"
    status.parent.mkdir(parents=True)
    monkeypatch.setattr("cachefs.callers.Path", lambda path: tmp_path / path.lstrip("/"))
    for mask, killed in (("0000000000000100", True), ("0000000000004000", False), ("0000000000000000", False)):
        status.write_text(f"Name:\tx\nState:\tD (disk sleep)\nTgid:\t{os.getpid()}\n{pending}:\t{mask}\n")
        assert caller.killed() is killed


class Known(Caller):
    """A caller that is as a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.is_killed = self.is_gone = False

    def killed(self) -> bool:
        return self.is_killed

    def gone(self) -> bool:
        return self.is_gone


async def answered(bench: Bench, reads: int) -> None:
    """Return when so many reads have an outcome. Bytes come by a thread, which virtual time knows nothing of."""
    for _ in range(2000):
        if len(bench.outcomes) >= reads:
            return
        await trio.to_thread.run_sync(threading.Event().wait, 0.01)


Scenario = Callable[[Bench, Reader, Known], Awaitable[None]]


def wait_for_ever(tmp_path: Path, scenario: Scenario) -> None:
    """A read that waits for ever in the background."""

    async def main(bench: Bench) -> None:
        caller = Known()
        bench.clock.autojump_threshold = float("inf")
        reader = await bench.cache.open(FILE.item, caller)
        bench.clock.autojump_threshold = 0
        await bench.start_read(reader, 0, 10)
        await scenario(bench, reader, caller)

    cache_kit.run(tmp_path, main, Read(deadline=60.0, on_unavailable=(("*", "wait"),)))


def test_a_read_of_somebody_who_is_being_killed_is_let_go_within_a_second_or_so(tmp_path: Path) -> None:
    async def scenario(bench: Bench, reader: Reader, caller: Known) -> None:
        await trio.sleep(1000)
        assert not bench.outcomes
        caller.is_killed = True
        await trio.sleep(1.5)
        assert isinstance(bench.error, Abandoned)
        assert not bench.cache.waiting()
        assert not bench.cache.last_error, "nobody has to be told"

    wait_for_ever(tmp_path, scenario)


def test_an_opener_that_is_gone_means_nothing_while_no_descriptor_was_closed(tmp_path: Path) -> None:
    async def scenario(bench: Bench, reader: Reader, caller: Known) -> None:
        caller.is_gone = True
        await trio.sleep(1000)
        assert not bench.outcomes
        reader.flushed()
        await trio.sleep(1.5)
        assert isinstance(bench.error, Abandoned)

    wait_for_ever(tmp_path, scenario)


def test_a_read_that_begins_after_a_descriptor_was_closed_is_of_somebody_who_has_another(tmp_path: Path) -> None:
    async def scenario(bench: Bench, reader: Reader, caller: Known) -> None:
        caller.is_gone = True
        reader.flushed()
        await trio.sleep(1.5)
        assert isinstance(bench.error, Abandoned)
        await bench.start_read(reader, 0, 10)
        await trio.sleep(1000)
        bench.fetcher.last.land(0)
        await answered(bench, 2)
        assert bench.outcomes[1] == FILE.data[:10]

    wait_for_ever(tmp_path, scenario)


@pytest.mark.parametrize("direct", [False, True], ids=["page cache", "direct"])
def test_a_read_of_another_process_than_the_opener_s_is_let_go_when_that_is_gone_unless_it_may_be_waited_for_elsewhere(
    tmp_path: Path, direct: bool
) -> None:
    async def scenario(bench: Bench, reader: Reader, caller: Known) -> None:
        caller.direct = direct
        with process() as child:
            bench.nursery.start_soon(bench.read_for, child.pid, reader, BLOCK, 10)
            await trio.sleep(1000)
            assert not bench.outcomes
        await trio.sleep(1.5)
        assert [type(outcome) for outcome in bench.outcomes] == ([] if direct else [Abandoned])
        assert len(bench.cache.waiting()) == (2 if direct else 1)

    wait_for_ever(tmp_path, scenario)


def test_who_closes_one_descriptor_of_several_reads_on(tmp_path: Path) -> None:
    async def scenario(bench: Bench, reader: Reader, caller: Known) -> None:
        reader.flushed()
        await trio.sleep(1000)
        bench.fetcher.last.land(0)
        await answered(bench, 1)
        assert bench.outcomes == [FILE.data[:10]]

    wait_for_ever(tmp_path, scenario)


def test_for_those_who_wait_for_ever_all_sources_are_tried_anew_twice_a_deadline_once_for_all(tmp_path: Path) -> None:
    async def scenario(bench: Bench, reader: Reader, caller: Known) -> None:
        for index in range(1, 6):
            await bench.start_read(reader, index * BLOCK, 10)
            await trio.sleep(1)
        await trio.sleep(50)
        assert bench.fetcher.last.restarts == 0
        await trio.sleep(300)
        assert bench.fetcher.last.restarts == 10
        assert not bench.outcomes
        caller.is_killed = True
        await trio.sleep(1.5)

    wait_for_ever(tmp_path, scenario)


@pytest.mark.parametrize(("mode", "seconds"), [("deadline", 60.0), ("fail-fast", 2.0)])
def test_a_read_fails_when_its_mode_says(tmp_path: Path, mode: str, seconds: float) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        start = trio.current_time()
        await bench.read(reader, 0, 10)
        assert isinstance(bench.error, Unavailable)
        assert trio.current_time() - start == pytest.approx(seconds, abs=1.01)

    modes = (("elsewhere/*", "wait"), ("snapshots/v1-*", mode), ("*", "wait"))
    cache_kit.run(tmp_path, scenario, Read(deadline=60.0, on_unavailable=modes, fail_fast_after=2.0))
