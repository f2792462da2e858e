"""What `virtha lab status` shows, as plain values."""

from virtha.lab.lab import Lab
from virtha.lab.node import Node
from virtha.model.value import Value


class NodeOverview(Value, frozen=True, kw_only=True):
    name: str
    kind: str
    power: str
    cable: str
    address: str
    bmc: str
    """Its address, 'dead', or '' for a server."""
    init_pid: int | None
    services: dict[str, int]
    """Running service -> its process id inside."""
    stopped: tuple[str, ...]
    vms: tuple[str, ...]
    """VMs whose QEMU runs here."""


class Overview(Value, frozen=True, kw_only=True):
    id: str
    directory: str
    ready: bool
    accelerator: str
    url: str
    root: str
    """What VIRTHA_ROOT must be for the command line to reach this lab's server."""
    nodes: tuple[NodeOverview, ...]


def _bmc(lab: Lab, node: Node) -> str:
    if node.state.kind != "host":
        return ""
    is_there = node.state.bmc is not None and node.state.bmc.is_alive()
    return lab.bmc(node.name).address if is_there else "dead"


def overview(lab: Lab) -> Overview:
    nodes = []
    for node in (*lab.nodes("server"), *lab.hosts):
        is_on = node.is_on()
        services = node.running_services() if is_on else {}
        expected = [str(service["name"]) for service in node.services()]
        nodes.append(
            NodeOverview(
                name=node.name,
                kind=node.state.kind,
                power="on" if is_on else "off",
                cable="in" if node.state.cable_up else "out",
                address=node.address,
                bmc=_bmc(lab, node),
                init_pid=node.state.init.pid if is_on and node.state.init else None,
                services=services,
                stopped=tuple(name for name in expected if name not in services),
                vms=tuple(sorted(node.qemus())) if is_on else (),
            )
        )
    return Overview(
        id=lab.state.id,
        directory=lab.state.directory,
        ready=lab.state.ready,
        accelerator=lab.state.accelerator,
        url=f"https://127.0.0.1:{lab.state.forward_port}" if lab.state.forward_port else "",
        root=str(lab.server.root),
        nodes=tuple(nodes),
    )
