"""The writable view: the kernel's overlayfs over a directory of the mount.

How it works: a node builds its indices beside the snapshots and deletes what it merged, and the mount is read-only. So
an overlayfs is laid over `MOUNTPOINT/snapshots`, with that very directory as its lower layer and
`<data-dir>/snapshots` as the upper one. overlayfs resolves a lower layer once, when it is mounted, and holds it
by itself; so it may lie over the directory that it reads, the mount needs no second place in the tree, and
whoever takes the mount away (`umount -l`, `fusermount3 -z`) takes the view away with it. What is written stays in
the upper layer, whole files under their own names; the mount below never hears of it. overlayfs reads the lower
layer with the rights of who mounted it.

Options, and why. `metacopy=off`: a file in the upper layer is always a whole one, never a husk that needs
the layer below; it can be hashed, moved and backed up. `redirect_dir=nofollow`: the same for directories; renaming
one that holds virtual files is refused with EXDEV. `index=off`: there are no hard links below to keep together, and
an index would tie the upper layer to one lower file system, which is another after each restart. `xino=off`: our
inode numbers use all the bits that it would need.

Format of the options: the kernel's Documentation/filesystems/overlayfs.rst; `\\`, `,` and `:` are escaped by `\\`.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import pwd
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs import mountinfo
from cachefs.drivers import syscalls
from cachefs.errors import CachefsError, ConfigError

log = logging.getLogger(__name__)

WORK = "overlay-work"
"""overlayfs's own directory in the data directory, on the file system of the upper layer."""

_OPTIONS = "index=off,metacopy=off,redirect_dir=nofollow,xino=off"
_LONGEST_DATA = 4095
_FRESHEN_EVERY = 1.0

_NEEDS_ROOT = (
    "only root may mount an overlayfs. Start it with sudo or as a systemd service (docs/operating.md has a unit), "
    "with --owner USER for a node that is not root; or leave --writable off"
)
_REASONS = {
    errno.EPERM: _NEEDS_ROOT,
    errno.EACCES: _NEEDS_ROOT,
    errno.ENODEV: "this kernel has no overlayfs; `modprobe overlay` may load it",
    errno.EINVAL: "the kernel can't use it as an upper layer: put the data directory on a local ext4, xfs or btrfs, "
    f"and {WORK} beside it on the same; `dmesg` says more",
}


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and group that files and directories of a writable view belong to."""

    uid: int
    gid: int

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Who `USER`, `USER:GROUP` or numbers in their place are, "" being this process; ConfigError if nobody."""
        user, _, group = text.partition(":")
        if not user:
            return cls(os.geteuid(), os.getegid())
        try:
            uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
            if not group:
                return cls(uid, pwd.getpwuid(uid).pw_gid)
            return cls(uid, int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid)
        except KeyError:
            raise ConfigError("owner", f"{text}: no such user or group here; give USER or USER:GROUP") from None


