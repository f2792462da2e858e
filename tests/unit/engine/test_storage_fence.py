"""The storage fence: who is asked, what counts as done, what it proves, and when it is lifted (P3, ADR 20)."""

import msgspec
import pytest
from ceph_plays import C1, cut, dies, fenced, fences, lifts, playing, run_all, sight, starts, thaws
from engine_driver import Play, on_ceph

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.cutting import StorageFenced, StorageLetIn, StorageOpened
from virtha.engine.events import (
    DeathConfirmed,
    HoldChanged,
    HostRemoved,
    StorageFence,
    VmConfigured,
)
from virtha.engine.machine import Verdict
from virtha.model.ceph import CephEpoch, CephSight
from virtha.model.facts import Result
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.policy import FencingPolicy, Policy
from virtha.model.proof import ProofKind


def waits(play: Play, why: str) -> None:
    """For good, as far as this fence goes."""
    dies(play)
    play.until(lambda: "fence.failed" in play.told())
    play.advance(60_000)
    assert why in play.why("h1")
    assert fences(play) == [] and starts(play) == [] and play.shut_out == set()


# What it does


def test_a_host_whose_power_device_is_dead_is_shut_out_and_its_vm_starts_elsewhere():
    play = playing()
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: play.where("v1") != [])
    (order,) = fences(play)
    assert order.addresses == ("10.0.0.1",) and order.helper != "h1" and order.fsid == C1
    (start,) = starts(play)
    assert [proof.kind for proof in start.proofs] == [ProofKind.STORAGE_FENCE]
    assert start.proofs[0].maps == (CephEpoch(fsid=C1, epoch=101),)
    assert start.proofs[0].domain_ids == ("rbd1",)
    assert play.told().index("fence.storage.done") < play.told().index("host.proven_dead")


def test_it_is_off_by_default():
    play = playing(policy=Policy(fencing=FencingPolicy()))
    dies(play)
    play.advance(300_000)
    assert fences(play) == [] and starts(play) == []


def test_nothing_is_proven_by_what_was_only_ordered():
    play = playing()
    for host in play.hosts.values():
        host.fences = None
    dies(play)
    play.until(lambda: fences(play) != [])
    play.advance(120_000)
    assert starts(play) == [] and play.verdict("h1") is not Verdict.DEAD_PROVEN
    assert "fence.storage.waiting" in play.why("h1") or "fence.storage.no_helper" in play.why("h1")


@pytest.mark.parametrize(
    ("fsid", "addresses", "epoch"),
    [
        (C1, ("10.0.0.1",), 7),
        ("another", ("10.0.0.1", "10.1.0.1"), 7),
        (C1, (), 7),
        (C1, ("10.0.0.1", "10.1.0.1"), 0),
    ],
)
def test_an_answer_that_does_not_have_all_of_it_proves_nothing(fsid, addresses, epoch):
    play = playing()
    host = play.hosts["h1"]
    host.ceph = {
        StorageDomainId("rbd1"): CephSight(
            boot=host.boot, fsid=C1, addresses=("10.0.0.1", "10.1.0.1")
        )
    }
    play.survey(host)
    play.on_command = lambda command: isinstance(command, StorageFence)
    dies(play)
    play.until(lambda: fences(play) != [])
    (order,) = fences(play)
    assert order.addresses == ("10.0.0.1", "10.1.0.1")
    play.inbox.append(
        StorageFenced(
            order_id=order.order_id,
            host_id=HostId("h1"),
            helper=order.helper,
            result=Result.OK,
            fsid=fsid,
            addresses=addresses,
            epoch=epoch,
            until_s=2_000_000_000,
        )
    )
    play.advance(20_000)
    assert starts(play) == [] and "fence.storage.failed" in play.told()
    play.on_command = None
    host.running.clear()
    play.until(lambda: play.where("v1") != [])


def test_addresses_that_it_had_earlier_in_this_boot_are_shut_out_too():
    """A QEMU that was started before its address changed has the former one yet."""
    play = playing()
    host = play.hosts["h1"]
    host.ceph = {
        StorageDomainId("rbd1"): CephSight(boot=host.boot, fsid=C1, addresses=("10.0.0.77",))
    }
    play.survey(host)
    dies(play)
    play.until(lambda: fences(play) != [])
    assert fences(play)[0].addresses == ("10.0.0.1", "10.0.0.77")


def test_addresses_of_a_former_boot_fence_nothing():
    play = playing(run=False)
    host = play.hosts["h1"]
    host.boot_again()
    play._greet(host)  # and the store has yet what the former boot told
    play.advance(5_000)
    waits(run_all(play), "fence.storage.unknown_addresses")


