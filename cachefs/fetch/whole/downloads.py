"""The downloader: one for etching and for playing. It returns bytes with their checksum, or raises.

How it works: given URLs and what is expected, it pairs each URL with the provider that takes it and lets a
strategy run the attempts. Every attempt writes to a temporary file of its own; the caller says where those are
made, gets the one that is right, and the others are removed, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from cachefs.config.values import lower_scheme, without_login
from cachefs.errors import UrlFailed
from cachefs.fetch.whole.providers import Provider
from cachefs.fetch.whole.receiver import Cover, Expected, Fetched, Progress, Receiver
from cachefs.fetch.whole.strategies import Attempt, Strategy, in_order

MakeFile = Callable[[], Path]
"""Makes an empty temporary file, where a download may be kept by renaming it."""


class Downloader:
    """Downloads by `providers`, the first that takes a URL, in the manner of `strategy`."""

    def __init__(self, providers: Sequence[Provider], strategy: Strategy = in_order) -> None:
        self._providers = list(providers)
        self._strategy = strategy

    def add(self, provider: Provider) -> None:
        """Ask this one before the others from now on."""
        self._providers.insert(0, provider)

    async def download(
        self,
        urls: Sequence[str],
        expected: Expected,
        make_file: MakeFile,
        progress: Progress | None = None,
        cover: Cover | None = None,
    ) -> Fetched:
        """The bytes of the first URL that gives what is expected, in a file that is the caller's now.

        `cover` has room for one file, whichever of the attempts it will be.
        UrlFailed, and its kinds; StoreFull, StoreFailed.
        """
        fetched: Fetched | None = None
        made: list[Path] = []

        def receiver_of(started: trio.Event) -> Receiver:
            made.append(make_file())
            return Receiver(made[-1], expected, progress, started, cover)

        try:
            attempts = [self._attempt(url, receiver_of) for url in dict.fromkeys(map(lower_scheme, urls))]
            fetched = await self._strategy(attempts)
            return fetched
        finally:
            for path in made:
                if fetched is None or path != fetched.path:
                    path.unlink(missing_ok=True)

    def _attempt(self, url: str, receiver_of: Callable[[trio.Event], Receiver]) -> Attempt:
        async def run() -> Fetched:
            provider = next((provider for provider in self._providers if provider.takes(url)), None)
            if provider is None:
                raise UrlFailed(without_login(url), "nothing here can fetch a URL of this kind")
            receiver = receiver_of(attempt.started)
            try:
                return await provider.send(url, receiver)
            finally:
                receiver.close()

        attempt = Attempt(url, run)
        return attempt
