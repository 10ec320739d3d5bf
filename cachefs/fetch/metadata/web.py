"""Metadata from one web seed: `<base>/<name>.torrent`, guided by `<base>/manifest.txt` if there is one.

How it works: the manifest is asked for once an hour, by one worker for all, and again when it doesn't list a name
that may be new; a host without one is asked by name. 404 and 403 say something about a name and mean the next source;
anything on the way to an answer (refused, silent, dribbling, 5xx, 429) says something about the host and feeds its
breaker. It may have what it is asked for, until it has been silent for so long that it counts as gone. What comes is
believed only by its info-hash.
"""

from __future__ import annotations

import httpx
import trio

from cachefs.config.values import without_login
from cachefs.content import ContentId
from cachefs.errors import ContentMismatch, MetadataUnavailable, MetainfoError, NoMetadata
from cachefs.fetch.health import Breaker, Silence
from cachefs.fetch.http.body import answered, read_body
from cachefs.fetch.rclone.diagnosis import retry_after
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.metainfo import MAX_METAINFO, Metainfo, parse

_MAX_MANIFEST = 32 * 2**20
_MANIFEST_AGE = 3600.0
_RETOLD_AFTER = 10.0
_LONGEST_RETOLD = 600.0
"""Seconds before a manifest is asked for again because of a name that it doesn't list; more while it stays the same,
unless somebody waits for the name."""
_LONGEST_ANSWER = 60.0
"""Seconds for a whole answer: the client's own time-out is for each part, and a host could dribble for ever."""
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class HostFailed(Exception):
    """The host gave no usable answer; `retry_after` in seconds, 0 if it asked for none."""

    def __init__(self, why: str, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after = retry_after


class WebMetadata:
    """Asks one web seed for .torrent files."""

    def __init__(self, seed: WebSeed, client: httpx.AsyncClient, ledger: Ledger) -> None:
        self.seed = seed
        self.breaker = Breaker()
        self._silence = Silence()
        self._client = client
        self._ledger = ledger
        self._names: frozenset[str] | None = None
        self._manifest_lock = trio.Lock()
        self._manifest_read_at = float("-inf")
        self._manifest_failures = 0
        self._retold_after = _RETOLD_AFTER

    async def fetch(self, name: str, content: ContentId, *, urgent: bool = False) -> Metainfo:
        """The .torrent of `name`; MetadataUnavailable, if the host has none NoMetadata, or ContentMismatch if not."""
        if self.breaker.pause():
            raise self._no_answer(name, f"left alone for now: {self.breaker.reason}")
        try:
            metainfo = await self._fetch(name, content, _RETOLD_AFTER if urgent else self._retold_after)
        except HostFailed as error:
            self.breaker.failed(str(error), retry_after=error.retry_after)
            self._ledger.failed(str(self.seed), str(error))
            raise self._no_answer(name, str(error)) from error
        except (MetainfoError, ContentMismatch) as error:
            self._ledger.failed(str(self.seed), str(error))
            raise
        self.breaker.succeeded()
        self._ledger.received(str(self.seed), len(metainfo.raw))
        return metainfo

    def _no_answer(self, name: str, why: str) -> MetadataUnavailable:
        if self._silence.is_long:
            return NoMetadata(name, f"{self.seed}: counts as gone: {why}")
        return MetadataUnavailable(name, f"{self.seed}: {why}", self.breaker.pause())

    async def _fetch(self, name: str, content: ContentId, retold_after: float) -> Metainfo:
        wanted = f"{name}.torrent"
        await self._read_manifest(name, wanted, retold_after)
        if not self._may_have(wanted):
            self.breaker.succeeded()
            raise NoMetadata(name, f"{self.seed}: not in its manifest.txt")
        for url in self.seed.urls(wanted):
            raw = await self._get(url, MAX_METAINFO)
            if raw is not None:
                self.seed.learn(wanted, url)
                return _checked(raw, content, without_login(url))
        self.breaker.succeeded()
        raise NoMetadata(name, f"{self.seed}: has no {wanted}")

    def _may_have(self, wanted: str) -> bool:
        return self._names is None or wanted in self._names

    def _tells(self, wanted: str, retold_after: float) -> bool:
        """Whether the copy of the manifest is young enough to be believed about a name."""
        most = _MANIFEST_AGE if self._may_have(wanted) else retold_after
        return trio.current_time() - self._manifest_read_at < most

    async def _read_manifest(self, name: str, wanted: str, retold_after: float) -> None:
        failures = self._manifest_failures
        if self._tells(wanted, retold_after):
            return
        async with self._manifest_lock:
            if self._tells(wanted, retold_after):
                return
            if self._manifest_failures != failures:  # whoever held the lock failed for all who waited
                raise self._no_answer(name, self.breaker.reason or "no manifest.txt came")
            try:
                raw = await self._get(self.seed.base + "manifest.txt", _MAX_MANIFEST)
            except HostFailed:
                self._manifest_failures += 1
                raise
            names = frozenset(line.strip() for line in (raw or b"").decode("utf-8", "replace").splitlines())
            self._retold_after = min(self._retold_after * 2, _LONGEST_RETOLD) if names == self._names else _RETOLD_AFTER
            # A manifest that lists data alone says nothing about .torrent files.
            self._names = names if any(name.endswith(".torrent") for name in names) else None
            self._manifest_read_at = trio.current_time()

    async def _get(self, url: str, most: int) -> bytes | None:
        """The body; None when the host says that it has no such file (or won't give it). HostFailed."""
        try:
            body = await self._asked(url, most)
        except HostFailed:
            self._silence.failed(self._ledger.answers)
            raise
        self._silence.answered()
        self._ledger.answered()
        return body

    async def _asked(self, url: str, most: int) -> bytes | None:
        try:
            with trio.fail_after(_LONGEST_ANSWER):
                async with answered(self._client, url) as response:
                    return await _body(response, most)
        except trio.TooSlowError:
            raise HostFailed(f"{without_login(url)}: no whole answer within {_LONGEST_ANSWER:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: no name of a host, by IDNA
            raise HostFailed(f"{without_login(url)}: {str(error) or type(error).__name__}") from error


async def _body(response: httpx.Response, most: int) -> bytes | None:
    if response.status_code in _RETRIED:
        raise HostFailed(f"{_told(response)}: HTTP {response.status_code}", retry_after(response))
    if response.status_code != 200:
        return None
    body = await read_body(response, most)
    if body is None:
        raise HostFailed(f"{_told(response)}: more than {most} bytes")
    return body


def _told(response: httpx.Response) -> str:
    return without_login(str(response.url))


def _checked(raw: bytes, content: ContentId, source: str) -> Metainfo:
    try:
        metainfo = parse(raw)
    except MetainfoError as error:
        raise MetainfoError(f"{source}: {error}") from None
    if metainfo.content != content:
        raise ContentMismatch(content, metainfo.content, source)
    return metainfo
