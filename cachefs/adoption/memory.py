"""Which hash a local file had when it was last looked at, so that it is hashed once and not at every start.

How it works: a JSON file in the data directory, path to size, mtime, inode number, piece length and info-hash. A file
that looks as it did then is believed to hold the same bytes; a memory that is lost or broken costs hashing. It is
written by rename, a few seconds after something new came, so that an adoption of terabytes that is
interrupted goes on where it was.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from cachefs.catalog.files import replace_text
from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.store.state import Seal

log = logging.getLogger(__name__)

_SAVE_EVERY = 5.0


@dataclass(frozen=True, slots=True)
class Known:
    """What a file was: its content id, and the piece length in bytes that this id is made with."""

    seal: Seal
    piece_length: int
    content: ContentId


class Memory:
    """The memory in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _load(path)
        self._fresh = False
        self._saved_at = time.monotonic()

    def recall(self, file: Path, seal: Seal) -> Known | None:
        """What `file` was when it looked as it does now; None if that isn't known."""
        known = self._known.get(str(file))
        return known if known is not None and known.seal == seal else None

    def note(self, file: Path, known: Known) -> None:
        """Remember, and write it down now and then."""
        self._known[str(file)] = known
        self._fresh = True
        if time.monotonic() - self._saved_at >= _SAVE_EVERY:
            self.save()

    def refresh(self) -> None:
        """Take note of what another process has written down since."""
        self._known = _load(self._path) | self._known

    def save(self) -> None:
        """Write down what is new; a failure is logged, and costs hashing later."""
        self._saved_at = time.monotonic()
        if not self._fresh:
            return
        self.refresh()
        table = {
            file: [known.seal.size, known.seal.mtime_ns, known.seal.inode, known.piece_length, known.content.hex]
            for file, known in sorted(self._known.items())
        }
        try:
            replace_text(self._path, json.dumps(table, separators=(",", ":")))
            self._fresh = False
        except CachefsError as error:
            log.warning("hashes will be computed again: %s", error)


def _load(path: Path) -> dict[str, Known]:
    try:
        table = json.loads(path.read_bytes())
        return {
            file: Known(Seal(size, mtime_ns, inode), piece_length, ContentId.btih(digest))
            for file, (size, mtime_ns, inode, piece_length, digest) in table.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s can't be used, so local files are hashed again: %s", path, error)
        return {}
