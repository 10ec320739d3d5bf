"""`cachefs mount`: mount in the foreground, or with --daemon return as soon as the mount is usable.

How it works: the daemon is this same command started again in a session of its own, with its messages going
to `<data-dir>/cachefs.log` and one end of a pipe (`--ready-fd`) on which it says how far it is, and how it went, in
lines of JSON. So there is no fork of a process that has threads, and what goes wrong at the start is printed where the
user typed the command.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from cachefs.cli import drop_output, leaves
from cachefs.cli.process import allow_many_files
from cachefs.cli.progress import bytes_bar
from cachefs.cli.terminal import echo, log_to_stderr
from cachefs.config import Config, load_config, settings_file
from cachefs.control import systemd
from cachefs.errors import CachefsError, StoreFailed, Terminated
from cachefs.mountpoint import places

if TYPE_CHECKING:
    from cachefs.mount import Mounted

log = logging.getLogger(__name__)

LOG_NAME = "cachefs.log"
_TELL_EVERY = 0.25


@click.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="A cachefs.toml.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where bytes and state are kept.")
@click.option("--chain-toml", metavar="PATH|URL", help="What the first start makes the lock from.")
@click.option("--chain", metavar="NAME", help="The chain's name, if chain.toml's file name doesn't tell.")
@click.option("--webseed", "webseeds", multiple=True, metavar="URL", help="A web seed's base URL; may be repeated.")
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="A BitTorrent peer; may be repeated.")
@click.option("--tracker", "trackers", multiple=True, metavar="URL", help="A tracker; may be repeated.")
@click.option(
    "--rclone-remote", "rclone_remotes", multiple=True, metavar="REMOTE:PATH", help="A remote of your rclone.conf."
)
@click.option("--no-rclone", is_flag=True, help="Never run rclone: your own remotes are not asked.")
@click.option("--torrent-dir", type=click.Path(path_type=Path), help="A directory of .torrent files.")
@click.option("--listen", metavar="HOST:PORT", help="Where peers may connect; port 0 for any.")
@click.option("--offline-discovery", is_flag=True, help="No DHT, local discovery or port mapping: given sources only.")
@click.option("--all-versions", is_flag=True, help="Show every version of a block file, not only the highest.")
@click.option("--deadline", type=float, metavar="SECONDS", help="How long a read waits for bytes before it fails.")
@click.option("--allow-other", is_flag=True, help="Let other users read, too.")
@click.option("--passthrough", is_flag=True, help="Let the kernel read complete files by itself (root, Linux 6.9).")
@click.option("--writable", is_flag=True, help="Let files be written beside the snapshots (root only).")
@click.option("--owner", metavar="USER[:GROUP]", help="Who may write, and owns what is shown.")
@click.option("--daemon", is_flag=True, help="Return when the mount is usable, and go on in the background.")
@click.option("-v", "--verbose", is_flag=True, help="Tell more.")
@click.option("--ready-fd", type=int, hidden=True)
def mount(
    mountpoint: Path | None, config_file: Path | None, daemon: bool, verbose: bool, ready_fd: int | None, **given: Any
) -> None:
    """Mount the snapshots of a chain, or records, on MOUNTPOINT; bytes are fetched when they are first read.

    The first start needs --chain-toml, a snapshot-lock.json in DATA_DIR/snapshots, or a records-lock.toml in DATA_DIR.
    Options given here win over cachefs.toml. Ends at SIGINT, SIGTERM, `cachefs umount` or `fusermount3 -u`.
    """
    allow_many_files()
    config = _settings(config_file, mountpoint, given)
    if daemon and ready_fd is None:
        _start_daemon(config)
        return
    level = logging.DEBUG if verbose else logging.INFO
    log_to_stderr(level, "%(asctime)s %(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "pyfuse3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from cachefs.mount import run  # which takes half a second, and who starts a daemon doesn't need it

    starter = _Starter(ready_fd)
    try:
        run(config, starter.ready, starter.hashing)
    except BaseException as error:
        starter.failed(error)
        raise


def _settings(config_file: Path | None, mountpoint: Path | None, given: dict[str, Any]) -> Config:
    if given.pop("offline_discovery"):
        given |= dict.fromkeys(("dht", "lsd", "upnp", "natpmp"), False)
    if given.pop("all_versions"):
        given["versions"] = "all"
    given["enabled"] = False if given.pop("no_rclone") else None
    for flag in ("allow_other", "passthrough", "writable"):
        given[flag] = given[flag] or None
    return load_config(settings_file(config_file, given["data_dir"])).override(mountpoint=mountpoint, **given)


class _Starter:
    """Whoever waits for the mount: the command that started this daemon, at the other end of a pipe, or systemd."""

    def __init__(self, pipe: int | None) -> None:
        self._pipe = pipe
        self._told_at = float("-inf")

    def hashing(self, done: int, total: int) -> None:
        """Tell how far local files are hashed, in bytes."""
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY:
            return
        self._told_at = now
        if self._pipe is None:
            systemd.tell_working(f"hashing local files: {decimal(done)} of {decimal(total)}")
        else:
            os.set_blocking(self._pipe, False)  # it may be stopped
            self._say({"hashing": [done, total]})

    def ready(self, mounted: Mounted) -> None:
        """Tell that the mount is usable, which is the last there is to tell."""
        told = (
            [f"{mounted.chain}, {mounted.names:,} names in the lock, {mounted.shown:,} shown"] if mounted.chain else []
        )
        told += [f"{mounted.records:,} records"] if mounted.records or not told else []
        text = "\n".join([*mounted.remarks, f"{mounted.mountpoint}: {'; '.join(told)}; ready"])
        if self._pipe is None:
            try:
                echo(text)
            except OSError as error:  # a mount was asked for, not a line
                log.warning("that it is ready can't be printed: %s", error.strerror)
                drop_output()
            systemd.tell_ready(text)
        else:
            self._end({"ready": text})

    def failed(self, error: BaseException) -> None:
        """Tell why the mount doesn't become usable, if that is not a fault of ours."""
        expected = [str(one) for one in leaves(error) if isinstance(one, CachefsError)]
        if isinstance(error, KeyboardInterrupt | Terminated):
            name = "SIGINT" if isinstance(error, KeyboardInterrupt) else "SIGTERM"
            expected = [f"the daemon was ended by {name} before the mount was usable"]
        if self._pipe is not None and expected:
            self._end({"error": expected[0]})

    def _end(self, what: Mapping[str, object]) -> None:
        assert self._pipe is not None
        os.set_blocking(self._pipe, True)
        self._say(what)
        os.close(self._pipe)
        self._pipe = None

    def _say(self, what: Mapping[str, object]) -> None:
        assert self._pipe is not None
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it may have gone, which is no reason to follow
            os.write(self._pipe, json.dumps(what).encode() + b"\n")


