"""Rules of safety.md, each with a seeded bug that no other test of the engine notices (tests/mutants, engine-*)."""

from collections.abc import Callable, Iterator

import msgspec
import pytest
from drain_driver import maintain, words
from drain_driver import playing as draining
from engine_driver import Play, vm
from engine_review_driver import ended, playing, seen, starting
from played_moves import Phase

from virtha.engine.events import (
    Command,
    CopyReleased,
    DisksWatched,
    GatewayLost,
    HoldChanged,
    HostConfigured,
    HostSurveyed,
    Investigate,
    MigrateCommand,
    MigrationWord,
    OrderPower,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ReadPower,
    SessionChanged,
    Stalled,
    StartCommand,
    VmConfigured,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import FeedProgress, FenceStep, MoveStep, VmStage
from virtha.model.evidence import PowerState, ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.policy import (
    FencingPolicy,
    PermissionGrade,
    Policy,
    QuietTime,
    RecoveryPolicy,
)
from virtha.model.power import PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.vm import VmState

H1 = HostId("h1")
V1 = VmId("v1")


def release(play: Play, *, boot: str, incarnation: int) -> None:
    play.inbox.append(
        CopyReleased(host_id=H1, boot=BootId(boot), vm_id=V1, incarnation=Incarnation(incarnation))
    )
    play.tick()


def held(play: Play) -> list[tuple[str, int]]:
    return [(copy.host_id, int(copy.incarnation)) for copy in play.vm_record("v1").copies]


def feeds_of(play: Play) -> tuple[FeedProgress, ...]:
    incident = play.host_record("h1").incident
    assert incident is not None and incident.fence is not None
    return incident.fence.feeds


def read(play: Play, order_id: str, state: PowerState, device: str = "h1-power1") -> None:
    play.inbox.append(
        PowerRead(order_id=order_id, host_id=H1, device=PowerDeviceId(device), state=state)
    )


def unanswered(play: Play, *kinds: type[Command]) -> None:
    play.on_command = lambda command: isinstance(command, kinds)


# Holders, grants, incarnations


def test_a_release_frees_only_the_incarnation_that_it_names():
    play = playing()
    seen(play, "h1", "v1", incarnation=3)
    play.tick()
    release(play, boot="h1b1", incarnation=1)
    assert held(play) == [("h1", 3)]


def test_a_release_of_a_former_boot_frees_nothing():
    play = playing()
    release(play, boot="h1b0", incarnation=1)
    assert held(play) == [("h1", 1)]
    release(play, boot="h1b1", incarnation=1)
    assert held(play) == []


def test_a_start_whose_end_nobody_knows_is_taken_back_before_the_next():
    play = playing()
    start = starting(play)
    for host in play.hosts.values():
        host.confirms_cancel = False
    ended(play, start, Result.UNKNOWN)
    play.advance(60_000)
    assert play.vm_record("v1").stage is VmStage.CANCELLING
    assert len(play.sent(StartCommand)) == 1


def test_the_end_of_an_earlier_order_says_nothing_of_the_present_one():
    play = playing()
    first = starting(play)
    ended(play, first, Result.FAILED)
    play.until(lambda: len(play.sent(StartCommand)) == 2)
    before = play.vm_record("v1")
    ended(play, first, Result.OK)
    play.tick()
    ended(play, first, Result.FAILED)
    play.tick()
    assert play.vm_record("v1") == before


def test_a_start_is_above_every_incarnation_that_a_host_told_of():
    """A restored database is behind its hosts (M2): v1 was on h3 since, and is down there."""
    play = playing()
    seen(play, "h3", "v1", VmState.DOWN, incarnation=9)
    play.tick()
    assert starting(play).incarnation == 10


def test_a_source_that_handed_its_vm_over_is_never_let_run_again():
    """The target ran it and died; what the source still has in memory is older than its disks (G6)."""
    play = draining()
    play.moves.stops_at = Phase.SWITCHED
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    play.moves.dumb = {"h1"}
    target = play.sent(MigrateCommand)[0].target
    play.until(lambda: play.where("v1") == [target])
    play.tick()
    assert play.vm_record("v1").migration.step is MoveStep.SWITCHED
    play.hosts[target].cut()
    play.until(lambda: play.verdict(target) is Verdict.DEAD_PROVEN)
    play.advance(10_000)
    assert [host for host, _ in held(play)] == ["h1"]
    assert words(play)[-1] == ("h1", MigrationWord.END)
    play.moves.dumb = set()
    play.until(lambda: play.where("v1") not in ([], ["h1"]))


# What proves that a copy is dead (P1)


def scripted(play: Play, states: Iterator[PowerState]) -> None:
    """What the device says to the readings after our order; then it says nothing."""

    def answer(command: Command) -> bool:
        if not isinstance(command, ReadPower) or play.offs() == []:
            return False
        state = next(states, None)
        if state is not None:
            read(play, command.order_id, state)
        return True

    play.on_command = answer


def test_two_readings_off_of_one_moment_prove_nothing():
    play = playing()
    play.hosts["h1"].hang()

    def twice(command: Command) -> bool:
        if not isinstance(command, ReadPower) or play.offs() == []:
            return False
        if feeds_of(play)[0].off_since_ms is None:
            read(play, command.order_id, PowerState.OFF)
            read(play, command.order_id, PowerState.OFF)
        return True

    play.on_command = twice
    play.until(lambda: play.offs() == ["h1"])
    play.until(lambda: feeds_of(play)[0].off_since_ms is not None)
    assert not feeds_of(play)[0].confirmed
    assert play.verdict("h1") is Verdict.DEAD_UNPROVEN


def test_a_reading_on_begins_the_two_anew():
    play = playing()
    play.hosts["h1"].hang()
    scripted(play, iter([PowerState.OFF, PowerState.ON, PowerState.OFF]))
    play.until(lambda: len(play.offs()) == 2)
    assert "host.proven_dead" not in play.told()


@pytest.mark.parametrize("step", [FenceStep.OFF_ORDERED, FenceStep.READING])
def test_readings_that_our_order_did_not_ask_for_prove_nothing(step: FenceStep):
    """Asked before it was judged, answered late."""
    play = playing()
    play.hosts["h1"].hang()
    lost: tuple[type[Command], ...] = (
        (OrderPower, ReadPower) if step is FenceStep.OFF_ORDERED else (ReadPower,)
    )
    unanswered(play, *lost)
    play.until(lambda: play.offs() == ["h1"])
    play.advance(300)
    fence = play.host_record("h1").incident.fence
    assert fence is not None and fence.step is step
    for _ in range(3):
        read(play, "1.q1", PowerState.OFF)
        play.advance(1_500)
    assert [feed.off_since_ms for feed in feeds_of(play)] == [None]


def test_a_reading_after_the_order_but_before_its_acceptance_proves_nothing():
    play = playing()
    play.hosts["h1"].hang()
    unanswered(play, OrderPower, ReadPower)
    play.until(lambda: play.offs() == ["h1"])
    order = play.sent(OrderPower)[0]
    for _ in range(3):
        read(play, order.order_id, PowerState.OFF)
        play.advance(1_500)
    assert [feed.off_since_ms for feed in feeds_of(play)] == [None]


def test_a_device_that_says_off_must_take_our_order_all_the_same():
    play = playing()
    play.hosts["h1"].cut()
    unanswered(play, OrderPower)
    play.until(lambda: play.offs() == ["h1"])
    play.advance(10_000)
    assert play.verdict("h1") is Verdict.DEAD_UNPROVEN


def power_test(play: Play, *, boot: str) -> None:
    play.inbox.append(
        PowerTested(host_id=H1, boot=BootId(boot), device=PowerDeviceId("h1-power1"), passed=True)
    )
    play.tick()


def test_a_power_test_counts_only_for_a_boot_that_was_beating():
    play = Play(4, tested=False)
    play.run("v1", "h1")
    power_test(play, boot="h1b0")
    assert play.host_record("h1").tested_devices == ()
    play.hosts["h1"].hang()
    unanswered(play, OrderPower)
    play.advance(play.policy.detection.suspect_after_ms + 1_000)
    power_test(play, boot="h1b1")
    assert play.host_record("h1").tested_devices == ()
    play.hosts["h1"].beating = True
    play.tick()
    power_test(play, boot="h1b1")
    assert play.host_record("h1").tested_devices == ("h1-power1",)


def liar(play: Play) -> None:
    """h1 hangs, its device says off, and h1 beats once more."""
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.until(lambda: play.offs() == ["h1"])
    play.until(lambda: feeds_of(play)[0].off_since_ms is not None)
    play.hosts["h1"].beating = True
    play.tick()
    assert "fence.contradicted" in play.told()


def test_a_contradicted_incident_is_not_proven_even_after_a_new_test():
    play = playing()
    liar(play)
    play.test_power(play.hosts["h1"])
    play.tick()
    assert play.host_record("h1").tested_devices == ("h1-power1",)
    play.hosts["h1"].beating = False
    unanswered(play, ReadPower)
    play.advance(5_500)  # its sign is no longer news, which would end the incident
    play.on_command = None
    play.advance(60_000)
    incident = play.host_record("h1").incident
    assert incident is not None and incident.number == 1
    assert play.sent(StartCommand) == []


def test_a_device_that_lied_proves_nothing_in_the_next_incident():
    play = playing()
    liar(play)
    play.until(lambda: play.host_record("h1").incident is None)
    assert "fence.failed_host_lives" in play.told()
    play.hosts["h1"].bmc_state = None
    play.advance(30_000)  # long enough to be read as on
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.hosts["h1"].beating = False
    play.advance(60_000)
    assert len(play.offs()) > 1
    assert play.sent(StartCommand) == []


def two_feeds(*, reads_state: bool = True) -> Play:
    """h1 has one level with two feeds, and hangs."""
    play = playing(levels=2)
    feeds = tuple(
        PowerFeed(device=PowerDeviceId(f"h1-power{number}"), reads_state=reads_state)
        for number in (1, 2)
    )
    both = msgspec.structs.replace(play.configs[0], power=(PowerLevel(feeds=feeds),))
    play.inbox.append(HostConfigured(host=both))
    play.tick()
    play.hosts["h1"].hang()
    return play


def second_feed(answer: Callable[[Play, Command], None]) -> Callable[[Play], None]:
    def use(play: Play) -> None:
        def on_command(command: Command) -> bool:
            if (
                not isinstance(command, OrderPower | ReadPower)
                or command.device != "h1-power2"
                or play.offs() == []
            ):
                return False
            answer(play, command)
            return True

        play.on_command = on_command

    return use


def stays_on(play: Play, command: Command) -> None:
    if isinstance(command, ReadPower):
        read(play, command.order_id, PowerState.ON, command.device)
    elif isinstance(command, OrderPower):
        play.inbox.append(
            PowerOrdered(
                order_id=command.order_id,
                host_id=H1,
                device=command.device,
                result=Result.OK,
            )
        )


def takes_no_order(play: Play, command: Command) -> None:
    if isinstance(command, ReadPower):
        read(play, command.order_id, PowerState.OFF, command.device)


@pytest.mark.parametrize("answer", [stays_on, takes_no_order])
def test_all_feeds_of_a_level_must_take_the_order_and_be_off(
    answer: Callable[[Play, Command], None],
):
    play = two_feeds()
    second_feed(answer)(play)
    play.until(lambda: play.offs() == ["h1", "h1"])
    play.advance(play.policy.fencing.order_deadline_ms - 1_000)
    assert "host.proven_dead" not in play.told()
    play.on_command = None
    play.until(lambda: "host.proven_dead" in play.told())


def test_a_driver_without_a_status_string_proves_nothing():
    play = two_feeds(reads_state=False)
    play.advance(60_000)
    assert "host.proven_dead" not in play.told()
    failed = {one.fields["why"] for one in play.notices if one.code == "fence.level_failed"}
    assert failed == {"proof.blocked.no_status"}


# When a host may be judged


def test_a_lost_gateway_begins_the_watch_anew():
    play = playing()
    play.hosts["h1"].hang()
    play.advance(play.policy.detection.suspect_after_ms)
    play.inbox.append(GatewayLost(hosts=frozenset({H1})))
    play.advance(play.policy.detection.reconnect_ms - 1_000)
    assert play.offs() == [] and play.verdict("h1") is Verdict.UNKNOWN
    play.until(lambda: play.offs() == ["h1"])


def test_a_neighbours_word_fades():
    play = playing()
    play.hosts["h1"].beating = False
    play.until(lambda: play.verdict("h1") is Verdict.ISOLATED)
    unanswered(play, Investigate)
    play.hosts["h1"].answers_neighbours = play.hosts["h1"].answers_ping = False
    play.until(lambda: play.offs() == ["h1"], within_ms=60_000)


def test_an_agent_with_a_session_is_not_judged_by_its_guardians_silence():
    play = playing()
    play.hosts["h1"].hang()
    unanswered(play, ReadPower)
    play.advance(4_500)
    play.inbox.append(
        SessionChanged(host_id=H1, process=ProcessKind.AGENT, boot=BootId("h1b1"), up=True)
    )
    play.advance(60_000)
    assert play.offs() == []
    assert play.why("h1") == ["host.suspect.guardian_silent"]


def test_a_bmc_that_says_off_does_not_outweigh_a_connection_that_stands():
    play = playing()
    play.hosts["h1"].beating = play.hosts["h1"].answers_neighbours = False
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.advance(3_900)  # the gateway has not given its sessions up yet
    assert play.verdict("h1") is Verdict.SUSPECT
    assert play.offs() == []


def dead_after_ms(changed: bool | None) -> int:
    """With rounds of that answer about its disks."""
    play = playing()
    play.hosts["h1"].hang()

    def watch(command: Command) -> bool:
        if isinstance(command, Investigate) and command.disk_reader is not None:
            play.inbox.append(
                DisksWatched(
                    witness=command.disk_reader, subject=command.subject, changed=changed, disks=1
                )
            )
            return True
        return False

    play.on_command = watch
    play.hosts["h1"].bmc_dead = True
    return play.until(lambda: play.offs() == ["h1"])


def test_disks_that_nobody_can_read_are_not_quiet():
    assert dead_after_ms(None) > dead_after_ms(False)


def test_the_observer_fences_no_host_that_it_runs_on():
    play = playing()
    own = msgspec.structs.replace(play.configs[0], carries_server=True)
    play.inbox.append(HostConfigured(host=own))
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.offs() == [] and "fence.blocked.own_host" in play.why("h1")


def test_a_new_leader_finds_the_brake_on():
    play = Play(9, vms=[vm(f"v{number}") for number in range(1, 4)])
    for host in play.hosts.values():
        host.storage = False
        play.survey(host)
    for number in range(1, 4):
        play.run(f"v{number}", f"h{number}")
        play.hosts[f"h{number}"].hang()
    play.until(lambda: "fence.brake.tripped" in play.told())
    play.advance(play.policy.fencing.brake_window_ms)  # by now they would not trip it again
    play.new_leader()
    play.advance(30_000)
    assert play.offs() == [] and "fence.blocked.brake" in play.why("h1")


def test_the_brake_does_not_hold_an_order_to_a_host_that_is_off():
    play = Play(9, vms=[vm(f"v{number}") for number in range(1, 4)])
    for number in range(1, 4):
        play.run(f"v{number}", f"h{number}")
    for host in play.hosts.values():
        host.storage = False
        play.survey(host)
    play.hosts["h1"].hang()
    play.hosts["h2"].hang()
    play.hosts["h3"].cut()
    play.until(lambda: "fence.brake.tripped" in play.told())
    play.until(lambda: play.offs() == ["h3"])
    play.advance(30_000)
    assert play.offs() == ["h3"]


# What the operator allowed


def test_deaths_of_long_ago_quarantine_nothing():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [])
    second = play.where("v1")[0]
    play.now += play.policy.recovery.quarantine_window_ms
    play.inbox.append(Stalled())
    play.advance(1_000)
    play.hosts[second].cut()
    play.until(lambda: play.where("v1") != [])
    assert "vm.quarantined" not in play.told()


