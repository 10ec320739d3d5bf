"""The provider of the operator's own rclone remotes.

How it works: `rclone://REMOTE/PATH` means the path on a remote that the operator has named in the settings; a
record never brings a remote string of its own, for such a string can run commands, nor a path that leads out of the
operator's by `..`. The remote and the path go to `rclone cat` as one argument after `--`, and what it prints are the
bytes.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import IO
from urllib.parse import urlsplit

import trio

from cachefs.config import Rclone
from cachefs.config.values import without_login
from cachefs.errors import RcloneUnusable, SourceRefused, SourceSilent, UrlFailed
from cachefs.fetch.rclone.child import find_binary
from cachefs.fetch.whole.providers import named_file
from cachefs.fetch.whole.receiver import Fetched, Receiver

_STALL = 30.0
_SAID = 65_536


class RcloneProvider:
    """`rclone://REMOTE/PATH` URLs; `remotes` are the operator's, label to remote string (`s3:bucket/music`, say)."""

    def __init__(self, remotes: Mapping[str, str], settings: Rclone | None = None, stall: float = _STALL) -> None:
        self._remotes = dict(remotes)
        self._binary = settings.binary if settings else None
        self._config = settings.config if settings else None
        self._stall = stall

    def takes(self, url: str) -> bool:
        return url.startswith("rclone://")

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        place = self._place(url)
        with tempfile.TemporaryFile() as said:
            process = await self._started(url, place, said)
            try:
                await self._copy(process, url, receiver, said)
            finally:
                with trio.CancelScope(shield=True), suppress(ProcessLookupError):
                    process.kill()
                    await process.wait()
                if process.stdout is not None:
                    await trio.aclose_forcefully(process.stdout)
        return await receiver.finish(url)

    async def _started(self, url: str, place: str, said: IO[bytes]) -> trio.Process:
        try:
            binary = await trio.to_thread.run_sync(find_binary, self._binary)
            config = ["--config", str(self._config)] if self._config else []
            command = [str(binary.path), "cat", *config, "--", place]
            return await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=said)
        except (OSError, RcloneUnusable) as error:
            raise UrlFailed(url, f"rclone can't be run: {error}") from error

    def _place(self, url: str) -> str:
        parts = urlsplit(url)
        remote = self._remotes.get(parts.netloc)
        if remote is None:
            known = ", ".join(self._remotes) or "none"
            label = parts.netloc.rpartition("@")[2]
            raise SourceRefused(without_login(url), f"no remote {label!r} in [records] remotes; there are: {known}")
        path = named_file(url).lstrip("/")
        if ".." in path.split("/"):
            raise SourceRefused(url, f"leads out of what {parts.netloc!r} stands for, by ..")
        return f"{remote}{path}" if remote.endswith((":", "/")) else f"{remote}/{path}"

    async def _copy(self, process: trio.Process, url: str, receiver: Receiver, said: IO[bytes]) -> None:
        assert process.stdout is not None
        while data := await self._next(process.stdout, url):
            await receiver.write(url, data)
        code = await process.wait()
        if code:
            said.seek(0)
            lines = said.read(_SAID).decode("utf-8", "replace").strip().splitlines()
            raise UrlFailed(url, f"rclone ended with {code}: {lines[-1] if lines else 'and said nothing'}")

    async def _next(self, stream: trio.abc.ReceiveStream, url: str) -> bytes:
        try:
            with trio.fail_after(self._stall):
                return bytes(await stream.receive_some(2**18))
        except trio.TooSlowError:
            raise SourceSilent(url, f"rclone was silent for {self._stall:g} s") from None
