"""So many connections and no more, and that those who ask nothing keep out nobody who does.

How it works: a server's connection is either answered, or waited for to ask something. Where all places are taken,
whoever comes gets that of the connection that has been waited for longest. So a stranger who opens all of them and
says nothing, or says it a byte at a time, is sent away by the next who comes, and what is being answered goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Crowd:
    """The connections of one server, `most` at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0
        self._waited_for: dict[trio.CancelScope, None] = {}

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """One more connection while this lasts; False if there is no place for it."""
        if self._open >= self._most and not self._sent_away():
            yield False
            return
        self._open += 1
        try:
            yield True
        finally:
            self._open -= 1

    def _sent_away(self) -> bool:
        longest = next(iter(self._waited_for), None)
        if longest is None:
            return False
        del self._waited_for[longest]
        longest.cancel()
        return True

    @contextmanager
    def waiting(self) -> Iterator[trio.CancelScope]:
        """Wait for a connection to ask something; the scope is cancelled if another one gets its place."""
        with trio.CancelScope() as scope:
            self._waited_for[scope] = None
            try:
                yield scope
            finally:
                self._waited_for.pop(scope, None)
