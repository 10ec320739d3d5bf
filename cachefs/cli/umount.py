"""`cachefs umount`: ask the daemon to end, or clear away a mount whose daemon is gone."""

from __future__ import annotations

import time
from contextlib import suppress
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
    if not mountinfo.is_dead(mountpoint):
        with suppress(NoDaemon):  # it has no socket in a read-only data directory, and notices what is done below
            control.ask(entry.data_dir, "stop")
            _wait_ended(entry)
            return
    overlay.uncover(mountpoint)
    mountinfo.unmount_lazily(mountpoint)


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
