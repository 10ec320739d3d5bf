"""`cachefs umount`: ask the daemon to end, or take a mount away whose daemon is gone, or can't be asked."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cachefs import mountinfo
from cachefs.control import socket as control
from cachefs.drivers import overlay
from cachefs.errors import ControlError, DataDirBusy, NoDaemon
from cachefs.store.lock import DataDirLock

_PATIENCE = 15.0


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=Path))
def umount(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, also while it is in use: waiting reads fail with EIO at once.

    Returns when the daemon has written down what it has and ended. A mount whose daemon died is cleared away.
    """
    entry = mountinfo.mount_at(mountpoint)
    if entry is None:
        raise ControlError(f"nothing of cachefs is mounted at {mountpoint}")
    if mountinfo.is_dead(mountpoint):
        overlay.uncover(mountpoint)
        mountinfo.unmount_lazily(mountpoint)
        return
    try:
        control.ask(entry.data_dir, "stop")
    except NoDaemon:  # it can't be told, on a read-only disk say: it ends when its mount is gone
        overlay.uncover(mountpoint)
        mountinfo.unmount_lazily(mountpoint)
    _wait_ended(entry)


def _wait_ended(entry: mountinfo.MountEntry) -> None:
    # The daemon holds its data directory's lock to its last moment.
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            with DataDirLock(entry.data_dir):
                return
        except DataDirBusy:
            time.sleep(0.02)
    raise ControlError(f"the daemon of {entry.data_dir} has unmounted, but hasn't ended after {_PATIENCE:g} s")
