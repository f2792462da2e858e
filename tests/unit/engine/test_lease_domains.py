"""A lease on one storage domain says nothing about a VM with a disk in another (P2): the engine names all domains of the
host's copies, and takes a proof for what it is about."""

import pytest
from engine_driver import Play, vm

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.events import (
    DeathConfirmed,
    Poison,
    ProofFound,
    SaveVm,
    StartCommand,
    VmConfigured,
    VmSeen,
)
from virtha.engine.records import VmRecord
from virtha.model.evidence import IdentityMatch
from virtha.model.ids import HostId, Incarnation, StorageDomainId, VmId
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import PossibleCopy, VmState

pytestmark = pytest.mark.req("F9")


def on(*domains: str) -> frozenset[Feature]:
    return frozenset(Feature(FeatureKind.STORAGE, name) for name in domains)


def poisoned() -> Play:
    """h1 is dark and has no power device; v1 has disks on a and b, v2 on b."""
    play = Play(4, levels=0, vms=[vm("v1", features=on("ds1", "b")), vm("v2", features=on("b"))])
    for name in ("v1", "v2"):
        play.run(name, "h1")
    play.hosts["h1"].cut()
    play.until(lambda: play.sent(Poison) != [])
    return play


def last_poison(play: Play) -> Poison:
    sent = play.sent(Poison)[-1]
    assert isinstance(sent, Poison)
    return sent


def lease(play: Play, *domains: str) -> None:
    incident = play.host_record("h1").incident
    assert incident is not None
    play.inbox.append(
        ProofFound(
            proof=Proof(
                kind=ProofKind.LEASE,
                host_id=HostId("h1"),
                boot=incident.boot,
                at_ms=play.now,
                domain_ids=tuple(StorageDomainId(one) for one in domains),
            )
        )
    )
    play.tick()


def test_all_domains_of_the_hosts_copies_are_named():
    play = poisoned()
    assert last_poison(play).domain_ids == {"ds1", "b"}
    assert len(play.sent(Poison)) == 1


@pytest.mark.parametrize("domains", [(), ("ds1",), ("b",), ("b", "c")])
def test_a_proof_that_leaves_one_out_is_none_and_the_rest_is_asked_for(domains: tuple[str, ...]):
    play = poisoned()
    lease(play, *domains)
    play.advance(5_000)
    assert play.host_record("h1").incident.proof is None
    assert play.sent(StartCommand) == []
    assert last_poison(play).domain_ids == {"ds1", "b"} and len(play.sent(Poison)) == 2


def test_one_that_names_all_is_proof():
    play = poisoned()
    lease(play, "b", "ds1", "c")
    assert "host.proven_dead" in play.told()
    assert {one.vm_id for one in play.sent(StartCommand) if isinstance(one, StartCommand)} <= {
        "v1",
        "v2",
    }
    assert play.vm_record("v1").copies == () or play.vm_record("v1").start is not None


def test_a_copy_that_came_to_light_after_the_poison_counts_too():
    """v3 has a disk on c, and h1 said that it holds it right before it was judged."""
    play = poisoned()
    late = vm("v3", features=on("c"))
    play.inbox.append(VmConfigured(vm=late))
    played = play.hosts["h1"]
    play.inbox.append(
        VmSeen(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId("v3"),
            incarnation=Incarnation(1),
            state=VmState.RUNNING,
        )
    )
    play.tick()
    lease(play, "b", "ds1")
    assert last_poison(play).domain_ids == {"ds1", "b", "c"}
    assert "host.proven_dead" not in play.told()
    lease(play, "b", "ds1", "c")
    assert "host.proven_dead" in play.told()


def test_a_vm_that_is_read_after_its_hosts_proof_is_not_covered_by_it():
    """A leader reads hosts first. What it then reads of a VM elsewhere was not asked about."""
    play = poisoned()
    lease(play, "b", "ds1")
    record = play.host_record("h1")
    copy = PossibleCopy(host_id=record.host_id, incarnation=Incarnation(1), boot=record.boot)
    other = VmRecord(vm_id=VmId("v3"), incarnation=Incarnation(1), copies=(copy,))
    play.saved["vm v3"] = SaveVm(record=other)
    play.vms.append(vm("v3", features=on("c")))
    play.new_leader()
    play.advance(30_000)
    assert all(start.vm_id != "v3" for start in play.sent(StartCommand))
    assert [copy.host_id for copy in play.vm_record("v3").copies] == ["h1"]


def test_the_operators_word_poisons_all_of_them():
    play = Play(3, levels=0, vms=[vm("v1", features=on("ds1", "b"), ha=False)])
    play.run("v1", "h1")
    play.hosts["h1"].bmc_identity = IdentityMatch.MATCH
    play.hosts["h1"].cut()
    play.until(lambda: play.host_record("h1").incident is not None)
    play.advance(70_000)
    incident = play.host_record("h1").incident
    assert incident is not None and play.sent(Poison) == []
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h1"), boot=incident.boot, incident=incident.number, by="admin"
        )
    )
    play.tick()
    assert last_poison(play).domain_ids == {"ds1", "b"}
