"""What restored records say of a host's death (M2): it may have come back since, so no proof, order or reading of theirs counts.
It is judged and proven dead anew as soon as a VM waits for it; who is proven dead in this timeline has answered."""

import msgspec
import pytest
from engine_driver import GIB, Play, vm
from engine_review_driver import named, playing
from test_disks_watched_anew import SlowReaders
from test_halves import awaits, by_hand, words

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.events import (
    BeatSeen,
    CopyReleased,
    DeathConfirmed,
    MigrationWord,
    NeighbourAnswered,
    Poison,
    ProofFound,
    SessionChanged,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import Fence, FenceStep, VmStage
from virtha.model.evidence import Answer, ProcessKind
from virtha.model.facts import ReleaseCause
from virtha.model.ids import HostId, Incarnation, StorageDomainId, VmId
from virtha.model.policy import FencingAction, FencingPolicy, PermissionGrade
from virtha.model.proof import Proof, ProofKind

pytestmark = pytest.mark.req("F4", "F9")


def restored(play: Play, timeline: str = "restored") -> None:
    """A leader begins in another timeline of the database; nobody has told anything in it."""
    play.configs = [
        msgspec.structs.replace(one, untold=True, timeline=timeline) for one in play.configs
    ]
    play.new_leader()


def next_leader(play: Play, *untold: str) -> None:
    """In the same timeline, in which all but ``untold`` have told by now."""
    play.configs = [
        msgspec.structs.replace(one, untold=one.host_id in untold) for one in play.configs
    ]
    play.new_leader()


def h2_is_dead(play: Play) -> Play:
    """And proven so; v2 runs elsewhere."""
    play.hosts["h2"].cut()
    play.until(lambda: play.verdict("h2") is Verdict.DEAD_PROVEN and play.where("v2") != [])
    return play


def lives_unseen(play: Play) -> None:
    """It came back since the backup, may run anything, and nobody sees it or reaches its power device."""
    host = play.hosts["h2"]
    host.boot_again()
    host.hang()
    host.bmc_dead = True


def test_a_proof_of_the_restored_records_is_not_believed():
    play = h2_is_dead(named(playing(5)))
    lives_unseen(play)
    restored(play)
    play.hosts["h1"].cut()
    play.advance(300_000)
    assert play.where("v1") == [] and play.verdict("h2") is Verdict.DEAD_UNPROVEN
    assert play.told().count("host.judged_anew") == 1
    play.hosts["h2"].boot_again()
    play._greet(play.hosts["h2"])
    play.until(lambda: play.where("v1") != [])


def test_a_proof_of_an_earlier_timeline_is_not_believed():
    """Restored twice: h2 was proven dead in between."""
    play = named(playing(5))
    restored(play, "first")
    h2_is_dead(play)
    lives_unseen(play)
    restored(play, "second")
    play.hosts["h1"].cut()
    play.advance(300_000)
    assert play.where("v1") == [] and play.verdict("h2") is Verdict.DEAD_UNPROVEN


def test_it_is_proven_dead_anew_as_soon_as_a_vm_waits_for_it():
    play = h2_is_dead(named(playing(5)))
    restored(play)
    play.advance(120_000)
    assert play.offs() == ["h2"], "nobody waits for it yet"
    assert play.why("h2") == ["host.dead.unproven", "fence.blocked.not_needed"]
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [], within_ms=120_000)
    assert play.offs().count("h2") == 2
    assert play.verdict("h2") is Verdict.DEAD_PROVEN


def test_a_host_that_the_records_call_alive_is_fenced_for_those_that_wait_for_it():
    """Nothing runs there by the records: its proof is wanted all the same."""
    play = named(playing(5))
    restored(play)
    play.hosts["h5"].cut()
    play.until(lambda: play.verdict("h5") is Verdict.DEAD_UNPROVEN)
    play.configs = [
        msgspec.structs.replace(one, untold=one.host_id == "h5") for one in play.configs
    ]
    play.new_leader()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [], within_ms=120_000)
    assert "h5" in play.offs()


def test_it_is_not_fenced_for_vms_whose_grade_forbids_it():
    play = h2_is_dead(named(playing(5, vms=[vm("v1", grade=PermissionGrade.MOVE), vm("v2")])))
    restored(play)
    play.hosts["h1"].boot_again()
    play.advance(120_000)
    assert play.vm_record("v1").stage is VmStage.READY and play.offs() == ["h2"]
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.restored"]


