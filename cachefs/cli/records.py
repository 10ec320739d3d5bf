"""What the commands of the record catalogue share: whose cache is meant, with which settings."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import trio

from cachefs.cli.target import data_dir_of
from cachefs.cli.terminal import echo
from cachefs.config import Config, load_config, settings_file
from cachefs.config.values import without_login
from cachefs.control import socket as control
from cachefs.control.holding import mounts_room
from cachefs.errors import CachefsError, ControlError
from cachefs.mountinfo import own_mounts
from cachefs.mountpoint import is_dead
from cachefs.records import MusicCache
from cachefs.records.naming import Meant

T = TypeVar("T")

_ERROR = "user.cachefs.error"
"""The extended attribute in which the mount says why a file can't be read."""


@dataclass(frozen=True, slots=True)
class Target:
    """A data directory and its settings."""

    data_dir: Path
    config: Config

    def run(self, work: Callable[[MusicCache], Awaitable[T]]) -> T:
        """What `work` makes of this cache."""

        async def main() -> T:
            opening = MusicCache.open(self.data_dir, self.config.records, rclone=self.config.rclone)
            async with opening as cache, mounts_room(self.data_dir) as cache.room:
                return await work(cache)

        return trio.run(main)

    def mountpoint(self) -> Path | None:
        """Where this data directory is mounted, if it is; CachefsError if the daemon behind all such mounts is dead."""
        # By its name first: the directories of other mounts may be on a file system that hangs.
        names, mounted = {self.data_dir.absolute(), here := self.data_dir.resolve()}, own_mounts()
        found = [entry for entry in mounted if entry.data_dir in names]
        found = found or [entry for entry in mounted if entry.data_dir.resolve() == here]
        alive = next((entry.mountpoint for entry in found if not is_dead(entry)), None)
        if found and alive is None:
            place = found[0].mountpoint
            way_out = f"mount it again, or take it away: cachefs umount {place}"
            raise CachefsError(f"{place}: the daemon of this mount is gone; {way_out}")
        return alive

    def tell_daemon(self) -> None:
        """Let a running mount know that the lock has changed; without one there is nobody to tell."""
        with suppress(ControlError):
            control.ask(self.data_dir, "records-changed")


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The two options that every command of records has."""
    command = click.option(
        "--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="A cachefs.toml."
    )(command)
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Whose cache; else the one that is mounted.",
    )(command)


def target(config_file: Path | None, data_dir: Path | None) -> Target:
    """The cache that is meant: by --data-dir, by the settings, or the only one that is mounted."""
    config = load_config(settings_file(config_file, data_dir))
    if data_dir is None:
        data_dir = config.mount.data_dir or data_dir_of(None, None)
        config = load_config(settings_file(config_file, data_dir))
    return Target(data_dir, config)


def tell_strange(playlist: str, found: Meant) -> None:
    """Say which entries of a playlist are passed over."""
    for entry in found.strange:
        echo(f"{playlist}: {without_login(entry)}: no record here, passed over", err=True)


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """CachefsError for what goes wrong with a file in the mount, with the mount's own reason."""
    try:
        yield
    except FileNotFoundError:
        raise CachefsError(f"{path}: the mount doesn't show it; if the lock was edited: cachefs reload") from None
    except OSError as error:
        why = ""
        with suppress(OSError):
            why = os.getxattr(path, _ERROR).decode()
        raise CachefsError(f"{path}: {error.strerror}{f': {why}' if why else ''}") from None


def opened(path: Path) -> None:
    """Let a failure be told here: a player would only say that it can't open the file."""
    with failing(path), path.open("rb", buffering=0):
        pass