def graded(grade: PermissionGrade, *, whose: str) -> Play:
    policy = Policy() if whose == "vm" else Policy(recovery=RecoveryPolicy(grade=grade))
    play = Play(4, policy=policy, vms=[vm("v1", grade=grade if whose == "vm" else None)])
    play.run("v1", "h1")
    return play


@pytest.mark.parametrize(
    ("whose", "reason"), [("cluster", "fence.blocked.grade"), ("vm", "fence.blocked.not_needed")]
)
def test_who_may_only_be_moved_is_not_fenced_for(whose: str, reason: str):
    play = graded(PermissionGrade.MOVE, whose=whose)
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.offs() == [] and reason in play.why("h1")
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: play.where("v1") != [])


@pytest.mark.parametrize("whose", ["cluster", "vm"])
def test_who_may_only_be_restarted_in_place_goes_nowhere(whose: str):
    play = graded(PermissionGrade.RESTART, whose=whose)
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.advance(30_000)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.blocked.grade"]


def test_nobody_is_fenced_in_a_quiet_time():
    quiet = QuietTime(begin="00:00", length_ms=23 * 3_600_000)
    play = playing(fencing=FencingPolicy(quiet_times=(quiet,)))
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.offs() == [] and "fence.blocked.quiet_time" in play.why("h1")


