"""The bridge between a playhead and an mpv: the player follows the playhead, and what its user does changes it.

How it works: a few times a second, and at once when the playhead changes, the bridge looks where mpv is and gives the
orders that `steering.py` decides. Where mpv is means what is heard now (`audio-pts`, which takes the audio
driver's delay into account); a look that took long is worth nothing.

What the user does in mpv's window is told from what the bridge did: a pause that wasn't ordered, a seek that wasn't.
It becomes a change made for the revision that this listener had, so when two act at once one wins and the other's
player follows. Replies and events of mpv may overtake each other, so a pause or a seek that no change of
the playhead explains is seen to at the second look only: by then the user's event has come.

A player that waits for bytes isn't steered: it catches up by one seek when they are there. Nobody waits for it.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import trio

from cachefs.errors import PlayerFailed, PlayheadConflict, PlayheadUnreachable
from cachefs.playhead.board import Heads
from cachefs.playhead.clock import steady
from cachefs.playhead.model import Change, Playhead
from cachefs.playhead.mpv import Event, Mpv
from cachefs.playhead.steering import SEEK_AGAIN_BEYOND, SEEK_BEYOND, Look, Orders, seek_time, steer

EVERY = 0.2
"""Seconds between looks."""

_SECOND_LOOK = 0.05
_QUICK = 0.02
"""Seconds that a look may take; the position was read somewhere in between."""

_RESTART_WITHIN = 10.0
_RECENTLY = 3.0
"""Seconds after a seek in which a moderate drift is left to speed, so that seeks don't chase each other."""

_FIRST_SEEK_TAKES = 0.03
_SETTINGS: tuple[tuple[str, str], ...] = (("keep-open", "always"), ("keep-open-pause", "no"), ("hr-seek", "yes"))
"""mpv stays at the end without calling it a pause, and seeks to where it is told, not to a place nearby."""

log = logging.getLogger(__name__)


