"""The second half of a reboot: when a host may be switched on, what a new leader makes of it, and how it ends (F4, F9, J7)."""

from collections.abc import Callable

import pytest
from engine_driver import TICK_MS, Play

from virtha.engine.events import (
    BeatSeen,
    Command,
    DeathConfirmed,
    HoldChanged,
    MaintenanceChanged,
    OrderPower,
    PowerOrdered,
    PowerRead,
    Stalled,
)
from virtha.engine.power_on import RETURN_MS
from virtha.engine.records import Fence, FenceStep, Incident
from virtha.engine.turn import not_carried_out
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.ids import HostId
from virtha.model.policy import FencingAction, FencingPolicy, Policy
from virtha.model.power import PowerAction

pytestmark = pytest.mark.req("F4", "F9")


def rebooting(**fencing: object) -> Play:
    policy = Policy(fencing=FencingPolicy(action=FencingAction.REBOOT, **fencing))
    play = Play(4, policy=policy)
    play.run("v1", "h1")
    play.run("v2", "h2")
    play.advance(strikes_ms(play))  # this leader has led for longer than any order takes
    return play


def strikes_ms(play: Play) -> int:
    """By hand: sent as long as its evidence counts, then its deadline."""
    return play.policy.detection.evidence_max_age_ms + play.policy.fencing.order_deadline_ms


def ons(play: Play) -> list[OrderPower]:
    return [
        one
        for one in play.sent(OrderPower)
        if isinstance(one, OrderPower) and one.action is PowerAction.ON
    ]


def is_on(command: Command) -> bool:
    return isinstance(command, OrderPower) and command.action is PowerAction.ON


def is_off(command: Command) -> bool:
    return isinstance(command, OrderPower) and command.action is PowerAction.OFF


def incident_of(play: Play) -> Incident:
    incident = play.host_record("h1").incident
    assert incident is not None
    return incident


def fence_of(play: Play) -> Fence:
    fence = incident_of(play).fence
    assert fence is not None
    return fence


def say(play: Play, order: OrderPower, result: Result, error: str | None = None) -> None:
    play.inbox.append(
        PowerOrdered(
            order_id=order.order_id,
            host_id=order.host_id,
            device=order.device,
            result=result,
            error=error,
        )
    )


def confirm(play: Play) -> None:
    """The operator's word (P6), about the incident as it is."""
    incident = incident_of(play)
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h1"),
            boot=incident.boot,
            incident=incident.number,
            by="admin",
            force_reason="seen",
        )
    )


def too_late(play: Play, wanted: Callable[[Command], bool]) -> Callable[[Command], bool]:
    def answer(command: Command) -> bool:
        if not (isinstance(command, OrderPower) and wanted(command)):
            return False
        play.inbox.append(not_carried_out(command))
        return True

    return answer


# Our own lease


@pytest.mark.req("F9")
def test_no_on_goes_out_that_outlives_our_lease():
    play = rebooting()
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    play.lease_ms = play.policy.fencing.order_deadline_ms
    play.until(lambda: "host.proven_dead" in play.told())
    play.advance(60_000)
    assert ons(play) == []
    assert "fence.blocked.own_lease" in play.why("h1")
    play.lease_ms = None
    play.until(lambda: "host.returned" in play.told(), within_ms=3_000)
    assert len(ons(play)) == 1


def test_a_wait_for_our_lease_is_no_fast_loop():
    play = rebooting()
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    play.lease_ms = play.policy.fencing.order_deadline_ms
    play.until(lambda: "fence.blocked.own_lease" in play.why("h1"))
    wakes = [wake - play.now for _ in range(50) if (wake := play.tick().wake_at) is not None]
    assert wakes and min(wakes) >= TICK_MS


# Orders that always come too late


@pytest.mark.parametrize("wanted", [is_on, is_off], ids=["on", "off"])
def test_orders_that_always_come_too_late_are_given_ever_more_slowly(
    wanted: Callable[[Command], bool],
):
    play = rebooting()
    play.on_command = too_late(play, wanted)
    play.hosts["h1"].cut()
    play.until(lambda: "fence.order_too_late" in play.told())
    before = len(play.sent(OrderPower))
    play.advance(60_000)
    first_minute = len(play.sent(OrderPower)) - before
    assert 3 <= first_minute <= 10
    assert "fence.waiting.late_orders" in play.why("h1")
    before = len(play.sent(OrderPower))
    play.advance(600_000)
    assert len(play.sent(OrderPower)) - before in range(18, 22), "once each half minute"
    late = [one.fields["orders"] for one in play.notices if one.code == "fence.order_too_late"]
    assert late == [1, 2, 4, 8, 16]
    (told,) = [one for one in play.notices if one.code == "fence.orders_late"]
    assert told.fields["orders"] == play.policy.fencing.attempts_per_device
    assert play.told().count("fence.began") == 1
    play.on_command = None
    play.until(lambda: "host.returned" in play.told(), within_ms=120_000)
    assert "fence.on_failed" not in play.told()


