"""Addresses at the moment they are used. Settings were checked when they were stored (``control/receiver_checks``); here
is what must hold even if they were not: no mail address writes a command, no webhook calls our own network unasked."""

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from virtha.model.errors import InvalidInput

_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_PART = re.compile(r"[^\s<>()\[\],;:\\\"@]{1,64}")
_DOMAIN = re.compile(r"[\w.-]{1,253}|\[[0-9A-Fa-fIPv.:]{1,60}\]")


def mail_address(text: str) -> tuple[str, str]:
    """A bare address as what stands before and after its @, the latter in ASCII. Raises InvalidInput (field
    ``address``) for all that could end a line, a header or an SMTP command."""
    local, _, domain = text.rpartition("@")
    if text.isprintable() and _LOCAL_PART.fullmatch(local) and _DOMAIN.fullmatch(domain):
        try:
            return local, domain if domain.isascii() else domain.encode("idna").decode()
        except UnicodeError:
            pass
    raise InvalidInput(
        f"{text[:80]!r} is no bare mail address",
        field="address",
        fix="write for example ops@example.org",
    )


def forbidden_address(address: IPv4Address | IPv6Address) -> bool:
    """Whether only ``private_addresses`` lets a webhook go there: loopback, link-local, private, multicast and
    reserved, also when an IPv6 address only wraps such an IPv4 one."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return forbidden_address(inner)
        if address.is_site_local or address.teredo is not None:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved
