"""A host that is removed while VMs may run there: they wait and say for what, somebody is told once, and the operator's word
(P6), the host's return or a proof of another judge ends it."""

import msgspec
import pytest
from engine_driver import Play
from engine_review_driver import playing, released

from virtha.engine.events import (
    CopyGranted,
    DeathConfirmed,
    EndCopy,
    HostConfigured,
    HostRemoved,
    Poison,
    ProofFound,
    SaveHost,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import HostRecord, Incident, VmStage
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.proof import Proof, ProofKind

pytestmark = pytest.mark.req("F9", "X1")


def remove(play: Play, name: str = "h1") -> None:
    """Its VMs run on: nobody ended them."""
    play.inbox.append(HostRemoved(host_id=HostId(name)))
    play.configs = [one for one in play.configs if one.host_id != name]
    host = play.hosts[name]
    host.beating = False
    play.tick()


def incident_of(play: Play, name: str = "h1") -> Incident:
    incident = play.host_record(name).incident
    assert incident is not None
    return incident


def confirm(play: Play, name: str = "h1", **changes: object) -> None:
    incident = incident_of(play, name)
    word = DeathConfirmed(
        host_id=HostId(name),
        boot=incident.boot,
        incident=incident.number,
        by="admin",
        force_reason="I pulled its plug",
    )
    play.inbox.append(msgspec.structs.replace(word, **changes))
    play.tick()


def back(play: Play, name: str = "h1") -> None:
    host = play.hosts[name]
    play.configs.append(play._config(host))
    play.inbox.append(HostConfigured(host=play.configs[-1]))
    play._greet(host)
    host.beating = True


def saved(play: Play, name: str = "h1") -> HostRecord:
    intent = play.saved[f"host {name}"]
    assert isinstance(intent, SaveHost)
    return intent.record


def test_its_vms_say_what_they_wait_for_and_somebody_is_told_once():
    play = playing()
    remove(play)
    play.advance(120_000)
    assert play.why_vm("v1") == ["recovery.waiting.removed"]
    assert play.engine.explain_vm(VmId("v1"))[0].fields == {"hosts": "h1"}
    assert play.sent(StartCommand) == []
    told = [one for one in play.notices if one.code == "host.removed_unproven"]
    assert [(one.host_id, one.incident, one.fields["vms"]) for one in told] == [
        ("h1", incident_of(play).number, "v1")
    ]


def test_a_host_with_nothing_on_it_goes_without_a_word():
    play = playing()
    remove(play, "h4")
    play.advance(10_000)
    assert "host.removed_unproven" not in play.told()
    assert play.host_record("h4").incident is None


def test_the_operators_word_frees_them():
    play = playing()
    play.tell_ceph("rbd1")
    remove(play)
    play.advance(61_000)
    play.hosts["h1"].cut()
    confirm(play)
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=5_000)
    assert play.sent(Poison) != [] and play.shut_out == {("cluster-1", "10.0.0.1")}
    assert "host.proven_dead" in play.told()
    assert "h1b1" in saved(play).dead_boots


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes", [{"boot": BootId("h1b9")}, {"incident": 77}], ids=["boot", "incident"]
)
def test_a_word_about_something_else_is_refused(changes: dict[str, object]):
    play = playing()
    remove(play)
    play.advance(61_000)
    confirm(play, **changes)
    play.advance(10_000)
    assert play.told().count("host.confirmation_refused") == 1
    assert play.sent(StartCommand) == []


@pytest.mark.bad_input
def test_a_word_is_refused_unless_forced_for_nobody_would_see_it_live():
    play = playing()
    remove(play)
    play.hosts["h1"].beating = True
    play.advance(300_000)
    confirm(play, force_reason=None)
    play.advance(10_000)
    refused = [one for one in play.notices if one.code == "host.confirmation_refused"]
    assert [one.fields["why"] for one in refused] == ["confirm.refused.unwatched"]
    assert play.sent(StartCommand) == []
    play.hosts["h1"].cut()
    confirm(play, force_reason="I pulled its plug")
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_the_word_counts_once():
    play = playing()
    remove(play)
    play.advance(61_000)
    play.hosts["h1"].cut()
    confirm(play)
    confirm(play)
    assert "host.confirmation_refused" in play.told()


def test_a_next_leader_knows_all_of_it():
    play = playing()
    remove(play)
    play.new_leader()
    play.advance(120_000)
    assert play.why_vm("v1") == ["recovery.waiting.removed"]
    assert play.engine.explain_vm(VmId("v1"))[0].fields == {"hosts": "h1"}
    assert play.told().count("host.removed_unproven") == 1
    play.hosts["h1"].cut()
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)
    assert saved(play).incident is not None and saved(play).incident.proof is not None


def test_one_removed_while_nobody_led_is_found_by_the_next_leader():
    play = playing()
    play.configs = [one for one in play.configs if one.host_id != "h1"]
    play.hosts["h1"].beating = False
    play.new_leader()
    play.advance(120_000)
    assert play.told().count("host.removed_unproven") == 1
    assert play.why_vm("v1") == ["recovery.waiting.removed"]
    assert play.sent(StartCommand) == []
    play.hosts["h1"].cut()
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_added_again_in_the_same_boot_it_holds_them_as_before():
    play = playing()
    remove(play)
    play.advance(10_000)
    back(play)
    play.advance(20_000)
    assert play.verdict("h1") is Verdict.ALIVE and play.host_record("h1").incident is None
    assert play.vm_record("v1").stage is VmStage.SETTLED and play.why_vm("v1") == []
    assert play.host_record("h1").name is None
    assert play.sent(StartCommand) == [] and play.offs() == []


