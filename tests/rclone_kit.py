"""What the tests of rclone share: the real binary, a supervised child of it, and an rclone that serves others.

How it works: `supervised` runs an `RcloneChild` as the daemon does and waits until it answers. `webdav_remote` and
`s3_remote` are `rclone serve` processes of their own with a directory behind them, and the rclone.conf by which an
operator would reach them.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from cachefs.config import Rclone
from cachefs.fetch.rclone.child import RcloneChild
from tests.counterparts import LOOPBACK, accepts, free_port, running
from tests.fakes import until

RCLONE = Path(sys.executable).parent / "rclone"
"""The one that is installed beside Python: what users have too."""


@asynccontextmanager
async def running_child(
    directory: Path, environment: Mapping[str, str] | None = None, settings: Rclone | None = None
) -> AsyncIterator[RcloneChild]:
    """A child that is looked after, whether it answers or not; ended when the context is left."""
    child = RcloneChild(settings or Rclone(binary=RCLONE), directory, environment or {})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run)
        yield child
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def supervised(
    directory: Path, environment: Mapping[str, str] | None = None, settings: Rclone | None = None
) -> AsyncIterator[RcloneChild]:
    """The same, once it answers."""
    async with running_child(directory, environment, settings) as child:
        await until(lambda: child.ready)
        yield child


def alive(pid: int) -> bool:
    """Whether this process runs: a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said aloud."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def fake_rclone(path: Path, prints: str, then: str = "exit 0") -> Path:
    """A program that answers `version` with `prints` and otherwise does what the shell is told."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nif [ \"$1\" = version ]; then echo '{prints}'; exit 0; fi\n{then}\n")
    path.chmod(0o755)
    return path


@contextmanager
def serving(kind: str, root: Path, *options: str) -> Iterator[str]:
    """`rclone serve KIND` of a directory on loopback; its URL, which ends in `/`."""
    port = free_port()
    address = ("--addr", f"{LOOPBACK}:{port}", "--config", "/dev/null", "--cache-dir", str(root.parent / "cache"))
    with running(f"rclone serve {kind}", [RCLONE, "serve", kind, root, *address, *options]) as child:
        child.wait_until(f"accepting on port {port}", lambda: accepts(port))
        yield f"http://{LOOPBACK}:{port}/"


@contextmanager
def webdav_remote(root: Path, conf: Path) -> Iterator[str]:
    """A WebDAV server of `root`, and the remote that `conf` then has for it."""
    with serving("webdav", root, "--user", "reader", "--pass", "a secret") as url:
        obscured = subprocess.run([RCLONE, "obscure", "a secret"], capture_output=True, text=True, check=True).stdout
        _add_remote(conf, "dav", type="webdav", url=url, vendor="other", user="reader", **{"pass": obscured.strip()})
        yield "dav:"


@contextmanager
def s3_remote(root: Path, conf: Path) -> Iterator[str]:
    """An S3 server whose buckets are the folders of `root`, and the remote that `conf` then has for it."""
    with serving("s3", root, "--auth-key", "key,a-secret") as url:
        keys = {"access_key_id": "key", "secret_access_key": "a-secret"}
        _add_remote(conf, "store", type="s3", provider="Rclone", endpoint=url, **keys)
        yield "store:"


def _add_remote(conf: Path, name: str, **settings: str) -> None:
    with conf.open("a") as file:
        file.write(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()) + "\n")
