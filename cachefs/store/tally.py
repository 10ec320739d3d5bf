"""What the store takes, what it may come to take, and what is still free within the limits.

How it works: every object is charged what its file takes plus what was granted to it (`claims.py`); what comes into
the store by another way than a claim is *held* for while it comes, and measured when it is here. Objects that nobody
fetches don't change, so a look at every file once, at the start, is enough, and is repeated now and then all the
same. Manifests and directories are charged together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.store import space
from cachefs.store.claims import Claim, Claimant
from cachefs.store.eviction import Limits
from cachefs.store.objects import ObjectStore

_UNBOUNDED = 2**62
_FEW = 64  # claims that aren't worth a look at which of them are settled


class Tally:
    """The sums; all in bytes, by catalogue or, with "", of all. `disk_free` tells what the file system has left."""

    def __init__(
        self,
        store: ObjectStore,
        limits: Limits,
        catalogue_of: Callable[[ContentId], str],
        disk_free: Callable[[], int] | None,
    ) -> None:
        self.limits = limits
        self.claims: dict[ContentId, Claim] = {}
        self.looked_at = float("-inf")
        self.catalogue_of = catalogue_of
        self.disk_free = disk_free or (lambda: space.free_on_disk(store.root.parent))
        self._store = store
        self._most_claims = _FEW
        self._sizes: dict[ContentId, tuple[int, str]] = {}
        self._sums: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._other = 0
        self._metadata_before = 0

    @property
    def known(self) -> bool:
        """Whether the store was looked at: before, nothing can be granted."""
        return self.looked_at > float("-inf")

    def claim(self, claimant: Claimant) -> Claim:
        """The claim of an open object, made if this is its first."""
        content = claimant.stored.manifest.content
        claim = self.claims.get(content)
        if claim is None or claim.stored is not claimant.stored:
            self._forget_settled()
            claim = self.claims[content] = Claim(claimant)
        return claim

    def _forget_settled(self) -> None:
        """Of thousands of open objects few are being fetched at a time: only those have claims to add up."""
        if len(self.claims) >= self._most_claims:
            with suppress(CachefsError):  # a disk that can't tell is for the next measurement to complain of
                self._measure_claims()
            self._most_claims = 2 * len(self.claims) + _FEW

    def items(self) -> Iterable[tuple[ContentId, int, str]]:
        """Every object with what it is charged and its catalogue."""
        return ((content, size, catalogue) for content, (size, catalogue) in self._sizes.items())

    def charge(self, content: ContentId, size: int) -> None:
        """Charge an object this much, in place of what it was charged before."""
        before, catalogue = self._sizes.get(content, (0, self.catalogue_of(content)))
        self._sizes[content] = (size, catalogue)
        for name in {"", catalogue}:
            self._sums[name] += size - before

    def grant(self, claim: Claim, index: int) -> None:
        """Let a block be fetched."""
        claim.grant(index)
        before = self._sizes.get(claim.content, (0, ""))[0]
        self.charge(claim.content, before + claim.cost(index))

    def hold(self, size: int, catalogue: str) -> None:
        """Have so many bytes more, or fewer if negative, be as good as taken."""
        for name in {"", catalogue}:
            self._held[name] += size

    def taken(self) -> int:
        """What the store takes and has promised."""
        return self._sums[""] + self._held[""] + self.metadata()

    def metadata(self) -> int:
        """What manifests and directories take, about."""
        return self._other + self._store.metadata_bytes - self._metadata_before

    def free(self, catalogue: str) -> int:
        """What may still be granted to a catalogue."""
        return min(self.free_in(""), self.free_in(catalogue))

    def free_in(self, catalogue: str) -> int:
        """What its own limits leave; negative when they are exceeded."""
        size = self.limits.of(catalogue).size
        free = _UNBOUNDED if size is None else size - self._sums[catalogue] - self._held[catalogue]
        if catalogue:
            return free
        free -= self.metadata() if size is not None else 0
        if self.limits.free_space:
            promised = self._held[""] + sum(claim.promised() for claim in self.claims.values())
            free = min(free, self.disk_free() - promised - self.limits.free_space)
        return free

    def missing(self, catalogue: str) -> int:
        """What was asked for by claims and not granted."""
        claims = [c for c in self.claims.values() if not catalogue or self.catalogue_of(c.content) == catalogue]
        return sum(claim.missing() for claim in claims)

    def measure(self) -> None:
        """Make exact what is charged to objects that are being fetched, or came by another way. StoreFailed."""
        for content in list(self._store.brought):
            self._store.brought.discard(content)
            self.charge(content, self._store.taken(content))
        self._measure_claims()

    def _measure_claims(self) -> None:
        for content, claim in list(self.claims.items()):
            self.charge(content, claim.measure(trio.current_time()))
            if claim.settled:
                del self.claims[content]

    async def look(self) -> None:
        """Find out what the store takes, file by file. StoreFailed."""
        before = self._store.metadata_bytes
        scan = await trio.to_thread.run_sync(space.scan, self._store.root)
        self._other, self._metadata_before = scan.other, before
        for content in self._sizes.keys() - scan.data.keys():
            self.charge(content, 0)
        for content, size in scan.data.items():
            self.charge(content, size)
        self.looked_at = trio.current_time()
        self.measure()
