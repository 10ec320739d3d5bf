"""The playhead of a record, and what may be done to it: pure values, no clock, no I/O.

How it works: a playhead says that the record was at `position_ms` when the clock showed `anchor_utc`, and how fast it
goes from there. Where it is at any other moment follows from that, so two listeners whose clocks agree are at
the same place without another word, and one who comes late knows where to begin. It is never inferred from what a
player reads, since players read far ahead.

Every change gives a new value with a higher revision. A change may name the revision that it was made for; if that
isn't the present one it is refused, so that of two listeners who act on the same fact one wins and the other learns
what it did not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cachefs.catalog.names import BadName, check_name
from cachefs.errors import PlayheadConflict, PlayheadInvalid

MAX_POSITION_MS = 1000 * 3600 * 1000
"""The furthest position, in milliseconds: a thousand hours."""

MIN_RATE, MAX_RATE = 0.1, 10.0

_STATE_AFTER = {"play": "playing", "pause": "paused", "seek": None, "rate": None}
"""Action -> the state it leads to; None keeps the state."""

_NEEDS = {"seek": "position_ms", "rate": "rate"}
"""Action -> the field without which it says nothing."""


@dataclass(frozen=True, slots=True)
class Playhead:
    """Where a record is: at `position_ms` milliseconds when the time was `anchor_utc`, going at `rate` if it plays.

    record: the name, as in the lock; state: `playing` or `paused`; position_ms: milliseconds from the beginning;
    anchor_utc: seconds since 1970, by the clock of the daemon that decides; rate: 1.0 is the recorded speed; revision:
    0 for a record nobody has touched, higher with every change.
    """

    record: str
    state: str = "paused"
    position_ms: int = 0
    anchor_utc: float = 0.0
    rate: float = 1.0
    revision: int = 0

    @property
    def playing(self) -> bool:
        return self.state == "playing"

    def position_at(self, utc: float) -> float:
        """The position at `utc` (seconds since 1970), in milliseconds. The record's end isn't known here."""
        if not self.playing:
            return float(self.position_ms)
        return self.position_ms + self.rate * max(0.0, utc - self.anchor_utc) * 1000.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Playhead:
        """What `as_json` gave; PlayheadInvalid says what is wrong with it."""
        table = _table(data, [field.name for field in fields(cls)])
        state = table.get("state")
        if state not in ("playing", "paused"):
            raise PlayheadInvalid(f'state: expected "playing" or "paused", got {state!r}')
        return cls(
            record=record_name(table.get("record")),
            state=state,
            position_ms=_whole(table, "position_ms", MAX_POSITION_MS),
            anchor_utc=_number(table, "anchor_utc", 0.0, 2.0**40),
            rate=_number(table, "rate", MIN_RATE, MAX_RATE),
            revision=_whole(table, "revision", 2**53),
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What somebody wants of a playhead. `position_ms` and `rate` are kept where None.

    action: `play`, `pause`, `seek` or `rate`; if_revision: do it only if this is the present revision.
    """

    action: str
    position_ms: int | None = None
    rate: float | None = None
    if_revision: int | None = None

    def __post_init__(self) -> None:
        if self.action not in _STATE_AFTER:
            raise PlayheadInvalid(f"action: expected one of {', '.join(_STATE_AFTER)}, got {self.action!r}")
        needed = _NEEDS.get(self.action)
        if needed is not None and getattr(self, needed) is None:
            raise PlayheadInvalid(f"{self.action}: needs {needed}")

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: object) -> Change:
        """What `as_json` gave; PlayheadInvalid says what is wrong with it."""
        table = _table(data, [field.name for field in fields(cls)])
        return cls(
            action=str(table.get("action", "")),
            position_ms=_whole(table, "position_ms", MAX_POSITION_MS) if "position_ms" in table else None,
            rate=_number(table, "rate", MIN_RATE, MAX_RATE) if "rate" in table else None,
            if_revision=_whole(table, "if_revision", 2**53) if "if_revision" in table else None,
        )


def changed(head: Playhead, change: Change, utc: float, revision: int) -> Playhead:
    """What `head` becomes by `change` at `utc`, with the new `revision`; `head` itself if nothing changes.

    PlayheadConflict, which carries the present playhead, if the change was made for another revision.
    """
    if change.if_revision is not None and change.if_revision != head.revision:
        raise PlayheadConflict(head.record, change.if_revision, head.revision, head.as_json())
    state = _STATE_AFTER[change.action] or head.state
    rate = head.rate if change.rate is None else change.rate
    if (state, rate, change.position_ms) == (head.state, head.rate, None):
        return head
    position = head.position_at(utc) if change.position_ms is None else change.position_ms
    return replace(
        head,
        state=state,
        rate=rate,
        position_ms=min(round(position), MAX_POSITION_MS),
        anchor_utc=round(utc, 6),
        revision=revision,
    )


def record_name(name: object) -> str:
    """`name` if a record can have it; PlayheadInvalid otherwise."""
    if not isinstance(name, str):
        raise PlayheadInvalid(f"record: expected a name, got {name!r}")
    try:
        check_name(name)
    except BadName as error:
        raise PlayheadInvalid(f"record {error}") from None
    return name


def _table(data: object, known: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise PlayheadInvalid(f"expected a JSON object, got {data!r:.80}")
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise PlayheadInvalid(f"unknown: {', '.join(unknown)!r:.80}; known are {', '.join(known)}")
    return data


def _whole(table: Mapping[str, Any], key: str, most: int) -> int:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise PlayheadInvalid(f"{key}: expected a whole number from 0 to {most}, got {value!r:.80}")
    return value


def _number(table: Mapping[str, Any], key: str, low: float, high: float) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlayheadInvalid(f"{key}: expected a number, got {value!r:.80}")
    if not low <= value <= high:  # NaN isn't either
        raise PlayheadInvalid(f"{key}: expected {low:g} to {high:g}, got {value!r:.80}")
    return float(value)
