"""Power orders that were decided long ago are not carried out, and what time counts from (J7, safety section 6)."""

import msgspec
import pytest
from engine_driver import TICK_MS, Play

from virtha.engine.events import (
    Command,
    DeathConfirmed,
    Decision,
    Notice,
    OrderPower,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ReadPower,
    StartCommand,
)
from virtha.engine.records import FenceStep, OrderId
from virtha.engine.turn import Send, Turn, Wait, Write, is_too_late, not_carried_out
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.policy import FencingAction, FencingPolicy, Policy
from virtha.model.power import PowerAction, PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.time import Millis

NOW = Millis(1_000_000_000)


def playing(hosts: int = 4, *, levels: int = 1, fencing: FencingPolicy | None = None) -> Play:
    policy = Policy() if fencing is None else Policy(fencing=fencing)
    play = Play(hosts, policy=policy, levels=levels)
    play.run("v1", "h1")
    play.run("v2", "h2")
    return play


def order(*, not_after_ms: int = NOW + 5_000, device: str = "d1") -> OrderPower:
    return OrderPower(
        order_id=OrderId("1.1"),
        host_id=HostId("h1"),
        device=PowerDeviceId(device),
        action=PowerAction.OFF,
        deadline_ms=20_000,
        not_after_ms=not_after_ms,
    )


class Decided:
    """An engine that decided that once."""

    def __init__(self, *commands: Command) -> None:
        self.decisions = [Decision(commands=commands, notices=())]
        self.seen: list[object] = []
        self.stall_ms = 60_000
        """Longer than any write here takes: of stalls ``test_turn`` tells."""

    def step(self, now: Millis, events: object) -> Decision:
        self.seen.append(events)
        return self.decisions.pop() if self.decisions else Decision()


def late(play: Play, command: Command) -> bool:
    """The driver says that it was too late."""
    if not isinstance(command, OrderPower):
        return False
    play.inbox.append(not_carried_out(command))
    return True


# The turn


def test_an_order_that_is_in_time_is_sent():
    turn = Turn(Decided(order()), term=Term(1))
    turn.begin(NOW)
    turn.journaled()
    turn.written(held=True, now=Millis(NOW + 5_000))
    assert not is_too_late(order(), Millis(NOW + 5_000))
    assert not turn.waiting


def test_an_order_that_waited_too_long_for_the_database_is_given_back_instead():
    in_time = order(not_after_ms=NOW + 9_000, device="d2")
    engine = Decided(order(), in_time)
    engine.decisions[0] = msgspec.structs.replace(
        engine.decisions[0], notices=(Notice(code="fence.began"),)
    )
    turn = Turn(engine, term=Term(1))
    turn.begin(NOW)
    assert isinstance(turn.journaled(), Write)
    assert turn.written(held=True, now=Millis(NOW + 5_001)) == Send(commands=(in_time,))
    assert isinstance(turn.sent(), Wait)
    assert turn.waiting, "the engine is to decide anew at once"
    turn.begin(Millis(NOW + 5_002))
    turn.journaled()
    told = PowerOrdered(
        order_id=OrderId("1.1"),
        host_id=HostId("h1"),
        device=PowerDeviceId("d1"),
        result=Result.REFUSED,
        error="power.too_late",
    )
    assert engine.seen[-1] == (told,)


# The engine


def test_an_order_says_till_when_its_evidence_counts():
    play = playing()
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    at_ms, command = play.commands[-1]
    assert isinstance(command, OrderPower)
    assert command.not_after_ms == at_ms + play.policy.detection.evidence_max_age_ms


def test_an_order_must_be_over_before_the_leaders_own_lease_is():
    play = playing()
    play.lease_ms = play.policy.fencing.order_deadline_ms + 1_200
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    at_ms, command = play.commands[-1]
    assert isinstance(command, OrderPower)
    assert command.not_after_ms == at_ms + 1_200


@pytest.mark.req("F1")
def test_a_host_that_lives_again_is_not_ordered_off_anew():
    play = playing()
    play.hosts["h1"].hang()
    play.on_command = lambda command: isinstance(command, OrderPower)
    play.until(lambda: play.offs() == ["h1"])
    first = play.sent(OrderPower)[0]
    host = play.hosts["h1"]
    host.beating = host.answers_neighbours = host.answers_ping = True
    play.tick()
    assert isinstance(first, OrderPower)
    play.inbox.append(not_carried_out(first))
    play.advance(120_000)
    assert play.offs() == ["h1"]
    assert play.told().count("host.alive_after_all") == 1
    assert "fence.failed_host_lives" not in play.told(), "it was never ordered off"
    assert play.host_record("h1").incident is None
    assert play.where("v1") == ["h1"]


