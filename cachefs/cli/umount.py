"""`cachefs umount`: ask the daemon to end, or take a mount away whose daemon is gone, or can't be asked."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cachefs import mountinfo, mountpoint
from cachefs.cli.terminal import echo
from cachefs.control import socket as control
from cachefs.errors import ControlError, NoDaemon
from cachefs.store.lock import holder

_ANSWER_WITHIN = 5.0
_PATIENCE = 15.0


@click.command()
@click.argument("place", metavar="MOUNTPOINT", type=click.Path(path_type=Path))
def umount(place: Path) -> None:
    """Unmount MOUNTPOINT, also while it is in use: waiting reads fail with EIO at once.

    Returns when the daemon has written down what it has and ended. A mount whose daemon died is cleared away, and so is
    one whose daemon doesn't answer.
    """
    entry = mountinfo.mount_at(place)
    if entry is None:
        raise ControlError(f"nothing of cachefs is mounted at {place}")
    mountpoint.refuse_covered(entry)
    if mountpoint.is_dead(entry):
        mountpoint.take_away(entry)
        return
    try:
        control.ask(entry.data_dir, "stop", timeout=_ANSWER_WITHIN)
    except NoDaemon:  # it can't be told, on a read-only disk say: it ends when its mount is gone
        mountpoint.take_away(entry)
    except ControlError as error:
        echo(f"cachefs: {error}; its mount is taken away", err=True)
        mountpoint.take_away(entry)
    _wait_ended(entry)


def _wait_ended(entry: mountinfo.MountEntry) -> None:
    # The daemon holds its data directory's lock to its last moment.
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if not holder(entry.data_dir):
            return
        time.sleep(0.02)
    raise ControlError(f"the daemon of {entry.data_dir} has unmounted, but hasn't ended after {_PATIENCE:g} s")
