"""VMs that an I/O error keeps paused and that are to run again elsewhere: when the engine has one ended, and when not (S6)."""

import pytest
from engine_driver import Play, vm
from msgspec.structs import replace

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.ending import EndPaused
from virtha.engine.events import (
    Command,
    CopyGranted,
    CopyReleased,
    HoldChanged,
    KillEnded,
    LibvirtAnswered,
    MaintenanceChanged,
    StartCommand,
    VmConfigured,
    VmSeen,
)
from virtha.engine.io_kill import AGAIN_MS
from virtha.engine.records import Death, VmStage
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import HostId, Incarnation, VmId
from virtha.model.policy import PermissionGrade, Policy, RecoveryPolicy
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("S6")
KILL_AFTER_MS = Policy().io_error.kill_after_ms
STORAGE = frozenset({Feature(FeatureKind.STORAGE, "ds1")})


def playing(*, policy: Policy | None = None, hosts: int = 3, **changes: object) -> Play:
    """web runs on h1; hosts answer no order to end it by themselves."""
    wanted = {"kill_on_io_error": True, "features": STORAGE, **changes}
    play = Play(hosts, policy=policy, vms=[vm("web", **wanted)])
    play.run("web", "h1")
    return play


def says(
    play: Play, host: str = "h1", incarnation: int = 1, vm_id: str = "web", **how: object
) -> None:
    played = play.hosts[host]
    seen = VmSeen(
        host_id=played.id,
        boot=played.boot,
        vm_id=VmId(vm_id),
        incarnation=Incarnation(incarnation),
        state=VmState.PAUSED,
        io_error=True,
    )
    play.inbox.append(replace(seen, **how))
    play.tick()


def loses_storage(play: Play, host: str) -> None:
    play.hosts[host].storage = False
    play.survey(play.hosts[host])
    play.tick()


def gives_back(play: Play, cause: ReleaseCause = ReleaseCause.IO_ERROR, host: str = "h1") -> None:
    played = play.hosts[host]
    incarnation = played.running.pop(VmId("web"))
    play.inbox.append(
        CopyReleased(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId("web"),
            incarnation=incarnation,
            cause=cause,
        )
    )
    play.tick()


def answers(play: Play, end: Command, result: Result, code: str | None = None) -> None:
    assert isinstance(end, EndPaused)
    play.inbox.append(
        KillEnded(
            order_id=end.order_id, host_id=end.host_id, vm_id=end.vm_id, result=result, code=code
        )
    )
    play.tick()


def ends(play: Play) -> list[EndPaused]:
    return [one for one in play.sent(EndPaused) if isinstance(one, EndPaused)]


def ordered(play: Play) -> EndPaused:
    play.until(lambda: bool(ends(play)), within_ms=KILL_AFTER_MS + 1_000)
    return ends(play)[-1]


def test_it_is_ended_after_kill_after_and_starts_elsewhere_once_its_host_gave_it_back() -> None:
    play = playing()
    says(play)
    play.advance(KILL_AFTER_MS - 1_000)
    assert ends(play) == [] and play.why_vm("web") == ["io_error.kill.waiting.delay"]
    end = ordered(play)
    assert (end.host_id, end.incarnation) == ("h1", 1)
    kill = play.vm_record("web").kill
    assert kill is not None and kill.order_id == end.order_id, "on record before it goes out"
    assert play.why_vm("web") == ["io_error.kill.ending"]
    answers(play, end, Result.OK)
    play.advance(5_000)
    assert play.sent(StartCommand) == [], "its host has not given it back"
    gives_back(play)
    play.until(lambda: play.where("web") not in ([], ["h1"]), within_ms=5_000)
    record = play.vm_record("web")
    assert record.kill is None and [one.host_id for one in record.deaths] == ["h1"]
    assert record.incarnation == 2 and play.told().count("vm.io_error.killing") == 1


def test_one_that_goes_on_in_time_is_left_alone_and_counts_from_its_next_pause() -> None:
    play = playing()
    says(play)
    play.advance(KILL_AFTER_MS - 2_000)
    says(play, state=VmState.RUNNING, io_error=False)
    play.advance(10_000)
    says(play)
    play.advance(KILL_AFTER_MS - 2_000)
    assert ends(play) == []
    ordered(play)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"kill_on_io_error": False}, []),
        ({"ha": False}, ["io_error.kill.blocked.not_ha"]),
        ({"ignore": True}, ["recovery.blocked.ignored"]),
        ({"grade": PermissionGrade.RESTART}, ["recovery.blocked.grade"]),
        ({"wanted_up": False}, []),
    ],
    ids=["leave", "not_ha", "ignore", "grade", "unwanted"],
)
def test_what_its_operator_wants_is_heeded_and_told(how: dict[str, object], why: list[str]) -> None:
    play = playing(**how)
    says(play)
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == [] and play.why_vm("web") == why


