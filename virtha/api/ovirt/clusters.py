"""``/clusters``, ``/datacenters``, ``/clusterlevels``: a data center per cluster, since storage belongs to one cluster here."""

from msgspec import UNSET

from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.listing import gather, listed
from virtha.api.ovirt.route import (
    ADMINISTRATOR,
    Call,
    Reply,
    Route,
    delete,
    get,
    named,
    post,
    put,
    ref,
    searched,
)
from virtha.api.ovirt.search import noun, select
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.unkept import refuse_others
from virtha.control.requests import ClusterChange, ClusterCreate, SearchQuery
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.host import Cluster
from virtha.model.policy import FencingAction, Policy

LEVEL = "4.7"
"""The newest compatibility level that oVirt 4.5 knows; the only one here."""
VERSION: Node = {"major": 4, "minor": 7}
_CUTS = (FencingAction.POWER_OFF, FencingAction.REBOOT)
DATA_CENTERS = noun(
    "Datacenters",
    "datacenter",
    "datacenters",
    "data_centers",
    fields=("name", "id", "description", "status"),
)
_UNKEPT_PATHS = (
    "ha_reservation",
    # What becomes of VMs is said by the policy, for each trouble apart.
    "error_handling.on_error",
    *(
        f"fencing_policy.{name}"
        for name in (
            "skip_if_connectivity_broken.enabled",
            "skip_if_connectivity_broken.threshold",
            "skip_if_gluster_bricks_up",
            "skip_if_gluster_quorum_not_met",
            "skip_if_sd_active.enabled",
        )
    ),
)
CLUSTER, DATA_CENTER = "/clusters/{cluster}", "/datacenters/{data_center}"


async def the_cluster(call: Call, name: str = "cluster") -> Cluster:
    """The cluster, or data center, that the path names, by its id only. Raises NotFound."""
    cluster_id = call.path[name]
    if cluster_id not in call.known.clusters:
        found = await call.control.clusters.get(cluster_id)
        if found.id != cluster_id:
            raise NotFound(f"there is no {name} with the id '{cluster_id[:64]}'")
        call.known.clusters[cluster_id] = found
    return call.known.clusters[cluster_id]


async def cluster_ref(call: Call, body: Node) -> str:
    """Id of the cluster that a body names by id or name. Raises InvalidInput."""
    wanted = str(named(body))
    try:
        return (await call.control.clusters.get(wanted)).id
    except NotFound as error:
        raise InvalidInput(error.message, field="cluster", fix=error.fix) from None


def _by_policy(policy: Policy) -> Node:
    """What is shown of it, and not set from here.

    oVirt does not fence while ``threshold`` percent of the hosts or more are out of reach, we while fewer than
    ``witnesses_percent`` are within it: in whole percents the first that is too many.
    """
    threshold = 101 - policy.fencing.witnesses_percent
    return {
        "ha_reservation": policy.recovery.reserve_hosts > 0,
        "fencing_policy": {
            # Never a switch here: a host whose disks or beats show life is not fenced (J2, J3, J4).
            "skip_if_connectivity_broken": {"enabled": True, "threshold": threshold},
            "skip_if_gluster_bricks_up": False,
            "skip_if_gluster_quorum_not_met": False,
            "skip_if_sd_active": {"enabled": True},
        },
    }


def cluster_node(cluster: Cluster) -> Node:
    shown = _by_policy(cluster.policy)
    links = ("networks", "permissions", "affinitygroups", "cpuprofiles", "enabledfeatures")
    return {
        "id": cluster.id,
        "href": f"/clusters/{cluster.id}",
        "link": [(rel, f"/clusters/{cluster.id}/{rel}") for rel in links],
        "name": cluster.name,
        "description": cluster.description,
        "comment": "",
        "ballooning_enabled": False,
        "cpu": {"architecture": "x86_64", "type": ""},
        "data_center": ref("datacenters", cluster.id),
        "fencing_policy": {
            "enabled": cluster.policy.fencing.action in _CUTS,
            **shown["fencing_policy"],
        },
        "gluster_service": False,
        "ha_reservation": shown["ha_reservation"],
        "version": VERSION,
        "virt_service": True,
    }


def data_center_node(cluster: Cluster) -> Node:
    links = ("clusters", "networks", "permissions", "storagedomains")
    return {
        "id": cluster.id,
        "href": f"/datacenters/{cluster.id}",
        "link": [(rel, f"/datacenters/{cluster.id}/{rel}") for rel in links],
        "name": cluster.name,
        "description": cluster.description,
        "comment": "",
        "local": False,
        "status": "up",
        "storage_format": "v5",
        "supported_versions": [VERSION],
        "version": VERSION,
    }


