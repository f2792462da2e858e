"""Sides of a forgotten migration on a host that the barrier after a restore waits for or has proven dead (M2): somebody ends the
wait, and the proof of its death is about the boot that the order named too."""

import msgspec
import pytest
from engine_driver import Play, vm
from engine_review_driver import named, playing, released
from test_halves import awaits, by_hand, copy_on, stands, words
from test_restored_judgements import h2_is_dead, lives_unseen, next_leader, restored

from virtha.engine.events import DeathConfirmed, MigrationWord, ProofFound, StartCommand
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.ids import BootId, HostId
from virtha.model.policy import PermissionGrade
from virtha.model.proof import Proof, ProofKind

pytestmark = pytest.mark.req("F4", "F9")


def confirm(play: Play, host: str) -> None:
    incident = play.host_record(host).incident
    assert incident is not None
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId(host), boot=incident.boot, incident=incident.number, by="admin"
        )
    )


# Who waits for a silent host


def test_a_source_that_stands_has_the_silent_host_fenced():
    """Told only by its source it is settled and paused; whether h5 runs it is anybody's guess until h5 is proven dead."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].hang()
    restored(play)
    stands(play, copy_on(play, "h2", 2))
    play.until(lambda: (HostId("h2"), MigrationWord.CANCEL) in words(play), within_ms=180_000)
    assert play.offs() == ["h5"] and play.verdict("h5") is Verdict.DEAD_PROVEN


def test_where_it_cannot_be_fenced_its_source_names_it_and_somebody_is_told():
    play = by_hand(named(playing(5)))
    play.hosts["h5"].hang()
    play.hosts["h5"].bmc_dead = True
    restored(play)
    stands(play, copy_on(play, "h2", 2))
    play.advance(300_000)
    assert words(play) == [] and play.vm_record("v1").stage is VmStage.SETTLED
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.restored"]
    assert "fence.failed" in play.told()


def test_it_is_not_fenced_for_a_source_whose_grade_forbids_it():
    play = by_hand(named(playing(5, vms=[vm("v1", grade=PermissionGrade.MOVE), vm("v2")])))
    play.hosts["h5"].hang()
    restored(play)
    stands(play, copy_on(play, "h2", 2))
    play.advance(120_000)
    assert words(play) == [] and play.offs() == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.restored"]


# A side in a boot that the records never heard of


def rebooted_and_dead(*, bmc_dead: bool = False) -> Play:
    """h5 was in h5b1 when the backup was made, was the source in h5b2, and is dead for good."""
    play = by_hand(named(playing(5)))
    host = play.hosts["h5"]
    host.boot_again()
    host.cut()
    host.bmc_dead = bmc_dead
    restored(play)
    released(play, "h1", "v1", 1)
    return play


def test_the_proof_of_its_machine_ends_a_source_in_a_boot_that_nobody_heard_of():
    play = rebooted_and_dead()
    awaits(play, "h2", 5, source=copy_on(play, "h5", 4))
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play), within_ms=180_000)
    record = play.vm_record("v1")
    assert [copy.host_id for copy in record.copies] == ["h2"]
    assert [(one.kind, one.boot) for one in record.proofs] == [(ProofKind.POWER_OFF, "h5b2")]
    play.on_command = lambda command: False
    released(play, "h2", "v1", 5)
    play.until(lambda: play.where("v1") != [], within_ms=60_000)
    assert play.sent(StartCommand)[-1].incarnation == 6


def test_it_ends_a_target_in_such_a_boot():
    """The source may not go on, for the target may have run; it is ended, and the VM starts afresh (G6)."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].boot_again()
    play.hosts["h5"].cut()
    restored(play)
    stands(play, copy_on(play, "h5", 2))
    play.until(lambda: (HostId("h1"), MigrationWord.END) in words(play), within_ms=180_000)
    assert (HostId("h1"), MigrationWord.RUN) not in words(play)
    released(play, "h1", "v1", 1)
    play.until(lambda: play.where("v1") != [], within_ms=60_000)
    (start,) = play.sent(StartCommand)
    assert start.incarnation == 3


