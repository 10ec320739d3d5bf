"""Every error cachefs raises on purpose, each carrying its evidence in fields.

How it works: one base class, so that a boundary catches exactly what we meant and lets a bug through.
The message is made from the fields, says what, where and what to do, and is what the user sees. None
of them knows an errno: which errno a reader gets for one is decided in `filesystem.py`, and which of
them an errno of the disk's becomes in `diskerrors.py`, each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_LONGEST_KEY = 1024


class CachefsError(Exception):
    """The base of all errors below."""


class ConfigError(CachefsError):
    """A setting, on the command line or in cachefs.toml, that can't be used."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class CatalogError(CachefsError):
    """A chain.toml or lock that can't be taken: names the file, and the line or key where known."""

    def __init__(self, path: Path | str, why: str, *, line: int | None = None, key: str | None = None) -> None:
        at = f"{path}:{line}" if line is not None else str(path)
        # What is no name may be megabytes long.
        shown = key if key is None or len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}…"
        super().__init__(f"{at}: {why}" if shown is None else f"{at}: {shown!r}: {why}")
        self.path = path
        self.why = why
        self.line = line
        self.key = key


class MetainfoError(CachefsError):
    """A .torrent that is broken, or not of the one-file shape that snapshots have."""


class ContentMismatch(CachefsError):
    """Metadata whose digest is not the content id it was asked for."""

    def __init__(self, expected: object, got: object, source: str) -> None:
        super().__init__(f"{source} gave {got}, the lock says {expected}")
        self.expected = expected
        self.got = got
        self.source = source


class BlockInvalid(CachefsError):
    """A block whose bytes do not have the digest its manifest gives."""

    def __init__(self, content: object, index: int, expected: bytes, got: bytes) -> None:
        super().__init__(f"{content} block {index}: digest {got.hex()}, the manifest says {expected.hex()}")
        self.content = content
        self.index = index
        self.expected = expected
        self.got = got


class Fault(CachefsError):
    """A mistake in cachefs itself: it costs what was being done, and its trace is in the log."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"a fault of the daemon, told in its log: {error!r}")


class MetadataUnavailable(CachefsError):
    """A name's size isn't known, and no source has told it in time.

    `retry_after`, in seconds, if a source may be asked again by then that has said neither yes nor no.
    """

    def __init__(self, name: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(f"{name}: no metadata: {reason}")
        self.name = name
        self.reason = reason
        self.retry_after = retry_after


class NoMetadata(MetadataUnavailable):
    """A source has no metadata of this name: it has said so, or has been silent for so long that it counts as gone."""


class Unavailable(CachefsError):
    """Content that no source delivered before the reader's deadline."""

    def __init__(self, what: str, waited: float, reason: str) -> None:
        super().__init__(f"{what}: nothing after {waited:.1f} s: {reason}")
        self.what = what
        self.waited = waited
        self.reason = reason


class SourceFailed(CachefsError):
    """A source was asked and gave no usable answer; another one may."""


class NotReached(SourceFailed):
    """A host to which no connection could be made; `why` in a few words."""

    def __init__(self, why: str, told: str = "") -> None:
        super().__init__(told or why)
        self.why = why


class NotPublic(NotReached):
    """A host that has private addresses only, where public ones are asked."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        super().__init__(f"{host} is at {', '.join(addresses)}, not a public address")
        self.host = host
        self.addresses = addresses


class NoAnswer(SourceFailed):
    """A host that is silent: no connection, or nothing after it was asked something."""


class SourceBusy(SourceFailed):
    """A source that answered with an error of its own: an HTTP `status`, if not 0.

    `retry_after` is for how many seconds it wishes to be left alone.
    """

    def __init__(self, why: str, retry_after: float = 0.0, *, status: int = 0) -> None:
        super().__init__(why)
        self.retry_after = retry_after
        self.status = status


class IgnoresRanges(SourceFailed):
    """A source that sends whole files only, whatever part is asked for."""


class NotAtSource(SourceFailed):
    """A source answered that it doesn't have what it was asked for."""


