"""Which blocks were here once, were found wrong or gone, and have not come again.

How it works: a block that goes bad is missing from then on like one that was never fetched, so nobody could tell later
that a file was whole. The state keeps what was lost; of that, what is here again counts no more, and all of it is
forgotten when the object is complete or evicted. So a wrong block goes on being reported, and can be mended, until it
is right, whoever found it: a verification, a scrub, or the look at what changed while nothing was mounted. What is
found while the object is open is taken back first: not even a power cut may leave its bit in the state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from cachefs.content import Bitmap, Manifest
from cachefs.store.recovery import recorded_bits
from cachefs.store.state import State


def take_back(state: State, manifest: Manifest, blocks: Sequence[int]) -> None:
    """Record that these blocks aren't here, so that the object is not sealed, and were lost. StoreFull, StoreFailed."""
    row = state.load_object(manifest.content)
    # Of the recorded bits, not of those in memory: some of these may not be synced yet.
    bits = recorded_bits(manifest, row)
    if row is not None and bits is not None:
        for index in blocks:
            bits.discard(index)
        row = replace(row, bitmap=bytes(bits), held=manifest.held(bits), seal=None, completed=None)
        state.save_object_synced(manifest.content, row)
    note(state, manifest, blocks)


def note(state: State, manifest: Manifest, blocks: Iterable[int]) -> None:
    """Keep that these blocks were lost. StoreFull, StoreFailed."""
    bits = _kept(state, manifest)
    for index in blocks:
        bits.add(index)
    state.save_losses(manifest.content, bytes(bits))


def missing(state: State, manifest: Manifest, here: Bitmap) -> list[int]:
    """The blocks that were lost and aren't `here`. StoreFailed."""
    return [index for index in _kept(state, manifest) if index not in here]


def _kept(state: State, manifest: Manifest) -> Bitmap:
    raw = state.losses(manifest.content)
    try:
        return Bitmap(manifest.blocks) if raw is None else Bitmap.from_bytes(manifest.blocks, raw)
    except ValueError:  # of a record that was cut into pieces anew
        return Bitmap(manifest.blocks)