def test_a_vm_with_a_disk_elsewhere_waits():
    play = playing(on_ceph("v1", "rbd1", "ds1"))
    waits(play, "fence.storage.elsewhere")


def test_one_vm_with_a_disk_elsewhere_keeps_the_others():
    """A proof is about the whole host."""
    play = playing(on_ceph("v1"), on_ceph("v2", "ds1"))
    waits(play, "fence.storage.elsewhere")


def two_clusters(*vms) -> Play:
    play = playing(*vms, domains=("rbd1", "rbd2"), run=False)
    play.tell_ceph("rbd2", fsid="cluster-2")
    return play


def told_both(play: Play) -> Play:
    """In a boot in which each domain was told to be in one cluster only."""
    for host in play.hosts.values():
        host.boot_again()
        play._greet(host)
        host.ceph = {
            key: msgspec.structs.replace(one, boot=host.boot) for key, one in host.ceph.items()
        }
        play.survey(host)
    play.advance(5_000)
    return run_all(play)


def test_a_vm_with_disks_in_two_clusters_waits():
    waits(told_both(two_clusters(on_ceph("v1", "rbd1", "rbd2"))), "fence.storage.two_clusters")


def test_a_domain_that_was_told_to_be_in_two_clusters_is_in_neither():
    waits(run_all(two_clusters(on_ceph("v1", "rbd2"))), "fence.storage.unknown_addresses")


def test_two_vms_in_two_clusters_start_once_it_is_shut_out_of_both():
    play = fenced(told_both(two_clusters(on_ceph("v1", "rbd1"), on_ceph("v2", "rbd2"))))
    assert {one.fsid for one in fences(play)} == {C1, "cluster-2"}
    (proof,) = play.host_record("h1").incident.proofs
    assert {one.fsid for one in proof.maps} == {C1, "cluster-2"}
    assert proof.domain_ids == ("rbd1", "rbd2")


def test_a_host_behind_nat_is_not_shut_out_also_when_it_was_so_only_for_a_while():
    play = playing()
    host = play.hosts["h1"]
    for obstacle in ("it is behind NAT", ""):
        host.ceph = {StorageDomainId("rbd1"): sight(host, obstacle=obstacle)}
        play.survey(host)
        play.tick()
    waits(play, "fence.storage.obstacle")


def test_an_address_that_another_host_has_by_now_is_not_shut_out():
    play = playing()
    other = play.hosts["h3"]
    other.ceph = {
        StorageDomainId("rbd1"): CephSight(boot=other.boot, fsid=C1, addresses=("10.0.0.1",))
    }
    play.survey(other)
    waits(play, "fence.storage.shared_address")


def test_a_cluster_without_power_devices_has_it_too():
    play = playing()
    play.levels = 0
    play.configs = [play._config(host) for host in play.hosts.values()]
    play._configure()
    play.tick()
    fenced(play)
    assert play.offs() == [] and len(fences(play)) == 1


# Before the first order


def test_a_hold_a_brake_and_an_observer_that_is_cut_off_keep_it_back():
    play = playing()
    dies(play)
    attempts = play.policy.fencing.attempts_per_device
    play.until(lambda: len(play.offs()) == attempts)
    play.inbox.append(HoldChanged(reason="work"))
    play.advance(120_000)
    assert fences(play) == []
    play.inbox.append(HoldChanged(reason=None))
    play.hosts["h1"].running.clear()
    play.until(lambda: play.where("v1") != [])


def test_it_waits_for_the_brake():
    play = playing(hosts=7)
    for host in ("h1", "h2", "h3"):
        dies(play, host)
    play.advance(50_000)
    assert "fence.brake.tripped" in play.told()
    assert fences(play) == [] or "fence.brake.lifted" in play.told()


# Helpers


def test_a_helper_that_does_not_answer_is_followed_by_another():
    play = playing()
    for host in play.hosts.values():
        host.fences = None
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: fences(play) != [])
    first = fences(play)[0].helper
    for host in play.hosts.values():
        if host.id != first:
            host.fences = Result.OK
    play.until(lambda: play.where("v1") != [])
    second = fences(play)[1].helper
    assert second != first
    assert [one.host_id for one in cut(play).asked] == [first]