def test_readings_from_before_the_restore_prove_nothing():
    """They were awaiting quiet disks when the backup was made."""
    play = named(playing(5))
    host = play.hosts["h2"]
    play.until(lambda: play.verdict("h2") is Verdict.ALIVE)
    host.cut()
    play.until(lambda: play.offs() == ["h2"])
    host.disks_change = True
    play.until(
        lambda: (
            (fence := _fence(play)) is not None
            and fence.step is FenceStep.READING
            and all(feed.confirmed for feed in fence.feeds)
        )
    )
    assert play.verdict("h2") is Verdict.DEAD_UNPROVEN
    host.disks_change = False
    lives_unseen(play)
    restored(play)
    play.advance(120_000)
    assert play.verdict("h2") is Verdict.DEAD_UNPROVEN
    assert play.where("v2") == []


def _fence(play: Play) -> Fence | None:
    incident = play.host_record("h2").incident
    return None if incident is None else incident.fence


def test_who_is_proven_dead_in_this_timeline_has_answered_whoever_leads():
    play = h2_is_dead(named(playing(8, vms=[vm("v1"), vm("v2"), vm("v3")])))
    play.run("v3", "h8")
    restored(play)
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [], within_ms=120_000)
    offs = len(play.offs())
    next_leader(play, "h1", "h2")
    play.hosts["h8"].cut()
    play.until(lambda: play.where("v3") not in ([], ["h8"]), within_ms=120_000)
    assert play.offs()[offs:] == ["h8"], "nobody is judged once more"


def test_nor_does_a_half_of_a_migration_wait_for_it_once_more():
    """Its source is proven dead after the restore, and holds nothing any more; then another leader comes."""
    play = by_hand(named(playing(5)))
    restored(play)
    awaits(play, "h2")
    play.tick()
    play.hosts["h5"].bmc_dead = True
    play.hosts["h1"].cut()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_PROVEN)
    next_leader(play, "h1")
    awaits(play, "h2")
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play), within_ms=120_000)
    assert play.sent(StartCommand) == []


def test_a_half_of_a_migration_has_a_dead_host_proven_anew():
    play = by_hand(h2_is_dead(named(playing(5))))
    restored(play)
    awaits(play, "h3")
    play.until(lambda: play.host_record("h2").incident is not None)
    assert words(play) == []
    play.until(lambda: words(play) != [], within_ms=120_000)
    assert play.offs().count("h2") == 2 and play.verdict("h2") is Verdict.DEAD_PROVEN


def test_no_word_goes_to_a_half_while_the_dead_host_may_be_back():
    play = by_hand(h2_is_dead(named(playing(5))))
    lives_unseen(play)
    restored(play)
    awaits(play, "h3")
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert words(play) == [] and play.sent(StartCommand)[1:] == []
    assert "recovery.waiting.restored" in play.why_vm("v1")


def test_where_it_cannot_be_fenced_the_vm_names_it_and_the_operators_word_ends_the_wait():
    play = h2_is_dead(named(playing(5)))
    play.hosts["h2"].bmc_dead = True
    restored(play)
    play.hosts["h1"].cut()
    play.advance(300_000)
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.restored"]
    assert [one.fields for one in play.engine.explain_vm(play.vms[0].vm_id)] == [
        {"hosts": "h2"},
        {"host": "h2"},
    ]
    assert "fence.failed" in play.told()
    incident = play.host_record("h2").incident
    assert incident is not None
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h2"), boot=incident.boot, incident=incident.number, by="admin"
        )
    )
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_a_word_about_the_incident_from_before_the_restore_is_refused():
    play = h2_is_dead(named(playing(5)))
    before = play.host_record("h2").incident
    assert before is not None
    lives_unseen(play)
    restored(play)
    play.hosts["h1"].cut()
    play.advance(120_000)
    play.inbox.append(
        DeathConfirmed(host_id=HostId("h2"), boot=before.boot, incident=before.number, by="admin")
    )
    play.advance(10_000)
    assert "host.confirmation_refused" in play.told() and play.where("v1") == []


def test_nobody_is_fenced_whom_a_neighbour_sees():
    """J2: it is back, cut off from us; its neighbours hear it in its new boot."""
    play = h2_is_dead(named(playing(5)))
    host = play.hosts["h2"]
    host.boot_again()
    host.beating = False
    restored(play)
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert play.offs().count("h2") == 1
    assert play.verdict("h2") is Verdict.ISOLATED
    assert play.where("v1") == []