@pytest.mark.req("F7")
def test_a_host_that_is_still_silent_is_ordered_off_anew_and_counted_once():
    play = playing()
    play.hosts["h1"].hang()
    play.on_command = lambda command: late(play, command)
    play.until(lambda: "fence.order_too_late" in play.told())
    play.on_command = None
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert len(play.engine.records().cluster.fence_counts) == 1
    assert "fence.level_failed" not in play.told()


@pytest.mark.req("F7")
def test_an_order_that_was_never_carried_out_does_not_count():
    play = playing()
    play.hosts["h1"].hang()
    play.lease_ms = None
    play.on_command = lambda command: late(play, command)
    play.until(lambda: "fence.order_too_late" in play.told())
    assert len(play.engine.records().cluster.fence_counts) <= 1
    incident = play.host_record("h1").incident
    assert incident is not None and incident.fence is not None
    assert [one.first_ms for one in incident.orders] == [incident.fence.began_ms], (
        "it struck nobody"
    )
    play.hosts["h1"].beating = play.hosts["h1"].answers_neighbours = True
    play.advance(10_000)
    assert play.engine.records().cluster.fence_counts == ()


def test_one_device_in_time_and_one_too_late_is_no_refusal_of_either():
    play = playing()
    play.configs[0] = msgspec.structs.replace(
        play.configs[0],
        power=(
            PowerLevel(feeds=(PowerFeed(device=feed("a")), PowerFeed(device=feed("b")))),
            *play.configs[0].power,
        ),
    )
    play._configure()
    for device in (feed("a"), feed("b")):
        pass_test(play, device)
    play.hosts["h1"].hang()
    kept: list[OrderPower] = []

    def second_is_late(command: Command) -> bool:
        if isinstance(command, OrderPower) and command.device == feed("b") and not kept:
            kept.append(command)
            play.inbox.append(not_carried_out(command))
            return True
        return False

    play.on_command = second_is_late
    play.until(lambda: bool(kept))
    fence = play.host_record("h1").incident.fence
    assert fence is not None and fence.step is FenceStep.OFF_ORDERED
    play.until(lambda: len(play.offs()) == 4, within_ms=5_000)
    again = play.host_record("h1").incident.fence
    assert again is not None
    assert (again.level, again.attempt) == (0, 1), "a late order is no failed attempt"
    assert len(play.engine.records().cluster.fence_counts) == 1


def pass_test(play: Play, device: PowerDeviceId) -> None:
    host, unknown = play.hosts["h1"], IdentityMatch.UNKNOWN
    play.inbox.append(
        PowerTested(host_id=host.id, boot=host.boot, device=device, passed=True, identity=unknown)
    )
    play.tick()


def feed(name: str) -> PowerDeviceId:
    return PowerDeviceId(f"h1-outlet-{name}")


@pytest.mark.req("F4")
def test_switching_on_too_late_is_decided_anew():
    play = playing(fencing=FencingPolicy(action=FencingAction.REBOOT))
    play.hosts["h1"].hang()
    kept: list[OrderPower] = []

    def first_on_is_late(command: Command) -> bool:
        if isinstance(command, OrderPower) and command.action is PowerAction.ON and not kept:
            kept.append(command)
            return late(play, command)
        return False

    play.on_command = first_on_is_late
    play.until(lambda: "host.returned" in play.told())
    actions = [one.action for one in play.sent(OrderPower) if isinstance(one, OrderPower)]
    assert actions == [PowerAction.OFF, PowerAction.ON, PowerAction.ON]
    assert "fence.on_failed" not in play.told()


def test_what_a_former_leader_may_have_sent_is_not_taken_for_never_sent():
    """It is tried again as what it was: the former leader's order may have struck."""
    play = playing()
    play.hosts["h1"].hang()
    play.answers = False
    play.until(lambda: play.offs() == ["h1"])
    counted = play.engine.records().cluster.fence_counts
    began_ms = play.now
    play.new_leader()
    play.answers = True
    play.on_command = lambda command: late(play, command)
    play.until(lambda: "fence.order_too_late" in play.told())
    assert len(counted) == 1
    assert play.engine.records().cluster.fence_counts == counted
    fence = play.host_record("h1").incident.fence
    assert fence is not None and fence.began_ms == began_ms, "whoever fell silent then counts (P1)"


