"""An outbox is durable and brings facts of any boot of its host: only a beat or a session begins a boot, and so ends the
ones before (P4). What a fact says to run in a boot that nobody heard of may run there until that boot is over (G1)."""

import pytest
from engine_driver import Play
from engine_review_driver import playing, released, starting

from virtha.engine.events import (
    BeatSeen,
    CopyGranted,
    CopyReleased,
    HostSurveyed,
    SessionChanged,
    StartCommand,
    VmSeen,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.evidence import ProcessKind
from virtha.model.facts import ReleaseCause
from virtha.model.ids import BootId, Incarnation, VmId
from virtha.model.vm import PossibleCopy, VmState

pytestmark = pytest.mark.req("F4", "F9")

ALL_STATES = [VmState.DOWN, VmState.RUNNING, VmState.PAUSED, VmState.UNKNOWN]


def tells(
    play: Play,
    boot: str,
    state: VmState,
    *,
    vm_id: str = "v1",
    carried_by: str | None = None,
    incarnation: int = 1,
) -> None:
    """h1's outbox, of ``boot``, over a session of ``carried_by``."""
    play.inbox.append(
        VmSeen(
            host_id=play.hosts["h1"].id,
            boot=BootId(boot),
            carried_by=None if carried_by is None else BootId(carried_by),
            vm_id=VmId(vm_id),
            incarnation=Incarnation(incarnation),
            state=state,
        )
    )


def surveys(play: Play, boot: str, *active: str, carried_by: str | None = None) -> None:
    play.inbox.append(
        HostSurveyed(
            host_id=play.hosts["h1"].id,
            boot=BootId(boot),
            carried_by=None if carried_by is None else BootId(carried_by),
            gate_in_force=True,
            libvirt_connected=True,
            active=frozenset(VmId(one) for one in active),
        )
    )


def twice_rebooted() -> Play:
    """h1 was known in h1b1, went through h1b2, of which nobody heard, and runs v1 in h1b3."""
    play = playing()
    host = play.hosts["h1"]
    host.boots += 1
    host.boot_again()
    assert host.boot == "h1b3"
    play._greet(host)
    play.tick()
    play.until(lambda: play.where("v1") != [])
    for name in play.where("v1"):
        released(play, name, "v1", int(play.vm_record("v1").incarnation))
    play.inbox.append(
        CopyGranted(host_id=host.id, boot=host.boot, vm_id=VmId("v1"), incarnation=Incarnation(9))
    )
    host.running[VmId("v1")] = Incarnation(9)
    tells(play, "h1b3", VmState.RUNNING, incarnation=9, carried_by="h1b3")
    play.advance(1_000)
    assert copies(play) == {("h1", "h1b3", 9)}
    play.forget_commands()
    play.notices.clear()
    return play


def copies(play: Play, vm_id: str = "v1") -> set[tuple[str, str | None, int]]:
    return {(one.host_id, one.boot, one.incarnation) for one in play.vm_record(vm_id).copies}


def lives_on(play: Play, boot: str = "h1b3") -> None:
    """h1's present boot was not taken for dead, and nothing that it holds started elsewhere."""
    play.advance(60_000)
    record = play.host_record("h1")
    assert record.boot == boot and boot not in record.dead_boots
    assert play.verdict("h1") is Verdict.ALIVE
    assert play.sent(StartCommand) == []
    assert "host.alive_though_proven_dead" not in play.told()


# Facts of a boot between two others


@pytest.mark.parametrize("carried_by", [None, "h1b3"])
@pytest.mark.parametrize("state", ALL_STATES)
def test_a_late_report_of_a_boot_never_seen_buries_no_living_boot(state, carried_by):
    play = twice_rebooted()
    tells(play, "h1b2", state, carried_by=carried_by)
    tells(play, "h1b2", state, vm_id="v2", carried_by=carried_by)
    lives_on(play)


@pytest.mark.parametrize("carried_by", [None, "h1b3"])
def test_neither_does_a_late_survey(carried_by):
    play = twice_rebooted()
    surveys(play, "h1b2", "v1", carried_by=carried_by)
    lives_on(play)


def test_a_report_over_a_later_boots_session_holds_nothing():
    """It says itself that its boot is over (P4)."""
    play = twice_rebooted()
    tells(play, "h1b2", VmState.RUNNING, incarnation=4, carried_by="h1b3")
    surveys(play, "h1b2", "v1", carried_by="h1b3")
    play.tick()
    assert copies(play) == {("h1", "h1b3", 9)}
    assert play.vm_record("v1").stage is VmStage.SETTLED
    assert "h1b2" in play.host_record("h1").dead_boots


def test_what_that_boot_was_thought_to_hold_ends_with_such_a_report():
    play = twice_rebooted()
    tells(play, "h1b2", VmState.RUNNING, incarnation=4)
    play.tick()
    assert copies(play) == {("h1", "h1b3", 9), ("h1", "h1b2", 4)}
    assert play.why_vm("v1") == ["recovery.waiting.proof"]
    tells(play, "h1b2", VmState.DOWN, incarnation=4, carried_by="h1b3", vm_id="v2")
    tells(play, "h1b3", VmState.RUNNING, incarnation=9, carried_by="h1b3")
    play.advance(1_000)
    assert copies(play) == {("h1", "h1b3", 9)}
    assert play.vm_record("v1").stage is VmStage.SETTLED
    lives_on(play)


def test_its_release_counts():
    """P5: of whatever boot."""
    play = twice_rebooted()
    tells(play, "h1b2", VmState.RUNNING, incarnation=4)
    play.tick()
    play.inbox.append(
        CopyReleased(
            host_id=play.hosts["h1"].id,
            boot=BootId("h1b2"),
            vm_id=VmId("v1"),
            incarnation=Incarnation(4),
            cause=ReleaseCause.HOST_SHUTDOWN,
        )
    )
    play.tick()
    assert copies(play) == {("h1", "h1b3", 9)}
    lives_on(play)


def test_a_beat_of_a_boot_that_its_outbox_ended_begins_nothing():
    play = twice_rebooted()
    tells(play, "h1b2", VmState.DOWN, carried_by="h1b3")
    play.tick()
    play.inbox.append(BeatSeen(host_id=play.hosts["h1"].id, boot=BootId("h1b2"), agent_alive=True))
    play.advance(10_000)
    record = play.host_record("h1")
    assert record.boot == "h1b3" and "h1b3" not in record.dead_boots
    assert play.sent(StartCommand) == []


# Facts of a boot that is on its way


def begins(play: Play, boot: str) -> None:
    for process in ProcessKind:
        play.inbox.append(
            SessionChanged(host_id=play.hosts["h1"].id, process=process, boot=BootId(boot), up=True)
        )


def test_a_report_before_its_boots_first_session_is_not_lost():
    play = playing()
    play.hosts["h1"].boot_again()
    play.hosts["h1"].beating = False
    tells(play, "h1b2", VmState.RUNNING, incarnation=5, carried_by="h1b2")
    play.tick()
    assert play.host_record("h1").boot == "h1b1"
    assert copies(play) == {("h1", "h1b1", 1), ("h1", "h1b2", 5)}
    play.hosts["h1"].beating = True
    begins(play, "h1b2")
    play.tick()
    assert play.host_record("h1").boot == "h1b2"
    assert copies(play) == {("h1", "h1b2", 5)}
    assert play.vm_record("v1").stage is VmStage.SETTLED
    play.advance(5_000)
    assert play.sent(StartCommand) == [] and play.why_vm("v1") == []


def test_a_survey_before_its_boots_first_session_is_not_lost():
    play = playing()
    play.hosts["h1"].boot_again()
    play.hosts["h1"].beating = False
    surveys(play, "h1b2", "v2", carried_by="h1b2")
    play.tick()
    assert copies(play, "v2") == {("h2", "h2b1", 1), ("h1", "h1b2", 1)}
    play.hosts["h1"].beating = True
    begins(play, "h1b2")
    play.tick()
    target = play.engine._cluster.capacity.target(play.hosts["h1"].id)
    assert target is not None and target.unfit is None


def test_an_earlier_fact_does_not_replace_a_later_one():
    play = playing()
    play.hosts["h1"].boot_again()
    play.hosts["h1"].beating = False
    tells(play, "h1b2", VmState.STARTING, incarnation=5)
    play.tick()
    play.hosts["h1"].beating = True
    begins(play, "h1b2")
    tells(play, "h1b2", VmState.RUNNING, incarnation=5)
    play.tick()
    node = play.engine._cluster.vms[VmId("v1")]
    assert node.state is VmState.RUNNING


def test_what_was_released_before_its_boot_began_is_not_found_again():
    play = playing()
    play.hosts["h1"].boot_again()
    play.hosts["h1"].beating = False
    tells(play, "h1b2", VmState.RUNNING, incarnation=5)
    play.inbox.append(
        CopyReleased(
            host_id=play.hosts["h1"].id,
            boot=BootId("h1b2"),
            vm_id=VmId("v1"),
            incarnation=Incarnation(5),
        )
    )
    play.tick()
    assert copies(play) == {("h1", "h1b1", 1)}
    play.notices.clear()
    play.hosts["h1"].beating = True
    begins(play, "h1b2")
    play.tick()
    assert ("h1", "h1b2", 5) not in copies(play)
    assert "vm.found" not in play.told()


def test_proof_for_the_boot_before_does_not_free_what_the_next_may_run():
    """Its session can't reach us; the fact came over another road."""
    play = playing()
    tells(play, "h1b2", VmState.RUNNING, incarnation=5)
    play.tick()
    play.hosts["h1"].cut()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_PROVEN)
    play.advance(60_000)
    assert copies(play) == {("h1", "h1b2", 5)}
    assert play.sent(StartCommand) == []
    assert play.vm_record("v1").stage is VmStage.LOST
    assert play.why_vm("v1") == ["recovery.waiting.proof"]


