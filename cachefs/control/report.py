"""The status as text, for a terminal and for the page: a line for each thing that there is to tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.filesize import decimal


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """What `StatusSource.collect` gave, a line at a time."""
    mount, catalogue, metadata, store = (answer[key] for key in ("mount", "catalogue", "metadata", "store"))
    manner = ", snapshots writable" if mount["writable"] else ""
    if mount["passed_through"] is not None:
        manner += f", passthrough ({mount['passed_through']:,} open)"
    yield f"mount      {mount['mountpoint']}  pid {mount['pid']}, up {_duration(mount['uptime'])}{manner}"
    yield f"data       {mount['data_dir']}"
    if answer["http"]:
        yield f"page       {answer['http']}/"
    if catalogue["chain"]:
        yield f"catalogue  {catalogue['chain']}: {catalogue['names']:,} names in the lock, {catalogue['shown']:,} shown"
    if answer["records"]["names"]:
        yield f"records    {answer['records']['names']:,}, {decimal(answer['records']['bytes'])}"
    yield f"metadata   {metadata['known']:,} known, {metadata['queued']:,} to find, {metadata['failed']:,} failed"
    if metadata["last_error"]:
        yield f"           last: {metadata['last_error']}"
    yield (
        f"store      {decimal(store['bytes'])} in {store['objects']:,} objects, "
        f"{store['complete']:,} complete, {store['open']:,} open"
    )
    yield from _upkeep(answer["upkeep"])
    yield from _limits(answer["limits"])
    for name, why in answer["last_copies"].items():
        yield f"last copy  records/{name} may be evicted soon; pin it to keep it: {why}"
    yield from _sources(answer["sources"])
    if answer["outage"] is not None:
        yield f"outage     nothing comes from any source, for {_duration(answer['outage'])}"
    yield from _rclone(answer["rclone"])
    yield from _transfers(answer["transfers"])
    yield from _waiting(answer["waiting"])
    yield from _playheads(answer["playhead"])
    if answer["last_error"]:
        yield f"last error {answer['last_error']}"


def _upkeep(upkeep: Mapping[str, Any]) -> Iterator[str]:
    if upkeep["checked"] or upkeep["wrong"]:
        found = f"{upkeep['wrong']:,} blocks were wrong, {upkeep['mended']:,} fetched again"
        yield f"upkeep     {decimal(upkeep['checked'])} hashed, {found}"
    if upkeep["last"]:
        yield f"           last: {upkeep['last']}"


def _limits(limits: Mapping[str, Any]) -> Iterator[str]:
    parts = [f"{decimal(limits['taken'])} taken on disk" if limits["taken"] is not None else ""]
    parts += [f"of {decimal(limits['size'])}" if limits["size"] else ""]
    words = [" ".join(filter(None, parts))]
    words += [f"{decimal(limits['free_space'])} left free" if limits["free_space"] else ""]
    words += [*_bounds(limits), f"{limits['pinned']:,} pinned" if limits["pinned"] else ""]
    if any(words):
        yield f"limits     {', '.join(filter(None, words))}"
    for name, bounds in limits["catalogues"].items():
        size = [f"at most {decimal(bounds['size'])}"] if bounds["size"] else []
        yield f"  {name}  {', '.join([*size, *_bounds(bounds)])}"


def _bounds(bounds: Mapping[str, Any]) -> Iterator[str]:
    if bounds["age"]:
        yield f"kept for {_duration(bounds['age'])}"
    if bounds["count"]:
        yield f"at most {bounds['count']:,} files"


def _sources(sources: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "sources" if sources else "sources    none"
    for source in sources:
        failures = f", {source['failures']} failures, last: {source['last_error']}" if source["failures"] else ""
        yield f"  {source['name']}  {decimal(source['received'])} received, {_rate(source['rate'])}{failures}"


def _rclone(rclone: Mapping[str, Any]) -> Iterator[str]:
    running = f"{rclone['version']}, pid {rclone['pid']}" if rclone["pid"] else "not running"
    yield f"rclone     {running}" + (f"; {rclone['trouble']}" if rclone["trouble"] else "")
    for transfer in rclone["transferring"]:
        done, size = decimal(transfer.get("bytes", 0)), decimal(transfer.get("size", 0))
        yield f"  {transfer.get('name')}  {done} of {size}, {_rate(transfer.get('speedAvg') or 0)}"


def _transfers(transfers: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "transfers" if transfers else "transfers  none"
    for transfer in transfers:
        part = f"{decimal(transfer['bytes'])} of {decimal(transfer['length'])}"
        eta = f", {_duration(transfer['eta'])} for the rest" if transfer["eta"] is not None else ""
        trouble = f"; {transfer['trouble']}" if transfer["trouble"] else ""
        yield f"  {transfer['name']}  {part}, {_rate(transfer['rate'])} from {transfer['peers']} sources{eta}{trouble}"
        if transfer["by"]:
            yield f"    by {transfer['by']}: {transfer['because']}"


def _waiting(waiting: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "waiting" if waiting else "waiting    nobody"
    for wait in waiting:
        if wait["for"] == "metadata":
            yield f"  {wait['name']}  for its metadata"
        else:
            room = ", there is no room yet" if wait.get("no_room") else ""
            yield f"  {wait['name']}  for blocks {_ranges(wait['blocks'])}, {wait['seconds']:.1f} s{room}"


def _playheads(playhead: Mapping[str, Any]) -> Iterator[str]:
    """Said only where somebody listens together."""
    if playhead["playing"] or playhead["served"] or playhead["decided"] != "here":
        lost = "" if playhead["connected"] else f", not connected: {playhead['trouble']}"
        served = f", served at {playhead['served']}" if playhead["served"] else ""
        yield f"playheads  {playhead['playing']} playing, decided {playhead['decided']}{served}{lost}"


def _ranges(blocks: list[int]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"


def _rate(rate: float) -> str:
    return f"{decimal(int(rate))}/s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
