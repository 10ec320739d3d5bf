"""What the demo and the benchmarks share: a mount in a folder of its own, and an orderly end whatever happens.

How it works: a mount is a context manager around `cachefs mount --daemon` and `cachefs umount`, the commands a
user types. The daemon has a session of its own, so Ctrl-C in the terminal doesn't reach it, and an interrupt
between its start and the moment we know of it would leave it behind. So signals are held back over these two
commands, and everywhere else become one KeyboardInterrupt that unwinds all contexts; after the first no further
one interrupts the clearing up.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from cachefs import mountinfo
from cachefs.control import socket as control

CACHEFS = Path(sys.executable).with_name("cachefs")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """A step that did not do what it should; says what happened instead."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A running mount: where, its data directory, its daemon's process id, and what it said at the start."""

    path: Path
    data_dir: Path
    pid: int
    said: str

    def status(self) -> Mapping[str, Any]:
        """What `cachefs status --json` prints."""
        answer: Mapping[str, Any] = control.ask(self.data_dir, "status")
        return answer

    def memory(self, key: str = "VmRSS") -> float:
        """The daemon's resident memory in MB; `VmHWM` for the most it ever had."""
        return memory_of(self.pid, key)


def memory_of(pid: int, key: str = "VmRSS") -> float:
    """A process's resident memory in MB; `VmHWM` for the most it ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))


@contextmanager
def mounted(folder: Path, *options: str | Path, within: Sequence[str] = ()) -> Iterator[Mount]:
    """A mount at `folder`/mnt on the data directory `folder`/data, with the options given and no discovery.

    `within` comes before the command, to start it in another network.
    """
    path, data_dir = folder / "mnt", folder / "data"
    path.mkdir(parents=True, exist_ok=True)
    try:
        with signals_held():
            command = (CACHEFS, "mount", path, "--data-dir", data_dir, *PRIVATE, *options, "--daemon")
            said = output(*within, *command, cwd=folder)
        pid = int(control.ask(data_dir, "status")["mount"]["pid"])
        yield Mount(path, data_dir, pid, said.strip())
    finally:
        with signals_held():
            unmount(path)


PRIVATE = ("--listen", "127.0.0.1:0", "--offline-discovery")
"""Options of a mount that talks to nobody but the sources it is given."""


def unmount(path: Path) -> None:
    """Take the mount away if there is one; by force, with its daemon, if `cachefs umount` can't."""
    entry = mountinfo.mount_at(path)
    if entry is None:
        return
    try:
        cachefs("umount", path, cwd=path.parent)
    except Failed:
        holder = _holder(entry.data_dir)
        mountinfo.unmount_lazily(path)
        if holder is not None:
            with suppress(ProcessLookupError):
                os.kill(holder, signal.SIGKILL)
        raise


def _holder(data_dir: Path) -> int | None:
    with suppress(Exception):
        return int(control.ask(data_dir, "status", timeout=2.0)["mount"]["pid"])
    return None


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for whoever adopted it to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def cachefs(*arguments: str | Path, cwd: Path) -> str:
    """What `cachefs arguments…` printed; Failed with its words if it failed."""
    return output(CACHEFS, *arguments, cwd=cwd)


def output(*command: str | Path, cwd: Path | None = None) -> str:
    """What the command printed on stdout; Failed with what it said on stderr."""
    # In a session of its own it doesn't see the terminal's Ctrl-C: whether to stop is ours to decide.
    environment = os.environ | {"PATH": f"{CACHEFS.parent}:{os.environ.get('PATH', os.defpath)}"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or "without a word"
        raise Failed(f"{' '.join(map(str, command))} ended with {done.returncode}: {said}")
    return done.stdout


def end_on_signals() -> None:
    """Let the first SIGINT, SIGTERM or SIGHUP unwind the program; none after it."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold signals back over what must not be cut in half."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextmanager
def scratch(prefix: str, needed: int) -> Iterator[Path]:
    """A folder for `needed` bytes, deleted at the end; Failed if the disk that TMPDIR is on has no room for them."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        free = shutil.disk_usage(name).free
        if free < needed:
            why = f"{free / 1e9:.1f} GB are free in {tempfile.gettempdir()}, and {needed / 1e9:.1f} GB are needed"
            raise Failed(f"{why}; name another place: TMPDIR=DIR")
        yield Path(name).resolve()


def fill(path: Path, size: int) -> None:
    """Write a new file of `size` bytes in which no two pieces are equal and nothing compresses.

    Each MiB is cut from one pool of random bytes at a random byte: four times as fast as random bytes throughout.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for offset in range(0, size, 2**20):
            start = random.randrange(len(_pool()) - 2**20)
            file.write(_pool()[start : start + min(2**20, size - offset)])


@functools.cache
def _pool() -> memoryview:
    return memoryview(os.urandom(32 * 2**20))
