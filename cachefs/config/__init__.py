"""cachefs.toml and the command line, as one frozen `Config`.

How it works: every setting is a field of a section (sections.py), with a reader beside it that takes what TOML or the
command line gave and returns the value, or raises with what it expected. Loading and overriding walk the same
fields, so both accept the same and say the same. Unknown sections and keys are refused: a misspelt limit that
is silently ignored is worse than a start that fails. Relative paths are relative to the file they stand in,
or, from the command line, to the working directory.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli

from cachefs.config.playhead import Playheads
from cachefs.config.records import Records
from cachefs.config.sections import Fetch, Limits, Mount, Rclone, Read, Scrub, Snapshots, Sources, Status, Torrent
from cachefs.config.values import Peer, Reader, Version, Wrong, as_text, show, web_seed
from cachefs.errors import ConfigError

__all__ = [
    "Config",
    "Fetch",
    "Limits",
    "Mount",
    "Peer",
    "Rclone",
    "Read",
    "Records",
    "Scrub",
    "Snapshots",
    "Sources",
    "Status",
    "Torrent",
    "Version",
    "load_config",
    "load_webseed_toml",
    "settings_file",
    "web_seed",
]


@dataclass(frozen=True, slots=True)
class Config:
    """All settings."""

    mount: Mount = field(default_factory=Mount)
    snapshots: Snapshots = field(default_factory=Snapshots)
    sources: Sources = field(default_factory=Sources)
    torrent: Torrent = field(default_factory=Torrent)
    fetch: Fetch = field(default_factory=Fetch)
    rclone: Rclone = field(default_factory=Rclone)
    read: Read = field(default_factory=Read)
    playhead: Playheads = field(default_factory=Playheads)
    limits: Limits = field(default_factory=Limits)
    records: Records = field(default_factory=Records)
    scrub: Scrub = field(default_factory=Scrub)
    status: Status = field(default_factory=Status)

    def override(self, **given: object) -> Config:
        """These settings with those that were given on the command line, by key, whatever their section.

        None, "" and empty lists mean "not given". ConfigError names the option; TypeError if no setting has that key.
        """
        owners = {key: section for section in _sections() for key in _readers(section)}
        changed: dict[str, dict[str, object]] = {}
        for key, value in given.items():
            if key not in owners:
                raise TypeError(f"no setting is called {key}")
            if value is not None and value not in ("", (), []):
                changed.setdefault(owners[key], {})[key] = value
        return _changed(self, changed, _working_directory(), lambda _, key: _option(key))


def _working_directory() -> Path:
    """As an absolute path; as it is, where nobody can tell, because its mount is gone: absolute paths need none."""
    try:
        return Path.cwd()
    except OSError:
        return Path()


def _option(key: str) -> str:
    """What the command line calls a setting: one that takes several is given one at a time."""
    several = ("webseeds", "peers", "trackers", "rclone_remotes")
    return f"--{(key.removesuffix('s') if key in several else key).replace('_', '-')}"


def settings_file(given: Path | None, data_dir: Path | None) -> Path | None:
    """The settings file to load: the one that was given, or else cachefs.toml in the data directory, if it is there."""
    if given is not None or data_dir is None:
        return given
    own = data_dir / "cachefs.toml"
    return own if own.exists() else None


def load_config(path: Path | None) -> Config:
    """The settings in the file `path` over the defaults, or just these; ConfigError names file, section and key."""
    config = Config()
    if path is None:
        return config
    tables = _read_toml(path)
    for section, table in tables.items():
        if section not in _sections():
            raise ConfigError(f"{path}: [{section}]", "unknown section" + _suggestion(section, _sections()))
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section}", f"expected a section [{section}], got {show(table)}")
        for key in table:
            _refuse_unknown(path, section, key)
    return _changed(config, tables, path.parent.absolute(), lambda section, key: f"{path}: [{section}] {key}")


def load_webseed_toml(path: Path) -> tuple[str, ...]:
    """The web seeds of Erigon's webseed.toml: `label = "url"`, a `v1:` before the URL or not.

    ConfigError if it can't be read or taken.
    """
    seeds = []
    for label, value in _read_toml(path).items():
        try:
            seeds.append(web_seed(as_text(value).removeprefix("v1:")))
        except Wrong as error:
            raise ConfigError(f"{path}: {label}", str(error)) from None
    return tuple(dict.fromkeys(seeds))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigError(str(path), f"can't be read: {error.strerror}") from error
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}", f"not TOML: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"not TOML: {error}") from None


def _sections() -> tuple[str, ...]:
    return tuple(section.name for section in fields(Config))


def _readers(section: str) -> dict[str, Reader]:
    return {item.name: item.metadata["read"] for item in fields(getattr(_DEFAULTS, section))}


def _changed(
    config: Config, tables: Mapping[str, Mapping[str, object]], base: Path, where: Callable[[str, str], str]
) -> Config:
    sections: dict[str, Any] = {}
    for section, table in tables.items():
        values = {key: _value(section, key, value, base, where) for key, value in table.items()}
        try:
            sections[section] = replace(getattr(config, section), **values)
        except ConfigError as error:
            raise ConfigError(where(section, error.where), error.why) from None
    return replace(config, **sections)


def _value(section: str, key: str, value: object, base: Path, where: Callable[[str, str], str]) -> object:
    try:
        return _readers(section)[key](value, base)
    except Wrong as error:
        raise ConfigError(where(section, key), str(error)) from None


def _refuse_unknown(path: Path, section: str, key: str) -> None:
    if key in _readers(section):
        return
    owner = next((other for other in _sections() if key in _readers(other)), None)
    hint = f"; it belongs in [{owner}]" if owner else _suggestion(key, _readers(section))
    raise ConfigError(f"{path}: [{section}] {key}", "unknown key" + hint)


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


_DEFAULTS = Config()
