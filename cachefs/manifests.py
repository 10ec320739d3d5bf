"""What is known of each name: its length at once, its manifest from the store, both found on demand.

How it works: lengths live in memory, because every `stat` asks for one; they come from the database at the
start, and from metadata as it arrives. Manifests stay in the store and are read when a file is opened. A name
whose length the database lost is looked for in the store before any source is asked. Lengths that arrive are
written to the database together, about once a second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

import trio

from cachefs import metainfo
from cachefs.content import ContentId
from cachefs.diskerrors import is_shortage
from cachefs.errors import CachefsError, MetadataUnavailable, MetainfoError, StoreFailed
from cachefs.metainfo import Metainfo
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State

log = logging.getLogger(__name__)

_SAVE_EVERY = 1.0


class Finder(Protocol):
    """Who finds metadata that is not here: the metadata service."""

    def want(self, names: Mapping[str, ContentId]) -> None: ...

    async def lookup(self, name: str) -> None: ...

    def failure(self, name: str) -> str: ...


class Manifests:
    """Lengths and manifests of one catalogue's names."""

    def __init__(self, store: ObjectStore, state: State, names: Mapping[str, ContentId]) -> None:
        self._store = store
        self._state = state
        self._names = names
        self._lengths = self._recorded(names)
        self._unsaved: set[ContentId] = set()
        self._news = trio.Event()

    def _recorded(self, names: Mapping[str, ContentId]) -> dict[ContentId, int]:
        """The lengths that the database has of these names, which are those of the lock."""
        infos = self._state.infos().values()
        return {names[info.name]: info.length for info in infos if info.length is not None and info.name in names}

    def switch(self, names: Mapping[str, ContentId]) -> None:
        """Know other names from now on, which the database must have already; `seek` what isn't known of them."""
        lengths, known = self._recorded(names), self._lengths
        self._lengths = lengths | {content: known[content] for content in names.values() if content in known}
        self._names = names

    def length(self, content: ContentId) -> int | None:
        """Its length in bytes; None if that isn't known yet."""
        return self._lengths.get(content)

    def known(self) -> int:
        """Of how many content ids the length is known."""
        return len(self._lengths)

    def total(self) -> int:
        """The bytes of all content whose length is known."""
        return sum(self._lengths.values())

    def found(self, info: Metainfo) -> None:
        """Keep metadata that was checked against its id."""
        self._store.save_manifest(info.content, info.raw)
        self._learn(info)

    def _learn(self, info: Metainfo) -> None:
        self._lengths[info.content] = info.manifest.length
        self._unsaved.add(info.content)
        self._news.set()

    async def require_length(self, name: str, finder: Finder) -> int:
        """The length of `name`, waiting for `finder` if need be; MetadataUnavailable, StoreFailed."""
        content = self._names[name]
        if content not in self._lengths and self._stored(content) is None:
            await self._find(name, finder)
        if content not in self._lengths:
            raise MetadataUnavailable(name, "its metadata came and went")
        return self._lengths[content]

    async def metainfo(self, name: str, finder: Finder) -> Metainfo:
        """The metainfo of `name`, from the store or from `finder`; MetadataUnavailable, StoreFailed."""
        content = self._names[name]
        info = self._stored(content)
        if info is None:
            await self._find(name, finder)
            info = self._stored(content)
        if info is None:
            raise MetadataUnavailable(name, "its metadata came and went")
        return info

    async def _find(self, name: str, finder: Finder) -> None:
        # Wanted here too: right after the start, `run` may not have come to this name yet.
        finder.want({name: self._names[name]})
        await finder.lookup(name)

    def recall(self, content: ContentId) -> Metainfo | None:
        """What the store has, if it is whole and can be read now."""
        try:
            return self._stored(content)
        except StoreFailed as error:
            log.warning("%s: the stored metadata can't be read now: %s", content, error)
            return None

    def _stored(self, content: ContentId) -> Metainfo | None:
        """The same, where a broken one counts as absent and is fetched again; StoreFailed if it may be whole."""
        try:
            raw = self._store.manifest(content)
            if raw is None:
                return None
            info = metainfo.parse(raw)
        except (MetainfoError, StoreFailed) as error:
            if isinstance(error, StoreFailed) and is_shortage(error):
                raise
            log.warning("%s: the stored metadata is broken and will be fetched again: %s", content, error)
            return None
        if info.content != content:
            log.warning("%s: the stored metadata is another's (%s) and will be fetched again", content, info.content)
            return None
        if content not in self._lengths:
            self._learn(info)
        return info

    async def run(self, finder: Finder, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recall what the store knows, have the rest found, and save lengths; runs for ever."""
        task_status.started()
        await self.seek(finder)
        while True:
            await self._news.wait()
            await trio.sleep(_SAVE_EVERY)
            self.save()

    async def seek(self, finder: Finder) -> None:
        """Recall from the store, and have found elsewhere, what isn't known yet."""
        finder.want(await self._unknown())

    async def _unknown(self) -> dict[str, ContentId]:
        """The names of which nothing is known, after a look into the store."""
        unknown = {name: content for name, content in self._names.items() if content not in self._lengths}
        if unknown:
            here = await trio.to_thread.run_sync(lambda: frozenset(self._store.known()))
            for content in here.intersection(unknown.values()):
                self.recall(content)
                await trio.lowlevel.checkpoint()
        # Those of a lock that was replaced meanwhile are nobody's concern any more.
        return {
            name: content
            for name, content in unknown.items()
            if content not in self._lengths and self._names.get(name) == content
        }

    def save(self) -> None:
        """Write the lengths that are new to the database; what can't be written now is tried again."""
        self._news = trio.Event()
        fresh, self._unsaved = self._unsaved, set()
        try:
            self._state.set_lengths(self._named(fresh))
        except CachefsError as error:
            log.error("lengths can't be saved: %s", error)
            self._unsaved |= fresh
            self._news.set()

    def _named(self, contents: Iterable[ContentId]) -> dict[str, int]:
        wanted = set(contents)
        return {name: self._lengths[content] for name, content in self._names.items() if content in wanted}
