"""What changes between two sets of lock entries: names that come, names that go, names whose content is another.

How it works: plain comparison of two mappings from name to content id. It is what `cachefs reload` and the `lock`
commands show before or after they change anything, as text or as JSON, so it knows both forms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cachefs.content import ContentId


@dataclass(frozen=True, slots=True)
class Difference:
    """`added` and `removed` names with their content, `changed` ones with old and new; `same` counts the others."""

    added: Mapping[str, ContentId]
    removed: Mapping[str, ContentId]
    changed: Mapping[str, tuple[ContentId, ContentId]]
    same: int

    @classmethod
    def of(cls, old: Mapping[str, ContentId], new: Mapping[str, ContentId]) -> Difference:
        """What leads from `old` to `new`; names are sorted."""
        common = sorted(old.keys() & new.keys())
        changed = {name: (old[name], new[name]) for name in common if old[name] != new[name]}
        added = {name: new[name] for name in sorted(new.keys() - old.keys())}
        removed = {name: old[name] for name in sorted(old.keys() - new.keys())}
        return cls(added, removed, changed, len(common) - len(changed))

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    @property
    def gone(self) -> set[str]:
        """The names that stand no longer for what they stood for."""
        return {*self.removed, *self.changed}

    def summary(self) -> str:
        """In one line, how many names there are of each kind."""
        counts = f"{len(self.added):,} added, {len(self.removed):,} removed, {len(self.changed):,} changed"
        return f"{counts}, {self.same:,} unchanged" if self else f"no difference in {self.same:,} names"

    def lines(self) -> Iterator[str]:
        """A line a name, sorted by name: + with its hash, - with the one it had, ~ with both."""
        told = [(name, f"+ {name}  {content.hex}") for name, content in self.added.items()]
        told += [(name, f"- {name}  {content.hex}") for name, content in self.removed.items()]
        told += [(name, f"~ {name}  {old.hex} -> {new.hex}") for name, (old, new) in self.changed.items()]
        return (line for _, line in sorted(told))

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, hashes in hex."""
        return {
            "added": {name: content.hex for name, content in self.added.items()},
            "removed": {name: content.hex for name, content in self.removed.items()},
            "changed": {name: [old.hex, new.hex] for name, (old, new) in self.changed.items()},
            "unchanged": self.same,
        }
