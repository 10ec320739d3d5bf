"""Which files the kernel reads by itself: those of which everything was here, and checked, when they were opened.

How it works: the kernel demands that at one time an inode is open either only through us or only passed through,
and then to one and the same file. So the first of several opens decides for those that follow, until the last
one is closed. A file that was incomplete when somebody opened it is passed through when all of them have closed it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from os import stat_result

from cachefs.drivers.protocol import Backing
from cachefs.errors import StoreFailed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opens:
    """How often an inode is open, and on what file, None if it is read through us."""

    backing: Backing | None
    file: stat_result | None
    count: int = 0


class Lending:
    """The inodes that are open. `device` is the mount's descriptor of /dev/fuse."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._inodes: dict[int, _Opens] = {}
        self._refused: set[str] = set()

    @property
    def files(self) -> int:
        """How many files are passed through now."""
        # Of a copy: a worker thread asks, too.
        return sum(opens.backing is not None for opens in tuple(self._inodes.values()))

    def lent(self, inode: int) -> bool:
        """Whether another open of this inode has to be passed through, too."""
        opens = self._inodes.get(inode)
        return opens is not None and opens.backing is not None

    def opened(self, inode: int, descriptor: int | None) -> int:
        """Count one more open; the number of the file to be read, or 0 if it is to be read through us.

        `descriptor` is of the whole file, None if it isn't all here. StoreFailed if the inode is lent already, and this
        is not the file.
        """
        opens = self._inodes.get(inode)
        if opens is None:
            opens = self._inodes[inode] = self._first(descriptor)
        elif opens.file is not None and (descriptor is None or not os.path.samestat(opens.file, os.fstat(descriptor))):
            raise StoreFailed(
                "its data was replaced while it is open; it can be opened when nobody has it open any more"
            )
        opens.count += 1
        return opens.backing.number if opens.backing else 0

    def _first(self, descriptor: int | None) -> _Opens:
        if descriptor is not None:
            try:
                return _Opens(Backing.register(self._device, descriptor), os.fstat(descriptor))
            except OSError as error:
                self._note(error)
        return _Opens(None, None)

    def _note(self, error: OSError) -> None:
        """Say once that files are read through us all the same."""
        why = error.strerror or str(error)
        if why not in self._refused:
            self._refused.add(why)
            log.warning("the kernel doesn't pass files of the store through, they are read through cachefs: %s", why)

    def closed(self, inode: int) -> None:
        """Count one open less."""
        opens = self._inodes[inode]
        opens.count -= 1
        if not opens.count:
            del self._inodes[inode]
            if opens.backing is not None:
                opens.backing.withdraw()
