"""Listening together: one mpv, started here or running already, kept at a record's playhead until it ends.

How it works: a client of the local daemon, or of the one that decides, mirrors the playheads; an mpv is started with a
socket in a directory of its own, or an existing socket is used; the bridge joins the two. An mpv that was started here
is ended with the command that started it, one that ran before goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from cachefs.errors import PlayerFailed
from cachefs.playhead.bridge import Bridge
from cachefs.playhead.client import RemoteBoard, connect
from cachefs.playhead.mpv import attached, command_line

_ENDS_WITHIN = 5.0
_DIES_WITHIN = 1.0
_COULD_NOT_PLAY = (1, 2, 3)
"""Codes with which mpv ends if it could not start, or not play a file (its manual, section "Exit codes")."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Who listens to what: the daemon (a data directory or a URL), its secret, the record, and the player.

    file: what an mpv that is started here plays, with `options`; ipc: the socket of one that runs already.
    """

    daemon: Path | str
    token: str
    record: str
    file: Path | None = None
    ipc: Path | None = None
    options: Sequence[str] = ()


def listen(listener: Listener, ready: Callable[[], None] = lambda: None) -> None:
    """Keep the player at the playhead until it ends; `ready` is called when it is driven. PlayerFailed."""
    trio.run(_listen, listener, ready, restrict_keyboard_interrupt_to_checkpoints=True)


async def _listen(listener: Listener, ready: Callable[[], None]) -> None:
    async with connect(listener.daemon, listener.token) as client, _player(listener) as ipc, attached(ipc) as mpv:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_told, nursery.cancel_scope)
            board = RemoteBoard(client)
            await nursery.start(board.run)
            await board.connected.wait()
            ready()
            await Bridge(board, listener.record, mpv).run()
            nursery.cancel_scope.cancel()


async def _until_told(scope: trio.CancelScope) -> None:
    """End with the first signal, and not before the player that was started here."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            scope.cancel()


@contextlib.asynccontextmanager
async def _player(listener: Listener) -> AsyncIterator[Path]:
    """The IPC socket of the player; one that was started here ends with the context."""
    if listener.ipc is not None:
        yield listener.ipc
        return
    if listener.file is None or shutil.which("mpv") is None:
        why = "mpv is not installed" if listener.file else "nothing to play: name a file, or the socket of an mpv"
        raise PlayerFailed(why)
    with tempfile.TemporaryDirectory(prefix="cachefs-mpv-") as directory:
        ipc = Path(directory, "ipc")
        command = command_line(listener.file, ipc, *listener.options)
        start = partial(trio.run_process, command, stdin=None, check=False, deliver_cancel=_end)
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            nursery.start_soon(_outlive, process, ipc)
            try:
                yield ipc
            except Exception:  # what goes wrong with an mpv that has ended follows from why it has
                await _told_why(process, listener.file)
                raise
            await _told_why(process, listener.file)
            nursery.cancel_scope.cancel()


async def _told_why(process: trio.Process, file: Path) -> None:
    """PlayerFailed if the player ends by itself because it could not play."""
    with trio.move_on_after(_DIES_WITHIN):  # its socket goes a moment before it does
        await process.wait()
    if process.returncode in _COULD_NOT_PLAY:
        raise PlayerFailed(f"mpv could not play {file} (it ended with {process.returncode})") from None


async def _outlive(process: trio.Process, ipc: Path) -> None:
    """An mpv that ends before it listens (a file it can't open) must not be waited for."""
    code = await process.wait()
    if not await trio.Path(ipc).exists():
        raise PlayerFailed(f"mpv ended with {code} before it could be driven")


async def _end(process: trio.Process) -> None:
    with contextlib.suppress(OSError):
        process.terminate()
    with trio.move_on_after(_ENDS_WITHIN):
        await process.wait()
        return
    with contextlib.suppress(OSError):
        os.kill(process.pid, signal.SIGKILL)