class Bridge:
    """Keeps one mpv at one record's playhead, and the playhead at what its user wants."""

    def __init__(self, heads: Heads, record: str, mpv: Mpv) -> None:
        self._heads = heads
        self._record = record
        self._mpv = mpv
        self._wake = trio.Event()
        self._ordered_pause = True
        self._told_pause = trio.Event()
        self._own_seek = False
        self._restarted = trio.Event()
        self._restarted.set()
        self._seek_takes = _FIRST_SEEK_TAKES
        self._sought = 0.0
        self._steered_by = -1
        self._placed_by = -1
        self._doubted = False
        self._telling = False

    async def run(self) -> None:
        """Keep them together until mpv ends. PlayerFailed if mpv refuses what it must do."""
        for name, value in _SETTINGS:
            await self._mpv.set(name, value)
        await self._mpv.command("observe_property", 1, "pause")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._keep)
            async for event in self._mpv.events:
                await self._notice(event)
            nursery.cancel_scope.cancel()

    async def _follow(self) -> None:
        """Look again at once when the playhead changes."""
        async with self._heads.watch(self._record) as watch:
            while True:
                await watch.next()
                self._wake.set()

    async def _keep(self) -> None:
        await self._told_pause.wait()
        while True:
            pause = EVERY
            try:
                with trio.move_on_after(_RESTART_WITHIN):
                    await self._restarted.wait()
                pause = await self._step()
            except (PlayheadUnreachable, PlayerFailed) as error:
                log.debug("not steered: %s", error)
            with trio.move_on_after(pause):
                await self._wake.wait()
            self._wake = trio.Event()

    async def _step(self) -> float:
        """Look, and steer; the seconds after which to look again."""
        head = self._heads.get(self._record)
        seen = await self._look()
        if seen is None or (head.revision == 0 and self._steered_by <= 0):
            return EVERY  # nobody has touched it; a playhead that was lost is followed once, to the beginning
        utc, look = seen
        recently = steady() - self._sought < _RECENTLY
        orders = steer(head, utc, look, self._seek_takes, SEEK_AGAIN_BEYOND if recently else SEEK_BEYOND)
        if not head.playing and head.revision == self._placed_by:
            orders = replace(orders, seek=None)
        if head.revision == self._steered_by and (orders.seek is not None or orders.pause is not None):
            if not self._doubted:
                self._doubted = True
                return _SECOND_LOOK
            if self._telling or (head.playing and await self._waits_for_bytes(look)):
                return EVERY
        self._doubted = False
        await self._obey(orders, head)
        await self._end(head, utc, look)
        return EVERY

    async def _look(self) -> tuple[float, Look] | None:
        """Where mpv is, and when that was; None if it plays nothing or took long to say."""
        paused, speed = bool(await self._mpv.get("pause")), await self._mpv.seconds("speed")
        duration = await self._mpv.seconds("duration")
        before = steady()
        position = await self._mpv.seconds("time-pos" if paused else "audio-pts")
        if position is None and not paused:
            position = await self._mpv.seconds("time-pos")  # no audio: the picture's time
        now, after = self._heads.utc(), steady()
        if position is None or after - before > _QUICK:
            return None
        return now - (after - before) / 2, Look(position, paused, speed or 1.0, duration)

    async def _waits_for_bytes(self, look: Look) -> bool:
        idle, ended = await self._mpv.get("core-idle"), await self._mpv.get("eof-reached")
        return bool(idle) and not look.paused and not ended

    async def _obey(self, orders: Orders, head: Playhead) -> None:
        self._steered_by = head.revision
        if orders.pause:
            await self._pause(True)
        if orders.speed is not None:
            await self._mpv.set("speed", orders.speed)
        if orders.seek is not None:
            await self._seek(orders.seek)
        if orders.pause is False:
            await self._pause(False)
        # A paused mpv tells its place only roughly after a seek, though it is exactly there: once must do.
        self._placed_by = head.revision if orders.seek is not None and not head.playing else self._placed_by

    async def _pause(self, paused: bool) -> None:
        self._ordered_pause = paused
        await self._mpv.set("pause", paused)

    async def _seek(self, position: float) -> None:
        """Seek, wait until mpv plays again, and learn how long it took."""
        self._own_seek, self._restarted = True, trio.Event()
        await self._mpv.command("seek", round(position, 4), "absolute+exact")
        with trio.move_on_after(_RESTART_WITHIN):
            await self._restarted.wait()
        self._restarted.set()
        self._own_seek, self._sought = False, steady()
        head, seen = self._heads.get(self._record), await self._look()
        if seen is not None and head.playing and not seen[1].paused:
            late = head.position_at(seen[0]) / 1000 - seen[1].position
            if abs(late) < SEEK_AGAIN_BEYOND:
                self._seek_takes = seek_time(self._seek_takes, late)

    async def _end(self, head: Playhead, utc: float, look: Look) -> None:
        """Let the playhead stop where the record does, which only a player knows."""
        if head.playing and look.duration is not None and head.position_at(utc) / 1000 >= look.duration:
            await self._change(Change("pause", round(look.duration * 1000), if_revision=head.revision))

    async def _notice(self, event: Event) -> None:
        """Tell what mpv's user did from what was ordered."""
        kind = event.get("event")
        try:
            if kind == "property-change" and event.get("name") == "pause":
                await self._paused(bool(event.get("data")))
            elif kind == "seek" and not self._own_seek:
                self._restarted = trio.Event()
            elif kind == "playback-restart":
                if not self._own_seek and not self._restarted.is_set():
                    await self._tell("seek")
                self._restarted.set()
        except PlayerFailed as error:
            log.debug("not told: %s", error)  # mpv has just ended, or plays nothing

    async def _paused(self, paused: bool) -> None:
        if not self._told_pause.is_set():  # the first report is how mpv was when we came
            self._ordered_pause = paused
            self._told_pause.set()
        elif paused != self._ordered_pause and await self._mpv.get("pause") == paused:
            # Still so: a report of what was ordered before the last order is late, not the user's doing.
            self._ordered_pause = paused
            await self._tell("pause" if paused else "play")

    async def _tell(self, action: str) -> None:
        position = await self._mpv.seconds("time-pos")
        if position is not None:
            revision = self._heads.get(self._record).revision
            await self._change(Change(action, max(0, round(position * 1000)), if_revision=revision))

    async def _change(self, change: Change) -> None:
        self._telling = True
        try:
            await self._heads.change(self._record, change)
        except PlayheadConflict as conflict:
            log.info("%s; this player follows", conflict)
        except PlayheadUnreachable as error:
            log.warning("not told to others: %s", error)
        finally:
            self._telling = False
        self._wake.set()
