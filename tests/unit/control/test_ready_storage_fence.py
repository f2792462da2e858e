"""Whether a host could be shut out of Ceph is told before it is needed (X5, P3)."""

import pytest
from msgspec.structs import replace

from virtha.control.ready_storage_fence import storage_fence_lacks
from virtha.engine.records import HostRecord, SeenByCeph
from virtha.model.codes import REGISTRY
from virtha.model.host import Host
from virtha.model.ids import BootId, ClusterId, HostId, StorageDomainId
from virtha.model.policy import FencingPolicy, Policy, Unreachable

pytestmark = pytest.mark.req("X5")

ON = Policy(fencing=FencingPolicy(unreachable=(Unreachable.STORAGE_FENCE, Unreachable.OPERATOR)))
HOST = Host(id=HostId("h1"), name="node1", number=1, cluster_id=ClusterId("c1"))
BOOT, RBD, NFS = BootId("b1"), StorageDomainId("rbd1"), StorageDomainId("nfs1")
SEEN = SeenByCeph(boot=BOOT, domain_id=RBD, fsid="f", addresses=("10.0.0.1",))


def lacks(*ceph: SeenByCeph, policy: Policy = ON, usable=(RBD,), boot=BOOT) -> list[str]:
    found = storage_fence_lacks(
        HOST,
        boot,
        HostRecord(host_id=HOST.id, ceph=ceph),
        policy=policy,
        usable={one: str(one) for one in usable},
        on_ceph={RBD},
    )
    for one in found:
        assert set(REGISTRY[one.code].fields) == set(one.fields)
    return [one.code for one in found]


def test_one_that_told_its_addresses_lacks_nothing():
    assert lacks(SEEN) == [] and lacks(SEEN, usable=(RBD, NFS)) == []


def test_where_nobody_counts_on_it_nothing_is_said():
    assert lacks(policy=Policy()) == [] and lacks(boot=None) == []


@pytest.mark.parametrize("ceph", [(), (replace(SEEN, boot=BootId("b0")),)], ids=["none", "old"])
def test_one_that_told_none_in_this_boot_is_named(ceph):
    assert lacks(*ceph) == ["ready.storage_fence.unknown"]


def test_what_speaks_against_it_is_named():
    assert lacks(replace(SEEN, obstacle="NAT")) == ["ready.storage_fence.obstacle"]


def test_a_key_that_does_not_permit_it_is_named():
    both = replace(SEEN, obstacle="NAT", lacks="client.virtha may not")
    assert lacks(replace(SEEN, lacks="no")) == ["ready.storage_fence.permission"]
    assert lacks(both) == ["ready.storage_fence.obstacle", "ready.storage_fence.permission"]
    assert lacks(both, policy=Policy()) == []


def test_one_without_storage_on_ceph_is_named():
    assert lacks(usable=(NFS,)) == ["ready.storage_fence.none"] and lacks(usable=()) == []