def test_the_clusters_grade_forbids_it_too() -> None:
    play = playing(policy=Policy(recovery=RecoveryPolicy(grade=PermissionGrade.RESTART)))
    says(play)
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == [] and play.why_vm("web") == ["recovery.blocked.grade"]


def test_a_full_storage_domain_is_full_everywhere() -> None:
    play = playing()
    says(play, no_room=True)
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == []
    says(play)
    ordered(play)


@pytest.mark.parametrize("how", [{"io_error": False}, {"state": VmState.STOPPING}])
def test_a_pause_of_another_kind_is_none_of_it(how: dict[str, object]) -> None:
    play = playing()
    says(play, **how)
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == []


def test_it_is_not_ended_while_no_other_host_has_its_storage() -> None:
    """Nor at once when they all have it again: its own host lets it go on then."""
    play = playing(hosts=2)
    loses_storage(play, "h2")
    says(play)
    play.advance(5 * KILL_AFTER_MS)
    assert ends(play) == []
    assert play.why_vm("web")[:2] == ["io_error.kill.waiting.target", "recovery.blocked.storage"]
    play.hosts["h2"].storage = True
    play.survey(play.hosts["h2"])
    play.advance(KILL_AFTER_MS - 1_000)
    assert ends(play) == []
    ordered(play)


def test_a_host_on_which_another_vm_stands_still_for_that_storage_is_no_place_for_it() -> None:
    play = Play(
        2, vms=[vm("db", features=STORAGE), vm("web", kill_on_io_error=True, features=STORAGE)]
    )
    play.run("web", "h1")
    play.run("db", "h2")
    says(play, "h2", vm_id="db")
    says(play)
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == []
    (why, *_) = play.engine.explain_vm(VmId("web"))
    assert (why.code, why.fields) == ("io_error.kill.waiting.target", {"failing": "h2"})
    says(play, "h2", vm_id="db", state=VmState.RUNNING, io_error=False)
    ordered(play)


def test_one_that_another_host_lost_within_the_hour_is_not_sent_round() -> None:
    play = playing()
    says(play)
    ordered(play)
    gives_back(play)
    play.until(lambda: play.where("web") not in ([], ["h1"]), within_ms=5_000)
    (there,) = play.where("web")
    play.forget_commands()
    says(play, there, 2)
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == [] and play.why_vm("web") == ["io_error.kill.blocked.deaths"]
    play.hosts[there].cut()
    play.until(lambda: play.vm_record("web").stage is VmStage.QUARANTINED)


def test_deaths_of_long_ago_do_not_keep_it() -> None:
    play = playing(policy=Policy(recovery=RecoveryPolicy(quarantine_window_ms=60_000)))
    says(play)
    ordered(play)
    gives_back(play)
    play.until(lambda: play.where("web") not in ([], ["h1"]), within_ms=5_000)
    (there,) = play.where("web")
    play.forget_commands()
    says(play, there, 2)
    play.until(lambda: bool(ends(play)), within_ms=KILL_AFTER_MS + 70_000)


def test_on_hold_it_is_neither_ordered_nor_repeated() -> None:
    play = playing()
    says(play)
    play.inbox.append(HoldChanged(reason="work"))
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == [] and play.why_vm("web") == ["recovery.blocked.hold"]
    play.inbox.append(HoldChanged(reason=None))
    ordered(play)
    play.inbox.append(HoldChanged(reason="more work"))
    play.advance(3 * AGAIN_MS)
    assert len(ends(play)) == 1 and play.why_vm("web") == ["recovery.blocked.hold"]


@pytest.mark.parametrize("drain", [True, False])
def test_in_maintenance_only_a_host_that_its_vms_are_to_leave(drain: bool) -> None:
    play = playing()
    says(play)
    play.inbox.append(MaintenanceChanged(host_id=HostId("h1"), on=True, by="ann", drain=drain))
    if drain:
        ordered(play)
    else:
        play.advance(3 * KILL_AFTER_MS)
        assert ends(play) == [] and play.why_vm("web") == ["io_error.kill.blocked.maintenance"]


def test_another_host_may_hold_it_too() -> None:
    play = playing()
    says(play)
    h2 = play.hosts["h2"]
    play.inbox.append(
        CopyGranted(host_id=h2.id, boot=h2.boot, vm_id=VmId("web"), incarnation=Incarnation(2))
    )
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == []
    assert "io_error.kill.blocked.copies" in play.why_vm("web")


