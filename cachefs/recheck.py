"""After a start: verify what changed on disk while nobody was looking, and nothing else.

How it works: an object's seal is how its data file looked when it was last verified and closed. A look at each
file (a stat, no reading) finds those that differ: touched, replaced, cut or gone; those in use when the daemon was
killed; and those that a lost database doesn't know. Opening one is what verifies it (`store.recovery`), so each is
opened once, in the background, one after the other; whoever reads one meanwhile has it verified first. What is right is
complete again in BittorrentInfo; what isn't is missing, and is fetched when it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.metainfo import Metainfo
from cachefs.store.objects import ObjectStore

log = logging.getLogger(__name__)


async def recheck(store: ObjectStore, recall: Callable[[ContentId], Metainfo | None]) -> None:
    """Open every doubtful object once; `recall` gives the metadata that is in the store."""
    for content in await _doubtful(store):
        try:
            info = recall(content) if content.algorithm == "btih" else None
            if info is not None:
                stored = await store.open(info.manifest)
                await stored.release()
        except CachefsError as error:
            log.error("%s changed on disk, and isn't verified before it is read: %s", content, error)
        except Exception:  # a fault of ours costs the look at one, not the mount
            log.exception("%s: looking at what changed on disk", content)


async def _doubtful(store: ObjectStore) -> list[ContentId]:
    try:
        return await store.doubtful()
    except CachefsError as error:
        log.error("what changed on disk isn't verified before it is read: %s", error)
    except Exception:
        log.exception("looking at what changed on disk")
    return []
