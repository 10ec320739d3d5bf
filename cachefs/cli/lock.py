"""`cachefs lock`: look at the lock of a data directory, and change it.

How it works: the work is in `cachefs.locks`. Every change is checked as a whole before it is written, shows the
difference, and is taken into use at once if a daemon runs on the data directory; otherwise the next mount does that.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from cachefs import locks
from cachefs.adoption.placing import place
from cachefs.catalog.chain import format_chain
from cachefs.catalog.difference import Difference
from cachefs.catalog.snapshots import parse_lock
from cachefs.cli.progress import bytes_bar, shown_on
from cachefs.cli.target import daemon_options, with_data_dir
from cachefs.cli.terminal import echo
from cachefs.config import load_config, settings_file
from cachefs.content import ContentId
from cachefs.control import socket as control
from cachefs.errors import CatalogError, ConfigError, NoDaemon
from cachefs.locks import LockFile
from cachefs.store.lock import holder


@dataclass(frozen=True, slots=True)
class Target:
    """Which lock is meant."""

    data_dir: Path

    @property
    def file(self) -> LockFile:
        return LockFile(self.data_dir)

    def chain(self, given: str, config_file: Path | None) -> Mapping[str, ContentId]:
        """The published list: as given, as configured, or the one that the daemon was started with."""
        settings = load_config(settings_file(config_file, self.data_dir)).override(chain_toml=given).snapshots
        location = settings.chain_toml or self._chain_of_daemon()
        if not location:
            raise ConfigError("chain_toml", "not known: give --chain-toml PATH|URL, or the mount's --config")
        return trio.run(locks.fetch_chain, location)

    def _chain_of_daemon(self) -> str:
        try:
            return str(control.ask(self.data_dir, "status")["catalogue"]["chain_toml"])
        except NoDaemon:
            return ""

    def use(self, difference: Difference) -> None:
        """Show what was changed, and have the daemon take it into use."""
        show_difference(difference)
        try:
            with bytes_bar("hashing local files") as bar:
                answer = control.follow(self.data_dir, "reload", shown_on(bar))
        except NoDaemon:
            echo(self._who_uses_it())
        else:
            echo("\n".join([*answer["remarks"], "in use"]))

    def _who_uses_it(self) -> str:
        if holder(self.data_dir):  # its daemon doesn't listen yet, and may have read the lock already
            return "a mount is just coming up or going down: `cachefs reload` when it is usable"
        return "not mounted: the next mount uses it"


def show_difference(difference: Difference) -> None:
    echo("\n".join([*difference.lines(), difference.summary()]))


CHAIN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="A cachefs.toml."),
    click.option("--chain-toml", default="", metavar="PATH|URL", help="The published list."),
)


def chain_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in CHAIN_OPTIONS:
        command = option(command)
    return command


def on_target(command: Callable[..., None]) -> Callable[..., None]:
    """Call a command with the lock that is meant."""

    @functools.wraps(command)
    def run(data_dir: Path, **arguments: Any) -> None:
        command(Target(data_dir), **arguments)

    return with_data_dir(run)


@click.group()
@daemon_options
@click.pass_context
def lock(context: click.Context, mountpoint: Path | None, data_dir: Path | None) -> None:
    """Look at the lock, and change it: of the only mount, or the one that is named.

    A change is checked as a whole, written in one step, and taken into use at once if it is mounted. The last ten
    locks are kept.
    """
    context.obj = mountpoint, data_dir


@lock.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As in the file.")
@on_target
def show(target: Target, names: tuple[str, ...], as_json: bool) -> None:
    """Print the lock, or the entries of NAMEs, in the form of a chain.toml."""
    present = target.file.load()
    entries = {name: present.downloads[name] for name in _known(names or present.downloads, present.downloads)}
    if as_json:
        table = {name: content.hex for name, content in entries.items()}
        echo(json.dumps({"chain": present.chain, "downloads": table}, indent=2, sort_keys=True))
    else:
        echo(format_chain(entries), nl=False)


def _known(names: Iterable[str], entries: Mapping[str, ContentId]) -> Iterable[str]:
    for name in names:
        if name not in entries:
            raise CatalogError(locks.LOCK_NAME, "not in the lock", key=name)
        yield name


@lock.command()
@click.option("--back", type=click.IntRange(1), metavar="N", help="Since the Nth lock before, not with chain.toml.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@chain_options
@on_target
def diff(target: Target, back: int | None, as_json: bool, chain_toml: str, config_file: Path | None) -> None:
    """Show how chain.toml differs from the lock: what `update` would change."""
    present = target.file.load().downloads
    if back is None:
        difference = Difference.of(present, target.chain(chain_toml, config_file))
    else:
        version = target.file.before(back)
        difference = Difference.of(parse_lock(version.text(), version.path, None).downloads, present)
    if as_json:
        echo(json.dumps(difference.as_json(), indent=2))
    else:
        show_difference(difference)


@lock.command(name="set")
@click.argument("pairs", metavar="NAME HASH...", nargs=-1, required=True)
@click.option("--new", is_flag=True, help="Add NAME if the lock doesn't have it.")
@on_target
def set_(target: Target, pairs: tuple[str, ...], new: bool) -> None:
    """Give NAME the content with info-hash HASH; it is fetched when first read."""
    if len(pairs) % 2:
        raise click.UsageError("names and hashes come in pairs: NAME HASH [NAME HASH]...")
    given = {name: _content(name, text) for name, text in zip(pairs[::2], pairs[1::2], strict=True)}
    target.use(target.file.edit(lambda entries: locks.with_hashes(entries, given, new=new)))


def _content(name: str, text: str) -> ContentId:
    try:
        return ContentId.btih(text.lower())
    except ValueError:
        raise CatalogError(locks.LOCK_NAME, f"not an info-hash of 40 hex digits: {text!r}", key=name) from None


@lock.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path))
@click.option("--new", is_flag=True, help="Add NAME if the lock doesn't have it.")
@on_target
def override(target: Target, name: str, file: Path, new: bool) -> None:
    """Use FILE as NAME: link it into DATA_DIR/snapshots, and put its hash into the lock.

    FILE isn't copied, moved or changed. Nothing is downloaded. Deleting DATA_DIR/snapshots/NAME and `rollback` undo it.
    """
    entries = target.file.load().downloads
    if not new:
        list(_known([name], entries))
    with bytes_bar("hashing") as report:
        content = trio.run(place, target.data_dir, name, file, entries, report)
    target.use(target.file.edit(lambda entries: locks.with_hashes(entries, {name: content}, new=new)))


@lock.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@chain_options
@on_target
def update(target: Target, names: tuple[str, ...], chain_toml: str, config_file: Path | None) -> None:
    """Bring the lock, or NAMEs alone, up to chain.toml; content whose hash is the same stays."""
    published = target.chain(chain_toml, config_file)
    target.use(target.file.edit(lambda entries: locks.updated(entries, published, names)))


@lock.command()
@click.argument("steps", metavar="[N]", type=click.IntRange(1), default=1)
@click.option("--list", "only_list", is_flag=True, help="Show which locks there are to go back to.")
@on_target
def rollback(target: Target, steps: int, only_list: bool) -> None:
    """Put the lock back that was in use before the present one, or N before; a second rollback undoes the first."""
    if not only_list:
        target.use(target.file.roll_back(steps))
        return
    for number, version in enumerate(target.file.older(), 1):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(version.since))
        count = len(parse_lock(version.text(), version.path, None).downloads)
        echo(f"{number:>2}  in use since {when}  {count:,} names")
