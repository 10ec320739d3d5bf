"""Etching: a URL is downloaded, judged and kept, and only then there is a record of it.

How it works: the order is what makes it safe to be killed anywhere. The download is a temporary file until its
bytes are hashed and durable; then it is renamed into the store; then the piece list is written; the record comes
last, in one step. Before the record there is nothing that anybody could see, and whatever was left is either
content that the next etch finds, or a temporary file that the next start removes. A URL that can't be etched
leaves everything as it was.

Etching a URL again under the same name is free while its content is here; `again` downloads it anew, and what came
replaces the record's checksum. A local file is hashed every time: that it is the record's is for its bytes to say.
Many processes that etch one URL at once share one download, or its failure; `again` and a local file have their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import trio

from cachefs import metainfo
from cachefs.catalog import records
from cachefs.catalog.files import is_file
from cachefs.catalog.names import BadName, check_name, check_names
from cachefs.catalog.records import Pieces, Record, RecordsLock, as_url
from cachefs.config.values import Wrong, without_login
from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.fetch.whole.providers import send_file
from cachefs.fetch.whole.receiver import Expected, Fetched, Progress, Receiver
from cachefs.records import media
from cachefs.records.arriving import Arriving
from cachefs.records.music_cache import MusicCache, shared
from cachefs.records.pieces import list_pieces

_IN_A_URL = "".join(map(chr, range(0x21, 0x7F)))
"""What stands in a URL as it is; what may not is refused with a word, not encoded."""


class EtchRefused(CachefsError):
    """Content, or a name, that can't be etched; nothing was changed."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: not etched: {why}")
        self.url = url
        self.why = why


@dataclass(frozen=True, slots=True)
class Order:
    """What to etch: a URL, or the file `source` that the URL is to stand for.

    `name` "" takes the URL's last part. `again` downloads what is etched already, and lets its checksum change;
    `swarm` makes a torrent of it, too.
    """

    url: str
    name: str = ""
    mirrors: tuple[str, ...] = ()
    source: Path | None = None
    again: bool = False
    swarm: bool = False


@dataclass(frozen=True, slots=True)
class Etched:
    """The record, and what it took: `downloaded` is false when it was here, `stored` when its bytes were."""

    record: Record
    downloaded: bool
    stored: bool


async def etch(cache: MusicCache, order: Order, progress: Progress | None = None) -> Etched:
    """Etch; EtchRefused, UrlFailed and its kinds, CatalogError, StoreFull, StoreFailed: nothing is changed then."""
    order = _checked(order, cache.lock_path)
    alone = order.again or order.source is not None
    async with cache.incoming.flight(f"etch {order.url}", alone=alone) as flight:
        shared(flight, order.url)
        lock = records.load(cache.lock_path)
        before = lock.records.get(order.name)
        if before is None:
            _refuse_clash(order, lock)
        else:
            _refuse_taken(order, before)
            if await _is_here(cache, order, before):
                return Etched(await _completed(cache, order, before), downloaded=False, stored=False)
        async with cache.arriving() as files:
            fetched = await cache.noted(flight, _fetch(cache, order, before, files, progress))
            why = media.objection(order.name, fetched.head, fetched.media)
            if why:
                raise EtchRefused(fetched.url, why)
            kept = await cache.keep(fetched, files)
        record = await _completed(cache, order, _record(order, before, fetched, kept.pieces))
        return Etched(record, downloaded=order.source is None, stored=kept.moved)


def _record(order: Order, before: Record | None, fetched: Fetched, pieces: Pieces) -> Record:
    """The new record. One whose content is what it was keeps its time: nothing about the file has changed."""
    same = before is not None and before.content == fetched.content
    return Record(
        name=order.name,
        url=order.url,
        content=fetched.content,
        size=fetched.size,
        mirrors=before.mirrors if before else (),
        pieces=pieces,
        swarm=before.swarm if before and same else None,
        media=media.media_type(order.name, fetched.head, fetched.media),
        etched_at=(before.etched_at if before and same else None) or datetime.now(UTC).replace(microsecond=0),
    )


