"""Who reads: the process behind an open file, and whether it has been killed.

How it works: the kernel names the thread that opened a file. A process that is killed while it waits for a read
stays until the read is answered, with SIGKILL among the pending signals of every thread, which /proc shows; so a
read that waits looks now and then, and lets go of somebody who is dying. Nothing else is concluded: a file may
have been passed to another process, so that its opener is gone means nothing.

Format: proc_pid_status(5).
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

_KILLED = 1 << (signal.SIGKILL - 1)


class Caller:
    """The process of thread `thread`; 0 for nobody in particular."""

    def __init__(self, thread: int = 0) -> None:
        self._thread = thread
        self._process: int | None = None

    @property
    def process(self) -> int:
        """Its process id; the thread's own if the process can't be told."""
        if self._process is None:
            self._process = int(_status(Path(f"/proc/{self._thread}")).get("Tgid", self._thread)) if self._thread else 0
        return self._process

    def killed(self) -> bool:
        """Whether it is being killed."""
        return bool(self._thread) and any(
            _killed(_status(Path(f"/proc/{task}"))) for task in {self._thread, self.process}
        )


def _killed(status: dict[str, str]) -> bool:
    return any(int(status.get(kind, "0"), 16) & _KILLED for kind in ("SigPnd", "ShdPnd"))


def _status(directory: Path) -> dict[str, str]:
    """The fields of a thread's status; empty if it is gone."""
    with suppress(OSError):
        lines = (directory / "status").read_text(errors="replace").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}
