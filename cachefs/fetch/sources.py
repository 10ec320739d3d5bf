"""The places bytes come from, and what is known of each.

How it works: a `WebSeed` turns a name into the URLs under which a host may have it. Hosts disagree on
whether a `/` inside a name is sent as is or as `%2F`, so the first answer that verifies decides for the
host. The `Ledger` counts, for each source by its printed name, bytes received, failures and the last
failure's words; the status and every error message take their evidence from it. Peers come and go, each
under an address of its own, so besides the configured sources only the latest few hundred are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import trio

from cachefs.config.values import without_login
from cachefs.errors import ConfigError

MOST_STRANGERS = 500
"""How many sources that aren't configured have an account at a time."""


class WebSeed:
    """A base URL below which files and their .torrent files lie under their names."""

    def __init__(self, base: str) -> None:
        try:
            parts = urlsplit(base)
            port = parts.port
        except ValueError as error:
            raise ConfigError(base, str(error)) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(base, "a web seed is an http:// or https:// URL")
        self.base = base.rstrip("/") + "/"
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self._escapes_slash: bool | None = None

    def __str__(self) -> str:
        """What it is called where anybody may read it: without a login that it has."""
        return without_login(self.base)

    def urls(self, name: str) -> list[str]:
        """Where `name` may be, likeliest first; one URL as soon as the host's way is known."""
        plain, escaped = self.base + quote(name, safe="/"), self.base + quote(name, safe="")
        if plain == escaped:
            return [plain]
        if self._escapes_slash is None:
            return [plain, escaped]
        return [escaped if self._escapes_slash else plain]

    def learn(self, name: str, url: str) -> None:
        """Remember that `url` was the right form for `name`."""
        if "/" in name:
            self._escapes_slash = url.removeprefix(self.base) != quote(name, safe="/")


@dataclass(slots=True)
class _Account:
    received: int = 0
    failures: int = 0
    last_error: str = ""
    last_failed: float = 0.0
    rate: float = 0.0
    measured_by: str = ""
    lied: bool = False


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source's account; `rate` in bytes per second, as of the last second it was measured."""

    name: str
    received: int
    rate: float
    failures: int
    last_error: str
    configured: bool
    """Whether the settings name it."""


class Ledger:
    """What each source gave, and how it failed."""

    def __init__(self, sources: Iterable[str] = ()) -> None:
        self.answers = 0
        """How often anything came from anybody, be it only that there is nothing: the network isn't cut then."""
        self._accounts = {source: _Account() for source in sources}
        self._configured = frozenset(self._accounts)

    def _account(self, source: str) -> _Account:
        if source not in self._configured:
            self._accounts[source] = self._accounts.pop(source, _Account())  # the latest stands last
            self._forget_oldest()
        return self._accounts[source]

    def _forget_oldest(self) -> None:
        if len(self._accounts) > len(self._configured) + MOST_STRANGERS:
            del self._accounts[next(source for source in self._accounts if source not in self._configured)]

    def received(self, source: str, size: int) -> None:
        """Count `size` bytes of payload."""
        self._account(source).received += size
        self.answered()

    def answered(self) -> None:
        """Count an answer, whatever was in it."""
        self.answers += 1

    def set_rates(self, by: str, rates: Mapping[str, float]) -> None:
        """Take over the current rates as `by` measured them; what it measured before and doesn't name moves nothing."""
        for account in self._accounts.values():
            if account.measured_by == by:
                account.rate = 0.0
        for source, rate in rates.items():
            account = self._account(source)
            account.rate, account.measured_by = rate, by

    def failed(self, source: str, why: str, *, lied: bool = False) -> None:
        """Count a failure; `why` is kept in words until the next one. That a source `lied` is not talked over."""
        account = self._account(source)
        account.failures += 1
        if lied or not account.lied:
            account.last_error = why
        account.lied |= lied
        account.last_failed = trio.current_time()

    def recent(self, within: float) -> list[str]:
        """The last failures of the past `within` seconds, `source: why`, latest first."""
        since = trio.current_time() - within
        failed = [(a.last_failed, f"{source}: {a.last_error}") for source, a in self._accounts.items() if a.last_error]
        return [text for when, text in sorted(failed, reverse=True) if when >= since]

    def report(self) -> list[SourceReport]:
        """The accounts of what is configured and of what gave or lied, sorted by name: not of every address tried."""
        return [
            SourceReport(source, each.received, each.rate, each.failures, each.last_error, source in self._configured)
            for source, each in sorted(self._accounts.items())
            if source in self._configured or each.received or each.lied
        ]
