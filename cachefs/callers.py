"""Who reads: the process behind an open file, and whether it has been killed or is gone.

How it works: the kernel names the thread that opened a file. A process that is killed while it waits for a single page
stays until the read is answered, with SIGKILL among the pending signals of every thread, which /proc shows. One
that waits for the kernel's readahead is gone at once, and the read goes on for nobody. So a read that waits looks now
and then, and lets go of somebody who is dying; whoever is gone says less, for a file may have been passed to
another process: that counts only for reads from before a descriptor of the file was closed. Where the kernel says which
thread a read is for, that one's process is looked at, too.

Format: proc_pid_status(5).
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

_KILLED = 1 << (signal.SIGKILL - 1)


class Caller:
    """The process of thread `thread`, 0 for nobody in particular; `direct` if it reads past the kernel's page cache."""

    def __init__(self, thread: int = 0, *, direct: bool = False) -> None:
        self._thread = thread
        self.direct = direct
        # Now, while the thread waits for its open: it may end long before its process does.
        self.process = int(_status(Path(f"/proc/{thread}")).get("Tgid", thread)) if thread else 0
        """Its process id; the thread's own if the process can't be told."""

    def killed(self) -> bool:
        """Whether it is being killed."""
        return bool(self._thread) and any(
            _killed(_status(Path(f"/proc/{task}"))) for task in {self._thread, self.process}
        )

    def gone(self) -> bool:
        """Whether it has ended."""
        return bool(self._thread) and _status(Path(f"/proc/{self.process}")).get("State", "Z")[0] in "ZX"


def _killed(status: dict[str, str]) -> bool:
    return any(int(status.get(kind, "0"), 16) & _KILLED for kind in ("SigPnd", "ShdPnd"))


def _status(directory: Path) -> dict[str, str]:
    """The fields of a thread's status; empty if it is gone."""
    with suppress(OSError):
        lines = (directory / "status").read_text(errors="replace").splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}