# The host does not come back


def accepted_and_nothing(play: Play) -> None:
    """Its device takes the *on*, and no boot follows."""

    def answer(command: Command) -> bool:
        if isinstance(command, OrderPower) and is_on(command):
            say(play, command, Result.OK)
            return True
        return False

    play.on_command = answer
    play.hosts["h1"].cut()
    play.until(lambda: len(ons(play)) == 1)
    play.advance(1_000)
    assert fence_of(play).step is FenceStep.ON_TAKEN


def test_a_host_that_does_not_come_back_is_told_once():
    play = rebooting()
    accepted_and_nothing(play)
    assert "fence.waiting.return" in play.why("h1")
    play.advance(play.policy.fencing.order_deadline_ms * 2)
    assert "fence.not_back" not in play.told() and "fence.on_failed" not in play.told()
    play.now += RETURN_MS
    play.advance(5_000)
    assert "fence.blocked.not_back" in play.why("h1")
    play.now += 10 * RETURN_MS
    play.advance(5_000)
    assert play.told().count("fence.not_back") == 1
    assert "fence.on_failed" not in play.told() and len(ons(play)) == 1


def test_one_that_comes_back_late_returns_as_any_other():
    play = rebooting()
    accepted_and_nothing(play)
    play.now += RETURN_MS
    play.until(lambda: "fence.not_back" in play.told())
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: "host.returned" in play.told())
    assert play.host_record("h1").incident is None


@pytest.mark.parametrize("state", ["taken", "not back"])
def test_an_on_that_was_taken_is_waited_for_and_not_watched(state: str):
    """Nothing wakes the engine each millisecond, before its time is over and after."""
    play = rebooting()
    accepted_and_nothing(play)
    play.advance(play.policy.fencing.order_deadline_ms + 1_000)
    if state == "not back":
        play.now += RETURN_MS
        play.until(lambda: "fence.not_back" in play.told())
    wakes = [wake - play.now for _ in range(50) if (wake := play.tick().wake_at) is not None]
    assert not wakes or min(wakes) >= TICK_MS


def test_a_new_leader_waits_for_a_host_whose_device_took_the_on():
    play = rebooting()
    accepted_and_nothing(play)
    play.new_leader()
    play.advance(2 * strikes_ms(play))
    assert len(ons(play)) == 1
    assert "fence.on_failed" not in play.told()
    play.now += RETURN_MS
    play.until(lambda: play.told().count("fence.not_back") == 1)


def test_a_host_that_came_back_while_nobody_led_is_heard_first():
    play = rebooting()
    accepted_and_nothing(play)
    play.new_leader(away_ms=2 * RETURN_MS)
    play.advance(play.policy.detection.reconnect_ms - 1_000)
    assert "fence.not_back" not in play.told()
    play.until(lambda: "fence.not_back" in play.told(), within_ms=3_000)


# A new leader, and an on that may never have been sent


def unsent_on(play: Play) -> None:
    """It is written, and its leader dies before it is sent."""
    play.on_command = is_on
    play.hosts["h1"].cut()
    play.until(lambda: len(ons(play)) == 1)
    play.on_command = None


@pytest.mark.parametrize("away_ms", [0, 3_600_000])
def test_a_new_leader_sends_an_on_that_may_never_have_been_sent(away_ms: int):
    play = rebooting()
    unsent_on(play)
    play.new_leader(away_ms=away_ms)
    began = play.now
    play.until(lambda: "host.returned" in play.told())
    assert len(ons(play)) == 2
    assert play.now - began >= strikes_ms(play) - TICK_MS, "a former off may still strike (J7)"
    assert "fence.on_failed" not in play.told()


@pytest.mark.parametrize("will", ["hold", "maintenance"])
def test_a_new_leader_asks_for_the_operators_will_before_it_switches_on(will: str):
    play = rebooting()
    unsent_on(play)

    def forbid() -> None:
        if will == "hold":
            play.inbox.append(HoldChanged(reason="hands inside"))
        else:
            play.inbox.append(MaintenanceChanged(host_id=HostId("h1"), on=True, by="admin"))

    play.before_first_step = forbid
    play.new_leader()
    play.advance(120_000)
    assert len(ons(play)) == 1, "the one that was never sent"
    assert f"fence.blocked.{will}" in play.why("h1")
    assert "fence.on_failed" not in play.told()
    play.inbox.append(
        HoldChanged(reason=None)
        if will == "hold"
        else MaintenanceChanged(host_id=HostId("h1"), on=False, by="admin")
    )
    play.until(lambda: "host.returned" in play.told(), within_ms=30_000)


