"""What a host is told of the installation: everything that it needs to act alone."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from virtha.control.copies import held_incarnation
from virtha.model.host import Cluster
from virtha.model.ids import ClusterId, HostId, VmId
from virtha.model.orders import HeldVm, HostSettings
from virtha.store.clusters import find_cluster, storage_of_cluster
from virtha.store.hosts import HostRow
from virtha.store.installations import the_installation
from virtha.store.store import Transaction
from virtha.store.vms import vms_of_cluster


async def settings_for(
    tx: Transaction, cluster_id: ClusterId, hosts: Iterable[HostRow]
) -> dict[HostId, HostSettings]:
    """For hosts of one cluster, from one snapshot; the VMs are read once for all of them."""
    row = await the_installation(tx)
    cluster = await find_cluster(tx, cluster_id)
    assert isinstance(cluster, Cluster), f"host of unknown cluster {cluster_id}"
    domains = await storage_of_cluster(tx, cluster_id)
    vms = await vms_of_cluster(tx, cluster_id)
    ids = tuple(one.vm.id for one in vms)
    # Of each host the places of its VMs among all: a cluster has many more than a host, and each change is told to all hosts.
    held: defaultdict[HostId, list[int]] = defaultdict(list)
    for place, one in enumerate(vms):
        for holder in one.status.holders:
            held[holder].append(place)
    made: dict[HostId, HostSettings] = {}
    for host in hosts:
        host_id = host.host.id
        places = held.get(host_id, [])
        made[host_id] = HostSettings(
            revision=row.revision,
            installation_id=row.installation.id,
            term=row.term,
            hold=row.installation.hold,
            policy=cluster.policy,
            storage_domains=domains,
            vms=tuple(
                HeldVm(
                    vm=one.vm,
                    incarnation=held_incarnation(one.status, host_id),
                    wanted_up=one.status.wanted_up,
                )
                for one in (vms[place] for place in places)
            ),
            foreign_vms=_without(ids, places),
        )
    return made


def _without(ids: tuple[VmId, ...], places: Sequence[int]) -> tuple[VmId, ...]:
    """``places``: rising."""
    between = zip((-1, *places), (*places, len(ids)), strict=True)
    return tuple(chain.from_iterable(ids[after + 1 : before] for after, before in between))