def test_a_holder_that_comes_to_light_while_it_is_being_ended_stops_it() -> None:
    play = playing()
    says(play)
    ordered(play)
    h2 = play.hosts["h2"]
    play.inbox.append(
        CopyGranted(host_id=h2.id, boot=h2.boot, vm_id=VmId("web"), incarnation=Incarnation(2))
    )
    play.advance(3 * AGAIN_MS)
    assert len(ends(play)) == 1


def test_its_libvirt_must_answer() -> None:
    play = playing()
    says(play)
    play.inbox.append(LibvirtAnswered(host_id=HostId("h1"), answering=False))
    play.advance(3 * KILL_AFTER_MS)
    assert ends(play) == [] and play.why_vm("web") == ["io_error.kill.waiting.host"]


def test_it_is_ordered_again_until_its_host_answers_and_one_that_lives_is_told_once() -> None:
    play = playing()
    says(play)
    end = ordered(play)
    play.advance(AGAIN_MS + 1_000)
    assert [one.order_id for one in ends(play)] == [end.order_id] * 2
    for _ in range(3):
        answers(play, end, Result.UNKNOWN, "problem.unavailable")
    assert play.told().count("vm.io_error.kill_failed") == 1
    assert play.why_vm("web") == ["io_error.kill.stuck"]
    play.advance(3 * AGAIN_MS)
    assert play.sent(StartCommand) == [] and play.where("web") == ["h1"]
    gives_back(play)
    play.until(lambda: play.where("web") not in ([], ["h1"]), within_ms=5_000)


def test_a_host_that_refuses_is_asked_again_later_and_told_of_once() -> None:
    play = playing()
    says(play)
    first = ordered(play)
    answers(play, first, Result.REFUSED, "io_error.kill.refused.page_cache")
    assert play.vm_record("web").kill is None
    assert play.why_vm("web") == ["io_error.kill.blocked.refused"]
    play.forget_commands()
    play.until(lambda: bool(ends(play)), within_ms=AGAIN_MS + 1_000)
    assert ends(play)[0].order_id != first.order_id
    answers(play, ends(play)[0], Result.REFUSED, "io_error.kill.refused.page_cache")
    assert play.told().count("vm.io_error.kill_refused") == 1
    assert play.told().count("vm.io_error.killing") == 1
    # What is late, of an order that is over, changes nothing.
    answers(play, first, Result.REFUSED, "io_error.kill.refused.state")
    assert play.told().count("vm.io_error.kill_refused") == 1


def test_one_that_runs_after_all_is_not_meant_any_more() -> None:
    play = playing()
    says(play)
    ordered(play)
    says(play, state=VmState.RUNNING, io_error=False)
    assert play.vm_record("web").kill is None
    play.advance(3 * AGAIN_MS)
    assert len(ends(play)) == 1


def test_one_that_nobody_wants_up_any_more_is_not_ended_by_us() -> None:
    play = playing()
    says(play)
    ordered(play)
    play.inbox.append(VmConfigured(vm=replace(play.vms[0], wanted_up=False)))
    play.advance(3 * AGAIN_MS)
    assert len(ends(play)) == 1 and play.vm_record("web").kill is None


def test_a_new_leader_goes_on_with_what_is_on_record() -> None:
    play = playing()
    says(play)
    end = ordered(play)
    play.forget_commands()
    play.hosts["h1"].running[VmId("web")] = Incarnation(1)
    play.before_first_step = lambda: play.inbox.extend(
        [
            VmSeen(
                host_id=HostId("h1"),
                boot=play.hosts["h1"].boot,
                vm_id=VmId("web"),
                incarnation=Incarnation(1),
                state=VmState.PAUSED,
                io_error=True,
            )
        ]
    )
    play._say = lambda *_args, **_more: None  # type: ignore[method-assign]  # it says nothing any more
    play.new_leader()
    play.until(lambda: bool(ends(play)), within_ms=30_000)
    assert ends(play)[0].order_id == end.order_id


def test_its_hosts_death_ends_the_order_and_its_proof_brings_it_back() -> None:
    play = playing()
    says(play)
    ordered(play)
    play.hosts["h1"].cut()
    play.until(lambda: play.where("web") not in ([], ["h1"]))
    record = play.vm_record("web")
    assert record.kill is None and [death.host_id for death in record.deaths] == ["h1"]
    assert isinstance(record.deaths[0], Death)


@pytest.mark.parametrize("cause", [ReleaseCause.INTENDED, ReleaseCause.ENDED])
def test_one_that_ended_otherwise_meanwhile_stays_down(cause: ReleaseCause) -> None:
    play = playing()
    says(play)
    ordered(play)
    gives_back(play, cause)
    play.advance(60_000)
    assert play.where("web") == [] and play.why_vm("web") == ["recovery.not_due.given_back"]
    assert play.vm_record("web").deaths == ()
