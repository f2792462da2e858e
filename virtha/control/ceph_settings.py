"""Settings of a storage domain of kind ``ceph-rbd``, checked as far as it can be done without the cluster: hosts do the rest."""

import ipaddress
import re

from virtha.control.requests import CephCreate
from virtha.model.errors import InvalidInput
from virtha.model.host import CephPool

MONITORS_MAX = 15
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_NAME_ALLOWED = ("letters, digits, '_', '.' and '-', at most 100",)
_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_KEYRING = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+")


def check_ceph(request: CephCreate) -> CephPool:
    """Raises InvalidInput."""
    monitors = tuple(dict.fromkeys(map(_monitor, request.monitors)))
    if not 0 < len(monitors) <= MONITORS_MAX:
        raise InvalidInput(
            "no monitor is named" if not monitors else f"{len(monitors)} are too many",
            field="ceph.monitors",
            allowed=(f"1 to {MONITORS_MAX}",),
            fix="give the addresses of the cluster's monitors: 'ceph mon dump'",
        )
    if request.user is None and request.keyring:
        raise InvalidInput(
            "a key ring without a user says nothing",
            field="ceph.user",
            fix="name the user whose key is in it, for example virtha for client.virtha",
        )
    if request.keyring and (
        len(request.keyring) > 512 or _KEYRING.fullmatch(request.keyring) is None
    ):
        raise InvalidInput(
            f"'{request.keyring[:100]}' is no absolute path of a file",
            field="ceph.keyring",
            fix="write for example /etc/ceph/ceph.client.virtha.keyring",
        )
    return CephPool(
        monitors=monitors,
        pool=_name("ceph.pool", request.pool),
        user=None if request.user is None else _user(request.user),
        keyring=request.keyring,
    )


def _user(text: str) -> str:
    if text.startswith("client."):
        raise InvalidInput(
            f"'{text[:100]}' has its kind with it",
            field="ceph.user",
            fix=f"leave 'client.' out: {text.removeprefix('client.')[:100]}",
        )
    return _name("ceph.user", text)


def _name(field: str, text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise InvalidInput(
            f"'{text[:100]}' can't be used as a name" if text else "is missing",
            field=field,
            allowed=_NAME_ALLOWED,
        )
    return text


def _monitor(text: str) -> str:
    """HOST or HOST:PORT; an IPv6 address in brackets."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, ""
    good_port = (
        not colon
        or text.endswith("]")
        or (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536)
    )
    if host.startswith("["):
        good_host = host.endswith("]") and _is_ipv6(host[1:-1])
    else:
        good_host = _HOST.fullmatch(host) is not None
    if not good_host or not good_port:
        raise InvalidInput(
            f"'{text[:100]}' is no address of a monitor",
            field="ceph.monitors",
            allowed=("HOST", "HOST:PORT", "[IPV6]", "[IPV6]:PORT"),
            fix="write for example 10.0.0.11 or 10.0.0.11:3300",
        )
    return text


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
