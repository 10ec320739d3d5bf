"""Which daemon a command means: by mount point, by data directory, or the only one there is. And which directory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cachefs.errors import ControlError
from cachefs.mountinfo import mount_at, own_mounts

DIRECTORY = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
NEW_DIRECTORY = click.Path(file_okay=False, resolve_path=True, path_type=Path)

F = TypeVar("F", bound=Callable[..., Any])


def daemon_options(command: F) -> F:
    """Give a command whose arguments are something else `--mountpoint` and `--data-dir`, to name the daemon by."""
    place = click.Path(path_type=Path)
    command = click.option("--data-dir", type=place, help="The data directory, mounted or not.")(command)
    return click.option("--mountpoint", "--mount", type=place, help="Where it is mounted, if several are.")(command)


def with_data_dir(command: Callable[..., None]) -> Callable[..., None]:
    """Call a group's command with the data directory that is meant, named after the command or before it.

    The group's object is the pair of mount point and data directory that it was given.
    """

    @functools.wraps(command)
    def run(mountpoint: Path | None, data_dir: Path | None, **arguments: Any) -> None:
        if mountpoint is None and data_dir is None:
            mountpoint, data_dir = click.get_current_context().obj
        command(data_dir_of(mountpoint, data_dir), **arguments)

    return daemon_options(run)


def data_dir_of(mountpoint: Path | None, data_dir: Path | None) -> Path:
    """The data directory of the daemon that is meant; ControlError if that isn't clear."""
    if data_dir is not None:
        if not data_dir.is_dir():
            raise ControlError(f"{data_dir}: there is no such directory")
        return data_dir
    if mountpoint is not None:
        entry = mount_at(mountpoint)
        if entry is None:
            raise ControlError(f"nothing of cachefs is mounted at {mountpoint}")
        return entry.data_dir
    found = own_mounts()
    if not found:
        raise ControlError("nothing of cachefs is mounted; say which data directory is meant: --data-dir DIR")
    if len({entry.data_dir for entry in found}) > 1:
        raise ControlError("several are mounted; name one: " + ", ".join(str(e.mountpoint) for e in found))
    return found[0].data_dir