def test_an_on_that_nobody_answered_has_failed_for_the_leader_that_sent_it():
    play = rebooting()
    unsent_on(play)
    play.advance(play.policy.fencing.order_deadline_ms + 1_000)
    assert play.told().count("fence.on_failed") == 1
    assert "fence.blocked.on_failed" in play.why("h1")


def test_an_answer_that_lies_unread_after_a_sleep_is_no_failure():
    play = rebooting()
    unsent_on(play)
    play.now += 60_000
    play.inbox.append(Stalled())
    play.tick()
    say(play, ons(play)[0], Result.OK)
    play.advance(2_000)
    assert "fence.on_failed" not in play.told()
    assert fence_of(play).step is FenceStep.ON_TAKEN


def test_an_answer_after_its_time_is_believed():
    play = rebooting()
    unsent_on(play)
    play.until(lambda: "fence.on_failed" in play.told())
    say(play, ons(play)[0], Result.OK)
    play.tick()
    assert fence_of(play).step is FenceStep.ON_TAKEN


def test_a_device_that_names_another_machine_is_not_switched_on():
    play = rebooting()
    play.on_command = is_off
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    device = play.sent(OrderPower)[0]
    assert isinstance(device, OrderPower)
    play.inbox.append(
        PowerRead(
            order_id=device.order_id,
            host_id=HostId("h1"),
            device=device.device,
            state=PowerState.OFF,
            identity=IdentityMatch.MISMATCH,
        )
    )
    confirm(play)
    play.advance(120_000)
    assert ons(play) == []
    assert "fence.blocked.foreign_device" in play.why("h1")


# Another proof while an off is under way


def test_a_proof_outlives_an_off_that_came_too_late():
    """The host gives one more sign, then dies, and an operator says so. Only its return ends the incident."""
    play = rebooting()
    play.on_command = is_off
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    off = play.sent(OrderPower)[0]
    assert isinstance(off, OrderPower)
    host = play.hosts["h1"]
    play.inbox.append(BeatSeen(host_id=host.id, boot=host.boot, agent_alive=True))
    play.tick()
    confirm(play)
    play.tick()
    play.inbox.append(not_carried_out(off))
    play.tick()
    assert incident_of(play).proof is not None
    assert "host.alive_after_all" not in play.told()
    assert play.engine.records().cluster.fence_counts == (), "nobody was powered down"


def test_a_host_that_was_proven_dead_otherwise_is_switched_on_though_its_off_came_too_late():
    play = rebooting()
    play.on_command = is_off
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    off = play.sent(OrderPower)[0]
    assert isinstance(off, OrderPower)
    confirm(play)
    play.inbox.append(not_carried_out(off))
    play.until(lambda: "host.returned" in play.told())
    assert play.offs() == ["h1"], "it is not ordered off again"
    assert len(ons(play)) == 1


@pytest.mark.parametrize("answered", [False, True], ids=["in its lane", "accepted"])
def test_no_on_before_our_own_off_can_strike_no_more(answered: bool):
    """It may be sent as long as its evidence counts, and take its deadline after that."""
    play = rebooting()
    play.on_command = is_off
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    ordered_ms = play.now
    off = play.sent(OrderPower)[0]
    assert isinstance(off, OrderPower)
    if answered:
        say(play, off, Result.OK)
        play.hosts["h1"].bmc_dead = True  # and never reads anything
        play.tick()
        play.hosts["h1"].bmc_dead = False
    confirm(play)
    play.advance(ordered_ms + strikes_ms(play) - play.now)
    assert ons(play) == []
    assert "fence.waiting.former_orders" in play.why("h1")
    play.until(lambda: "host.returned" in play.told(), within_ms=2_000)


def test_an_off_of_an_earlier_attempt_is_waited_for_as_well():
    """The first got no answer and may lie in its lane; the second is confirmed by its readings."""
    play = rebooting(order_deadline_ms=3_000)
    kept: list[OrderPower] = []

    def first_off(command: Command) -> bool:
        if isinstance(command, OrderPower) and is_off(command) and not kept:
            kept.append(command)
            return True
        return False

    play.on_command = first_off
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    ordered_ms = play.now
    play.until(lambda: "host.proven_dead" in play.told())
    assert len(play.offs()) == 2
    assert play.now < ordered_ms + strikes_ms(play), "else this shows nothing"
    play.until(lambda: bool(ons(play)))
    assert play.now >= ordered_ms + strikes_ms(play)


def test_a_recorded_off_that_a_new_leader_sent_counts_from_then():
    """The third leader knows of the second's sending by the record alone (J7)."""
    play = rebooting()
    play.on_command = is_off
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    play.new_leader()
    play.until(lambda: len(play.offs()) == 2)
    assert fence_of(play).ordered_ms == play.now