async def list_clusters(call: Call) -> Reply:
    found = await listed(call.parameters, "Clusters", call.control.clusters.list, SearchQuery())
    call.known.clusters.update({one.id: one for one in found})
    return Reply(shape="cluster", body=[cluster_node(one) for one in found])


async def get_cluster(call: Call) -> Reply:
    return Reply(shape="cluster", body=cluster_node(await the_cluster(call)))


async def add_cluster(call: Call) -> Reply:
    require("cluster", call.body, "name")
    _check_fencing(call.body, None)
    made = await call.control.clusters.create(
        call.caller,
        ClusterCreate(name=call.body["name"], description=call.body.get("description", "")),
    )
    return Reply(shape="cluster", body=cluster_node(made), status=201)


async def change_cluster(call: Call) -> Reply:
    cluster = await the_cluster(call)
    _check_fencing(call.body, cluster)
    change = ClusterChange(
        name=call.body.get("name", UNSET), description=call.body.get("description", UNSET)
    )
    changed = await call.control.clusters.change(call.caller, cluster.id, change)
    return Reply(shape="cluster", body=cluster_node(changed))


def _check_fencing(body: Node, cluster: Cluster | None) -> None:
    """The policy is one document with its own checks and its budget of time: it is not changed piecemeal from here. Raises
    Refused where the body wants another than there is."""
    policy = cluster.policy if cluster is not None else Policy()
    refuse_others(
        body,
        _by_policy(policy),
        *_UNKEPT_PATHS,
        fix="leave it out; what can be set is in the policy: 'virtha policy set CLUSTER FILE'",
    )
    wanted = (body.get("fencing_policy") or {}).get("enabled")
    if wanted is None or wanted == (policy.fencing.action in _CUTS):
        return
    raise Refused(
        "the fencing policy is changed with the whole policy",
        field="fencing_policy.enabled",
        fix="'virtha policy set CLUSTER FILE', fencing.action",
    )


async def remove_cluster(call: Call) -> Reply:
    cluster = await the_cluster(call)
    await call.control.clusters.delete(call.caller, cluster.id)
    return Reply()


async def list_data_centers(call: Call) -> Reply:
    """A cluster's, under its name."""
    found = await gather(
        lambda limit, after: call.control.clusters.list(SearchQuery(limit=limit, after=after))
    )
    call.known.clusters.update({one.id: one for one in found})
    words = [
        (
            {"name": one.name, "id": one.id, "description": one.description, "status": "up"},
            one,
        )
        for one in found
    ]
    chosen = select(DATA_CENTERS, words, call.parameters)
    return Reply(shape="data_center", body=[data_center_node(one) for one in chosen])


async def get_data_center(call: Call) -> Reply:
    cluster = await the_cluster(call, "data_center")
    return Reply(shape="data_center", body=data_center_node(cluster))


async def list_clusters_of(call: Call) -> Reply:
    return Reply(shape="cluster", body=[cluster_node(await the_cluster(call, "data_center"))])


async def refuse_data_center(_call: Call) -> Reply:
    raise not_here(
        "adding or changing a data center", "each cluster has one of its own: add a cluster"
    )


# Levels


def level_node() -> Node:
    return {
        "id": LEVEL,
        "href": f"/clusterlevels/{LEVEL}",
        "name": LEVEL,
        "cpu_types": [],
        "permits": [],
    }


async def list_levels(_call: Call) -> Reply:
    return Reply(shape="cluster_level", body=[level_node()])


async def get_level(call: Call) -> Reply:
    if call.path["level"] != LEVEL:
        raise NotFound(f"there is no level '{call.path['level'][:16]}'", fix=f"{LEVEL} is")
    return Reply(shape="cluster_level", body=level_node())


ROUTES: tuple[Route, ...] = (
    searched("/clusters", list_clusters),
    post("/clusters", add_cluster, "cluster", ADMINISTRATOR, everywhere=True),
    get(CLUSTER, get_cluster),
    put(CLUSTER, change_cluster, "cluster", ADMINISTRATOR),
    delete(CLUSTER, remove_cluster, ADMINISTRATOR),
    searched("/datacenters", list_data_centers),
    post("/datacenters", refuse_data_center, "data_center", ADMINISTRATOR, everywhere=True),
    get(DATA_CENTER, get_data_center),
    put(DATA_CENTER, refuse_data_center, "data_center", ADMINISTRATOR),
    delete(DATA_CENTER, refuse_data_center, ADMINISTRATOR),
    get(f"{DATA_CENTER}/clusters", list_clusters_of),
    get("/clusterlevels", list_levels),
    get("/clusterlevels/{level}", get_level),
)