def reconnects(play: Play, boot: str) -> None:
    """h1's sessions, each after its end."""
    for up in (False, True):
        for process in ProcessKind:
            play.inbox.append(
                SessionChanged(
                    host_id=play.hosts["h1"].id, process=process, boot=BootId(boot), up=up
                )
            )
    play.tick()


def test_a_new_session_of_the_present_boot_ends_what_facts_told_of_before():
    """P4: it runs now, and of the other the host had told before. No incident is open that a word could be about."""
    play = twice_rebooted()
    tells(play, "h1b2", VmState.RUNNING, incarnation=4)
    play.tick()
    assert play.why_vm("v1") == ["recovery.waiting.proof"]
    reconnects(play, "h1b3")
    assert copies(play) == {("h1", "h1b3", 9)}
    assert "h1b2" in play.host_record("h1").dead_boots
    tells(play, "h1b2", VmState.RUNNING, incarnation=4)  # once more, by whatever road
    tells(play, "h1b3", VmState.RUNNING, incarnation=9)
    play.tick()
    assert copies(play) == {("h1", "h1b3", 9)} and play.why_vm("v1") == []
    lives_on(play)


def test_a_session_that_stands_ends_nothing():
    """Told once more it is not a new one: the next boot may have told since it began."""
    play = playing()
    tells(play, "h1b2", VmState.RUNNING, incarnation=5)
    begins(play, "h1b1")
    play.tick()
    assert copies(play) == {("h1", "h1b1", 1), ("h1", "h1b2", 5)}
    assert "h1b2" not in play.host_record("h1").dead_boots


