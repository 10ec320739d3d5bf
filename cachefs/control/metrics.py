"""The status as metrics, in Prometheus's text format.

How it works: what `StatusSource.collect` gave becomes samples, most of them by a table; the library knows the format,
and what the kernel tells of this process. Units are in the names: bytes and seconds. Peers come and go, each under an
address of its own, and a time series each would be too many: only the sources that the settings name have their own.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = type[GaugeMetricFamily] | type[CounterMetricFamily]

_GAUGES = (
    ("names", "Names in the snapshots' lock.", ("catalogue", "names")),
    ("shown_names", "Those of them that are shown.", ("catalogue", "shown")),
    ("records", "Records that are shown.", ("records", "names")),
    ("metadata_known", "Contents whose length is known.", ("metadata", "known")),
    ("metadata_queued", "Names whose metadata are still to be found.", ("metadata", "queued")),
    ("metadata_failed", "Names whose metadata could not be found.", ("metadata", "failed")),
    ("store_bytes", "Verified bytes in the store.", ("store", "bytes")),
    ("store_objects", "Contents of which the store has something.", ("store", "objects")),
    ("store_complete_objects", "Contents of which the store has everything.", ("store", "complete")),
    ("open_objects", "Contents that are read or seeded.", ("store", "open")),
    ("taken_bytes", "What the store takes on the disk, if that is known.", ("limits", "taken")),
    ("limit_bytes", "The most that it may take, if there is a limit.", ("limits", "size")),
    ("pinned_contents", "Contents that are not evicted.", ("limits", "pinned")),
    ("passed_through_files", "Files that the kernel reads by itself, if it may.", ("mount", "passed_through")),
    ("outage_seconds", "For how long nothing has come from any source; none if there is no outage.", ("outage",)),
    ("playing_records", "Records that somebody listens to at a shared playhead.", ("playhead", "playing")),
)
_COUNTERS = (
    ("failed_reads", "Reads that ended with an error.", ("failed_reads",)),
    ("verified_bytes", "Bytes hashed by verifications and scrubs.", ("upkeep", "checked")),
    ("wrong_blocks", "Blocks that these found wrong.", ("upkeep", "wrong")),
    ("mended_blocks", "Blocks that were fetched again because they were wrong.", ("upkeep", "mended")),
    ("second_requests", "Requests to a second source for a block that was late.", ("hedging", "requests")),
    ("second_requests_won", "Those of them that were quicker.", ("hedging", "won")),
    ("second_request_bytes", "The bytes that they may have added.", ("hedging", "extra_bytes")),
)


def exposition(status: Mapping[str, Any]) -> bytes:
    """The answer to a scrape; `status` is what `StatusSource.collect` gave."""
    return generate_latest(_Families(status))


class _Families(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status
        labels = {"mountpoint": status["mount"]["mountpoint"], "chain": status["catalogue"]["chain"]}
        labels = {key: _text(value) for key, value in labels.items()} | {"version": status["version"]}
        yield InfoMetricFamily("cachefs", "The mount.", value=labels)
        for name, told, path in _GAUGES:
            yield _single(GaugeMetricFamily, name, told, _at(status, path))
        for name, told, path in _COUNTERS:
            yield _single(CounterMetricFamily, name, told, _at(status, path))
        yield from self._ways()
        yield from self._sources()
        yield from self._waits()
        yield from ProcessCollector(registry=None).collect()

    def _ways(self) -> Iterator[Metric]:
        told = "Verified bytes that came from peers, and from the web."
        yield _labelled(CounterMetricFamily, "fetched_bytes", told, "way", self._status["fetched"])
        told = "Those from the web, by the rule that let it."
        yield _labelled(CounterMetricFamily, "handed_over_bytes", told, "rule", self._status["handed_over"])
        ways = Counter(transfer["by"] or "torrent" for transfer in self._status["transfers"])
        yield _labelled(GaugeMetricFamily, "transfers", "Files of which something is being fetched.", "way", ways)

    def _sources(self) -> Iterator[Metric]:
        configured = [source for source in self._status["sources"] if source["configured"]]
        received = {source["name"]: source["received"] for source in configured}
        failures = {source["name"]: source["failures"] for source in configured}
        told = "Bytes received from a source of the settings, verified or not."
        yield _labelled(CounterMetricFamily, "source_received_bytes", told, "source", received)
        yield _labelled(CounterMetricFamily, "source_failures", "How often it failed.", "source", failures)

    def _waits(self) -> Iterator[Metric]:
        waiting = self._status["waiting"]
        kinds = Counter({"content": 0, "metadata": 0, "room": 0})
        kinds.update("room" if wait.get("no_room") else wait["for"] for wait in waiting)
        yield _labelled(GaugeMetricFamily, "waiting", "Reads and look-ups that wait, and for what.", "reason", kinds)
        longest = max((wait.get("seconds", 0.0) for wait in waiting), default=0.0)
        told = "For how long the one has waited that waits longest."
        yield _single(GaugeMetricFamily, "longest_wait_seconds", told, longest)


def _at(status: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = status
    for key in path:
        found = found[key]
    return found if found is None else float(found)


def _single(kind: Kind, name: str, told: str, value: float | None) -> Metric:
    family = kind(f"cachefs_{name}", told, labels=())
    if value is not None:
        family.add_metric((), value)
    return family


def _labelled(kind: Kind, name: str, told: str, label: str, values: Mapping[str, float]) -> Metric:
    family = kind(f"cachefs_{name}", told, labels=(label,))
    for key, value in values.items():
        family.add_metric((_text(key),), value)
    return family


def _text(value: str) -> str:
    """A path may have bytes that are no text."""
    return value.encode(errors="replace").decode()
