"""Telling systemd that the mount is usable, so that a unit ordered after ours starts then and not before.

How it works: for a service of `Type=notify` systemd passes the address of a datagram socket in NOTIFY_SOCKET and waits
for `READY=1` on it. A node that started earlier would find an empty directory where its snapshots belong, and
write into it.

Format: sd_notify(3).
"""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


def tell_ready(status: str) -> None:
    """Say that the service has started, with a line for `systemctl status`; nothing where nobody asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            # An @ stands for the NUL that begins an abstract address.
            notify.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            notify.sendall(f"READY=1\nSTATUS={status}\n".encode("utf-8", "surrogateescape"))
        except OSError as error:
            log.warning("systemd can't be told that the mount is usable, at %s: %s", address, error.strerror)
