"""A boot that was proven dead, and lives (G4): what its proof ended may be there after all, or has to end."""

import pytest
from engine_driver import GIB, Play, vm
from engine_review_driver import playing
from msgspec.structs import replace

from virtha.engine.ending import EndCopy
from virtha.engine.events import (
    BeatSeen,
    CopyReleased,
    DisksWatched,
    EngineEvent,
    HoldChanged,
    NeighbourAnswered,
    ProofFound,
    SessionChanged,
    SlotChanged,
    StartCommand,
)
from virtha.engine.evidence import SLOT_LATE_MS
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.evidence import Answer, PowerState, ProcessKind
from virtha.model.facts import ReleaseCause
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, VmId
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import VmState

VM = VmId("v1")
pytestmark = pytest.mark.req("G4")


def believed(play: Play) -> Play:
    """h1 hangs with v1, and its device says *off*, which is a lie. The play must not see that v1 would run twice."""
    host = play.hosts["h1"]
    host.hang()
    host.running.clear()
    host.bmc_does_nothing, host.bmc_state = True, PowerState.OFF
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_PROVEN)
    return play


def confirmed(play: Play, host: str) -> Proof:
    """By a person."""
    play.until(lambda: play.host_record(host).incident is not None)
    boot = play.hosts[host].boot
    proof = Proof(kind=ProofKind.OPERATOR, host_id=HostId(host), boot=boot, at_ms=play.now)
    play.inbox.append(ProofFound(proof=proof))
    play.tick()
    return proof


def moved(play: Play) -> str:
    """Where it runs by now."""
    play.until(lambda: "vm.recovered" in play.told())
    (target,) = play.where("v1")
    return target


def wakes(play: Play) -> None:
    play.hosts["h1"].beating = True
    play.hosts["h1"].running[VM] = Incarnation(1)
    play.tick()


def held(play: Play) -> list[str]:
    """By whom, as far as the records know."""
    return sorted(copy.host_id for copy in play.vm_record("v1").copies)


def nowhere_to_go() -> Play:
    """v1 fits on h1 alone."""
    play = Play(3, vms=[vm("v1", memory_bytes=6 * GIB), vm("big", memory_bytes=6 * GIB)])
    play.configs[1] = replace(play.configs[1], memory_bytes=2 * GIB)
    play.configs[2] = replace(play.configs[2], memory_bytes=2 * GIB)
    play._configure()
    play.run("v1", "h1")
    return believed(play)


def test_what_runs_elsewhere_by_now_is_ended_by_an_order_that_cites_the_proof():
    play = believed(playing())
    target = moved(play)
    wakes(play)
    assert sorted(held(play)) == sorted(["h1", target]), "both may hold it (G1)"
    play.until(lambda: held(play) == [target])
    (end,) = play.sent(EndCopy)
    assert (end.host_id, end.boot, end.incarnation) == ("h1", "h1b1", 1)
    assert end.newer == 2 and end.proof.kind is ProofKind.POWER_OFF and end.proof.boot == "h1b1"
    told = play.told()
    assert told.count("vm.superseded_copy_lives") == told.count("vm.superseded_copy_ended") == 1
    assert play.vm_record("v1").superseded == ()


def test_what_nobody_else_was_ordered_to_start_stays_where_it_is():
    play = nowhere_to_go()
    assert play.vm_record("v1").stage is VmStage.READY
    wakes(play)
    assert held(play) == ["h1"] and play.vm_record("v1").stage is not VmStage.READY
    assert "vm.lives_after_all" in play.told()
    play.configs[1] = replace(play.configs[1], memory_bytes=8 * GIB)
    play._configure()
    play.advance(60_000)
    assert play.sent(StartCommand) == play.sent(EndCopy) == []
    assert play.vm_record("v1").stage is VmStage.SETTLED and play.vm_record("v1").deaths == ()


def test_a_device_that_lied_does_not_prove_the_next_death_of_that_boot():
    play = nowhere_to_go()
    wakes(play)
    play.advance(5_000)
    play.hosts["h1"].beating = False
    play.advance(120_000)
    assert play.verdict("h1") is Verdict.DEAD_UNPROVEN
    assert play.sent(StartCommand) == []


