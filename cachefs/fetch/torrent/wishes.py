"""What is wanted of a torrent, and what libtorrent was told of it.

How it works: wanted pieces have priority 7, readahead 4, everything else 0, and libtorrent picks in order within
that; a changed wish is sent as the difference. On a slow link what was asked for already would keep a reader who
jumps elsewhere waiting for seconds, since a peer answers in the order of the requests. libtorrent takes its other
requests back for a piece that has a deadline, and makes them again after it, so such a jump gets one. Only readahead
makes way: between readers who all wait, nobody goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

from cachefs.content import Bitmap

if TYPE_CHECKING:
    import libtorrent as lt

URGENT, AHEAD, UNWANTED = 7, 4, 0
_LONG = 0.25
"""Seconds of readahead under way, from which on a jump is told to libtorrent as one."""


class Wishes:
    """The wishes of one torrent; `have` is what is here, whose blocks are `block_length` bytes long."""

    def __init__(self, have: Bitmap, block_length: int) -> None:
        self.wanted: dict[int, int] = {}
        """The priority of every piece that is wanted and not here."""
        self._have = have
        self._block_length = block_length
        self._sent: dict[int, int] = {}
        self._asked: set[int] = set()

    def want(self, urgent: Set[int], ahead: Set[int]) -> None:
        """Want these, and nothing else."""
        wanted = dict.fromkeys(ahead, AHEAD) | dict.fromkeys(urgent, URGENT)
        self.wanted = {index: priority for index, priority in wanted.items() if index not in self._have}

    def drop(self, index: int) -> None:
        """Want this piece no more."""
        self.wanted.pop(index, None)

    def drop_all(self) -> None:
        """Want nothing any more."""
        self.wanted = {}

    def landed(self, index: int) -> None:
        """The piece is here; libtorrent knows that itself."""
        self.wanted.pop(index, None)
        self._sent.pop(index, None)

    def was_asked(self, index: int) -> bool:
        """Whether peers may have been asked for the piece since the torrent was added."""
        return index in self._asked

    def send(self, handle: lt.torrent_handle, rate: float) -> None:
        """Tell libtorrent what has changed; `rate` is what it receives, in bytes per second."""
        changes = {index: priority for index, priority in self.wanted.items() if self._sent.get(index) != priority}
        changes |= {index: UNWANTED for index in self._sent if index not in self.wanted and index not in self._have}
        jumps = self._jumps(changes, rate)
        if changes:
            handle.prioritize_pieces(list(changes.items()))
        for index in jumps:
            handle.set_piece_deadline(index, 0)
        self._sent = dict(self.wanted)
        self._asked.update(self._sent)

    def _jumps(self, changes: Mapping[int, int], rate: float) -> list[int]:
        """Pieces newly waited for, far from all else, where what is being read ahead would take long to come."""
        asked = sum(priority == AHEAD for priority in self._sent.values()) * self._block_length
        if not 0 < rate < asked / _LONG:
            return []
        urgent = [index for index, priority in changes.items() if priority == URGENT and index not in self._sent]
        return [index for index in urgent if not {index - 1, index + 1} & self.wanted.keys()]

    def send_again(self, handle: lt.torrent_handle, pieces: Iterable[int]) -> None:
        """Take wishes back and make them anew: that is when libtorrent looks for a peer to ask."""
        wishes = [(index, self._sent[index]) for index in pieces if index in self._sent]
        if wishes:
            handle.prioritize_pieces([(index, UNWANTED) for index, _ in wishes])
            handle.prioritize_pieces(wishes)

    def forget_sent(self) -> list[int]:
        """The torrent leaves the session: what was told is void. The pieces of which something may have come."""
        sent, self._sent = list(self._sent), {}
        self._asked.clear()
        return sent
