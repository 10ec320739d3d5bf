"""Which addresses may be connected to, decided where the connection is made.

How it works: a URL comes from a lock that somebody else may have written, and a redirect from a server. So a
name is resolved here, each address is judged, and the connection goes to an address that was judged: not to
the name, which could resolve to another one a moment later (DNS rebinding). An IPv6 address that carries an
IPv4 one is judged by what it carries. Connections that a pool keeps were judged when they were made.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TypeAlias

import httpcore
import trio

from cachefs.errors import SourceFailed, SourceRefused

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether it is a single host of the public internet, by the registries of IANA for special addresses."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _carried(address)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a mapped, 6to4 or NAT64 address."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects by `inner` to addresses that may be connected to; SourceRefused for a host that has none."""

    def __init__(self, *, allow_private: bool, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._allow_private = allow_private
        self._inner = inner or httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of `host` that answers; `timeout` in seconds is for all of them."""
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                addresses = await self._allowed(host)
                for number, address in enumerate(addresses, 1):
                    share = None if timeout is None else timeout / 2 if number < len(addresses) else timeout
                    try:
                        return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                        error = failed
        except trio.TooSlowError:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from None
        raise error

    async def _allowed(self, host: str) -> list[str]:
        found = await _resolve(host)
        allowed = [address for address in found if self._allow_private or is_public(ipaddress.ip_address(address))]
        if found and not allowed:
            raise SourceRefused(host, f"is at {found[0]}, a private address; [records] allow_private = true allows it")
        return allowed

    async def connect_unix_socket(self, path: str, *rest: object, **options: object) -> httpcore.AsyncNetworkStream:
        """Refused: a URL never means a socket file."""
        raise SourceRefused(path, "a Unix socket is no source")

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


async def _resolve(host: str) -> list[str]:
    try:
        return await resolve(host)
    except SourceFailed as error:
        raise httpcore.ConnectError(str(error)) from None


async def resolve(host: str) -> list[str]:
    """The addresses of a host, those first that are to be tried first; SourceFailed if it isn't known."""
    try:
        found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise SourceFailed(f"the name {host} can't be resolved: {error.strerror}") from None
    except UnicodeError:
        raise SourceFailed(f"{host!r} is not a host name") from None
    # A scope (fe80::1%eth0) says which link: such an address is never public, and is judged without it.
    return list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found))
