"""Web seeds' URLs, and the ledger of what each source gave."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import trio
import trio.testing

from cachefs.errors import ConfigError
from cachefs.fetch.sources import MOST_STRANGERS, Ledger, WebSeed

NAME = "history/v1-accounts.0-64.v"
PLAIN = "http://host/base/history/v1-accounts.0-64.v"
ESCAPED = "http://host/base/history%2Fv1-accounts.0-64.v"


@pytest.mark.parametrize("base", ["ftp://host/", "host/base", "http://", "http:///base", ""])
def test_only_http_urls_with_a_host_are_web_seeds(base: str) -> None:
    with pytest.raises(ConfigError, match="a web seed is an http:// or https:// URL"):
        WebSeed(base)


@pytest.mark.parametrize("base", ["http://h:99999", "http://h:port/", "http://[::1/"])
def test_a_web_seed_with_an_address_that_can_be_none_is_refused(base: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(base)):
        WebSeed(base)


@pytest.mark.parametrize(
    ("base", "port"), [("http://host", 80), ("https://host/", 443), ("http://host:81//", 81), ("https://[::1]:82", 82)]
)
def test_the_port_is_the_given_or_the_schemes(base: str, port: int) -> None:
    assert WebSeed(base).port == port
    assert str(WebSeed(base)) == base.rstrip("/") + "/"


def test_a_name_without_a_slash_has_one_url() -> None:
    assert WebSeed("http://host/base").urls("v1 ü#?.seg") == ["http://host/base/v1%20%C3%BC%23%3F.seg"]


def test_a_name_with_a_slash_is_tried_both_ways_until_one_was_right() -> None:
    seed = WebSeed("http://host/base/")
    assert seed.urls(NAME) == [PLAIN, ESCAPED]
    seed.learn("v1-headers.seg", "http://host/base/v1-headers.seg")
    assert seed.urls(NAME) == [PLAIN, ESCAPED], "a name without a slash tells nothing"
    seed.learn(NAME, ESCAPED)
    assert seed.urls(NAME) == [ESCAPED]
    seed.learn(NAME, PLAIN)
    assert seed.urls(NAME) == [PLAIN]


def play(scenario: Callable[[Ledger], None], *sources: str) -> None:
    async def main() -> None:
        scenario(Ledger(sources))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_configured_sources_are_reported_before_they_gave_anything() -> None:
    def scenario(ledger: Ledger) -> None:
        assert [(report.name, report.received) for report in ledger.report()] == [("a", 0), ("b", 0)]

    play(scenario, "b", "a")


def test_what_a_source_gave_and_how_it_failed_adds_up() -> None:
    def scenario(ledger: Ledger) -> None:
        ledger.received("a", 5)
        ledger.received("a", 6)
        ledger.failed("a", "refused")
        ledger.failed("a", "reset")
        (report,) = ledger.report()
        assert (report.received, report.failures, report.last_error) == (11, 2, "reset")

    play(scenario)


def test_a_source_that_is_not_named_any_more_moves_nothing() -> None:
    def scenario(ledger: Ledger) -> None:
        ledger.set_rates("torrent", {"a": 1.0, "b": 2.0})
        ledger.set_rates("torrent", {"b": 3.0})
        assert {report.name: report.rate for report in ledger.report()} == {"a": 0.0, "b": 3.0}

    play(scenario, "a", "b")


def test_an_address_that_gave_nothing_is_not_reported_unless_it_is_configured_or_lied() -> None:
    def scenario(ledger: Ledger) -> None:
        for source in ("configured", "refused", "liar"):
            ledger.failed(source, "Connection refused")
        ledger.failed("liar", "sent wrong bytes; banned", lied=True)
        ledger.failed("liar", "too many corrupt pieces")
        reports = {report.name: report for report in ledger.report()}
        assert reports.keys() == {"configured", "liar"}
        assert reports["liar"].last_error == "sent wrong bytes; banned", "that it lied is not talked over"
        assert reports["liar"].failures == 3

    play(scenario, "configured")


def test_recent_failures_are_told_latest_first_and_old_ones_not_at_all() -> None:
    async def main() -> None:
        ledger = Ledger(["fine"])
        ledger.failed("old", "refused")
        await trio.sleep(50)
        ledger.failed("older", "silent")
        await trio.sleep(20)
        ledger.failed("latest", "reset")
        assert ledger.recent(60) == ["latest: reset", "older: silent"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_peers_that_come_and_go_are_forgotten_and_configured_sources_are_not() -> None:
    def scenario(ledger: Ledger) -> None:
        ledger.received("configured", 1)
        ledger.received("faithful", 1)
        for number in range(3 * MOST_STRANGERS):
            ledger.received(f"10.0.0.1:{number}", 1)
            ledger.received("faithful", 1)
        reports = {report.name: report for report in ledger.report()}
        assert len(reports) == MOST_STRANGERS + 1
        assert reports["configured"].received == 1
        assert reports["faithful"].received == 3 * MOST_STRANGERS + 1

    play(scenario, "configured")
