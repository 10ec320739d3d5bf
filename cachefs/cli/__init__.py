"""The `cachefs` command: a table of subcommands, each in a file of its own and loaded when it is called.

How it works: importing libtorrent or pyfuse3 takes longer than printing a help text, so the group knows its commands
by a table (name, where the command is, one line of help) and imports only the one that was asked for. Errors we raise
on purpose end here, as `cachefs: message` on stderr and exit code 1. So does a full disk that cannot take what is
printed, and so does Ctrl-C, with the exit code that shells have for it; errors may come wrapped in the exception
groups of trio's nurseries. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cachefs import __version__
from cachefs.cli.process import leave_lost_directory, open_standard
from cachefs.cli.terminal import echo
from cachefs.diskerrors import NO_ROOM
from cachefs.errors import CachefsError, Terminated


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a subcommand is, as `module:attribute`, and the line that `cachefs --help` shows for it."""

    target: str
    help: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


COMMANDS = {
    "mount": LazyCommand("cachefs.cli.mount:mount", "Mount a chain's snapshots; bytes are fetched when first read."),
    "umount": LazyCommand("cachefs.cli.umount:umount", "Take a mount away, also a dead one."),
    "status": LazyCommand("cachefs.cli.status:status", "Show what a running mount holds, fetches and waits for."),
    "playhead": LazyCommand(
        "cachefs.cli.playhead:playhead", "Show or change where a record plays, for all who listen."
    ),
    "etch": LazyCommand("cachefs.cli.etch:command", "Download a URL, keep its bytes by checksum, write a record."),
    "play": LazyCommand("cachefs.cli.play:command", "Print where a record can be read, or hand it to a player."),
    "import": LazyCommand("cachefs.cli.import_records:command", "Take records from a list, registry or Metalink."),
    "export": LazyCommand("cachefs.cli.export_records:command", "Print the records as a list or a playlist."),
    "adopt": LazyCommand("cachefs.cli.adopt:adopt", "Take over an existing snapshots directory."),
    "db": LazyCommand("cachefs.cli.db:db", "Show BittorrentInfo, the downloader's database."),
    "lock": LazyCommand("cachefs.cli.lock:lock", "Show, compare, edit and roll back the lock."),
    "reload": LazyCommand("cachefs.cli.reload:reload", "Have a running mount take an edited lock into use."),
    "verify": LazyCommand(
        "cachefs.cli.verify:verify", "Hash what is held, and say what is wrong; --repair fetches it."
    ),
    "scrub": LazyCommand("cachefs.cli.scrub:scrub", "Read all that a mount holds from the disk, and mend it."),
    "torrent-hashes": LazyCommand("cachefs.cli.torrent_hashes:torrent_hashes", "Print the chain.toml of a directory."),
    "torrent-create": LazyCommand("cachefs.cli.torrent_create:torrent_create", "Write a .torrent beside every file."),
    "torrent-cat": LazyCommand("cachefs.cli.torrent_cat:torrent_cat", "Print what a .torrent says."),
    "torrent-magnet": LazyCommand("cachefs.cli.torrent_magnet:torrent_magnet", "Print the magnet link of a .torrent."),
    "manifest": LazyCommand("cachefs.cli.manifest:manifest", "Print the manifest.txt of a directory."),
    "manifest-verify": LazyCommand(
        "cachefs.cli.manifest_verify:manifest_verify", "Check web seeds against their manifest.txt and a chain.toml."
    ),
    "prefetch": LazyCommand("cachefs.cli.prefetch:prefetch", "Fetch whole files before anybody reads them."),
    "pin": LazyCommand("cachefs.cli.pin:pin", "Keep files from being evicted; without names, list the pins."),
    "unpin": LazyCommand("cachefs.cli.unpin:unpin", "Take pins away."),
    "evict": LazyCommand("cachefs.cli.evict:evict", "Delete what is held of files; it is fetched again when read."),
    "gc": LazyCommand("cachefs.cli.gc:gc", "Delete what no name stands for any more, and keep to the limits, now."),
    "seed": LazyCommand("cachefs.cli.seed:seed", "Serve a directory as torrent seeder and web seed."),
}


_NO_ROOM = NO_ROOM | {errno.EFBIG}  # EFBIG: what stdout is may not grow (`ulimit -f`)

INTERRUPTED = 130
TERMINATED = 143
"""The exit codes of a program that SIGINT or SIGTERM ended, as shells tell it: 128 and the signal's number."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors that `error` consists of: itself, unless it is a group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _told(error: OSError) -> str:
    """What to say of an error that is neither ours nor a fault; "" for a fault."""
    if error.errno in _NO_ROOM and error.filename is None:
        # The store's files have become errors of ours long before: this was being printed.
        return f"what it prints can't be written: {error.strerror}"
    if not Path(os.fsdecode(error.filename or "")).is_absolute() and not _has_working_directory():
        return f"the working directory is gone ({error.strerror}): go to another one, or give absolute paths"
    return ""


def _has_working_directory() -> bool:
    try:
        Path.cwd()
    except OSError:  # it was deleted, or its mount taken away
        return False
    return True


def drop_output() -> None:
    """Have what is still in stdout's buffer go nowhere, so that the interpreter doesn't fail to write it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LazyGroup(click.Group):
    """A group that reads `COMMANDS` and imports a command when it is run, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        return None if lazy is None else lazy.load()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_standard()
        leave_lost_directory()
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            said = _told(error)
            if not said:
                raise
            echo(f"cachefs: {said}", err=True)
            drop_output()
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CachefsError, KeyboardInterrupt, BaseExceptionGroup) as error:
            found = list(leaves(error))
            if not all(isinstance(one, CachefsError | KeyboardInterrupt) for one in found):
                raise
            if any(isinstance(one, KeyboardInterrupt) for one in found):
                echo("cachefs: interrupted", err=True)
                ctx.exit(INTERRUPTED)
            echo(f"cachefs: {found[0]}", err=True)
            ctx.exit(TERMINATED if isinstance(found[0], Terminated) else 1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cachefs")
def main() -> None:
    """A read-only file system that fetches and verifies content on first read."""
