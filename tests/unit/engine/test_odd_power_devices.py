"""Power devices that don't do what they should: what is tried next, and what proves nothing (P1)."""

import pytest
from engine_driver import Play, on_ceph, vm
from engine_review_driver import playing

from virtha.engine.events import (
    HoldChanged,
    OrderPower,
    Poison,
    PowerRead,
    PowerTested,
    ReadPower,
    StartCommand,
    StorageFence,
)
from virtha.engine.machine import Verdict
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.ids import BootId, HostId
from virtha.model.policy import FencingPolicy, Policy, Unreachable
from virtha.model.power import PowerDeviceId


def test_accepted_is_not_off():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.until(lambda: "fence.failed" in play.told())
    assert play.sent(StartCommand) == []
    failed = [one.fields["why"] for one in play.notices if one.code == "fence.level_failed"]
    assert set(failed) == {"power.still_on"}


def test_the_second_level_does_what_the_first_could_not():
    play = Play(4, levels=2)
    play.run("v1", "h1")
    play.hosts["h1"].hang()

    def first_level_dead(command: object) -> bool:
        return isinstance(command, OrderPower) and command.device.endswith("power1")

    play.on_command = first_level_dead
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    attempts = play.policy.fencing.attempts_per_device
    assert play.offs() == ["h1"] * (attempts + 1)


def test_all_levels_dead_is_told_and_tried_again_ever_more_slowly():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.advance(900_000)
    assert play.told().count("fence.failed") == 1
    assert 4 <= len(play.offs()) <= 40, "an endless loop, or none at all"
    assert len(play.sent(Poison)) == 1
    assert play.sent(StartCommand) == []
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=1_200_000)


def test_a_dead_bmc_starts_the_leases_clock_with_the_verdict():
    play = playing()
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.advance(1_000)
    assert [poison.boot for poison in play.sent(Poison)] == ["h1b1"]
    assert "fence.failed" not in play.told()


def test_a_host_without_power_devices_is_poisoned_all_the_same():
    play = Play(4, levels=0)
    play.run("v1", "h1")
    play.hosts["h1"].cut()
    play.until(lambda: len(play.sent(Poison)) == 1)
    assert "fence.blocked.no_device" in play.why("h1")


def test_a_host_whose_bmc_answers_is_not_poisoned():
    play = playing()
    play.hosts["h1"].hang()
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert play.sent(Poison) == []


def test_the_power_state_is_asked_at_the_first_late_beat():
    play = playing()
    play.hosts["h1"].cut()
    took_ms = play.until(lambda: play.sent(ReadPower) != [])
    assert took_ms <= play.policy.detection.late_after_ms + 200
    assert play.verdict("h1") is Verdict.ALIVE and "host.suspected" not in play.told()


def on_a_cluster(fencing: FencingPolicy) -> Play:
    play = Play(4, policy=Policy(fencing=fencing), vms=[on_ceph("v1")])
    play.tell_ceph("rbd1")
    play.on_command = lambda command: isinstance(command, StorageFence)
    play.run("v1", "h1")
    return play


def test_a_storage_fence_is_asked_for_where_the_policy_names_it():
    ways = (Unreachable.NEXT_LEVEL, Unreachable.STORAGE_FENCE, Unreachable.OPERATOR)
    play = on_a_cluster(FencingPolicy(unreachable=ways))
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_refuses = "power.password"
    play.until(lambda: play.sent(StorageFence) != [])
    assert play.offs() and play.sent(Poison) == []


def test_a_hold_stops_the_storage_fence_too():
    play = on_a_cluster(FencingPolicy(unreachable=(Unreachable.STORAGE_FENCE, Unreachable.WAIT)))
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    attempts = play.policy.fencing.attempts_per_device
    play.until(lambda: len(play.offs()) == attempts)  # its end would ask for the next way
    play.inbox.append(HoldChanged(reason="upgrade"))
    play.advance(120_000)
    assert play.sent(StorageFence) == []
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: play.sent(StorageFence) != [])


def test_a_device_that_names_its_host_needs_no_test_by_load():
    play = Play(4)
    play.run("v1", "h1")
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH
        play.test_power(host)
    play.tick()
    play.hosts["h1"].cut()
    play.hosts["h2"].cut()
    play.until(lambda: play.where("v1") != [])


@pytest.mark.parametrize("protected", [True, False], ids=["both shot", "one shot"])
def test_swapped_addresses_prove_nothing(protected: bool):
    """h1 hangs; its device is h2's. h2 goes dark at our order, and h1 must not be called dead for it,
    however often it is tried, unless h2's device, which is h1's, says *off* as well: then both are, whichever is whose.
    ``Play`` itself fails a start while h1 runs the VM."""
    play = Play(4, vms=[vm("v1"), vm("v2", ha=protected)])
    play.run("v1", "h1")
    play.run("v2", "h2")
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_strikes = play.hosts["h2"]
    play.hosts["h2"].bmc_strikes = play.hosts["h1"]
    play.advance(1_200_000)
    assert play.hosts["h2"].powered is False
    if protected:
        assert play.hosts["h1"].powered is False
        assert play.where("v1") not in ([], ["h1"])
        assert play.where("v2") not in ([], ["h2"])
    else:
        failed = {one.fields["why"] for one in play.notices if one.code == "fence.level_failed"}
        assert "proof.blocked.swapped" in failed
        assert play.where("v1") == ["h1"]


def test_a_device_that_names_another_machine_is_told_and_proves_nothing():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_identity = IdentityMatch.MISMATCH
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.advance(60_000)
    assert "fence.device_of_another" in play.told()
    assert play.sent(StartCommand) == []


