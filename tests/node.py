"""What a node does in its snapshots directory, run as a program of its own by the user that a node runs as.

How it works: the working directory is the snapshots directory. It maps what it is told to, as a node does, prints
SHA-256 sums of what it saw, and builds, renames and deletes files beside it; any error ends it with a traceback.
It needs no module that isn't Python's own, and runs with the system's Python, which every user may run.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from pathlib import Path


def build(path: Path, content: bytes) -> None:
    """Write a file as indices are written: under a temporary name, synced, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def mapped(path: Path) -> mmap.mmap:
    """The whole file, as a node maps it."""
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    view.madvise(mmap.MADV_RANDOM)
    return view


def main(segment: str, history: str, merged: str) -> None:
    for name in (segment, history):
        with mapped(Path(name)) as view:
            view[len(view) // 2]  # somewhere first, as a look-up does
            print(name, hashlib.sha256(view).hexdigest())
    for name in (segment, history):
        index = Path(name + "i")
        build(index, name.encode() * 1000)
        with mapped(index) as view:
            assert view[:] == name.encode() * 1000
            assert index.stat().st_size == len(view)
    scratch = Path("scratch")
    (scratch / "deeper").mkdir(parents=True)
    build(scratch / "deeper" / "part", b"part")
    with (scratch / "deeper" / "part").open("r+b") as file:
        file.truncate(2)
        file.seek(0, os.SEEK_END)
        file.write(b"mmap")
        file.flush()
        with mmap.mmap(file.fileno(), 0) as view:
            view[0:1] = b"P"
            view.flush()
    assert (scratch / "deeper" / "part").read_bytes() == b"Pammap"
    (scratch / "deeper").rename("merged-parts")
    scratch.rmdir()
    Path(merged).unlink()
    assert not Path(merged).exists()
    build(Path(merged.replace("v1-", "v2-")), b"a merged segment")
    print("done", *sorted(path.name for path in Path().iterdir()))


if __name__ == "__main__":
    main(*sys.argv[1:])
