"""Metadata for a whole catalogue: who goes first, and what a failure costs.

What happens among the workers is played in virtual time against peers that are told how long they take.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.config import Read
from cachefs.content import ContentId
from cachefs.errors import MetadataUnavailable, NoMetadata, Stopping
from cachefs.fetch.metadata.search import LastResort
from cachefs.fetch.metadata.service import MetadataReport, MetadataService
from cachefs.fetch.outage import Outage
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.metainfo import Metainfo, build
from tests.counterparts import refusing_port, silent_server
from tests.fakes import Answer, FakePeers, until, web_host

LIMITS = Read(metadata_timeout=15.0, metadata_concurrency=4, failure_memory=30.0)


def infos(count: int) -> list[Metainfo]:
    """The metainfo of `count` files of one piece each, whose names are their numbers."""
    return [build(f"{number:05}.seg", 1 + number, bytes(20)) for number in range(count)]


class Bench:
    """A running service, and what it found."""

    def __init__(self, service: MetadataService, peers: FakePeers, found: list[Metainfo]) -> None:
        self.service = service
        self.peers = peers
        self.found = found

    async def fails(self, name: str) -> str:
        """Look `name` up, which must fail; the reason given."""
        with pytest.raises(MetadataUnavailable) as caught:
            await self.service.lookup(name)
        assert caught.value.name == name
        return caught.value.reason


NOBODY = FakePeers()
NOBODY.has_peers = False


class Rebuilder:
    """A last resort that has every file of `known`, gives it after `delay` seconds, and has no .torrent."""

    def __init__(self, *known: Metainfo, delay: float = 0.0) -> None:
        self.rebuilt: list[str] = []
        self._delay = delay
        self._known = {info.content: info for info in known}

    async def torrent(self, name: str, content: ContentId) -> Metainfo:
        raise NoMetadata(name, "no remote of the operator's")

    async def rebuild(self, name: str, content: ContentId) -> Metainfo:
        self.rebuilt.append(name)
        await trio.sleep(self._delay)
        return self._known[content]


@asynccontextmanager
async def serving(
    peers: FakePeers,
    *,
    directory: Path | None = None,
    seeds: Iterable[str] = (),
    limits: Read = LIMITS,
    last_resort: LastResort | None = None,
) -> AsyncIterator[Bench]:
    found: list[Metainfo] = []
    web_seeds = [WebSeed(url) for url in seeds]
    service = MetadataService(
        limits,
        Ledger(),
        found.append,
        directory=directory,
        web_seeds=web_seeds,
        peers=peers,
        last_resort=last_resort,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        yield Bench(service, peers, found)
        nursery.cancel_scope.cancel()


def wanted(known: Iterable[Metainfo]) -> dict[str, ContentId]:
    return {info.name: info.content for info in known}


def play(peers: FakePeers, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    """Run `scenario` in virtual time on a service whose only source is `peers`."""

    async def main() -> None:
        async with serving(peers) as bench:
            await scenario(bench)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_whole_catalogue_is_fetched_in_its_order_without_being_asked_for() -> None:
    known = infos(30)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted(known))
        assert bench.service.report().queued == 30
        await trio.sleep(30)
        for turn in range(0, 30, LIMITS.metadata_concurrency):
            few = slice(turn, turn + LIMITS.metadata_concurrency)
            assert set(bench.found[few]) == set(known[few])
        assert bench.service.report().queued == 0

    play(FakePeers(*known), scenario)


def test_no_more_names_are_asked_for_at_a_time_than_configured() -> None:
    known = infos(50)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted(known))
        await trio.sleep(20)
        assert bench.peers.most_at_once == LIMITS.metadata_concurrency

    play(FakePeers(*known), scenario)


def test_a_looked_up_name_goes_before_the_rest() -> None:
    known = infos(1000)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted(known))
        await trio.sleep(2.5)
        await bench.service.lookup(known[-1].name)
        assert trio.current_time() - began <= 3.6
        assert known[-1] in bench.found
        assert len(bench.found) < 20

    began = 0.0
    play(FakePeers(*known), scenario)


def test_a_looked_up_name_is_found_while_a_silent_source_occupies_every_background_worker() -> None:
    *silent, good = infos(100)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([*silent, good]))
        await trio.sleep(1)
        await bench.service.lookup(good.name)
        assert bench.found == [good]
        assert trio.current_time() == pytest.approx(2)

    play(FakePeers(good), scenario)


def test_listing_17000_names_while_no_source_answers_costs_one_timeout() -> None:
    names = wanted(infos(17_000))

    async def scenario(bench: Bench) -> None:
        bench.service.want(names)
        for name in names:
            assert await bench.fails(name)
        assert trio.current_time() <= LIMITS.metadata_timeout + 0.1

    play(FakePeers(), scenario)


def test_a_silent_source_is_not_asked_for_every_name_again_and_again() -> None:
    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted(infos(1000)))
        await trio.sleep(600)
        assert len(bench.peers.asked) < 100

    play(FakePeers(), scenario)


def test_names_that_can_wait_are_not_given_up_while_every_source_is_left_alone() -> None:
    known = infos(300)

    async def scenario(bench: Bench) -> None:
        answers, bench.peers.known = bench.peers.known, {}
        bench.service.want(wanted(known))
        await trio.sleep(30)
        failed = bench.service.report().failed
        assert 0 < failed < 20
        bench.peers.known = answers
        await trio.sleep(60 + 2 * 300 / LIMITS.metadata_concurrency)
        assert len(bench.found) >= 300 - failed

    play(FakePeers(*known, delay=0.1), scenario)


def test_as_soon_as_anything_arrives_lookups_wait_again() -> None:
    late, other, silent = infos(3)

    async def scenario(bench: Bench) -> None:
        answers, bench.peers.known = bench.peers.known, {}
        bench.service.want(wanted([silent]))
        await bench.fails(silent.name)
        bench.service.want(wanted([late, other]))
        began = trio.current_time()
        assert "timed out a moment ago" in await bench.fails(late.name)
        assert trio.current_time() == began
        bench.peers.known = answers
        await trio.sleep(2)
        assert bench.found
        bench.service.want(wanted(found := infos(5)[3:]))
        bench.peers.known |= {info.content: info.raw for info in found}
        await bench.service.lookup(found[0].name)
        assert trio.current_time() - began < 5

    play(FakePeers(late, other), scenario)


def test_one_names_timeout_refuses_no_other_name_while_others_arrive() -> None:
    silent, *known = infos(400)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([silent, *known]))
        await bench.fails(silent.name)
        await bench.service.lookup(known[-1].name)

    play(FakePeers(*known, delay=0.3), scenario)


def test_a_failure_is_remembered_for_a_while_and_shared() -> None:
    (info,) = infos(1)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([info]))
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(bench.fails, info.name)
        assert len(bench.peers.asked) == 1
        began = trio.current_time()
        reason = await bench.fails(info.name)
        assert "no peer sent its info dictionary" in reason
        assert reason == bench.service.failure(info.name) == bench.service.report().last_error
        assert trio.current_time() == began
        assert len(bench.peers.asked) == 1
        bench.peers.known[info.content] = info.raw
        await trio.sleep(LIMITS.failure_memory)
        await bench.service.lookup(info.name)
        assert bench.found == [info]
        assert not bench.service.failure(info.name)

    play(FakePeers(), scenario)


def test_a_name_that_failed_is_tried_again_in_the_background() -> None:
    (info,) = infos(1)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([info]))
        await bench.fails(info.name)
        bench.peers.known[info.content] = info.raw
        await trio.sleep(100)
        assert bench.found == [info]

    play(FakePeers(), scenario)


def test_looking_a_failing_name_up_again_and_again_does_not_multiply_the_tries() -> None:
    (info,) = infos(1)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([info]))
        for _ in range(100):
            await bench.fails(info.name)
            await trio.sleep(LIMITS.failure_memory + 1)
        tries = len(bench.peers.asked)
        await trio.sleep(6000)
        assert len(bench.peers.asked) - tries <= 11

    play(FakePeers(), scenario)


def test_wanting_a_name_again_asks_no_source_again() -> None:
    (info,) = infos(1)

    async def scenario(bench: Bench) -> None:
        for _ in range(100):
            bench.service.want(wanted([info]))
            await trio.sleep(0.1)
        await trio.sleep(10)
        assert len(bench.peers.asked) == 1

    play(FakePeers(), scenario)


def test_a_name_that_nobody_wanted_or_that_is_here_is_not_waited_for() -> None:
    (info,) = infos(1)

    async def scenario(bench: Bench) -> None:
        await bench.service.lookup("nobody wanted it")
        bench.service.want(wanted([info]))
        await trio.sleep(2)
        await bench.service.lookup(info.name)
        assert trio.current_time() == 2

    play(FakePeers(info), scenario)


def test_without_any_source_a_lookup_fails_at_once_and_says_what_to_do() -> None:
    (info,) = infos(1)

    async def scenario(bench: Bench) -> None:
        bench.peers.has_peers = False
        bench.service.want(wanted([info]))
        assert "--webseed" in await bench.fails(info.name)
        assert trio.current_time() == 0

    play(FakePeers(), scenario)


def test_stop_lets_every_lookup_go_and_refuses_new_ones() -> None:
    names = wanted(infos(20))

    async def scenario(bench: Bench) -> None:
        async def is_let_go(name: str) -> None:
            with pytest.raises(Stopping):
                await bench.service.lookup(name)

        bench.service.want(names)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(is_let_go, name)
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(bench.service.waiting()) == sorted(names)
            await bench.service.stop()
            assert not bench.service.waiting()
            await is_let_go(next(iter(names)))
        assert trio.current_time() == 0

    play(FakePeers(), scenario)


def test_a_name_is_waited_for_as_long_as_somebody_waits_and_no_outage_is_told_while_nobody_does() -> None:
    (info,) = infos(1)
    limits = Read(metadata_timeout=2.0, failure_memory=1.0)

    async def main() -> None:
        async with serving(NOBODY, limits=limits, last_resort=Rebuilder(info, delay=60.0)) as bench:
            outage = Outage(bench.service.waiting, lambda: len(bench.found), lambda: "")
            bench.service.want(wanted([info]))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outage.run)
                for _ in range(2):
                    nursery.start_soon(bench.fails, info.name)
                    await trio.sleep(1)
                assert bench.service.waiting() == [info.name]
                await trio.sleep(2)
                assert not bench.service.waiting()
                await trio.sleep(30)
                assert outage.seconds() is None
                nursery.start_soon(bench.fails, info.name)
                await trio.sleep(1)
                assert bench.service.waiting() == [info.name]
                await trio.sleep(30)
                nursery.cancel_scope.cancel()
            assert bench.found == [info], "it was looked for on"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_fault_in_a_source_fails_one_name_and_no_other() -> None:
    class Faulty(FakePeers):
        async def metainfo(self, content: ContentId, name: str) -> bytes:
            if name == bad.name:
                raise RuntimeError("invalid torrent handle used")
            return await super().metainfo(content, name)

    bad, good = infos(2)

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([bad, good]))
        assert "invalid torrent handle" in await bench.fails(bad.name)
        await bench.service.lookup(good.name)

    play(Faulty(bad, good), scenario)


def test_broken_and_other_files_in_the_directory_are_refused_and_the_next_source_is_asked(tmp_path: Path) -> None:
    broken, other, absent, right = infos(4)
    (tmp_path / f"{broken.name}.torrent").write_bytes(b"d4:infoi0ee")
    (tmp_path / f"{other.name}.torrent").write_bytes(right.raw)
    (tmp_path / f"{right.name}.torrent").write_bytes(right.raw)

    async def main() -> None:
        peers = FakePeers(broken, other, absent, delay=0)
        async with serving(peers, directory=tmp_path) as bench:
            bench.service.want(wanted([broken, other, absent, right]))
            for info in (broken, other, absent, right):
                await bench.service.lookup(info.name)
            assert set(bench.found) == {broken, other, absent, right}
            assert set(peers.asked) == {broken.name, other.name, absent.name}

    trio.run(main)


def test_the_reason_of_a_failure_tells_what_each_source_said(tmp_path: Path) -> None:
    (info,) = infos(1)

    async def main() -> None:
        peers = FakePeers()
        peers.has_peers = False
        with refusing_port() as refused:
            async with (
                web_host() as host,
                serving(peers, directory=tmp_path, seeds=[host.url, f"http://127.0.0.1:{refused}/"]) as bench,
            ):
                bench.service.want(wanted([info]))
                reason = await bench.fails(info.name)
                assert f"{tmp_path / info.name}.torrent: No such file" in reason
                assert f"{host.url}: has no {info.name}.torrent" in reason
                assert f"http://127.0.0.1:{refused}/: " in reason

    trio.run(main)


def test_a_web_seed_that_connects_and_is_silent_costs_one_time_out_for_all_who_ask_and_then_the_next_is_asked() -> None:
    known = infos(32)
    limits = Read(metadata_timeout=2.0, metadata_concurrency=32)

    async def main() -> None:
        peers = FakePeers(*known, delay=0)
        with silent_server() as port:
            seeds = [f"http://127.0.0.1:{port}/"]
            async with serving(peers, seeds=seeds, limits=limits) as bench:
                bench.service.want(wanted(known))
                with trio.fail_after(5):
                    await until(lambda: len(bench.found) == len(known))

    trio.run(main)


def test_a_file_is_fetched_for_its_metadata_when_every_web_seed_has_said_that_it_has_none() -> None:
    absent, other = infos(2)
    rebuilder = Rebuilder(absent, other)

    async def main() -> None:
        async with web_host() as one, web_host() as two:
            one.answers["/manifest.txt"] = Answer(body=b"another.seg.torrent\n")
            two.answers[f"/{other.name}.torrent"] = Answer(body=absent.raw)
            async with serving(NOBODY, seeds=[one.url, two.url], last_resort=rebuilder) as bench:
                bench.service.want(wanted([absent, other]))
                for info in (absent, other):
                    await bench.service.lookup(info.name)
                assert rebuilder.rebuilt == [absent.name, other.name]

    trio.run(main)


@pytest.mark.parametrize("status", [429, 503])
def test_a_web_seed_that_is_busy_for_a_moment_is_asked_again_and_no_file_is_fetched_for_its_metadata(
    status: int,
) -> None:
    (info,) = infos(1)
    rebuilder = Rebuilder(info)
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with web_host() as empty, web_host() as busy:
            busy.answers[f"/{info.name}.torrent"] = Answer(status, headers=(("Retry-After", "3"),))
            async with serving(NOBODY, seeds=[empty.url, busy.url], last_resort=rebuilder) as bench:
                bench.service.want(wanted([info]))
                assert f"HTTP {status}" in await bench.fails(info.name)
                assert "may have a .torrent" in await bench.fails(info.name)
                busy.answers[f"/{info.name}.torrent"] = Answer(body=info.raw)
                clock.jump(3.1)
                await bench.service.lookup(info.name)
                assert bench.found == [info]
                assert not rebuilder.rebuilt

    trio.run(main, clock=clock)


async def _found_after(bench: Bench, name: str, clock: trio.testing.MockClock) -> float:
    """Look `name` up once a minute until it is found, for an hour; the seconds that took."""
    began = trio.current_time()
    for _ in range(60):
        with suppress(MetadataUnavailable):
            await bench.service.lookup(name)
            break
        assert "may have a .torrent" in bench.service.failure(name)
        clock.jump(61)
    return trio.current_time() - began


@pytest.mark.parametrize("answer", [None, Answer(503), Answer(429, headers=(("Retry-After", "3600"),))])
def test_a_web_seed_that_is_gone_is_not_waited_for_for_ever(answer: Answer | None) -> None:
    first, second = infos(2)
    rebuilder = Rebuilder(first, second)
    clock = trio.testing.MockClock()

    async def main() -> None:
        with refusing_port() as refused:
            async with web_host() as empty, web_host() as busy:
                busy.answers["/manifest.txt"] = answer or Answer()
                gone = busy.url if answer else f"http://127.0.0.1:{refused}/"
                async with serving(NOBODY, seeds=[gone, empty.url], last_resort=rebuilder) as bench:
                    bench.service.want(wanted([first, second]))
                    assert 600 <= await _found_after(bench, first.name, clock) < 720
                    await bench.service.lookup(second.name)
                    assert rebuilder.rebuilt == [first.name, second.name]

    trio.run(main, clock=clock)


def test_when_our_own_network_is_back_no_web_seed_counts_as_gone_because_of_it() -> None:
    before, after = infos(2)
    rebuilder = Rebuilder()
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with web_host() as empty, web_host() as full:
            for host in (empty, full):
                host.answers["/manifest.txt"] = Answer(503)
            async with serving(NOBODY, seeds=[full.url, empty.url], last_resort=rebuilder) as bench:
                bench.service.want(wanted([before]))
                for _ in range(30):
                    assert "may have a .torrent" in await bench.fails(before.name)
                    clock.jump(61)
                empty.answers.clear()
                bench.service.want(wanted([after]))
                assert "may have a .torrent" in await bench.fails(after.name)
                assert empty.asked[-1] == f"/{after.name}.torrent", "this one has answered"
                full.answers = {f"/{info.name}.torrent": Answer(body=info.raw) for info in (before, after)}
                clock.jump(61)
                await bench.service.lookup(after.name)
                assert after in bench.found
                assert not rebuilder.rebuilt

    trio.run(main, clock=clock)


def test_a_name_that_came_with_a_reload_is_found_in_a_manifest_that_has_grown() -> None:
    old, new = infos(2)
    clock = trio.testing.MockClock()

    async def main() -> None:
        async with web_host() as host, serving(NOBODY, seeds=[host.url], last_resort=Rebuilder()) as bench:
            host.answers["/manifest.txt"] = Answer(body=f"{old.name}.torrent\n".encode())
            for info in (old, new):
                host.answers[f"/{info.name}.torrent"] = Answer(body=info.raw)
            bench.service.want(wanted([old]))
            await bench.service.lookup(old.name)
            host.answers["/manifest.txt"] = Answer(body=f"{old.name}.torrent\n{new.name}.torrent\n".encode())
            clock.jump(10)
            bench.service.want(wanted([new]))
            await bench.service.lookup(new.name)
            assert bench.found == [old, new]

    trio.run(main, clock=clock)


def test_a_name_whose_content_changes_in_mid_search_is_looked_for_anew() -> None:
    old, new = build("a.seg", 1, bytes(20)), build("a.seg", 2, bytes(20))

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([old]))
        await trio.sleep(0.5)
        bench.service.want(wanted([new]))
        await bench.service.lookup("a.seg")
        assert bench.found == [old, new]
        assert bench.service.report().queued == 0

    play(FakePeers(old, new), scenario)


def test_why_the_old_content_of_a_name_was_not_found_is_not_held_against_the_new() -> None:
    old, new = build("a.seg", 1, bytes(20)), build("a.seg", 2, bytes(20))

    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted([old]))
        await bench.fails("a.seg")
        bench.service.want(wanted([new]))
        assert bench.service.failure("a.seg") == ""

    play(FakePeers(new), scenario)


def test_a_name_that_is_forgotten_is_not_asked_for_and_nobody_waits_for_it() -> None:
    async def scenario(bench: Bench) -> None:
        bench.service.want(wanted(infos(1)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.service.lookup, "00000.seg")
            await trio.sleep(1)
            bench.service.forget(["00000.seg"])
        assert trio.current_time() - began <= 1.1
        await trio.sleep(1000)
        assert len(bench.peers.asked) == 1
        assert bench.service.report() == MetadataReport(0, 0, "")

    began = 0.0
    play(FakePeers(), scenario)
