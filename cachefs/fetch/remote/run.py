"""One request of a source for neighbouring blocks of a file, and how it is given up."""

from __future__ import annotations

from collections.abc import Callable

import trio

from cachefs.content import Manifest
from cachefs.fetch.http.reception import Stretch
from cachefs.fetch.remote.remotes import RemoteSource


class Run(Stretch):
    """One request of a source; `wants` says, in any thread, whether a block would be of use now."""

    def __init__(
        self, source: RemoteSource, manifest: Manifest, blocks: range, wants: Callable[[Run, int], bool]
    ) -> None:
        super().__init__(manifest, blocks, lambda index: wants(self, index))
        self.source = source
        self.whole = not source.health.ranges
        """Whether all of the file is asked for, because the source can't begin elsewhere than at its start."""
        self.dropped = False
        self.jump = False
        """Whether it is for one block alone, which somebody waits for."""
        self.scope = trio.CancelScope()

    @property
    def gives_way(self) -> bool:
        """Whether a reader's jump goes before it."""
        return self.source.jumps > 0 and not self.jump

    def drop(self) -> None:
        self.dropped = True
        self.scope.cancel()
