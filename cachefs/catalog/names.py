"""Which names a catalogue may hold.

How it works: a name is a path relative to the catalogue's folder, and it comes from a file that somebody
else wrote. It becomes a directory entry, part of a URL and an argument of other programs, so it is checked
once, where it enters, and trusted from there on. One name is judged by `check_name`; `check_names` judges
what only shows in the company of others: a name given twice, or a file where another name has a directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_COMPONENT = 255
"""The longest part between slashes, in bytes of UTF-8: what Linux file systems take."""

MAX_NAME = 1024
"""The longest whole name, in bytes of UTF-8."""

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_WRONG_PART = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_OPTION_LIKE = ("-", ":")


class BadName(ValueError):
    """A name that can't be shown. Callers, who know file and line, turn it into their own error."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name!r}: {why}")
        self.name = name
        self.why = why


def check_name(name: str) -> None:
    """Return if `name` may be shown; otherwise raise BadName."""
    why = _objection(name)
    if why is not None:
        raise BadName(name, why)


def _objection(name: str) -> str | None:
    if not name:
        return "an empty name"
    if name.startswith("/"):
        return "an absolute path; names are relative to the catalogue"
    if name.startswith(_OPTION_LIKE):
        return f"begins with {name[0]!r}, which other programs take for an option or a remote"
    if _FORBIDDEN.search(name):
        return "holds a control character or a backslash"
    if _WRONG_PART.search(name):
        return "has an empty part, '.' or '..' between slashes"
    return _too_long(name)


def _too_long(name: str) -> str | None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if len(raw) > MAX_NAME:
        return f"{len(raw)} bytes long; at most {MAX_NAME} are taken"
    if len(raw) > MAX_COMPONENT and max(map(len, raw.split(b"/"))) > MAX_COMPONENT:
        return f"has a part longer than {MAX_COMPONENT} bytes"
    return None


def check_names(names: Iterable[str]) -> None:
    """Check each name, and all of them together; BadName says what is wrong, and what it clashes with."""
    files: set[str] = set()
    for name in names:
        check_name(name)
        if name in files:
            raise BadName(name, "given twice")
        files.add(name)
    folders: dict[str, str] = {}
    for name in files:
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders[folder] = name
            folder = folder.rpartition("/")[0]
    clashes = files & folders.keys()
    if clashes:
        clash = min(clashes)
        raise BadName(clash, f"is a file here, and a directory in {folders[clash]!r}")
