"""Whether, and where, this host lets VMs of other hosts in."""

from virtha.agent.identity import Identity
from virtha.agent.paths import AgentPaths
from virtha.agent.properties import AgentProperties
from virtha.model.orders import MoveDestination

NAME = "{host_id}.migration.virtha"
"""In a host's migration certificate. No address: a host is known by its id, wherever it is reached."""


def destination(
    paths: AgentPaths, properties: AgentProperties, identity: Identity
) -> MoveDestination | None:
    """None: it was not set up. Whether libvirt listens there is seen by whoever comes."""
    address = properties.migration_address
    if not address or not (paths.migration / "server-cert.pem").exists():
        return None
    in_uri = f"[{address}]" if ":" in address else address
    return MoveDestination(
        address=address,
        name=NAME.format(host_id=identity.host_id),
        serial_directory=str(paths.serial),
        data_uri=f"tcp://{in_uri}",
    )
