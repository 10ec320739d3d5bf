"""chain.toml: the published list of a chain's snapshots, each name with its BitTorrent v1 info-hash.

How it works: the file is a flat TOML table, `'name' = '40 lowercase hex digits'`, sorted by name. tomli reads
it, which refuses a name that is listed twice, and then every entry is checked; one bad entry refuses the
whole file, because a list somebody has damaged is not a list to trust in part. tomli keeps no positions, so
the line of a bad entry is searched for only once there is an error to report.

The written form is byte for byte the one Erigon publishes: sorted, single quotes, a blank line at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import tomli

from cachefs.catalog.files import line_of, read_text
from cachefs.catalog.names import BadName, check_names
from cachefs.content import ContentId
from cachefs.errors import CatalogError

_QUOTE = "holds a single quote, which this format has no way to write"
_INFO_HASH = re.compile(r"[0-9a-f]{40}")


def load_chain(path: Path) -> dict[str, ContentId]:
    """The entries of the chain.toml at `path`; CatalogError if it can't be read or taken."""
    return parse_chain(read_text(path), path)


def parse_chain(text: str, path: Path | str) -> dict[str, ContentId]:
    """Name to content id, in the file's order; `path` is for messages. CatalogError names line and key."""
    try:
        table = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise _not_toml(text, path, error) from None
    except (ValueError, RecursionError) as error:
        raise CatalogError(path, f"not a flat TOML table: {error}") from None

    def refuse(name: str, why: str) -> CatalogError:
        return CatalogError(path, why, line=line_of(text, _key_pattern(name)), key=name)

    quoted = next((name for name in table if "'" in name), None)
    if quoted is not None:
        raise refuse(quoted, _QUOTE)
    return checked_entries(table, path, refuse)


def format_chain(entries: Mapping[str, ContentId]) -> str:
    """The chain.toml of `entries`; CatalogError if they are none, or one can't be written in it."""
    lines = []
    for name, content in sorted(entries.items()):
        if "'" in name:
            raise CatalogError("chain.toml", _QUOTE, key=name)
        if content.algorithm != "btih":
            raise CatalogError("chain.toml", f"lists BitTorrent info-hashes only, not {content}", key=name)
        lines.append(f"'{name}' = '{content.hex}'\n")
    try:
        check_names(entries)
    except BadName as error:
        raise CatalogError("chain.toml", error.why, key=error.name) from None
    if not lines:
        raise CatalogError("chain.toml", "names nothing")
    return "".join(lines) + "\n"


def checked_entries(
    table: Mapping[str, object], path: Path | str, refuse: Callable[[str, str], CatalogError]
) -> dict[str, ContentId]:
    """Content ids for a table of names and info-hashes; the first bad entry is raised as `refuse(name, why)`."""
    if not table:
        raise CatalogError(path, "names nothing")
    entries: dict[str, ContentId] = {}
    for name, value in table.items():
        why = _objection(value)
        if why is not None:
            raise refuse(name, why)
        entries[name] = ContentId.btih(str(value))
    try:
        check_names(entries)
    except BadName as error:
        raise refuse(error.name, error.why) from None
    return entries


def _objection(value: object) -> str | None:
    if isinstance(value, Mapping):
        return "a nested table; the list is flat, and a name that holds a dot stands in quotes"
    if not isinstance(value, str):
        return f"the hash must be a string, not {type(value).__name__}"
    if _INFO_HASH.fullmatch(value):
        return None
    if _INFO_HASH.fullmatch(value.lower()):
        return f"the hash {value!r} must be in lower case"
    if len(value) != 40:
        return f"a hash has 40 hex digits, not {len(value)}: {value[:80]!r}"
    return f"not a hash of 40 hex digits: {value!r}"


def _not_toml(text: str, path: Path | str, error: tomli.TOMLDecodeError) -> CatalogError:
    line = error.lineno
    name = _only_key(text.split("\n")[line - 1])
    first = line_of(text, _key_pattern(name)) if name is not None else None
    if name is not None and first is not None and first < line:
        return CatalogError(path, f"listed twice, first in line {first}", line=line, key=name)
    return CatalogError(path, f"not TOML: {error.msg}", line=line)


def _only_key(line: str) -> str | None:
    """The name on a line that is TOML by itself: then what is wrong with it is wrong with its place."""
    try:
        return next(iter(tomli.loads(line)), None)
    except (ValueError, RecursionError):
        return None


def _key_pattern(name: str) -> str:
    escaped = re.escape(name)
    return rf"^[ \t]*(?:'{escaped}'|\"{escaped}\"|\[?{escaped})[ \t]*[.=\]]"
