"""`cachefs playhead`: where a record is playing, for everybody who listens to it."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import click
import trio

from cachefs.cli.records import Target, opened
from cachefs.cli.target import data_dir_of
from cachefs.cli.terminal import echo
from cachefs.config import Config
from cachefs.errors import PlayheadInvalid
from cachefs.layout import RECORDS
from cachefs.playhead.client import PlayheadClient, connect
from cachefs.playhead.listen import Listener, listen
from cachefs.playhead.model import Change, Playhead

ACTIONS = ("show", "play", "pause", "seek", "rate", "watch", "mpv")
_POSITION = re.compile(r"([+-]?)(?:(?:(\d{1,4}):)?(\d{1,5}):)?(\d{1,7}(?:\.\d{1,6})?)", re.ASCII)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("action", type=click.Choice(ACTIONS), default="show")
@click.argument("value", nargs=-1)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Name the daemon by its data directory.")
@click.option("--server", help="Ask the daemon at this URL, not the local one.")
@click.option("--token", default="", envvar="CACHEFS_PLAYHEAD_TOKEN", help="The secret that --server asks for.")
@click.option("--if-revision", type=click.IntRange(0), help="Change it only if this is the present revision.")
@click.option("--json", "as_json", is_flag=True, help="The playhead as JSON.")
@click.option("--file", type=click.Path(path_type=Path), help="What mpv plays; default: the record in the mount.")
@click.option("--ipc", type=click.Path(path_type=Path), help="Drive the mpv that listens on this socket.")
def playhead(
    name: str,
    action: str,
    value: tuple[str, ...],
    data_dir: Path | None,
    server: str | None,
    token: str,
    if_revision: int | None,
    as_json: bool,
    file: Path | None,
    ipc: Path | None,
) -> None:
    """Show or change where the record NAME plays, for everybody who listens to it.

    \b
    show                 where it is (the default)
    play [POSITION]      play from where it is, or from there
    pause                stop where it is
    seek POSITION        go there; 83.5, 1:23.5, 1:02:03, or +10 and -10 from where it is
    rate SPEED           play faster or slower; 1 is the recorded speed
    watch                print each change as it comes
    mpv [OPTION]...      play it in an mpv that keeps to it, and whose user changes it
    """
    name = name.removeprefix("records/")
    daemon: Path | str = server.rstrip("/") if server else data_dir_of(None, data_dir)
    if action == "mpv":
        playing = file or (None if ipc else _in_mount(name, data_dir))
        listen(Listener(daemon, token, name, playing, ipc, value), lambda: echo(f"{name}: listening"))
    else:
        trio.run(_talk, daemon, token, name, action, value, if_revision, as_json)
        if isinstance(daemon, Path):
            _remark_on(name, daemon)


async def _talk(
    daemon: Path | str, token: str, name: str, action: str, value: tuple[str, ...], revision: int | None, as_json: bool
) -> None:
    async with connect(daemon, token) as client:
        if action == "watch":
            async with client.events() as events:
                async for head in events:
                    if head.record == name:
                        echo(_shown(head, await client.time(), as_json))
            return
        if action == "show":
            head = await client.get(name)
        else:
            head = await client.change(name, await _change(client, name, action, value, revision))
        echo(_shown(head, await client.time(), as_json))


async def _change(
    client: PlayheadClient, name: str, action: str, value: tuple[str, ...], revision: int | None
) -> Change:
    given = value[0] if value else None
    if len(value) > 1 or (given is not None and action == "pause"):
        raise PlayheadInvalid(f"{action}: {' '.join(value)!r}: too much was said")
    if action == "rate":
        return Change("rate", rate=_rate(given), if_revision=revision)
    if given is None:
        return Change(action, if_revision=revision)
    position, relative = parse_position(given)
    if relative:
        present = await client.get(name)
        position = max(0, round(present.position_at(await client.time())) + position)
        revision = present.revision if revision is None else revision
    return Change(action, position_ms=position, if_revision=revision)


def parse_position(text: str) -> tuple[int, bool]:
    """`[+|-][[H:]M:]S[.sss]` in milliseconds, and whether it is relative; PlayheadInvalid for anything else."""
    match = _POSITION.fullmatch(text)
    if match is None:
        raise PlayheadInvalid(f"expected a position like 83.5, 1:23.5 or +10, got {text!r}")
    seconds = int(match[2] or 0) * 3600 + int(match[3] or 0) * 60 + float(match[4])
    return round(seconds * 1000) * (-1 if match[1] == "-" else 1), bool(match[1])


def _rate(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise PlayheadInvalid(f"expected a speed like 1.25, got {text!r}") from None


def _in_mount(name: str, data_dir: Path | None) -> Path:
    directory = data_dir_of(None, data_dir)
    mountpoint = Target(directory, Config()).mountpoint()
    if mountpoint is None:
        raise PlayheadInvalid(f"{directory} is not mounted: name what to play with --file")
    path = mountpoint / RECORDS / name
    opened(path)
    return path


def _remark_on(name: str, data_dir: Path) -> None:
    """Say so if the daemon shows records and none of that name: it may be a slip, or a record that only others have."""
    mountpoint = Target(data_dir, Config()).mountpoint()
    shown = mountpoint / RECORDS if mountpoint else None
    if shown and shown.is_dir() and not (shown / name).exists():
        echo(f"{name}: no record here has that name; its playhead is for those who have one", err=True)


def _shown(head: Playhead, utc: float, as_json: bool) -> str:
    if as_json:
        return json.dumps(head.as_json())
    at = timedelta(seconds=round(head.position_at(utc) / 1000, 3))
    speed = f" at {head.rate:g} of its speed" if head.rate != 1.0 else ""
    return f"{head.record}: {head.state} at {str(at)[:11]}{speed}, revision {head.revision}"