def test_one_whose_key_does_not_permit_it_is_asked_when_nobody_else_is_left():
    """What it told may be ten minutes old."""
    play = playing()
    for name in ("h2", "h4"):
        host = play.hosts[name]
        host.ceph = {StorageDomainId("rbd1"): msgspec.structs.replace(sight(host), lacks="no cap")}
        play.survey(host)
    dies(play)
    play.hosts["h1"].running.clear()
    play.hosts["h3"].fences = None
    play.until(lambda: play.where("v1") != [])
    assert [one.helper for one in fences(play)] == ["h3", "h2"]


def test_one_that_may_not_is_followed_by_another_at_once():
    play = playing()
    for host in play.hosts.values():
        host.fences = Result.REFUSED
    dies(play)
    play.until(lambda: fences(play) != [])
    began = play.now
    play.until(lambda: len(fences(play)) == 3)
    assert play.now - began < 1_000
    play.advance(20_000)
    assert len(fences(play)) == 3, "asked again without a pause"
    assert play.told().count("fence.storage.failed") == 1
    assert starts(play) == []


def test_a_new_leader_goes_on_and_takes_nothing_for_done():
    play = playing()
    for host in play.hosts.values():
        host.fences = None
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: fences(play) != [])
    for host in play.hosts.values():
        host.fences = Result.OK
    play.new_leader()
    play.until(lambda: play.where("v1") != [])
    assert len(fences(play)) >= 2


def test_a_new_leader_believes_what_was_read_back():
    play = fenced(playing())
    play.new_leader()
    play.advance(120_000)
    assert len(fences(play)) == 1 and play.verdict("h1") is Verdict.DEAD_PROVEN


# It lives all the same


def test_it_lives_and_that_is_no_alarm_and_no_way_back():
    play = fenced(playing())
    where = play.where("v1")
    thaws(play)
    assert play.verdict("h1") is Verdict.DEAD_PROVEN and play.where("v1") == where
    assert play.told().count("host.lives_cut_off") == 1
    assert "host.alive_though_proven_dead" not in play.told()
    assert lifts(play) == [], "lifted for the same boot"
    play.new_leader()
    play.advance(60_000)
    assert lifts(play) == [] and play.told().count("host.lives_cut_off") == 1
    assert ("cluster-1", "10.0.0.1") in play.shut_out


def test_one_that_comes_back_while_it_is_being_shut_out_is_gone_through_with():
    """Whoever was asked may have done it, so its VMs may write nothing more: they start elsewhere."""
    play = playing()
    for host in play.hosts.values():
        host.fences = None
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: fences(play) != [])
    thaws(play)
    assert play.host_record("h1").incident is not None
    for host in play.hosts.values():
        host.fences = Result.OK
    play.until(lambda: play.where("v1") not in ([], ["h1"]))


def test_one_that_comes_back_before_anybody_was_asked_is_left_alone():
    play = playing()
    for host in play.hosts.values():
        host.fences = Result.REFUSED
    dies(play)
    play.until(lambda: "fence.storage.failed" in play.told())
    play.hosts["h1"].bmc_dead = False
    thaws(play)
    play.advance(60_000)
    assert play.host_record("h1").incident is None
    play.until(lambda: play.host_record("h1").cuts == ())
    assert play.where("v1") == ["h1"]


def test_a_wrong_word_of_the_operator_leaves_it_shut_out_until_it_boots_whatever_the_policy_says():
    """P6: beside the word whatever can keep a living copy from writing is done, for the word may be wrong. Nothing is proven by
    the fence, and what the word ended is held again; so somebody has to know why it stands still."""
    play = playing(policy=Policy(fencing=FencingPolicy()))
    dies(play)
    play.until(lambda: "fence.failed" in play.told())
    play.inbox.append(VmConfigured(vm=msgspec.structs.replace(on_ceph("v1"), ha=False)))
    play.tick()
    assert fences(play) == []
    incident = play.host_record("h1").incident
    word = DeathConfirmed(
        host_id=HostId("h1"),
        boot=incident.boot,
        incident=incident.number,
        by="admin",
        force_reason="seen",
    )
    play.inbox.append(word)
    play.advance(5_000)
    assert len(fences(play)) == 1 and (C1, "10.0.0.1") in play.shut_out
    thaws(play)
    assert play.host_record("h1").incident is None
    told = play.told()
    assert told.index("host.alive_though_proven_dead") < told.index("host.lives_cut_off")
    assert "vm.lives_after_all" in told and "host.shut_out" in play.why("h1")
    assert lifts(play) == []
    boots(play)
    play.until(lambda: play.host_record("h1").cuts == ())
    assert play.shut_out == set()


# Letting it in


