"""What a command sets right about its own process before it does anything else."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import tempfile
from pathlib import Path


def open_standard() -> None:
    """Open /dev/null as each of stdin, stdout and stderr that is closed, so that no other file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115  it stays open
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def leave_lost_directory() -> None:
    """If the working directory's mount is gone, work in a deleted one: that is what Python and its libraries expect.

    A path that is relative leads nowhere in either.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        pass
    except OSError:
        with tempfile.TemporaryDirectory() as deleted:
            os.chdir(deleted)


def allow_many_files() -> None:
    """Raise the soft limit of open files, which is 1024 as a rule, to the hard one; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a hard limit above the kernel's own can't be set again
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
