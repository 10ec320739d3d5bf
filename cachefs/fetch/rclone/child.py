"""The rclone process: found, checked, started, watched, and started again when it dies.

How it works: one child runs rclone's remote control on a Unix socket in a directory that only we can enter, with
a password that no argument list shows. Remotes that we make ourselves (a web seed is one) are told to it in
environment variables, so no URL is ever parsed as part of a remote string. The kernel kills the child when
we die, however we die. A child that ends is started again, after a pause that grows while it ends
quickly; a socket that went away under a living child ends that child. Each change is said once.

rclone older than `OLDEST` is refused: CVE-2026-41179, -41176, -49980 and -88046 are mended in it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cachefs.content import Span
from cachefs.errors import RcloneGone, RcloneUnusable
from cachefs.fetch.http.wire import Body
from cachefs.fetch.rclone.rc import RemoteControl

if TYPE_CHECKING:
    from cachefs.config import Rclone

log = logging.getLogger(__name__)

OLDEST = (1, 75, 1)
SOCKET = "rc.sock"
_PAUSES = (0.5, 30.0)
_LIVED = 60.0
"""Seconds after which an end is an accident, not a failure to run."""
_START_WITHIN = 15.0
_SOON = 3.0
_LOOK_AGAIN = 60.0
_IDLE_LOOK = 0.1
_LOOK_FOR_ANSWER = 0.02
_LAST_WORDS = 400


@dataclass(frozen=True, slots=True)
class Binary:
    """An rclone that may be run."""

    path: Path
    version: str


def find_binary(configured: Path | None) -> Binary:
    """The configured rclone; or else the first on PATH or beside our own Python that is new enough.

    RcloneUnusable says which were looked at, and what is wrong with each. Blocking, some 100 ms.
    """
    beside = Path(sys.executable).parent / "rclone"
    on_path = shutil.which("rclone")
    candidates = [configured] if configured else [*([Path(on_path)] if on_path else []), beside]
    said = []
    for candidate in dict.fromkeys(candidates):
        version = _version(candidate)
        if isinstance(version, str):
            said.append(f"{candidate}: {version}")
        elif version < OLDEST:
            said.append(f"{candidate} is {_dotted(version)}, older than {_dotted(OLDEST)}, which mends security holes")
        else:
            return Binary(candidate, _dotted(version))
    raise RcloneUnusable("; ".join(said))


def _version(path: Path) -> tuple[int, ...] | str:
    """The version of a binary, or why it can't be told."""
    try:
        told = subprocess.run([path, "version"], capture_output=True, timeout=_START_WITHIN, check=False).stdout
    except FileNotFoundError:
        return "there is none"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"can't be run: {error}"
    match = re.match(rb"rclone v(\d+)\.(\d+)\.(\d+)", told)
    return tuple(map(int, match.groups())) if match else "doesn't tell its version as rclone does"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


