"""``/networks`` and ``/vnicprofiles``: the bridges that hosts report, one network and one profile each, per cluster."""

from collections.abc import Sequence
from uuid import UUID, uuid5

from msgspec import UNSET, UnsetType

from virtha.api.ovirt.clusters import CLUSTER, DATA_CENTER, the_cluster
from virtha.api.ovirt.route import Call, Reply, Route, get, ref, searched
from virtha.api.ovirt.search import noun, select
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.unkept import refuse_others
from virtha.control.requests import NicCreate
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.ids import ClusterId

NETWORK, PROFILE = "/networks/{network}", "/vnicprofiles/{vnic_profile}"
Bridge = tuple[ClusterId, str]
"""Cluster's id, and the bridge's name."""
NETWORKS = noun("Networks", "network", fields=("name", "id"))


def network_id(cluster_id: str, bridge: str) -> str:
    """The same for as long as there is such a bridge: nothing of it is kept."""
    return str(uuid5(UUID(cluster_id), f"network {bridge}"))


def profile_id(cluster_id: str, bridge: str) -> str:
    return str(uuid5(UUID(cluster_id), f"profile {bridge}"))


async def bridges(call: Call) -> tuple[Bridge, ...]:
    """Of all hosts, each once, sorted by name."""
    if call.known.bridges is None:
        found = await call.control.hosts.bridges()
        call.known.bridges = tuple(sorted(found, key=lambda one: (one[1], one[0])))
    return call.known.bridges


# What a card's body says


async def nics_of(call: Call, cluster_id: str, body: Node) -> tuple[NicCreate, ...] | UnsetType:
    """Of a VM's. An empty list says nothing: the SDK writes back what it read, ``<nics href=…/>``."""
    if not body.get("nics"):
        return UNSET
    return tuple([await nic_of(call, cluster_id, one) for one in body["nics"]])


async def nic_of(call: Call, cluster_id: str, body: Node) -> NicCreate:
    """Raises InvalidInput, Refused."""
    refuse_others(body, {"linked": True, "plugged": True}, "linked", "plugged", within="nic.")
    return NicCreate(
        bridge=await _bridge_of(call, cluster_id, body),
        mac=(body.get("mac") or {}).get("address") or None,
        model=body.get("interface") or "virtio",
        name=body.get("name") or None,
    )


async def _bridge_of(call: Call, cluster_id: str, body: Node) -> str:
    """The profile goes before the network, as in oVirt, and of each the id before the name: a name beside it is only what
    was read with it. Of a cluster whose hosts have said nothing yet any name may be right."""
    there = [bridge for cluster, bridge in await bridges(call) if cluster == cluster_id]
    for field in ("vnic_profile", "network"):
        said = body.get(field) or {}
        wanted, name = said.get("id"), said.get("name")
        text = wanted or name
        if not text:
            continue
        # Profiles and networks are the same thing here, and clients mix their ids up.
        ids = {make(cluster_id, it): it for it in there for make in (profile_id, network_id)}
        found = ids.get(wanted) if wanted else (name if name in there or not there else None)
        if found is None:
            raise InvalidInput(
                f"'{text[:64]}' is no network of the cluster",
                field=f"nic.{field}",
                allowed=tuple(there),
            )
        return found
    raise InvalidInput(
        "is missing", field="nic.network.name", fix="name a bridge of the hosts, such as br0"
    )


def network_node(one: Bridge) -> Node:
    cluster_id, bridge = one
    identifier = network_id(*one)
    return {
        **ref("networks", identifier),
        "link": [("vnicprofiles", f"/networks/{identifier}/vnicprofiles")],
        "name": bridge,
        "description": f"bridge {bridge} of the hosts",
        "data_center": ref("datacenters", cluster_id),
        "status": "operational",
        "usages": ["vm"],
    }


def profile_node(one: Bridge) -> Node:
    return {
        **ref("vnicprofiles", profile_id(*one)),
        "name": one[1],
        "description": f"bridge {one[1]} of the hosts",
        "network": ref("networks", network_id(*one)),
    }


async def list_networks(call: Call) -> Reply:
    words = [({"name": one[1], "id": network_id(*one)}, one) for one in await bridges(call)]
    chosen = select(NETWORKS, words, call.parameters)
    return Reply(shape="network", body=[network_node(one) for one in chosen])


async def list_of_cluster(call: Call) -> Reply:
    cluster = await the_cluster(call)
    return _of(cluster.id, await bridges(call))


async def list_of_data_center(call: Call) -> Reply:
    cluster = await the_cluster(call, "data_center")
    return _of(cluster.id, await bridges(call))


def _of(cluster_id: str, found: Sequence[Bridge]) -> Reply:
    return Reply(shape="network", body=[network_node(one) for one in found if one[0] == cluster_id])


async def _network(call: Call) -> Bridge:
    for one in await bridges(call):
        if network_id(*one) == call.path["network"]:
            return one
    raise NotFound(f"there is no network with the id '{call.path['network'][:64]}'")


async def get_network(call: Call) -> Reply:
    return Reply(shape="network", body=network_node(await _network(call)))


async def list_profiles(call: Call) -> Reply:
    return Reply(shape="vnic_profile", body=[profile_node(one) for one in await bridges(call)])


async def list_profiles_of(call: Call) -> Reply:
    return Reply(shape="vnic_profile", body=[profile_node(await _network(call))])


async def get_profile(call: Call) -> Reply:
    for one in await bridges(call):
        if profile_id(*one) == call.path["vnic_profile"]:
            return Reply(shape="vnic_profile", body=profile_node(one))
    raise NotFound(f"there is no profile with the id '{call.path['vnic_profile'][:64]}'")


ROUTES: tuple[Route, ...] = (
    searched("/networks", list_networks),
    get(NETWORK, get_network),
    get(f"{NETWORK}/vnicprofiles", list_profiles_of),
    get("/vnicprofiles", list_profiles),
    get(PROFILE, get_profile),
    get(f"{CLUSTER}/networks", list_of_cluster),
    get(f"{DATA_CENTER}/networks", list_of_data_center),
)
