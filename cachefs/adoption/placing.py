"""Putting a file of the user's in a name's place: the first half of an override.

How it works: the file is hashed under the name it is to have, for the name is part of the hash, and linked into
`<data-dir>/snapshots/`, by reflink, hard link or, from another file system, symbolic link. It stays where it is, as it
is. The hash is remembered and the metadata kept, so that the daemon, which takes the file over as soon as the lock
says so, needn't hash it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.adoption.hashing import Local, Report, identify, seal_of
from cachefs.adoption.memory import Known, Memory
from cachefs.adoption.takeover import MEMORY_NAME, require_on_disk
from cachefs.catalog.files import is_strangers
from cachefs.catalog.names import BadName, check_name
from cachefs.content import ContentId
from cachefs.errors import ConfigError, MetainfoError
from cachefs.layout import SNAPSHOTS, STORE
from cachefs.metainfo import Metainfo
from cachefs.store import disk, places

_UNKNOWN = ContentId("btih", bytes(20))
"""What a name that the lock doesn't have yet is compared with: nothing has this hash."""


async def place(
    data_dir: Path, name: str, file: Path, entries: Mapping[str, ContentId], report: Report | None = None
) -> ContentId:
    """Put `file` in the place of `name`; its content id under that name, which the lock has to say from now on.

    ConfigError if it can't be read, or if another file is in that place; StoreFull, StoreFailed.
    """
    try:
        check_name(name)
    except BadName as error:
        raise ConfigError(name, error.why) from None
    require_on_disk(file)
    where = data_dir / SNAPSHOTS / name
    _require_own_folders(data_dir, name)
    _require_free(where, file)
    found = await _identified(data_dir, name, file, entries.get(name, _UNKNOWN), report)
    assert found.info is not None
    disk.save_manifest(data_dir / STORE, found.info.content, found.info.raw)
    if not where.exists():
        await trio.to_thread.run_sync(places.take, file, where, found.seal)
    memory = Memory(data_dir / MEMORY_NAME)
    placed = where.resolve()
    memory.note(placed, Known(seal_of(placed), found.info.manifest.block_length, found.info.content))
    memory.save()
    return found.info.content


def _require_own_folders(data_dir: Path, name: str) -> None:
    """ConfigError if the place is behind a link of somebody's who may merely write there: it could be anywhere."""
    folder = data_dir / SNAPSHOTS
    for part in name.split("/")[:-1]:
        folder /= part
        if folder.is_symlink() and is_strangers(folder, data_dir):
            raise ConfigError(str(folder), "is a link of another user's, which isn't followed")


def _require_free(where: Path, file: Path) -> None:
    if where.exists() and not where.samefile(file):
        raise ConfigError(str(where), "another file is in the place; it is yours, so move it away or delete it first")


async def _identified(data_dir: Path, name: str, file: Path, expected: ContentId, report: Report | None) -> Local:
    def recall(content: ContentId) -> Metainfo | None:
        raw = disk.read_file(disk.directory_of(data_dir / STORE, content) / "manifest")
        try:
            return metainfo.parse(raw) if raw else None
        except MetainfoError:
            return None

    results: list[Local] = []
    local = Local(name, file, seal_of(file), expected)
    await identify([local], recall, Memory(data_dir / MEMORY_NAME), done=results.append, report=report)
    if results[0].info is None:
        raise ConfigError(str(file), results[0].failure)
    return results[0]