def boots(play: Play) -> None:
    host = play.hosts["h1"]
    host.boot_again()
    host.bmc_dead = False
    host.ceph = {StorageDomainId("rbd1"): sight(host)}
    play._greet(host)


def test_it_is_let_in_after_its_next_boot_and_is_no_target_before():
    play = fenced(playing())
    play.on_command = lambda command: isinstance(command, StorageLetIn)
    boots(play)
    play.until(lambda: lifts(play) != [])
    (order,) = lifts(play)
    assert (order.boot, order.runs) == ("h1b1", "h1b2") and order.until_s == 2_000_000_000
    assert "host.shut_out" in play.why("h1")
    for other in ("h2", "h3", "h4"):
        assert Feature(FeatureKind.STORAGE, "rbd1") in _target(play, other)
    assert Feature(FeatureKind.STORAGE, "rbd1") not in _target(play, "h1")
    play.on_command = None
    play.until(lambda: play.host_record("h1").cuts == ())
    assert play.shut_out == set() and "fence.storage.lifted" in play.told()
    assert Feature(FeatureKind.STORAGE, "rbd1") in _target(play, "h1")
    assert "host.shut_out" not in play.why("h1")


def _target(play: Play, host: str) -> frozenset[Feature]:
    target = play.engine._cluster.capacity.target(HostId(host))
    assert target is not None
    return target.features


def test_who_may_still_let_it_in_keeps_its_next_fence_from_proving_anything():
    """The helper froze in the midst of the order, another one did it; the host dies again. What thaws would open to it
    what it was shut out of: that very helper has to answer first."""
    play = fenced(playing())
    for host in play.hosts.values():
        host.fences = None
    boots(play)
    play.until(lambda: lifts(play) != [])
    frozen = lifts(play)[0].helper
    for host in play.hosts.values():
        if host.id != frozen:
            host.fences = Result.OK
    play.until(lambda: "fence.storage.lifted" in play.told())
    assert [one.host_id for one in cut(play).lifting] == [frozen]
    play.inbox.append(VmConfigured(vm=on_ceph("v9")))
    play.run("v9", "h1")  # so that its death is somebody's business
    play.forget_commands()
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: fences(play) != [])
    play.advance(120_000)
    assert play.host_record("h1").incident.proof is None, "proven while somebody may let it in"
    play.hosts[frozen].fences = Result.OK
    play.until(lambda: play.host_record("h1").incident.proof is not None)
    assert fences(play)[-1].helper == frozen


def test_one_that_was_asked_to_shut_it_out_and_does_so_late_makes_it_let_in_again():
    play = playing()
    for host in play.hosts.values():
        host.fences = None
    dies(play)
    play.hosts["h1"].running.clear()
    play.until(lambda: fences(play) != [])
    late = fences(play)[0]
    for host in play.hosts.values():
        if host.id != late.helper:
            host.fences = Result.OK
    play.until(lambda: play.where("v1") != [])
    boots(play)
    play.until(lambda: "fence.storage.lifted" in play.told())
    play.forget_commands()
    play.shut_out.add((C1, "10.0.0.1"))
    play.inbox.append(
        StorageFenced(
            order_id=late.order_id,
            host_id=HostId("h1"),
            helper=late.helper,
            result=Result.OK,
            fsid=C1,
            addresses=late.addresses,
            epoch=999,
            until_s=2_000_000_000,
        )
    )
    play.until(lambda: play.shut_out == set())


def test_a_host_that_is_removed_is_told_of_and_let_in_by_nobody():
    play = fenced(playing())
    play.inbox.append(HostRemoved(host_id=HostId("h1")))
    play.advance(60_000)
    (told,) = [one for one in play.notices if one.code == "fence.storage.left"]
    assert told.fields["addresses"] == "10.0.0.1" and lifts(play) == []


def test_a_lift_that_failed_is_asked_for_again():
    play = fenced(playing())
    for host in play.hosts.values():
        host.fences = Result.FAILED
    boots(play)
    play.until(lambda: "fence.storage.failed" in play.told())
    play.advance(20_000)
    assert play.shut_out != set()
    for host in play.hosts.values():
        host.fences = Result.OK
    play.until(lambda: play.host_record("h1").cuts == ())
    assert play.shut_out == set()


def test_an_answer_to_an_order_that_nobody_gave_changes_nothing():
    play = fenced(playing())
    before = play.host_record("h1").cuts
    for kind in (StorageFenced, StorageOpened):
        play.inbox.append(
            kind(order_id="9.9", host_id=HostId("h1"), helper=HostId("h2"), result=Result.OK)
        )
    play.tick()
    assert play.host_record("h1").cuts == before