def test_added_again_in_a_new_boot_it_frees_them():
    play = playing()
    remove(play)
    play.advance(10_000)
    play.hosts["h1"].boot_again()
    play.hosts["h1"].beating = False
    back(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_added_again_and_silent_it_is_judged_from_the_start():
    """That it was removed is no judgement, and no shortcut to its power device."""
    play = playing()
    remove(play)
    play.advance(60_000)
    play.hosts["h1"].hang()
    play.configs.append(play._config(play.hosts["h1"]))
    play.inbox.append(HostConfigured(host=play.configs[-1]))
    play.tick()
    assert play.host_record("h1").incident is None
    least = play.policy.detection.reconnect_ms + play.policy.detection.dead_after_ms
    assert play.until(lambda: play.offs() == ["h1"]) >= least
    play.until(lambda: play.where("v1") != [])


def test_a_judgement_from_before_the_removal_stands():
    play = playing()
    play.hosts["h1"].bmc_dead = True
    play.hosts["h1"].cut()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    before = incident_of(play)
    remove(play)
    assert incident_of(play).number == before.number
    assert play.told().count("host.removed_unproven") == 1
    play.advance(61_000)
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_another_judges_proof_counts_for_it():
    play = playing()
    remove(play)
    play.advance(10_000)
    play.hosts["h1"].cut()
    proof = Proof(
        kind=ProofKind.STORAGE_FENCE,
        host_id=HostId("h1"),
        boot=incident_of(play).boot,
        at_ms=play.now,
    )
    play.inbox.append(ProofFound(proof=proof))
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_its_own_release_counts_too():
    play = playing()
    remove(play)
    released(play, "h1", "v1", 1)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_what_changed_in_the_step_of_its_removal_is_not_lost():
    play = playing()
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    remove(play)
    assert saved(play).boot == "h1b2" and "h1b1" in saved(play).dead_boots


def test_nor_is_it_when_it_is_added_again_at_once():
    play = playing()
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.inbox += [
        HostRemoved(host_id=HostId("h1")),
        HostConfigured(host=play._config(play.hosts["h1"])),
    ]
    play.tick()
    assert saved(play) == play.host_record("h1")
    assert saved(play).boot == "h1b2" and saved(play).name is None


def test_a_late_sign_of_its_confirmed_boot_is_an_alarm_when_it_is_added_again():
    """The word was wrong."""
    play = playing()
    remove(play)
    play.advance(61_000)
    play.hosts["h1"].cut()
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)
    play.hosts["h1"].powered = True
    back(play)
    play.advance(5_000)
    assert "host.alive_though_proven_dead" in play.told()


def test_each_boot_that_may_run_a_vm_is_confirmed_by_itself():
    """A person's start went out to a boot that this leader never saw, right before the removal."""
    play = playing()
    play.inbox.append(
        CopyGranted(
            host_id=HostId("h1"),
            boot=BootId("h1b2"),
            vm_id=VmId("v1"),
            incarnation=Incarnation(5),
        )
    )
    remove(play)
    play.advance(61_000)
    play.hosts["h1"].cut()
    first = incident_of(play)
    confirm(play)
    play.advance(30_000)
    second = incident_of(play)
    assert {first.boot, second.boot} == {"h1b1", "h1b2"} and second.number > first.number
    assert play.sent(StartCommand) == []
    play.advance(61_000)
    confirm(play)
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


@pytest.mark.parametrize("known", [True, False])
def test_a_grant_that_went_out_before_the_removal_holds(known: bool):
    play = playing()
    for name in ("h1", "h2"):
        released(play, name, "v1", 1)
    play.vms = [msgspec.structs.replace(one, wanted_up=False) for one in play.vms]
    play._configure()
    play.tick()
    remove(play, "h4")
    if not known:
        del play.engine._cluster.kept_hosts[HostId("h4")]
    play.inbox.append(
        CopyGranted(
            host_id=HostId("h4"),
            boot=play.hosts["h4"].boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(7),
        )
    )
    play.tick()
    assert {one.host_id for one in play.vm_record("v1").copies} == {"h4"}
    assert play.why_vm("v1") == ["recovery.waiting.removed"]
    assert "host.removed_unproven" in play.told()


@pytest.mark.req("G4")
def test_confirmed_wrongly_and_added_again_its_old_copy_ends():
    """It lived all the time, and is heard in that boot."""
    play = playing()
    remove(play)
    play.hosts["h1"].running.clear()  # the play must not see v1 twice
    confirm(play)
    play.until(lambda: "vm.recovered" in play.told())
    (target,) = play.where("v1")
    play.hosts["h1"].running[VmId("v1")] = Incarnation(1)
    back(play)
    play.advance(1_000)
    (end,) = play.sent(EndCopy)
    assert (end.host_id, end.incarnation, end.newer) == ("h1", 1, 2)
    play.until(lambda: [one.host_id for one in play.vm_record("v1").copies] == [target])
    assert "vm.superseded_copy_ended" in play.told()
