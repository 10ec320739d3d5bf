"""Names to addresses, and which of those are of the public internet.

How it works: whoever judges an address has to connect to that one, not to the name. An IPv6 address that carries an
IPv4 one is judged by what it carries. Of IPv6 only what has been given out for hosts of the internet is public, and
not whatever else Python, which knows the registries of its own day, doesn't find private.
"""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

import trio

from cachefs.errors import NotReached

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")
"""For protocols (RFC 6890); a cloud has the keys of its machines there. Python calls but a part of it private."""


def is_public(address: Address) -> bool:
    """Whether it is a single host of the public internet, by the registries of IANA for special addresses."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _carried(address)
        if inner is not None:
            return is_public(inner)
    special = address not in _GIVEN_OUT if address.version == 6 else address in _PROTOCOLS
    return address.is_global and not address.is_multicast and not special


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a mapped, 6to4 or NAT64 address."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


async def resolve(host: str) -> list[str]:
    """The addresses of a host, those first that are to be tried first; NotReached if it isn't known."""
    try:
        found = await trio.socket.getaddrinfo(host, None, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise NotReached(f"the name {host} can't be resolved: {error.strerror}") from None
    except UnicodeError:
        raise NotReached(f"{host!r} is not a host name") from None
    # A scope (fe80::1%eth0) says which link: such an address is never public, and is judged without it.
    return list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found))