def _checked(order: Order, lock_path: Path) -> Order:
    """The order with a name, or EtchRefused if its name or a URL of it can't be."""
    order = replace(order, url=_encoded(order.url), mirrors=tuple(map(_encoded, order.mirrors)))
    try:
        order = replace(order, url=as_url(order.url), mirrors=tuple(map(as_url, order.mirrors)))
    except Wrong as error:
        meant = order.source is None and is_file(Path(order.url))
        why = "it is a local file; say which URL it stands for: --url URL" if meant else str(error)
        raise EtchRefused(without_login(order.url), why) from None
    name = order.name or _name(order, lock_path)
    if not name:
        raise EtchRefused(order.url, "the URL has no name in it; give one: --name NAME")
    try:
        check_name(name)
    except BadName as error:
        raise EtchRefused(order.url, f"as a name, {name!r} {error.why}; give another: --name NAME") from None
    return replace(order, name=name)


def _encoded(url: str) -> str:
    """The URL as it is sent: one that a person wrote may have spaces in its path, and letters beyond ASCII."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host}{slash}{quote(path, safe=_IN_A_URL)}" if separator and path.isprintable() else url


def _name(order: Order, lock_path: Path) -> str:
    """The URL's last part; to etch a URL `again`, the name that its record has."""
    usual = PurePosixPath(unquote(urlsplit(order.url).path)).name
    if not order.again:
        return usual
    known = [record.name for record in records.load(lock_path) if record.url == order.url]
    if not known or usual in known:
        return usual
    if len(known) > 1:
        names = " or ".join(map(repr, known))
        raise EtchRefused(order.url, f"several records have this URL, say which: --name {names}")
    return known[0]


def _refuse_clash(order: Order, lock: RecordsLock) -> None:
    """Before anything is downloaded for a record that there is no place for."""
    try:
        check_names((*lock.records, order.name))
    except BadName as error:
        raise EtchRefused(order.url, f"{error.name!r} {error.why}; give another name: --name NAME") from None


async def _is_here(cache: MusicCache, order: Order, before: Record) -> bool:
    """Whether there is nothing to fetch and nothing to compare."""
    if order.again or order.source is not None or not before.ready:
        return False
    return await cache.has(_content(before), before.size)


def _refuse_taken(order: Order, before: Record) -> None:
    if before.url != order.url and not order.again:
        why = f"{order.name!r} is the name of another record, of {before.url}; give another --name, or --again"
        raise EtchRefused(order.url, why)


async def _fetch(
    cache: MusicCache, order: Order, before: Record | None, files: Arriving, progress: Progress | None
) -> Fetched:
    """Download, or take the file that was given. Unless `again`, what is etched already must come again."""
    known = before if before is not None and not order.again else None
    expected = Expected(known.content, known.size, known.md5) if known else Expected()
    if order.source is None:
        return await cache.download((order.url, *order.mirrors), expected, files, progress)
    receiver = Receiver(files.make_file(), replace(expected, most=cache.settings.max_size), progress, cover=files.cover)
    try:
        return await send_file(order.source, str(order.source), receiver)
    finally:
        receiver.close()


async def _completed(cache: MusicCache, order: Order, record: Record) -> Record:
    """The record with the order's mirrors and swarm, written."""
    if order.swarm and record.swarm is None:
        record = replace(record, swarm=await _swarm(cache, record))

    def change(lock: RecordsLock) -> RecordsLock:
        now = lock.records.get(order.name, record)
        _refuse_taken(order, now)  # another process may have been quicker
        mirrors = dict.fromkeys((*now.mirrors, *record.mirrors, *order.mirrors))
        swarm = record.swarm or (now.swarm if now.content == record.content else None)
        new = replace(record, mirrors=tuple(url for url in mirrors if url != record.url), swarm=swarm)
        return lock.with_record(new)

    lock = await trio.to_thread.run_sync(records.update, cache.lock_path, change)
    return lock.records[order.name]


async def _swarm(cache: MusicCache, record: Record) -> ContentId:
    """The info-hash of a torrent of the content, which is kept, too; its pieces are the record's."""
    assert record.size is not None
    path = cache.vault.path(_content(record))
    listed = await trio.to_thread.run_sync(partial(list_pieces, path, record.size, with_sha1=True))
    info = metainfo.build(PurePosixPath(record.name).name, record.size, listed.sha1, listed.length)
    cache.pieces.save_torrent(info)
    return info.content


def _content(record: Record) -> ContentId:
    assert record.content is not None
    return record.content
