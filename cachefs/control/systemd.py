"""Telling systemd that the mount is usable, so that a unit ordered after ours starts then and not before.

How it works: for a service of `Type=notify` systemd passes the address of a datagram socket in NOTIFY_SOCKET and waits
for `READY=1` on it. A node that started earlier would find an empty directory where its snapshots belong, and
write into it. A start that has terabytes of local files to hash asks for more time than the unit gives it.

Format: sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


_PATIENCE = 60
"""Seconds that systemd is asked to go on waiting for each time that it is told of work."""


def tell_ready(status: str) -> None:
    """Say that the service has started, with a line for `systemctl status`; nothing where nobody asked for it."""
    _tell("READY=1", f"STATUS={status}")


def tell_working(status: str) -> None:
    """Say that the service is still starting, so that it isn't ended for taking long."""
    _tell(f"EXTEND_TIMEOUT_USEC={_PATIENCE * 10**6}", f"STATUS={status}")


def _tell(*lines: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            # An @ stands for the NUL that begins an abstract address.
            notify.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            notify.sendall("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
        except OSError as error:
            log.warning("systemd can't be told how the start goes, at %s: %s", address, error.strerror)
