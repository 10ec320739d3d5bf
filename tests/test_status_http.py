"""The status over HTTP: what a browser and a Prometheus see of a mount, asked with curl and by hand."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cachefs.control.metrics import exposition
from cachefs.control.page import page
from tests.mount_kit import PIECE, Library, Mount, cachefs, make_library, mount_command, mounted, seeding

SETTINGS = '[status]\nhttp = "127.0.0.1:0"\n'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 3 * PIECE + 1)


@pytest.fixture(scope="module")
def mount(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that has read all of its snapshots."""
    place = tmp_path_factory.mktemp("mount")
    with seeding(library) as box, mounted(place, library.chain, peers=[str(box.peer)], settings=SETTINGS) as running:
        for name, original in library.files.items():
            assert (running.snapshots / name).read_bytes() == original.read_bytes()
        running.wait_for("everything complete", lambda now: now["store"]["complete"] == len(library.files))
        running.received(sum(path.stat().st_size for path in library.files.values()))
        yield running


def url_of(mount: Mount) -> str:
    """Where the mount says that its status is."""
    return str(mount.status()["http"])


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What curl prints, which fails where the answer is an error."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(one.name, frozenset(one.labels.items())): one.value for each in families for one in each.samples}


def test_metrics_say_what_the_status_says(mount: Mount, library: Library) -> None:
    answer = curl("--include", f"{url_of(mount)}/metrics")
    head, _, text = answer.stdout.partition("\n\n")
    assert "content-type: text/plain; version=0.0.4; charset=utf-8" in head.lower()
    found, status = samples(text), mount.status()
    peer = status["sources"][0]
    length = sum(path.stat().st_size for path in library.files.values())
    labels = {"version": status["version"], "mountpoint": str(mount.mountpoint), "chain": status["catalogue"]["chain"]}
    assert {
        ("cachefs_info", frozenset(labels.items())): 1,
        ("cachefs_shown_names", frozenset()): len(library.files),
        ("cachefs_store_bytes", frozenset()): length,
        ("cachefs_store_complete_objects", frozenset()): len(library.files),
        ("cachefs_fetched_bytes_total", frozenset({("way", "torrent")})): length,
        ("cachefs_fetched_bytes_total", frozenset({("way", "web")})): 0,
        ("cachefs_source_received_bytes_total", frozenset({("source", peer["name"])})): peer["received"],
        ("cachefs_waiting", frozenset({("reason", "content")})): 0,
        ("cachefs_longest_wait_seconds", frozenset()): 0,
        ("cachefs_failed_reads_total", frozenset()): 0,
    }.items() <= found.items()
    assert found["process_resident_memory_bytes", frozenset()] > 2**20
    assert ("cachefs_limit_bytes", frozenset()) not in found  # there is no limit


def test_the_json_is_that_of_the_command(mount: Mount) -> None:
    served, told = json.loads(curl(f"{url_of(mount)}/status.json").stdout), mount.status()
    assert served.keys() == told.keys()
    for each in (served, told):
        del each["mount"]["uptime"]
    assert (served["mount"], served["store"], served["catalogue"]) == (told["mount"], told["store"], told["catalogue"])


def test_the_page_is_the_text_of_the_command(mount: Mount) -> None:
    answer, text = curl("--include", f"{url_of(mount)}/").stdout, cachefs("status", mount.mountpoint).stdout
    assert "content-type: text/html; charset=utf-8" in answer.lower()
    assert "default-src 'none'" in answer
    lines = text.splitlines()
    assert f"page       {url_of(mount)}/" in lines
    unchanging = [line for line in lines if line.startswith(("data ", "catalogue ", "store ", "metadata "))]
    assert len(unchanging) == 4
    assert all(line in answer for line in unchanging)


def test_nothing_else_is_there_and_nothing_can_be_changed(mount: Mount) -> None:
    code = ("--output", "/dev/null", "--write-out", "%{http_code}")
    url = url_of(mount)
    assert curl(*code, f"{url}/metrics?format=x").stdout == "200"
    assert curl(*code, "--head", f"{url}/").stdout == "200"
    assert curl(*code, f"{url}/stop").stdout == "404"
    assert curl(*code, "--data", "{}", f"{url}/status.json").stdout == "405"
    assert curl(*code, "--header", "Host: evil.example", f"{url}/status.json").stdout == "403"
    assert curl(*code, "--header", "Host: localhost", f"{url}/status.json").stdout == "200"


