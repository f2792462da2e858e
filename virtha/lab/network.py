"""The lab's wires: one switch, one cable per host, nothing that leads out of the lab.

Every end lies in a network namespace of the lab, so addresses and interface names may be the same in
any number of labs. In a host the cable is a port of the bridge `br0`, as on real hosts: guests and
host share one layer 2.
"""

import contextlib

from virtha.lab.commands import run
from virtha.lab.namespaces import add_network_namespace
from virtha.model.errors import Failed

BRIDGE = "br0"
"""In each host: where its guests' cards go."""
_SWITCH_BRIDGE = "lab0"
_NETWORK = "10.77.0"
_PREFIX = 24


def server_address(number: int) -> str:
    return f"{_NETWORK}.{number + 1}"


def host_address(number: int) -> str:
    return f"{_NETWORK}.{number + 10}"


def bmc_address(number: int) -> str:
    """Of the BMC of the host with this number, in the server's namespace."""
    return f"{_NETWORK}.{number + 100}"


def _ip(namespace: str, *words: str) -> None:
    run(["ip", "-n", namespace, *words])


def make_switch(namespace: str) -> None:
    add_network_namespace(namespace)
    _ip(namespace, "link", "add", _SWITCH_BRIDGE, "type", "bridge", "forward_delay", "0")
    _ip(namespace, "link", "set", _SWITCH_BRIDGE, "up")


def make_node(switch: str, namespace: str, name: str, address: str) -> None:
    """A namespace with a bridge, its address, and a cable to the switch."""
    add_network_namespace(namespace)
    cable = _cable(name)
    run(
        [
            *("ip", "link", "add", cable, "netns", switch, "type", "veth"),
            *("peer", "name", "eth0", "netns", namespace),
        ]
    )
    _ip(switch, "link", "set", cable, "master", _SWITCH_BRIDGE)
    _ip(namespace, "link", "set", "lo", "up")
    _ip(namespace, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    _ip(namespace, "link", "set", "eth0", "master", BRIDGE)
    _ip(namespace, "link", "set", "eth0", "up")
    _ip(namespace, "link", "set", BRIDGE, "up")
    _ip(namespace, "address", "add", f"{address}/{_PREFIX}", "dev", BRIDGE)
    _ip(switch, "link", "set", cable, "up")


def set_cable(switch: str, name: str, *, up: bool) -> None:
    """Plug the host's cable in or pull it; the host's side sees its carrier go."""
    _ip(switch, "link", "set", _cable(name), "up" if up else "down")


def set_extra_address(namespace: str, address: str, *, there: bool) -> None:
    """One more on a node's bridge, or gone from it; there or gone already is fine."""
    if there:
        _ip(namespace, "address", "replace", f"{address}/{_PREFIX}", "dev", BRIDGE)
        return
    with contextlib.suppress(Failed):
        _ip(namespace, "address", "del", f"{address}/{_PREFIX}", "dev", BRIDGE)


def _cable(name: str) -> str:
    return f"v-{name}"