def test_a_host_whose_gate_is_not_in_force_is_no_target():
    play = playing()
    for name in ("h2", "h3"):
        host = play.hosts[name]
        play.inbox.append(
            HostSurveyed(
                host_id=host.id,
                boot=host.boot,
                gate_in_force=False,
                libvirt_connected=True,
                storage_domains=frozenset({"ds1"}),
                active=frozenset(host.running),
            )
        )
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [])
    assert play.where("v1") == ["h4"]


def test_a_vm_taken_out_of_automatic_action_waits_until_it_is_put_back():
    play = playing()
    play.inbox.append(HoldChanged(reason="look first"))
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: play.vm_record("v1").stage is VmStage.READY)
    play.inbox += [
        VmConfigured(vm=msgspec.structs.replace(play.vms[0], ignore=True)),
        HoldChanged(reason=None),
    ]
    play.advance(30_000)
    assert play.vm_record("v1").stage is VmStage.READY
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.blocked.ignored"]
    play.inbox.append(VmConfigured(vm=play.vms[0]))
    play.until(lambda: play.where("v1") != [])


def test_a_power_down_of_a_host_that_was_off_is_not_counted():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: "host.proven_dead" in play.told())
    assert play.offs() == ["h1"]
    assert play.engine.records().cluster.fence_counts == ()