def test_a_session_ends_no_boot_whose_own_session_brought_facts():
    """That one is on its way here, so this one may be late: nothing starts beside what may run there (G1)."""
    play = playing()
    tells(play, "h1b2", VmState.RUNNING, incarnation=5, carried_by="h1b2")
    play.tick()
    reconnects(play, "h1b1")
    play.advance(30_000)
    assert copies(play) == {("h1", "h1b1", 1), ("h1", "h1b2", 5)}
    assert play.sent(StartCommand) == []
    play.hosts["h1"].boot_again()
    begins(play, "h1b2")
    play.tick()
    assert copies(play) == {("h1", "h1b2", 5)}
    assert "h1b2" not in play.host_record("h1").dead_boots


def test_a_report_over_another_session_ends_no_present_boot():
    """Only that session itself does: it is on its way, and may be anybody's guess until then."""
    play = playing()
    tells(play, "h1b1", VmState.RUNNING, carried_by="h1b2")
    play.tick()
    assert copies(play) == {("h1", "h1b1", 1)}
    lives_on(play, "h1b1")


# Grants and releases


def test_a_grant_for_a_boot_not_yet_seen_holds_also_where_the_incarnation_is_known():
    play = playing()
    play.inbox.append(
        CopyGranted(
            host_id=play.hosts["h1"].id,
            boot=BootId("h1b2"),
            vm_id=VmId("v1"),
            incarnation=Incarnation(1),
        )
    )
    play.tick()
    assert copies(play) == {("h1", "h1b1", 1), ("h1", "h1b2", 1)}
    play.hosts["h1"].boot_again()
    begins(play, "h1b2")
    play.advance(60_000)
    assert copies(play) == {("h1", "h1b2", 1)}
    assert play.sent(StartCommand) == []


def test_a_release_of_a_former_boot_ends_no_start_in_the_present_one():
    """A restored database counts incarnations anew: h2 may have held that number before."""
    play = playing()
    start = starting(play)
    play.inbox.append(
        CopyReleased(
            host_id=start.host_id,
            boot=BootId("before"),
            vm_id=start.vm_id,
            incarnation=start.incarnation,
        )
    )
    play.tick()
    copy = PossibleCopy(host_id=start.host_id, incarnation=start.incarnation, boot=start.boot)
    assert play.vm_record("v1").copies == (copy,)
    assert play.vm_record("v1").stage is VmStage.STARTING


def test_the_end_of_a_boot_between_ends_no_start_in_the_present_one():
    play = playing()
    start = starting(play)
    target = str(start.host_id)
    for carried_by in (None, play.hosts[target].boot):
        play.inbox.append(
            VmSeen(
                host_id=start.host_id,
                boot=BootId("between"),
                carried_by=carried_by,
                vm_id=start.vm_id,
                incarnation=Incarnation(7),
                state=VmState.PAUSED,
            )
        )
        play.tick()
    record = play.vm_record("v1")
    assert record.start is not None and record.start.order_id == start.order_id
    assert copies(play) == {(start.host_id, start.boot, start.incarnation)}
