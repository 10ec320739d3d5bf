"""The place of a mount: where it is, what is there already, and how that is taken away.

How it works: a mount whose daemon is gone must be told from one whose daemon hangs, and to ask the mount would be to
wait for the daemon that hangs. But a daemon holds its data directory's lock to its last moment, so a mount is asked
only if nobody holds that, or somebody who has mounted elsewhere. What is unmounted goes by path, and what lies on top
there is what goes; so a mount that another file system covers is left alone.

A daemon knows its own mount by its numbers from the moment it is there. At its end it looks for these, for its place
may have been renamed, another's mount may be there by now, or lie over it; then what is ours stays below, dead. It
holds all that it needs for that from the beginning, because in the end there may be no descriptor left.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cachefs import mountinfo
from cachefs.config import Config
from cachefs.config.values import show
from cachefs.drivers import overlay, syscalls
from cachefs.errors import CachefsError, ConfigError
from cachefs.mountinfo import MountEntry, Table
from cachefs.store.lock import holder, is_strangers

log = logging.getLogger(__name__)


def places(config: Config) -> tuple[Path, Path]:
    """Mount point and data directory, absolute; ConfigError if one isn't given, or they can't be used together."""
    if config.mount.mountpoint is None:
        raise ConfigError("mountpoint", "not given: name it on the command line or as [mount] mountpoint")
    data_dir = Path(os.path.abspath(config.mount.needed_data_dir()))  # noqa: PTH100  as the shell's pwd
    if not _is_utf8(data_dir):  # libtorrent would write elsewhere
        raise ConfigError("data_dir", f"expected a path in UTF-8, got {show(str(data_dir))}")
    mountpoint = mountinfo.located(config.mount.mountpoint)
    if _leads_into(mountpoint, data_dir):
        raise ConfigError(str(data_dir), f"the data directory can't be inside the mount point {mountpoint}")
    return mountpoint, data_dir


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _leads_into(mountpoint: Path, path: Path) -> bool:
    # From the top down, so that what is mounted there, which may be dead or hang, isn't entered.
    downwards = (*reversed(path.parents), path)
    return any(mountinfo.located(part).is_relative_to(mountpoint) for part in downwards)


def is_dead(entry: MountEntry) -> bool:
    """Whether the daemon of a mount is gone."""
    who = holder(entry.data_dir)
    elsewhere = who.startswith("pid ") and not who.endswith(f"(mounted at {entry.mountpoint})")
    return (not who or elsewhere) and mountinfo.is_dead(entry.mountpoint)


def take_away(entry: MountEntry) -> None:
    """Take a mount, and what lies over its directories, out of the tree, whoever still uses it; CachefsError.

    Somebody may be quicker, and his mount be there by now.
    """
    refuse_covered(entry)
    try:
        if mountinfo.again(entry) is not None:
            overlay.uncover(entry.mountpoint)
            mountinfo.unmount_lazily(entry.mountpoint)
    except CachefsError:
        if mountinfo.again(entry) is not None:
            raise


def refuse_covered(entry: MountEntry) -> None:
    """CachefsError if another file system lies over the mount, which would be taken away in its place."""
    kind = mountinfo.cover(entry)
    if kind:
        first = f"take that away first: umount {entry.mountpoint}"
        raise CachefsError(f"{entry.mountpoint}: another file system ({kind}) lies over the mount; {first}")


def prepare(mountpoint: Path) -> None:
    """Clear away a mount whose daemon is gone; CachefsError if nothing can be mounted there."""
    entry = mountinfo.mount_at(mountpoint)
    if entry is not None:
        refuse_covered(entry)
        if not is_dead(entry):
            raise _used(mountpoint)
        log.warning("%s: clearing away a mount whose daemon is gone", mountpoint)
        take_away(entry)
    if not mountpoint.is_dir():
        advice = "" if os.path.lexists(mountpoint) else f"; make it first: mkdir -p {mountpoint}"
        raise CachefsError(f"{mountpoint} is not a directory{advice}")


def _used(mountpoint: Path) -> CachefsError:
    return CachefsError(f"{mountpoint} is mounted already; `cachefs umount {mountpoint}` takes it away")


@contextlib.contextmanager
def claimed(mountpoint: Path) -> Iterator[None]:
    """Have nobody else mount there while this lasts; CachefsError if somebody does, or has since `prepare`."""
    with contextlib.ExitStack() as held:
        try:
            directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, directory)
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_strangers(directory):
                raise CachefsError(f"{mountpoint}: another cachefs is mounting there") from None
        except OSError as error:  # it may be closed to us, or its file system know no locks
            log.debug("%s isn't locked while it is mounted on: %s", mountpoint, error.strerror)
        if mountinfo.mount_at(mountpoint) is not None:
            raise _used(mountpoint)
        yield


class OwnMount:
    """The mount that this process makes at a place, and takes away in the end. Close it."""

    def __init__(self, mountpoint: Path) -> None:
        """Before it is mounted. OSError if no descriptor is left."""
        self._mountpoint = mountpoint
        self._table = Table()
        self._left = False
        self.entry: MountEntry | None = None
        """As it was when it was mounted."""

    def begin(self) -> None:
        """Know it from now on: it is the one that is mounted there."""
        self.entry = next((one for one in reversed(self._table.mounts()) if one.mountpoint == self._mountpoint), None)

    def now(self) -> MountEntry | None:
        """Where it is now; None when it isn't mounted any more."""
        return self._table.again(self.entry) if self.entry is not None else None

    def cover(self) -> str:
        """The type of the file system that lies over it, "" if none does."""
        now = self.now()
        return self._table.cover(now) if now is not None else ""

    def leave(self) -> None:
        """Take it out of the tree, whoever still uses it. What keeps it there is logged, once."""
        now = self.now()
        if now is None or self._left:
            return
        self._left = True
        kind, place = self._table.cover(now), now.mountpoint
        if kind:
            log.warning(
                "%s: another file system (%s) lies over the mount, which stays below it, dead; to clear it away: "
                "umount %s; cachefs umount %s", place, kind, place, place,
            )  # fmt: skip
            return
        with contextlib.suppress(OSError):  # somebody was quicker
            _detach(place)
        if self.now() is not None:
            log.warning("%s: can't be unmounted; `cachefs umount %s` may clear it away", place, place)

    def close(self) -> None:
        self._table.close()


def _detach(place: Path) -> None:
    """Take what is mounted there out of the tree; needs no descriptor, which subprocess does."""
    try:
        syscalls.umount(place, syscalls.MNT_DETACH)
    except PermissionError:
        os.waitpid(os.posix_spawnp("fusermount3", ["fusermount3", "-u", "-z", "--", str(place)], os.environ), 0)