class OtherContent(SourceFailed):
    """A source has something else under the name it was asked for."""


class RcloneGone(CachefsError):
    """The rclone child doesn't answer; it is looked after elsewhere."""


class RcloneUnusable(CachefsError):
    """There is no rclone that may be run: none at all, or only old ones."""


class Abandoned(CachefsError):
    """Whoever waited for bytes has been killed."""


class StoreFull(CachefsError):
    """The disk under the store has no room for what was to be written."""


class StoreFailed(CachefsError):
    """The store could not read or write bytes that should be there."""


class TooManyWaiting(CachefsError):
    """More readers wait for bytes than the mount has room for."""


class Stopping(CachefsError):
    """The mount is being taken away; whoever waits is let go."""

    def __init__(self) -> None:
        super().__init__("the mount is being stopped")


class DataDirBusy(CachefsError):
    """Another daemon works on this data directory."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is in use by {holder}; stop it first, or choose another --data-dir")
        self.path = path
        self.holder = holder


class UrlFailed(SourceFailed):
    """A URL that did not give what it was asked for; `url` is where it ended after redirects."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url = url
        self.why = why


def together(errors: Sequence[UrlFailed]) -> UrlFailed:
    """One error that tells all: the gravest kind of them, with the others' reasons behind its own."""
    if not errors:
        return UrlFailed("no source", "there is no URL that anything here can fetch")
    gravest = max(errors, key=lambda error: len(type(error).__mro__))
    others = [str(error) for error in errors if error is not gravest]
    if not others:
        return gravest
    told = type(gravest).__new__(type(gravest))  # errors are remembered and told again: they stay as they are
    told.__dict__.update(gravest.__dict__)
    told.args = (f"{gravest}; also tried: {'; '.join(others)}",)
    return told


class SourceSilent(UrlFailed):
    """A source that could not be reached in time, or went silent."""


class SourceSlow(UrlFailed):
    """A source that sends, but so slowly that another one is asked first."""


class SourceRefused(UrlFailed):
    """A source that we may not ask (http, a private address), or that won't let us in."""


class SourceTooLarge(UrlFailed):
    """A source that gives more bytes than are taken."""


class SourceLied(UrlFailed):
    """A source that gave, or declares, other bytes than it should."""


class RecordMismatch(SourceLied):
    """A record's content that is not what the record says: names the checksums, the bytes that came, and the URL.

    `got` is "" where nothing was hashed to the end. `etch --again` is the way out when the content changed on purpose.
    """

    def __init__(self, url: str, expected: str, got: str, size: int, why: str = "") -> None:
        told = why or f"expected {expected}, got {got} of {size} bytes"
        super().__init__(url, f"{told}; if the content was changed on purpose: cachefs etch --again")
        self.expected = expected
        self.got = got
        self.size = size


class RecordInconsistent(CachefsError):
    """A record whose pieces are all right and whose whole is not: its lock contradicts itself."""


class Terminated(CachefsError):
    """SIGTERM came before a mount was usable."""

    def __init__(self) -> None:
        super().__init__("ended by SIGTERM before the mount was usable")


class ControlError(CachefsError):
    """The daemon could not be reached, or answered that it could not do what was asked."""


class PlayheadInvalid(CachefsError):
    """Something said about a playhead that can't be meant; the message says which field, and what was expected."""


class PlayheadConflict(CachefsError):
    """A change that was made for another revision of a playhead than the present one, which `present` is."""

    def __init__(self, record: str, expected: int, got: int, present: Mapping[str, object]) -> None:
        super().__init__(f"{record}: the change was made for revision {expected}, but {got} is the present one")
        self.record = record
        self.expected = expected
        self.got = got
        self.present = present


class PlayheadUnreachable(CachefsError):
    """The daemon that decides on playheads does not answer, or answers what can't be used."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class PlayerFailed(CachefsError):
    """A music player that could not be started or reached, or refused what it was told."""


class NoDaemon(ControlError):
    """Nothing is mounted, as far as the data directory tells."""
