"""Word of a download that ended, left for other processes, on a disk that has no room for it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import trio

from cachefs.content import ContentId
from cachefs.records.incoming import Incoming
from tests.counterparts import small_disk


def test_word_that_finds_no_room_on_the_disk_is_not_left_and_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        incoming = Incoming(tmp_path / "disk" / "incoming")
        async with incoming.flight("url https://e.org/song") as flight:
            with suppress(OSError), (tmp_path / "disk" / "rest").open("wb", buffering=0) as rest:
                while rest.write(bytes(4096)):
                    pass
            flight.note(failed="HTTP 404")
            flight.note(landed=ContentId("sha256", bytes(32)))
            flight.read()
            assert (flight.landed, flight.failed) == (None, "")

    with small_disk(tmp_path / "disk", 2**20):
        trio.run(main)