def test_the_operators_word_is_about_the_machine():
    play = rebooted_and_dead(bmc_dead=True)
    awaits(play, "h2", 5, source=copy_on(play, "h5", 4))
    play.advance(180_000)
    assert words(play) == []
    confirm(play, "h5")
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play), within_ms=5_000)


@pytest.mark.parametrize("kind", [ProofKind.LEASE, ProofKind.STORAGE_FENCE])
def test_a_proof_of_one_boot_says_nothing_of_another(kind: ProofKind):
    play = rebooted_and_dead(bmc_dead=True)
    play.until(lambda: play.verdict("h5") is Verdict.DEAD_UNPROVEN, within_ms=120_000)
    incident = play.host_record("h5").incident
    assert incident is not None
    proof = Proof(kind=kind, host_id=HostId("h5"), boot=incident.boot, at_ms=play.now)
    play.inbox.append(ProofFound(proof=proof))
    awaits(play, "h2", 5, source=copy_on(play, "h5", 4))
    play.advance(120_000)
    assert MigrationWord.RUN not in {word for _, word in words(play)}
    released(play, "h2", "v1", 5)
    play.advance(60_000)
    assert play.sent(StartCommand) == []


@pytest.mark.parametrize("lease", [False, True])
def test_a_source_that_came_to_light_before_the_proof_ends_with_it(lease: bool):
    """h5 told after the restore, in a later boot than the order named, and died; that leader is gone. A lease says nothing of
    the boot that the order named: then the operator's word is heard beside it."""
    play = by_hand(named(playing(5)))
    restored(play)
    host = play.hosts["h5"]
    host.bmc_dead = True
    play.advance(30_000)
    host.cut()
    play.until(lambda: play.verdict("h5") is Verdict.DEAD_UNPROVEN, within_ms=120_000)
    next_leader(play)
    released(play, "h1", "v1", 1)
    between = msgspec.structs.replace(copy_on(play, "h5", 4), boot=BootId("between"))
    awaits(play, "h2", 5, source=between)
    play.advance(90_000)
    assert between in play.vm_record("v1").copies
    incident = play.host_record("h5").incident
    assert incident is not None and incident.proof is None
    if lease:
        proof = Proof(
            kind=ProofKind.LEASE, host_id=host.id, boot=incident.boot, at_ms=int(play.now)
        )
        play.inbox.append(ProofFound(proof=proof))
        play.advance(30_000)
        assert play.verdict("h5") is Verdict.DEAD_PROVEN and between in play.vm_record("v1").copies
    confirm(play, "h5")
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play), within_ms=15_000)
    confirm(play, "h5")
    play.tick()
    assert play.notices[-1].fields["why"] == "confirm.refused.proven_already"


def test_a_proof_from_before_the_restore_ends_no_such_side():
    """It came back since, in the boot that the order named, and may run the VM: also where it counts as having told, as when
    no leader wrote down what it did."""
    play = by_hand(h2_is_dead(named(playing(5))))
    lives_unseen(play)
    play.hosts["h2"].bmc_dead = True
    play.configs = [msgspec.structs.replace(one, timeline="restored") for one in play.configs]
    play.new_leader()
    play.forget_commands()
    released(play, "h1", "v1", 1)
    awaits(play, "h3", 5, source=copy_on(play, "h2", 4))
    play.advance(120_000)
    assert MigrationWord.RUN not in {word for _, word in words(play)}
    released(play, "h3", "v1", 5)
    play.advance(60_000)
    assert play.sent(StartCommand) == []


def test_a_side_in_a_boot_before_the_one_that_told_is_over_also_while_its_agent_is_away():
    """Nothing else would end it before that agent is restarted: nobody is asked for a copy of another boot."""
    play = by_hand(named(playing(5)))
    host = play.hosts["h5"]
    host.boot_again()
    between = copy_on(play, "h5", 4)
    host.boot_again()
    restored(play)
    play.advance(20_000)
    released(play, "h1", "v1", 1)
    host.agent_alive = False
    play.advance(1_000)
    assert play.verdict("h5") is Verdict.AGENT_DOWN
    awaits(play, "h2", 5, source=between)
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play), within_ms=60_000)
    assert [copy.host_id for copy in play.vm_record("v1").copies] == ["h2"]
