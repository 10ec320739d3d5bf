"""Which addresses may be connected to, and that the connection goes to the address that was judged."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from cachefs.errors import NotPublic, SourceFailed
from cachefs.fetch.http.addresses import is_public
from cachefs.fetch.http.connections import Connections, Target
from cachefs.fetch.http.wire import Line

PRIVATE = [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "239.1.2.3", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::", "::1", "fe80::1", "fc00::1",
    "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1", "2001::1",
    "fec0::1", "64:ff9b:1::7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1", "192.0.0.192", "4000::1", "5f00::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_one_host_of_the_internet_is_private(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_host_of_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Resolver(trio.abc.HostnameResolver):
    """A name server that gives another answer each time it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers: Iterator[list[str]] = iter(answers)

    async def getaddrinfo(  # type: ignore[override]  # as text, where trio takes bytes too
        self, host: bytes | None, port: object, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 1, 6, "", (address, 0)) for address in next(self.answers)]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


class Recorder(Connections):
    """Connects to nothing, and remembers where it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    async def connected(self, target: Target, address: str) -> Line:
        self.addresses.append(address)
        if address.endswith(".99"):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        near, far = socket.socketpair()
        with far:
            return Line(near)


def connect(resolver: Resolver, *, public: bool = True) -> list[str]:
    """Where a connection is made to for a name; what it raises."""
    recorder = Recorder()

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(resolver)
        with pytest.raises(SourceFailed) as failed:
            async with recorder.asked(Target.of("https://song.example/"), {}, public=public):
                pass
        if not recorder.addresses:
            raise failed.value

    run(main)
    return recorder.addresses


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_connection_goes_to_the_address_that_was_judged_and_the_name_is_asked_once() -> None:
    assert connect(Resolver(["8.8.8.8"], ["127.0.0.1"])) == ["8.8.8.8"]


def test_a_name_with_private_addresses_only_is_refused() -> None:
    with pytest.raises(NotPublic, match="not a public address"):
        connect(Resolver(["127.0.0.1", "10.0.0.1"]))
    assert connect(Resolver(["127.0.0.1"]), public=False) == ["127.0.0.1"]


def test_of_a_name_with_both_kinds_only_the_public_address_is_connected() -> None:
    assert connect(Resolver(["10.0.0.1", "8.8.8.8"])) == ["8.8.8.8"]


def test_an_address_that_refuses_is_followed_by_the_next() -> None:
    assert connect(Resolver(["8.8.8.99", "8.8.4.4"])) == ["8.8.8.99", "8.8.4.4"]