# After another proof


def test_nobody_is_ordered_off_again_after_the_operators_word():
    play = playing()
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.offs() == ["h1"])
    first = play.sent(OrderPower)[0]
    assert isinstance(first, OrderPower)
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h1"), boot=BootId("h1b1"), incident=1, by="admin", force_reason="seen"
        )
    )
    play.tick()
    assert "host.proven_dead" in play.told()
    play.inbox.append(
        PowerOrdered(
            order_id=first.order_id,
            host_id=first.host_id,
            device=first.device,
            result=Result.UNKNOWN,
            error="power.no_answer",
        )
    )
    play.advance(120_000)
    assert play.offs() == ["h1"]
    assert "fence.level_failed" not in play.told()


# What time counts from


def test_the_deadline_counts_from_the_sending():
    """The write took 4 s: the device has its whole time all the same."""
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.offs() == ["h1"])
    play.now += 4_000 - TICK_MS
    sent_ms = play.now + TICK_MS
    play.until(lambda: len(play.offs()) == 2)
    deadline_ms = play.policy.fencing.order_deadline_ms
    assert deadline_ms <= play.now - sent_ms <= deadline_ms + TICK_MS


def test_a_former_leaders_order_that_is_overdue_says_nothing_of_the_device():
    play = playing()
    play.hosts["h1"].hang()
    play.answers = False
    play.until(lambda: play.offs() == ["h1"])
    play.new_leader(away_ms=60_000)
    play.answers = True
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert "fence.level_failed" not in play.told()
    assert len(play.offs()) == 2


def test_the_second_reading_is_asked_for_when_the_first_is_old_enough():
    """Not a moment sooner, for its answer would not count, and not an interval later."""
    play = playing()
    play.hosts["h1"].hang()
    play.until(lambda: "host.proven_dead" in play.told())
    asked = [
        at_ms
        for at_ms, command in play.commands
        if isinstance(command, ReadPower) and "q" not in command.order_id
    ]
    assert len(asked) == 2
    gap_ms = play.policy.fencing.read_back_gap_ms
    answered_ms = asked[0] + TICK_MS
    assert asked[1] == answered_ms + gap_ms
    assert play.now == asked[1] + TICK_MS


def test_one_question_at_a_time():
    """Two that overlap could both tell of one moment."""
    play = playing()
    play.hosts["h1"].hang()
    held: list[tuple[int, ReadPower]] = []

    def slow(command: Command) -> bool:
        if isinstance(command, ReadPower) and "q" not in command.order_id:
            held.append((play.now, command))
            return True
        return False

    play.on_command = slow
    play.until(lambda: bool(held))
    play.advance(1_000)
    assert len(held) == 1
    play.advance(1_000)
    assert len(held) == 2, "its driver has given up by then"
    assert play.sent(StartCommand) == []


def test_every_device_of_the_level_must_say_off():
    """It is on by one of two feeds still, and lives, however often it is tried."""
    play = playing(fencing=FencingPolicy(order_deadline_ms=5_000))
    play.configs[0] = msgspec.structs.replace(
        play.configs[0],
        power=(PowerLevel(feeds=(PowerFeed(device=feed("a")), PowerFeed(device=feed("b")))),),
    )
    play._configure()
    for name in ("a", "b"):
        play.inbox.append(
            PowerTested(
                host_id=HostId("h1"),
                boot=BootId("h1b1"),
                device=feed(name),
                passed=True,
                identity=IdentityMatch.MATCH,
            )
        )
    play.tick()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True

    def only_a_is_off(command: Command) -> bool:
        if not isinstance(command, ReadPower) or command.host_id != "h1":
            return False
        state = PowerState.OFF if command.device == feed("a") else PowerState.ON
        play.inbox.append(
            PowerRead(
                order_id=command.order_id,
                host_id=command.host_id,
                device=command.device,
                state=state,
            )
        )
        return True

    play.on_command = only_a_is_off
    play.until(lambda: "fence.failed" in play.told())
    play.advance(60_000)
    assert play.sent(StartCommand) == []
