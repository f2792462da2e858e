"""A power device that has passed no test as it is set up now gets no order: nobody has seen whose machine it switches off.

Nothing that it said would be a proof (P1), so its order could only do harm.
"""

import msgspec
from engine_driver import Play
from engine_review_driver import playing

from virtha.engine.events import OrderPower, Poison, PowerTested, StartCommand, StorageFence
from virtha.model.evidence import IdentityMatch
from virtha.model.policy import FencingPolicy, Policy, Unreachable, UntestedDevices
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.model.power import PowerDeviceId

ORDERED = Policy(fencing=FencingPolicy(untested_devices=UntestedDevices.ORDER))


def tell_test(play: Play, level: int, *, passed: bool = True) -> None:
    """Of h1's device of that level."""
    play.inbox.append(
        PowerTested(
            host_id=play.hosts["h1"].id,
            boot=play.hosts["h1"].boot,
            device=PowerDeviceId(f"h1-power{level}"),
            passed=passed,
            identity=IdentityMatch.UNKNOWN,
        )
    )
    play.tick()


def hung(play: Play) -> Play:
    play.run("v1", "h1")
    play.hosts["h1"].hang()
    return play


def test_an_untested_device_gets_no_order_and_somebody_is_told_why():
    play = hung(Play(4, tested=False))
    play.advance(300_000)
    assert play.offs() == []
    assert [one.fields["why"] for one in play.notices if one.code == "fence.withheld"] == [
        "fence.blocked.untested"
    ]
    assert play.told().count("fence.withheld") == 1
    assert play.sent(StartCommand) == []
    assert play.engine.records().cluster.fence_counts == (), (
        "what was not ordered is not counted (F7)"
    )


def test_the_lease_has_its_turn_where_no_device_may_be_ordered():
    play = hung(Play(4, tested=False))
    play.until(lambda: play.sent(Poison) != [])
    assert play.offs() == []


def test_so_has_the_storage_fence():
    unreachable = (Unreachable.STORAGE_FENCE, Unreachable.WAIT)
    policy = Policy(fencing=FencingPolicy(unreachable=unreachable))
    play = hung(Play(4, tested=False, policy=policy))
    play.advance(120_000)
    incident = play.host_record("h1").incident
    assert incident is not None and incident.storage_fenced
    assert play.offs() == []
    assert play.sent(StorageFence) == [], "no domain of these hosts is on Ceph"


def test_the_policy_may_let_it_be_ordered_and_it_still_proves_nothing():
    play = hung(Play(4, tested=False, policy=ORDERED))
    play.until(lambda: "fence.failed" in play.told())
    assert play.offs() != []
    assert play.sent(StartCommand) == []


def test_a_test_while_the_host_is_up_lets_it_be_ordered():
    play = Play(4, tested=False)
    tell_test(play, 1)
    hung(play)
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert play.offs() == ["h1"]


def test_a_test_that_failed_is_none():
    play = Play(4)
    tell_test(play, 1, passed=False)
    hung(play)
    play.advance(120_000)
    assert play.offs() == []


def test_a_level_that_was_tested_goes_before_one_that_was_not():
    play = Play(4, levels=2, tested=False)
    tell_test(play, 2)
    hung(play)
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert [command.device for command in play.sent(OrderPower)] == ["h1-power2"]
    began = [code for code in play.told() if code in ("fence.began", "fence.next_level")]
    assert began == ["fence.began", "fence.next_level"]


def test_no_further_level_than_the_policy_allows():
    policy = Policy(fencing=FencingPolicy(unreachable=(Unreachable.LEASE, Unreachable.OPERATOR)))
    play = Play(4, levels=2, tested=False, policy=policy)
    tell_test(play, 2)
    hung(play)
    play.advance(120_000)
    assert play.offs() == []


def test_the_level_after_one_that_failed_is_left_out_and_the_first_tried_again():
    play = Play(4, levels=2, tested=False)
    tell_test(play, 1)
    play.hosts["h1"].bmc_dead = True
    hung(play)
    play.until(lambda: "fence.failed" in play.told())
    assert {command.device for command in play.sent(OrderPower)} == {"h1-power1"}
    assert len(play.sent(Poison)) == 1
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=1_200_000)


def test_one_of_two_devices_of_a_level_is_enough_to_leave_it_out():
    play = playing()
    level = play.configs[0].power[0]
    other = msgspec.structs.replace(level.feeds[0], device=PowerDeviceId("h1-outlet"))
    play.configs[0] = msgspec.structs.replace(
        play.configs[0], power=(msgspec.structs.replace(level, feeds=(*level.feeds, other)),)
    )
    play._configure()
    play.hosts["h1"].hang()
    play.advance(120_000)
    assert play.offs() == []


def test_a_device_that_tells_no_state_can_pass_no_test_and_gets_its_order():
    play = Play(4, tested=False)
    level = play.configs[0].power[0]
    mute = msgspec.structs.replace(level.feeds[0], reads_state=False)
    play.configs[0] = msgspec.structs.replace(
        play.configs[0], power=(msgspec.structs.replace(level, feeds=(mute,)),)
    )
    play._configure()
    hung(play)
    play.until(lambda: play.offs() != [])
    play.advance(60_000)
    assert play.sent(StartCommand) == []


def test_one_that_names_another_machine_leaves_the_lease_its_turn_too():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_identity = IdentityMatch.MISMATCH
    play.until(lambda: play.sent(Poison) != [])
    assert play.offs() == []


def test_no_profile_orders_untested_devices():
    assert {PROFILES[one].fencing.untested_devices for one in Profile} == {UntestedDevices.REFUSE}


def test_one_that_names_another_machine_gets_no_order_where_untested_ones_do():
    play = hung(Play(4, policy=ORDERED))
    play.hosts["h1"].bmc_identity = IdentityMatch.MISMATCH
    play.advance(120_000)
    assert "fence.device_of_another" in play.told()
    assert play.offs() == []