def test_a_beat_after_a_reading_off_makes_the_device_a_liar():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.until(lambda: play.offs() == ["h1"])
    play.until(
        lambda: any(feed.off_since_ms for feed in play.host_record("h1").incident.fence.feeds)
    )
    play.hosts["h1"].beating = True
    play.tick()
    play.hosts["h1"].beating = False
    play.advance(120_000)
    assert "fence.contradicted" in play.told()
    assert play.sent(StartCommand) == []


@pytest.mark.req("P1")
def test_a_device_whose_proof_was_a_lie_is_believed_no_more():
    """The worst lie: its host beats after it was proven dead. What comes of that incident is one thing, the next another."""
    play = playing()
    play.on_command = lambda command: isinstance(command, StartCommand)  # it would be the second
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.until(lambda: "host.proven_dead" in play.told())
    play.hosts["h1"].beating = True
    play.tick()
    record = play.host_record("h1")
    assert "host.alive_though_proven_dead" in play.told()
    assert record.disproved_devices == ("h1-power1",)
    assert record.tested_devices == record.identified_devices == ()


@pytest.mark.req("P1")
def test_only_a_test_that_it_passed_clears_a_device():
    play = playing()
    device = PowerDeviceId("h1-power1")

    def tested(identity: IdentityMatch, *, passed: bool) -> tuple[PowerDeviceId, ...]:
        test = PowerTested(
            host_id=HostId("h1"),
            boot=BootId("h1b1"),
            device=device,
            passed=passed,
            identity=identity,
        )
        play.inbox.append(test)
        play.tick()
        return play.host_record("h1").foreign_devices

    assert tested(IdentityMatch.MISMATCH, passed=False) == (device,)
    assert tested(IdentityMatch.UNKNOWN, passed=False) == (device,), "nobody answered"
    assert tested(IdentityMatch.MATCH, passed=True) == ()


def test_disks_that_change_after_off_block_until_they_are_quiet():
    play = playing()
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h1"].disks_change = True  # the kernel's queue of the dead host, or a liar
    play.advance(10_000)
    assert play.sent(StartCommand) == []
    play.hosts["h1"].disks_change = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]))


def test_a_beat_of_a_boot_that_was_proven_dead_is_an_alarm_once_and_no_return():
    play = playing()
    host = play.hosts["h1"]
    host.cut()
    play.until(lambda: play.where("v1") != [])
    host.powered = host.beating = True
    play.advance(2_000)
    assert play.told().count("host.alive_though_proven_dead") == 1
    assert "host.returned" not in play.told()
    assert play.verdict("h1") is Verdict.ALIVE, "nothing is judged by that proof any more"


def failures(play: Play) -> set[tuple[str, str]]:
    told = [one.fields for one in play.notices if one.code == "fence.level_failed"]
    return {(str(one["why"]), str(one.get("cause", ""))) for one in told}


def reads(play: Play, *answers: tuple[PowerState, str | None]) -> None:
    """Its device takes orders; so it answers the readings behind them, one after the other, and the last for good."""
    left = list(answers)

    def answer(command: object) -> bool:
        if not isinstance(command, ReadPower) or not play.offs():
            return False
        state, error = left.pop(0) if len(left) > 1 else left[0]
        reading = PowerRead(
            order_id=command.order_id,
            host_id=command.host_id,
            device=command.device,
            state=state,
            error=error,
        )
        play.inbox.append(reading)
        return True

    play.on_command = answer


@pytest.mark.req("X1", "F9")
@pytest.mark.parametrize("error", ["power.sign_in_refused", None])
def test_a_device_that_nobody_could_read_after_its_order_is_told_as_that(error: str | None):
    """Its host may well be off: that it stayed on nobody has said."""
    play = playing()
    play.hosts["h1"].hang()
    reads(play, (PowerState.UNKNOWN, error))
    play.until(lambda: "fence.failed" in play.told())
    assert failures(play) == {("power.unread", error or "")}
    assert play.sent(StartCommand) == []
    fence = play.host_record("h1").incident.fence
    assert fence is not None and (fence.failed, fence.unread) == ("power.unread", error or "")


@pytest.mark.req("X1", "F9")
@pytest.mark.parametrize("last_is_on", [True, False])
def test_what_was_read_last_counts(last_is_on: bool):
    """*On* right after the order says little: it takes its time."""
    play = playing()
    play.hosts["h1"].hang()
    answers = [(PowerState.ON, None), (PowerState.UNKNOWN, "power.unreachable")]
    reads(play, *(reversed(answers) if last_is_on else answers))
    play.until(lambda: "fence.level_failed" in play.told())
    wanted = ("power.still_on", "") if last_is_on else ("power.unread", "power.unreachable")
    assert failures(play) == {wanted}


@pytest.mark.req("X1", "F9")
def test_one_that_read_off_and_then_could_not_be_read_is_told_as_unread():
    play = playing()
    play.hosts["h1"].hang()
    reads(play, (PowerState.OFF, None), (PowerState.UNKNOWN, "power.connection_lost"))
    play.until(lambda: "fence.level_failed" in play.told())
    assert failures(play) == {("power.unread", "power.connection_lost")}


@pytest.mark.req("X1", "F9")
def test_one_whose_second_reading_comes_too_late_is_told_as_that():
    slow = FencingPolicy(order_deadline_ms=20_000, read_back_gap_ms=19_900)
    play = playing(fencing=slow)
    play.hosts["h1"].hang()
    reads(play, (PowerState.OFF, None))
    play.until(lambda: "fence.level_failed" in play.told())
    assert failures(play) == {("power.off_once", "")}
