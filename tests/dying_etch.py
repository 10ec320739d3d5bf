"""A child process that etches a URL and kills itself at a chosen step: `dying_etch STEP DATA_DIR URL`.

The steps, in their order: the download is whole and hashed, its piece list is about to be written, it is about to be
renamed into the store, it is there and about to be recorded, the record is about to be written.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import trio

from cachefs.catalog import records
from cachefs.records import MusicCache, Order, etch
from cachefs.records.pieces import PieceLists
from cachefs.store.state import State
from cachefs.store.vault import Vault
from tests.records_kit import OPEN

STEPS = {
    "whole": (MusicCache, "keep"),
    "pieces": (PieceLists, "save"),
    "rename": (Vault, "admit"),
    "row": (State, "save_object"),
    "record": (records, "update"),
}


def _die(*args: object, **more: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


async def _main(step: str, data_dir: Path, url: str) -> None:
    async with MusicCache.open(data_dir, OPEN) as cache:
        setattr(*STEPS[step], _die)
        await etch(cache, Order(url))


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
