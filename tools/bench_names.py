"""The benchmarks of names: how fast sizes are found, and how a large catalogue without any source behaves."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from cachefs.catalog.chain import format_chain
from cachefs.content import ContentId
from tests.counterparts import cachefs_seed, nginx
from tools import mounting
from tools.bench_stage import CATALOGUE, CHAIN, Stage, published
from tools.benchkit import Report, interleaved, say
from tools.mounting import Failed, Mount, mounted

WEB_NAMES, PEER_NAMES, CATALOGUE_NAMES = 2_000, 200, 17_628
_SMALL = 1_024
_WITHIN = 300.0
_LOOK_EVERY = 0.01


def metadata(stage: Stage) -> Report:
    """How many names a second get their size, in the background of a fresh mount."""
    with stage.fresh_folder() as folder:
        web, swarm = folder / "web", folder / "swarm"
        for directory, count in ((web, WEB_NAMES), (swarm, PEER_NAMES)):
            _small_files(directory, count)
            published(directory)
        with nginx(web) as url, cachefs_seed(swarm, http=False) as box:
            sides = {
                f"from a web seed (nginx), {WEB_NAMES:,} names": lambda: _names_a_second(stage, web, "--webseed", url),
                f"from a torrent peer by magnet, {PEER_NAMES:,} names": lambda: _names_a_second(
                    stage, swarm, "--peer", str(box.peer)
                ),
            }
            report = Report("Metadata: sizes found")
            report.add(interleaved(stage.runs, sides), "names/s")
    report.notes.append("From the moment the daemon begins, so bringing up the mount is part of the time.")
    return report


def _small_files(directory: Path, count: int) -> None:
    for number in range(count):
        mounting.fill(directory / f"v1-{number * 500:06}-{(number + 1) * 500:06}-headers.seg", _SMALL)


def _names_a_second(stage: Stage, directory: Path, *source: str) -> float:
    with (
        stage.fresh_folder() as folder,
        mounted(folder, "--chain-toml", directory / "chain.toml", *CHAIN, *source) as mount,
    ):
        deadline = time.monotonic() + _WITHIN
        while (status := mount.status())["metadata"]["known"] < status["catalogue"]["names"]:
            if time.monotonic() > deadline:
                raise Failed(f"after {_WITHIN:.0f} s: {status['metadata']}")
            time.sleep(_LOOK_EVERY)
        return float(status["catalogue"]["names"] / status["mount"]["uptime"])


def catalogue(stage: Stage) -> Report:
    """A whole chain's names and no source: start, listing, end."""
    report = Report(f"A catalogue of {CATALOGUE_NAMES:,} names, no source")
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {"resident memory after that": []}
    with stage.fresh_folder() as folder:
        chain = folder / "chain.toml"
        chain.write_text(format_chain({name: _some_hash(name) for name in _names(CATALOGUE_NAMES)}))
        for run in range(stage.runs):
            say(f"  run {run + 1} of {stage.runs}")
            with stage.fresh_folder() as place:
                for what, value in _life(place, chain, memory):
                    seconds.setdefault(what, []).append(value)
    report.add(seconds, "s")
    report.add(memory, "MB")
    report.notes.append("No size is known, so ls -l shows none; it mustn't wait for them either.")
    return report


def _life(place: Path, chain: Path, memory: dict[str, list[float]]) -> Iterator[tuple[str, float]]:
    """What the first mount's life and the next one's start take, in seconds."""
    with ExitStack() as stack:
        started = time.perf_counter()
        mount = stack.enter_context(mounted(place, "--chain-toml", chain, *CHAIN))
        yield "first start, to a usable mount", time.perf_counter() - started
        yield "find | wc -l", _find(mount)
        yield "ls -l of the largest folder", _list(mount)
        memory["resident memory after that"].append(mount.memory())
        started = time.perf_counter()
        stack.close()
        yield "unmount", time.perf_counter() - started
    with ExitStack() as stack:
        started = time.perf_counter()
        stack.enter_context(mounted(place, *CHAIN))
        yield "next start", time.perf_counter() - started


def _find(mount: Mount) -> float:
    started = time.perf_counter()
    found = int(mounting.output("sh", "-c", f"find '{mount.path}' -type f | wc -l"))
    if found != CATALOGUE_NAMES:
        raise Failed(f"find sees {found} names, not {CATALOGUE_NAMES}")
    return time.perf_counter() - started


def _list(mount: Mount) -> float:
    # ls says of each name that its size isn't known, and fails: that is right here.
    started = time.perf_counter()
    subprocess.run(["ls", "-l", mount.path / CATALOGUE], capture_output=True, check=False)
    return time.perf_counter() - started


def _names(count: int) -> list[str]:
    kinds = (
        "{}-headers.seg",
        "{}-bodies.seg",
        "{}-transactions.seg",
        "{}-beaconblocks.seg",
        "idx/{}.ef",
        "domain/{}.kv",
    )
    spans = (f"v1-{number * 500:06}-{(number + 1) * 500:06}" for number in range(count))
    names = (_name(kind, span) for span in spans for kind in kinds)
    return [next(names) for _ in range(count)]


def _name(kind: str, span: str) -> str:
    return kind.format(span)


def _some_hash(name: str) -> ContentId:
    return ContentId.btih(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest())