def test_an_address_that_is_taken_is_said(library: Library, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = f'[status]\nhttp = "127.0.0.1:{port}"\n'
        done = cachefs(*mount_command(tmp_path, library.chain, settings=settings))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: can't serve the status there: Address already in use" in done.stderr


def test_without_the_setting_nobody_listens(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain) as mount:
        assert mount.status()["http"] is None
        assert "page " not in cachefs("status", mount.mountpoint).stdout


def status_of(source: str, **told: Any) -> dict[str, Any]:
    """A status with one source, of a mount that does nothing."""
    account = {"name": source, "received": 7, "rate": 0.0, "failures": 1, "last_error": "", "configured": True}
    manner = {"writable": False, "passed_through": None}
    idle: dict[str, Any] = {
        "version": "1",
        "http": None,
        "mount": {"mountpoint": "/mnt", "data_dir": "/data", "pid": 1, "uptime": 1.0} | manner,
        "catalogue": {"chain": "mainnet", "names": 1, "shown": 1, "chain_toml": ""},
        "records": {"names": 0, "bytes": 0},
        "metadata": {"known": 1, "queued": 0, "failed": 0, "last_error": ""},
        "store": {"bytes": 0, "objects": 0, "complete": 0, "open": 0},
        "upkeep": {"checked": 0, "wrong": 0, "mended": 0, "last": ""},
        "limits": {**dict.fromkeys(("size", "free_space", "age", "count", "taken")), "catalogues": {}, "pinned": 0},
        "sources": [account],
        "outage": None,
        "transfers": [],
        "fetched": {},
        "handed_over": {},
        "hedging": {"requests": 0, "won": 0, "extra_bytes": 0, "received_bytes": 0, "late_after": None},
        "rclone": {"version": "", "pid": None, "trouble": "", "transferring": []},
        "waiting": [],
        "failed_reads": 0,
        "last_error": "",
        "last_copies": {},
        "playhead": {"decided": "here", "served": None, "connected": True, "trouble": None, "playing": 0},
    }  # fmt: skip
    return idle | told


def test_the_documentation_names_every_metric() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operating.md").read_text()
    families = text_string_to_metric_families(exposition(status_of("a")).decode())
    ours = [each for each in families if each.name.startswith("cachefs_")]
    names = [each.name + "_total" * (each.type == "counter") for each in ours]
    assert len(names) > 20
    assert [name for name in names if f"`{name.removeprefix('cachefs_')}`" not in text] == []


@given(st.text(st.characters()))
def test_any_name_of_a_source_comes_through(source: str) -> None:
    found = samples(exposition(status_of(source)).decode())
    assert (
        found["cachefs_source_failures_total", frozenset({("source", source.encode(errors="replace").decode())})] == 1
    )


def test_a_peer_that_no_setting_names_has_no_series_of_its_own() -> None:
    stranger = {"name": "192.0.2.9:1", "received": 7, "rate": 0, "failures": 0, "last_error": "", "configured": False}
    assert b"192.0.2.9" not in exposition(status_of("a", sources=[stranger]))


def test_who_waits_is_counted_by_what_for() -> None:
    read = {"name": "a", "for": "content", "blocks": [0], "seconds": 2.5, "no_room": False}
    waiting = [read, read | {"seconds": 4.0, "no_room": True}, {"name": "b", "for": "metadata"}]
    found = samples(exposition(status_of("a", waiting=waiting)).decode())
    counts = {key: value for (name, labels), value in found.items() if name == "cachefs_waiting" for _, key in labels}
    assert counts == {"content": 1, "room": 1, "metadata": 1}
    assert found["cachefs_longest_wait_seconds", frozenset()] == 4.0


def test_the_page_escapes_what_strangers_call_themselves() -> None:
    html = page(status_of("<script>alert(1)</script>"))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