class RcloneChild:
    """Keeps one rclone running; `control` is how to talk to it while `ready`.

    `directory` is for the socket and what rclone caches; `environment` defines remotes of our own.
    """

    def __init__(self, settings: Rclone, directory: Path, environment: Mapping[str, str]) -> None:
        self._settings = settings
        self._directory = directory
        self._environment = dict(environment)
        self._told: Mapping[str, str] = {}
        self._suspected = trio.Event()
        self._changed = trio.Event()
        self.control: RemoteControl | None = None
        self.binary: Binary | None = None
        self.pid: int | None = None
        self.restarts = 0
        self.trouble = "rclone is being started"
        self._said = ""
        self._unusable = False
        self._gone_since = float("-inf")
        self._users = 0
        self._outdated = False

    @property
    def ready(self) -> bool:
        """Whether it answers, as far as is known."""
        return self.control is not None

    @property
    def expected(self) -> bool:
        """Whether it answers, or may be expected to in a moment."""
        return self.ready or (not self._unusable and trio.current_time() - self._gone_since < _SOON)

    async def until_known(self) -> None:
        """Return when it answers, or when it is known that it can't be used."""
        while self.control is None and not self._unusable:
            await self._changed.wait()

    def suspect(self) -> None:
        """It didn't answer somebody: look at once whether it still does."""
        self._suspected.set()

    @contextlib.asynccontextmanager
    async def open(self, remote: str, path: str, span: Span | None) -> AsyncIterator[Body]:
        """A file's bytes, as `RemoteControl.open` has it; RcloneGone while it doesn't run."""
        if self.control is None:
            raise RcloneGone(self.trouble)
        self._users += 1
        try:
            async with self.control.open(remote, path, span) as body:
                yield body
        finally:
            self._users -= 1

    def describe(self, environment: Mapping[str, str]) -> None:
        """Have it know these remotes: it is started anew as soon as nobody waits for an answer."""
        if self._environment != environment:
            self._environment = dict(environment)
            self._outdated = True
            self._suspected.set()

    def knows(self, variables: Mapping[str, str]) -> bool:
        """Whether the one that runs was told these: what was described lately may have to wait."""
        return variables.items() <= self._told.items()

    async def run(self) -> None:
        """Keep it running for ever; it is ended when this is cancelled."""
        self._gone_since = trio.current_time()
        shortest, longest = _PAUSES
        pause = shortest
        while True:
            began = trio.current_time()
            try:
                self.binary = await trio.to_thread.run_sync(find_binary, self._settings.binary)
                await self._live(self.binary)
            except (RcloneUnusable, OSError) as error:  # a data directory that can't be written to, say
                self._unusable = True
                self._say(f"rclone can't be used, torrents go on without it: {error}")
                self._tell()
                await trio.sleep(_LOOK_AGAIN)
                continue
            if self._outdated:
                self._outdated = False
                continue
            self.restarts += 1
            await trio.sleep(pause)
            pause = shortest if trio.current_time() - began > _LIVED else min(pause * 2, longest)

    async def _live(self, binary: Binary) -> None:
        """Start it, and return when it has ended."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        secret = secrets.token_urlsafe(32)
        with self._process(binary, secret) as process, self._control(secret) as control:
            self.pid = process.pid
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, process, control)
                    await _ended(process)
                    nursery.cancel_scope.cancel()
            finally:
                self.control = self.pid = None
                self._gone_since = trio.current_time()
            if not self._outdated:
                self._say(f"rclone ended ({_manner(process)}){self._last_words(process)}; it is started again")

    @contextlib.contextmanager
    def _process(self, binary: Binary, secret: str) -> Iterator[subprocess.Popen[bytes]]:
        # From this thread and no other: the kernel ends the child with the thread that started it.
        (self._directory / SOCKET).unlink(missing_ok=True)
        self._told, self._outdated = self._environment, False
        with (self._directory / "rclone.log").open("wb") as log_file:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", binary.path, *self._arguments()],
                cwd=self._directory,  # socket addresses are limited to 107 bytes, so it is named from here
                env=self._variables(secret),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _arguments(self) -> list[str]:
        arguments = ["rcd", f"--rc-addr=unix://{SOCKET}", "--rc-serve", "--rc-server-read-timeout=1h"]
        # It is we who try again, elsewhere or later.
        arguments += ["--low-level-retries=1", "--retries=1", "--contimeout=10s", "--timeout=60s", "--log-level=NOTICE"]
        arguments += ["--buffer-size=0", "--rc-server-write-timeout=24h", f"--cache-dir={self._directory / 'cache'}"]
        return arguments + ([f"--config={self._settings.config}"] if self._settings.config else [])

    def _variables(self, secret: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RCLONE_RC_")}
        return inherited | self._environment | {"RCLONE_RC_USER": "cachefs", "RCLONE_RC_PASS": secret}

    @contextlib.contextmanager
    def _control(self, secret: str) -> Iterator[RemoteControl]:
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield RemoteControl(f"/proc/self/fd/{directory}/{SOCKET}", "cachefs", secret)
        finally:
            os.close(directory)

    async def _watch(self, process: subprocess.Popen[bytes], control: RemoteControl) -> None:
        """Say when it is ready; end it when it no longer answers."""
        with trio.move_on_after(_START_WITHIN):
            await _until_answers(control)
            self.control = control
            if self._said:
                self._say(f"rclone {self.binary.version if self.binary else ''} answers again")
            self.trouble = self._said = ""
            self._unusable = False
            self._tell()
        while self.control is not None:
            await self._suspected.wait()
            self._suspected = trio.Event()
            if not await control.answers():
                break
            while self._outdated:
                if not self._users:
                    process.kill()
                await trio.sleep(_IDLE_LOOK)
        process.kill()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _say(self, what: str) -> None:
        """Log what changed, once."""
        self.trouble = what
        if what != self._said:
            log.warning("%s", what)
        self._said = what

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        if process.returncode < 0:  # killed: what it said before has nothing to do with it
            return ""
        with contextlib.suppress(OSError):
            text = (self._directory / "rclone.log").read_text(errors="replace").strip()
            lines = [line for line in text.splitlines() if "NOTICE" not in line]
            return f": {lines[-1][-_LAST_WORDS:]}" if lines else ""
        return ""


async def _until_answers(control: RemoteControl) -> None:
    while True:
        if await control.answers():
            return
        await trio.sleep(_LOOK_FOR_ANSWER)


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Return when the process has ended, without a thread that waits for it."""
    descriptor = os.pidfd_open(process.pid)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    process.wait()


def _manner(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
