"""Two machines and a cable between them, on one machine: network namespaces joined by a veth pair.

How it works: each end of the pair lies in a namespace of its own, made with `ip netns`, with an address that is
nobody's (192.0.2.0/24 is for documentation). A process is put into one with nsenter, which enters the network alone:
files, Unix sockets and mounts stay what they are for everybody, so a test sees the mount of a daemon that can't see
the test's network. (`ip netns exec` would give the daemon a mount table of its own.) Cutting takes the far end of
the cable down, as a dead switch does: the near side's packets go nowhere, and nobody tells it. What the far end sends
may be held to a rate, whichever protocol it is.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NEAR_ADDRESS, FAR_ADDRESS = "192.0.2.1", "192.0.2.2"


@dataclass(frozen=True, slots=True)
class Network:
    """The two ends: `near` and `far` are what to put before a command so that it runs there."""

    near: tuple[str, ...]
    far: tuple[str, ...]
    _far_name: str

    def cut(self) -> None:
        self._set("down")

    def restore(self) -> None:
        self._set("up")

    def _set(self, state: str) -> None:
        _ip("-n", self._far_name, "link", "set", "cable", state)


@contextmanager
def two_networks(rate: str | None = None) -> Iterator[Network]:
    """Two namespaces with a cable between them, that carries `rate` (48mbit, say) from the far end to the near one.

    Whoever runs in them must have ended before this is left.
    """
    unique = f"{os.getpid()}-{secrets.token_hex(3)}"
    near, far = f"cachefs-near-{unique}", f"cachefs-far-{unique}"
    try:
        for name in (near, far):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
        for name, address in ((near, NEAR_ADDRESS), (far, FAR_ADDRESS)):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        if rate is not None:  # a bucket of a few hundredths of a second, and a queue as routers have
            shaping = ("tbf", "rate", rate, "burst", "256kb", "latency", "200ms")
            _run("tc", "-n", far, "qdisc", "add", "dev", "cable", "root", *shaping)
        yield Network(_entering(near), _entering(far), far)
    finally:
        for name in (near, far):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def own_internet(*addresses: str) -> Iterator[tuple[str, ...]]:
    """A namespace in which these addresses, whoever has them in the world, are the machine's own, besides loopback.

    Gives what to put before a command so that it runs there.
    """
    name = f"cachefs-own-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        for address in addresses:
            _ip("-n", name, "address", "add", f"{address}/32", "dev", "lo")
        yield _entering(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _entering(name: str) -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{name}", "--")


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}; network namespaces need root"