@pytest.mark.parametrize(
    "sign",
    [
        SlotChanged(
            witness=HostId("h2"),
            subject=HostId("h1"),
            storage_domain_id=StorageDomainId("ds1"),
            boot=BootId("h1b1"),
        ),
        NeighbourAnswered(
            witness=HostId("h2"),
            subject=HostId("h1"),
            network="management",
            answer=Answer.ALIVE,
            boot=BootId("h1b1"),
        ),
        NeighbourAnswered(
            witness=HostId("h2"), subject=HostId("h1"), network="management", answer=Answer.ALIVE
        ),
        DisksWatched(witness=HostId("h2"), subject=HostId("h1"), changed=True),
    ],
)
def test_a_sign_that_may_be_older_than_the_proof_leaves_it_standing(sign: EngineEvent):
    """A block that lands late, an answer to a question of before: a host that lives says so itself."""
    play = nowhere_to_go()
    play.inbox.append(sign)
    play.tick()
    assert play.verdict("h1") is Verdict.DEAD_PROVEN
    assert play.vm_record("v1").stage is VmStage.READY and held(play) == []


def test_a_host_that_is_cut_off_from_its_disks_may_live():
    """P3 proves that it can't write, not that it is dead."""
    play = playing()
    host = play.hosts["h1"]
    host.hang()
    host.running.clear()  # the play must not see it twice
    host.bmc_dead = True
    play.until(lambda: play.host_record("h1").incident is not None)
    proof = Proof(
        kind=ProofKind.STORAGE_FENCE,
        host_id=HostId("h1"),
        boot=BootId("h1b1"),
        at_ms=play.now,
    )
    play.inbox.append(ProofFound(proof=proof))
    moved(play)
    wakes(play)
    assert play.verdict("h1") is Verdict.DEAD_PROVEN
    assert play.told().count("host.lives_cut_off") == 1
    assert "host.alive_though_proven_dead" not in play.told()
    (end,) = play.sent(EndCopy)  # of what is no holder any more (``stale``)
    assert isinstance(end, EndCopy) and end.proof == proof and "h1" not in held(play)


def test_held_it_is_left_as_it_is_and_the_reason_says_so():
    play = believed(playing())
    moved(play)
    play.inbox.append(HoldChanged(reason="work"))
    wakes(play)
    play.advance(20_000)
    assert play.sent(EndCopy) == [] and "superseded.held" in play.why_vm("v1")
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: "h1" not in held(play))


def test_the_order_is_repeated_until_it_is_answered_and_a_next_leader_gives_it():
    play = believed(playing())
    moved(play)
    play.on_command = lambda command: isinstance(command, EndCopy)
    wakes(play)
    play.advance(11_000)
    ends = play.sent(EndCopy)
    assert len(ends) == 3 and len({end.order_id for end in ends}) == 1
    assert "superseded.ending" in play.why_vm("v1")
    play.on_command = None
    play.new_leader()
    play.until(lambda: "h1" not in held(play))


def test_it_is_not_ordered_over_no_session_and_ends_with_its_boot():
    play = believed(playing())
    target = moved(play)
    play.inbox.append(BeatSeen(host_id=HostId("h1"), boot=BootId("h1b1"), agent_alive=False))
    play.inbox += [
        SessionChanged(host_id=HostId("h1"), process=process, boot=BootId("h1b1"), up=False)
        for process in ProcessKind
    ]
    play.tick()
    assert "superseded.unreachable" in play.why_vm("v1")
    play.advance(20_000)
    assert play.sent(EndCopy) == []
    play.hosts["h1"].boot_again()
    play.advance(1_000)
    assert held(play) == [target]


def test_what_it_says_of_itself_says_nothing_of_the_vm():
    """Nor once the newer one is over: it is not taken for the copy that the VM is."""
    play = believed(playing())
    target = moved(play)
    play.on_command = lambda command: isinstance(command, EndCopy)
    wakes(play)
    play._say(play.hosts["h1"], VM)
    play.tick()
    node = play.engine._cluster.vms[VM]
    assert (node.state, node.state_host) == (VmState.RUNNING, target)
    play.hosts[target].cut()
    play.until(lambda: held(play) == ["h1"])
    play._say(play.hosts["h1"], VM)
    play.tick()
    assert node.record.stage is VmStage.LOST and node.state is not VmState.RUNNING


def test_it_ends_also_when_the_newer_one_is_over_and_the_vm_starts_a_third_time():
    """Its memory is older than its disks."""
    play = believed(playing())
    target = moved(play)
    play.inbox.append(HoldChanged(reason="work"))
    wakes(play)
    play.hosts[target].cut()
    play.advance(20_000)
    assert "h1" in held(play)
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: play.vm_record("v1").incarnation == 3)
    (third,) = play.sent(StartCommand)[-1:]
    ended = [at for at, one in play.commands if isinstance(one, EndCopy)]
    started = [at for at, one in play.commands if one is third]
    assert ended and ended[0] < started[0]