def _start_daemon(config: Config) -> None:
    _, data_dir = places(config)
    reading, writing = os.pipe()
    with _log_file(data_dir) as log_file:
        start = log_file.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            # -P: no modules from the working directory, as with the command that was typed.
            [sys.executable, "-P", "-m", "cachefs", "mount", "--ready-fd", str(writing), *sys.argv[2:]],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        answer = _answer(process, reading)
        if "ready" not in answer:
            code = process.wait()
            _show_fusermount(log_file, start)
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else "ended"
            nothing = f"the daemon {how} before the mount was usable; see {data_dir / LOG_NAME}"
            raise CachefsError(answer.get("error", nothing))
    echo(answer["ready"])


@contextlib.contextmanager
def _log_file(data_dir: Path) -> Iterator[IO[bytes]]:
    """Where the daemon's messages go; StoreFailed if the data directory can't be used."""
    path = data_dir / LOG_NAME
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        log_file: IO[bytes] = os.fdopen(_opened_log(path), "a+b")
    except OSError as error:
        if error.errno != errno.EROFS:
            raise StoreFailed(f"{data_dir}: can't be used as data directory: {error.strerror}") from error
        echo(f"cachefs: {path}: {error.strerror}, so the daemon's messages are lost", err=True)
        log_file = tempfile.TemporaryFile()  # noqa: SIM115  it is closed below
    with log_file:
        yield log_file


def _opened_log(path: Path) -> int:
    """The log, open to add to it, and nobody else's to read. OSError, also for a link that neither we nor root made."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        flags |= os.O_NOFOLLOW
    return os.open(path, flags, 0o660)


def _answer(process: subprocess.Popen[bytes], reading: int) -> dict[str, str]:
    """What the daemon says at last: that it is `ready`, or its `error`; nothing at all if it ends without a word."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with os.fdopen(reading, "rb") as answers, bytes_bar("hashing local files") as bar:
            for said in map(json.loads, answers):
                if "hashing" not in said:
                    return dict(said)
                if bar is not None:
                    bar(*said["hashing"])
    except (KeyboardInterrupt, Terminated) as told:
        process.send_signal(signal.SIGTERM if isinstance(told, Terminated) else signal.SIGINT)
        process.wait()
        raise
    return {}


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _show_fusermount(log_file: IO[bytes], start: int) -> None:
    """Print what fusermount3 wrote into the log since `start`: messages speak of it."""
    log_file.seek(start)
    for line in log_file.read().decode("utf-8", "replace").splitlines():
        if line.startswith(("fuse: ", "fusermount3: ")):
            echo(line, err=True)
