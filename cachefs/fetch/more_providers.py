"""Providers that are not the web: the operator's rclone remotes, and torrents.

How it works: `rclone://REMOTE/PATH` means the path on a remote that the operator has named in the settings; a
record never brings a remote string of its own, for such a string can run commands. The remote and the path go
to `rclone cat` as one argument after `--`, and what it prints are the bytes.

`magnet:?xt=urn:btih:…` means a torrent of one file. The torrent fetcher gets and checks its pieces, into a file
beside the receiver's, and they are sent on from there, hashed once more: the info-hash says how they
travel, the record's SHA-256 what they are.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import trio

from cachefs.content import ContentId
from cachefs.errors import SourceRefused, SourceSilent, UrlFailed
from cachefs.fetch.receiver import Fetched, Receiver

_MAGNET = re.compile(r"magnet:\?xt=urn:btih:([0-9a-fA-F]{40})(?:&.*)?")
_STALL = 30.0


class RcloneProvider:
    """`rclone://REMOTE/PATH` URLs; `remotes` are the operator's, label to remote string (`s3:bucket/music`, say)."""

    def __init__(self, remotes: Mapping[str, str], program: str = "rclone", stall: float = _STALL) -> None:
        self._remotes = dict(remotes)
        self._program = program
        self._stall = stall

    def takes(self, url: str) -> bool:
        return url.startswith("rclone://")

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        command = [self._program, "cat", "--", self._place(url)]
        try:
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise UrlFailed(url, f"{self._program} can't be run: {error.strerror}") from error
        try:
            await self._copy(process, url, receiver)
        finally:
            with trio.CancelScope(shield=True), suppress(ProcessLookupError):
                process.kill()
                await process.wait()
        return await receiver.finish(url)

    def _place(self, url: str) -> str:
        parts = urlsplit(url)
        remote = self._remotes.get(parts.netloc)
        if remote is None:
            known = ", ".join(self._remotes) or "none"
            raise SourceRefused(url, f"no remote {parts.netloc!r} in [records] remotes; there are: {known}")
        path = unquote(parts.path).lstrip("/")
        return f"{remote}{path}" if remote.endswith((":", "/")) else f"{remote}/{path}"

    async def _copy(self, process: trio.Process, url: str, receiver: Receiver) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        said = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_gather, process.stderr, said)
            while data := await self._next(process.stdout, url):
                await receiver.write(url, data)
            code = await process.wait()
        if code:
            lines = said.decode("utf-8", "replace").strip().splitlines()
            raise UrlFailed(url, f"rclone ended with {code}: {lines[-1] if lines else 'and said nothing'}")

    async def _next(self, stream: trio.abc.ReceiveStream, url: str) -> bytes:
        try:
            with trio.fail_after(self._stall):
                return bytes(await stream.receive_some(2**18))
        except trio.TooSlowError:
            raise SourceSilent(url, f"rclone was silent for {self._stall:g} s") from None


async def _gather(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
    async for part in stream:
        into += part
        del into[:-4096]


class Torrents(Protocol):
    """What fetches a torrent of one file; made of the torrent fetcher by whoever has one."""

    async def fetch(self, content: ContentId, name: str, path: Path) -> None:
        """Fetch all of `content` into `path`, each piece checked; UrlFailed if that can't be."""


class TorrentProvider:
    """`magnet:` URLs with a v1 info-hash."""

    def __init__(self, torrents: Torrents) -> None:
        self._torrents = torrents

    def takes(self, url: str) -> bool:
        return url.startswith("magnet:")

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        match = _MAGNET.fullmatch(url)
        if match is None:
            raise UrlFailed(url, "is not a magnet link with a v1 info-hash (xt=urn:btih:…)")
        path = receiver.path.with_name(f"{receiver.path.name}.torrent")
        try:
            await self._torrents.fetch(ContentId.btih(match[1]), receiver.path.name, path)
            async with await trio.open_file(path, "rb") as file:
                while data := await file.read(2**20):
                    await receiver.write(url, data)
        except OSError as error:
            raise UrlFailed(url, f"{path}: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)
        return await receiver.finish(url)
