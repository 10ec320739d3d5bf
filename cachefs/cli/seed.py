"""`cachefs seed DIR`: a seed box for the files of a directory.

How it works: everything is in `cachefs.origin`; here are the options, a progress bar while hashing, and the
lines that say where it listens. Those go to stdout, one a line, first word what it is and the rest its value,
and end with `ready`, so that a script can read them as well as a person. Remarks go to stderr.
"""

from __future__ import annotations

import logging
import signal
import sys
from functools import partial
from pathlib import Path

import click
import trio

from cachefs.cli.process import allow_many_files
from cachefs.cli.progress import bytes_bar
from cachefs.cli.target import DIRECTORY, NEW_DIRECTORY
from cachefs.cli.terminal import echo, log_to_stderr
from cachefs.config.values import Peer
from cachefs.origin.serving import OriginConfig, Serving, serve


class AddressType(click.ParamType[Peer | None]):
    """HOST:PORT, [IPV6]:PORT, or `off`."""

    name = "HOST:PORT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Peer | None:
        if isinstance(value, Peer):
            return value
        if value == "off":
            return None
        try:
            return Peer.parse(str(value), any_port=True)
        except ValueError as error:
            self.fail(f"{error}; 'off' leaves that side off", param, ctx)


@click.command()
@click.argument("directory", metavar="DIR", type=DIRECTORY)
@click.option("--listen", type=AddressType(), default="0.0.0.0:42069", show_default=True, help="Where peers connect.")
@click.option("--http", type=AddressType(), default="off", show_default=True, help="Where web-seed clients connect.")
@click.option("--out", type=NEW_DIRECTORY, help="Write .torrent files and lists here.")
@click.option("--discover", is_flag=True, help="Be found by DHT, local discovery and port mapping.")
@click.option("-v", "--verbose", is_flag=True, help="Log every HTTP request to stderr.")
def seed(
    directory: Path, listen: Peer | None, http: Peer | None, out: Path | None, discover: bool, verbose: bool
) -> None:
    """Serve the files below DIR as torrent seeder and web seed.

    Writes a .torrent beside every file (names are paths below DIR, SHA-1 pieces of 2 MiB, as Erigon makes them),
    chain.toml and manifest.txt. A .torrent that is newer than its file is trusted, so only new and changed files
    are hashed at the next start; delete a .torrent to have its file hashed again. Hidden files, .tmp, .part and
    .lock files, empty files and symbolic links are left out.

    Port 0 takes any free port; 'off' leaves that side off. Prints where it listens, then 'ready'.
    SIGINT or SIGTERM ends it.
    """
    if listen is None and http is None:
        raise click.UsageError("--listen off and no --http: nothing would be served")
    allow_many_files()
    log_to_stderr(logging.INFO if verbose else logging.WARNING, "%(message)s")
    trio.run(_run, OriginConfig(directory, out, listen, http, discover))


async def _run(config: OriginConfig) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_at_signal, nursery.cancel_scope)
        with bytes_bar("hashing") as report:
            serving: Serving = await nursery.start(partial(serve, config, report=report))
        _announce(serving)


async def _stop_at_signal(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return


def _announce(serving: Serving) -> None:
    for skipped in serving.published.skipped:
        echo(f"cachefs: {skipped.name} is left out: {skipped.why}", err=True)
    if serving.torrent is not None:
        echo(f"torrent {serving.torrent}")
    if serving.http is not None:
        echo(f"http {serving.http}")
    echo(f"files {len(serving.published.files)}")
    echo(f"chain.toml {serving.published.chain}")
    echo("ready")
    sys.stdout.flush()
