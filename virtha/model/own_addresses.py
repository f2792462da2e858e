"""Addresses that lead to whoever uses them, and so elsewhere from each machine: loopback, link-local, none at all.

From a neighbour such an address of a power device is the neighbour's own: a BMC that its host reaches over a link of
their own (169.254.0.0/16) would switch off the host that asks (ADR 18).
"""

from ipaddress import IPv4Address, IPv6Address

_OWN_NAMES = frozenset(
    {
        "localhost",
        "localhost4",
        "localhost6",
        "localhost.localdomain",
        "localhost4.localdomain4",
        "localhost6.localdomain6",
        "ip6-localhost",
        "ip6-loopback",
    }
)
"""Of distributions' own /etc/hosts; whatever ends with .localhost is loopback, too (RFC 6761, 6.3)."""


def is_own_address(number: IPv4Address | IPv6Address) -> bool:
    """Also of an IPv4 address that IPv6 only wraps. One without bits (0.0.0.0, ::) connects to loopback."""
    if isinstance(number, IPv6Address) and number.ipv4_mapped is not None:
        return is_own_address(number.ipv4_mapped)
    unspecified = number.is_unspecified or (
        isinstance(number, IPv4Address) and int(number) >> 24 == 0
    )
    return number.is_loopback or number.is_link_local or unspecified


def is_own_name(name: str) -> bool:
    """What can be told without asking anybody."""
    plain = name.rstrip(".").lower()
    return plain in _OWN_NAMES or plain.endswith(".localhost")