def test_a_sign_of_the_boot_that_was_proven_dead_is_an_alarm_and_it_is_heard():
    play = h2_is_dead(named(playing(5)))
    restored(play)
    play.advance(60_000)
    host = play.hosts["h2"]
    host.powered = host.beating = host.answers_neighbours = True
    play._greet(host)
    play.advance(5_000)
    assert play.told().count("host.alive_though_proven_dead") == 1
    assert play.verdict("h2") is Verdict.ALIVE


def test_an_answer_that_names_no_boot_is_no_sign_of_the_one_proven_dead_before():
    """It may be of a boot that it has begun since."""
    play = h2_is_dead(named(playing(5)))
    restored(play)
    play.advance(60_000)
    for _ in range(5):
        play.inbox.append(
            NeighbourAnswered(
                witness=HostId("h3"), subject=HostId("h2"), network="lan", answer=Answer.ALIVE
            )
        )
        play.tick()
    assert "host.alive_though_proven_dead" not in play.told()
    assert "h2" not in play.offs()[1:] and play.verdict("h2") is not Verdict.DEAD_PROVEN


def on(name: str) -> frozenset[Feature]:
    return frozenset({Feature(FeatureKind.STORAGE, name)})


def test_a_lease_that_is_not_about_all_storage_does_not_answer_for_it():
    """By the records nothing of it has a disk in ds2; it may run v3 by what was lost."""
    vms = [
        vm("v1", features=on("ds1")),
        vm("v2", features=on("ds1")),
        vm("v3", features=on("ds2"), memory_bytes=GIB // 2),
    ]
    play = h2_is_dead(named(playing(5, vms=vms)))
    play.hosts["h2"].bmc_dead = True
    restored(play)
    play.hosts["h1"].cut()
    play.advance(120_000)
    play.inbox.append(_lease_proof(play, "ds1"))
    play.tick()
    assert play.verdict("h2") is Verdict.DEAD_UNPROVEN
    (*_, poison) = play.sent(Poison)
    assert isinstance(poison, Poison) and poison.domain_ids == {"ds1", "ds2"}
    play.inbox.append(_lease_proof(play, "ds1", "ds2"))
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def _lease_proof(play: Play, *domains: str) -> ProofFound:
    incident = play.host_record("h2").incident
    assert incident is not None
    return ProofFound(
        proof=Proof(
            kind=ProofKind.LEASE,
            host_id=HostId("h2"),
            boot=incident.boot,
            at_ms=play.now,
            domain_ids=tuple(StorageDomainId(one) for one in domains),
        )
    )


def test_what_a_host_told_of_a_boot_that_is_over_is_no_answer():
    """It rebooted right after: what the next boot runs nobody knows yet."""
    play = named(playing(5))
    restored(play)
    host = play.hosts["h2"]
    host.boot_again()
    play.inbox.append(BeatSeen(host_id=host.id, boot=host.boot, agent_alive=True))
    for process in ProcessKind:
        play.inbox.append(SessionChanged(host_id=host.id, process=process, boot=host.boot, up=True))
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert play.where("v1") == []
    assert play.why_vm("v1")[0] == "recovery.waiting.inventory"
    play.survey(host)
    waited_ms = play.until(lambda: play.where("v1") != [], within_ms=120_000)
    assert waited_ms >= play.policy.recovery.attempt_ms


@pytest.mark.parametrize("action", [FencingAction.NOTHING, FencingAction.BLINK])
def test_nobody_is_switched_off_for_it_against_the_policy(action: FencingAction):
    play = named(playing(5))
    play.policy = msgspec.structs.replace(play.policy, fencing=FencingPolicy(action=action))
    restored(play)
    play.hosts["h2"].cut()
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert play.offs() == []


def test_its_disks_are_looked_at_anew_before_it_is_ordered_off():
    """F2: the records' looks were at another boot. It came back, is cut off from all but its storage, and readers are slow."""
    play = h2_is_dead(named(playing(5)))
    host = play.hosts["h2"]
    host.boot_again()
    host.hang()
    host.running[VmId("v1")] = play.hosts["h1"].running.pop(VmId("v1"))
    play.forget_commands()
    readers = SlowReaders(play, "h2")
    readers.changed = True
    restored(play)
    play.inbox.append(
        CopyReleased(
            host_id=HostId("h1"),
            boot=play.hosts["h1"].boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(1),
            cause=ReleaseCause.HOST_SHUTDOWN,
        )
    )
    readers.advance(120_000)
    assert play.offs() == [] and play.why_vm("v1")[0] == "recovery.waiting.inventory"