class WritableView:
    """An overlayfs over `directory`, which is in a mount of ours; what is written goes to `upper`."""

    def __init__(self, directory: Path, upper: Path, owner: Owner) -> None:
        """ConfigError if this process may not mount it, or the places can't go together."""
        if not syscalls.may_mount():
            raise ConfigError("--writable", _NEEDS_ROOT)
        if directory.is_relative_to(upper):
            raise ConfigError(str(directory.parent), f"a writable mount can't be inside {upper}, its upper layer")
        self.directory = directory
        self.upper = upper
        self.owner = owner
        self._work = upper.parent / WORK
        self._outdated = 0
        self._device = 0

    @property
    def foreign(self) -> bool:
        """Whether another user than this process works in it, who must then be let in."""
        return self.owner.uid != os.geteuid()

    async def wait_gone(self) -> None:
        """Return when it isn't mounted any more."""
        await mountinfo.wait_gone(self.directory.parent, mountinfo.overlays_in)

    def mount(self) -> None:
        """Lay it over the directory, which must be served meanwhile; CachefsError says what the kernel objects to."""
        try:
            self._prepare()
            syscalls.mount("overlay", "cachefs", self.directory, self._data())
        except OSError as error:
            why = _REASONS.get(error.errno or 0, error.strerror)
            raise CachefsError(f"{self.upper}: can't be laid over {self.directory}: {why}") from error
        if os.statvfs(self.directory).f_flag & os.ST_RDONLY:
            # What overlayfs does instead of failing when it can't set up its work directory.
            uncover(self.directory.parent)
            raise CachefsError(f"{self.directory}: the kernel would mount it read-only; `dmesg` says why")
        self._device = self.directory.stat().st_dev

    def _prepare(self) -> None:
        self.upper.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._work.mkdir(mode=0o700, exist_ok=True)
        if self.foreign:
            # The owner's group may create here; the sticky bit keeps what is not the owner's, the lock above all, from
            # being deleted or renamed. The data directory around it stays closed.
            os.chown(self.upper, os.geteuid(), self.owner.gid)
            self.upper.chmod(0o1775)

    def _data(self) -> str:
        layers = {"lowerdir": self.directory, "upperdir": self.upper, "workdir": self._work}
        data = ",".join([*(f"{key}={_escaped(path)}" for key, path in layers.items()), _OPTIONS])
        if len(os.fsencode(data)) > _LONGEST_DATA:
            raise CachefsError(f"{self.directory} and {self.upper}: too long together for the options of a mount")
        return data

    def unmount(self) -> None:
        """Take it away, whoever still uses it. What goes wrong is logged: it goes with the mount below, then."""
        try:
            uncover(self.directory.parent)
        except (CachefsError, OSError) as error:  # OSError: there is no descriptor left to look with
            log.warning("%s", error)

    def refresh(self, outdated: int = 0) -> None:
        """Have names looked up anew, after those of the mount below changed; CachefsError if the view is gone.

        overlayfs expects layers below it to stay as they are: it remembers names, also those that weren't there, and
        answers ESTALE for one that became another file. A remount drops what it remembers, except of files that are
        open, which keep their bytes: for their names it is done again when they are closed. `outdated` is how many
        of former times are open, counted before.
        """
        self._outdated = outdated
        try:
            if self.directory.stat().st_dev != self._device:
                raise CachefsError(f"{self.directory}: can't be refreshed: another file system lies over it")
            syscalls.mount("overlay", "cachefs", self.directory, "", syscalls.MS_REMOUNT)
        except OSError as error:
            raise CachefsError(f"{self.directory}: can't be refreshed: {error.strerror}") from error

    async def keep_fresh(self, outdated: Callable[[], int]) -> None:
        """Refresh, for ever, whenever fewer files of former times are open below; `outdated` tells how many are."""
        again = False
        while True:
            await trio.sleep(_FRESHEN_EVERY)
            now = outdated()
            closed = now < self._outdated
            if closed or again:
                with suppress(CachefsError):  # it is being taken away
                    await trio.to_thread.run_sync(self.refresh, now)
            again = closed  # the daemon may hear of a closed mapping before overlayfs lets go of its name


def uncover(mountpoint: Path) -> None:
    """Take away what lies over the directories of the mount at `mountpoint`, whoever still uses it; that is logged."""
    for directory in reversed(mountinfo.overlays_in(mountpoint)):
        try:
            _uncover(directory)
        except OSError as error:
            raise CachefsError(f"{directory}: can't be unmounted: {error.strerror}") from error


def _uncover(directory: Path) -> None:
    try:
        syscalls.umount(directory)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        log.warning("%s: taken away from %s", directory, _users(directory))
        syscalls.umount(directory, syscalls.MNT_DETACH)


def _escaped(path: Path) -> str:
    return re.sub(r"([\\,:])", r"\\\1", str(path))


def _users(directory: Path) -> str:
    """The processes with a file, a mapping or their working directory below `directory`, as text for people."""
    inside = f"{directory}/"
    using = [
        process
        for process in Path("/proc").glob("[0-9]*")
        if any(f"{path}/".startswith(inside) for path in _open_paths(process))
    ]
    return ", ".join(f"process {process.name} ({_name(process)})" for process in using) or "somebody out of sight"


def _open_paths(process: Path) -> Iterator[str]:
    with suppress(OSError):  # it ended meanwhile, or is a kernel thread
        for link in (process / "cwd", *(process / "fd").iterdir()):
            yield os.readlink(link)  # noqa: PTH115  the text of a link, which may lead nowhere
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            yield line[line.find("/") :]


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "ended meanwhile"