def test_a_quarantined_vm_stays_quarantined():
    play = believed(playing())
    target = moved(play)
    play.hosts[target].cut()
    play.until(lambda: play.vm_record("v1").stage is VmStage.QUARANTINED)
    play.on_command = lambda command: isinstance(command, EndCopy)
    wakes(play)
    play.advance(1_000)
    assert play.vm_record("v1").stage is VmStage.QUARANTINED and held(play) == ["h1"]
    assert play.sent(EndCopy)


@pytest.mark.parametrize("newer_dies", [False, True])
def test_proven_dead_a_second_time_it_is_as_old_as_it_was(newer_dies: bool):
    play = believed(playing())
    target = moved(play)
    play.inbox.append(HoldChanged(reason="work"))
    wakes(play)
    play.hosts["h1"].beating = False
    proof = confirmed(play, "h1")
    if newer_dies:
        play.hosts[target].cut()
        confirmed(play, target)
    assert held(play) == ([] if newer_dies else [target])
    wakes(play)
    (due,) = play.vm_record("v1").superseded
    assert (due.newer, due.proof) == (2, proof)
    assert "vm.lives_after_all" not in play.told()


def start_given_back(cause: ReleaseCause) -> Play:
    """Elsewhere than on h1; and no other is ordered."""
    play = playing()
    for host in play.hosts.values():
        host.start_result = None  # nobody answers it
    believed(play).until(lambda: play.vm_record("v1").start is not None)
    start = play.vm_record("v1").start
    assert start is not None
    back = CopyReleased(
        host_id=start.host_id,
        boot=start.boot,
        vm_id=VM,
        incarnation=start.incarnation,
        cause=cause,
    )
    play.inbox += [HoldChanged(reason="work"), back]
    play.tick()
    return play


def test_a_start_that_never_ran_supersedes_nothing():
    play = start_given_back(ReleaseCause.NEVER_RAN)
    assert play.vm_record("v1").stage is VmStage.READY
    wakes(play)
    assert held(play) == ["h1"] and play.vm_record("v1").superseded == ()
    assert "vm.lives_after_all" in play.told()


def test_a_start_that_may_have_run_supersedes_it():
    play = start_given_back(ReleaseCause.ENDED)
    wakes(play)
    assert [due.newer for due in play.vm_record("v1").superseded] == [2]


@pytest.mark.parametrize("first", ["newer", "older"])
def test_how_the_newer_one_ended_is_how_the_vm_did(first: str):
    play = believed(playing())
    target = moved(play)
    play.inbox.append(HoldChanged(reason="work"))
    wakes(play)
    newer = CopyReleased(
        host_id=HostId(target),
        boot=play.hosts[target].boot,
        vm_id=VM,
        incarnation=Incarnation(2),
        cause=ReleaseCause.INTENDED,
    )
    older = CopyReleased(
        host_id=HostId("h1"),
        boot=BootId("h1b1"),
        vm_id=VM,
        incarnation=Incarnation(1),
        cause=ReleaseCause.SUPERSEDED,
    )
    play.hosts[target].running.pop(VM)
    play.hosts["h1"].running.pop(VM)
    play.inbox += [newer, older] if first == "newer" else [older, newer]
    play.inbox.append(HoldChanged(reason=None))
    play.advance(30_000)
    record = play.vm_record("v1")
    assert (record.stage, record.copies, record.incarnation) == (VmStage.SETTLED, (), 2)
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]


@pytest.mark.req("J2")
def test_a_slot_that_goes_on_changing_is_life_though_nothing_else_of_it_is_heard():
    """Its network is down, its storage is not: what it wrote long after the proof was under way at no time before."""
    play = nowhere_to_go()
    change = SlotChanged(
        witness=HostId("h2"),
        subject=HostId("h1"),
        storage_domain_id=StorageDomainId("ds1"),
        boot=BootId("h1b1"),
    )
    for _ in range(SLOT_LATE_MS // 1_000 + 5):
        play.inbox.append(change)
        play.advance(1_000)
    assert held(play) == ["h1"] and "vm.lives_after_all" in play.told()
    play.configs[1] = replace(play.configs[1], memory_bytes=8 * GIB)
    play._configure()
    play.advance(120_000)
    assert play.sent(StartCommand) == []
    assert play.verdict("h1") is Verdict.DEAD_UNPROVEN, "its device is not believed again"
