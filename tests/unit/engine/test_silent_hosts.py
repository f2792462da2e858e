"""Several silent hosts whose devices don't name them: what their readings prove together, and what not (P1, J6)."""

import random
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import msgspec
import pytest
from engine_driver import TICK_MS, Play, PlayedHost, vm

from virtha.engine.events import (
    HostConfigured,
    MaintenanceChanged,
    NeighbourAnswered,
    PowerRead,
    SlotChanged,
)
from virtha.engine.records import FeedProgress, OrderId
from virtha.engine.struck import UNSURE_MS
from virtha.engine.verdict import reads_off
from virtha.model.evidence import Answer, IdentityMatch, PowerState
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.policy import FencingPolicy, Policy
from virtha.model.power import PowerDeviceId, PowerFeed, PowerLevel

MANY = FencingPolicy(cap_count=100, brake_hosts=100)


def playing(hosts: int = 5, *, protected: int = 3, fencing: FencingPolicy = MANY) -> Play:
    """v1 on h1, v2 on h2, ...; those up to ``protected`` are highly available."""
    names = range(1, hosts)
    play = Play(
        hosts,
        policy=Policy(fencing=fencing),
        vms=[vm(f"v{number}", ha=number <= protected) for number in names],
    )
    for number in names:
        play.run(f"v{number}", f"h{number}")
    return play


def rewire(play: Play, *wires: tuple[str, str]) -> None:
    """The device that is configured for the first is really the second's."""
    for host, struck in wires:
        play.hosts[host].bmc_strikes = play.hosts[struck]


def failures(play: Play) -> set[object]:
    return {one.fields["why"] for one in play.notices if one.code == "fence.level_failed"}


def test_all_silent_hosts_read_off_and_all_are_proven():
    play = playing(9)
    for name in ("h1", "h2", "h3"):
        play.hosts[name].cut()
    play.until(lambda: all(play.where(f"v{number}") for number in (1, 2, 3)), within_ms=10_000)
    assert "fence.level_failed" not in play.told()


def test_addresses_in_a_ring():
    play = playing(9)
    rewire(play, ("h1", "h2"), ("h2", "h3"), ("h3", "h1"))
    for name in ("h1", "h2", "h3"):
        play.hosts[name].hang()
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=30_000)
    assert not any(play.hosts[name].powered for name in ("h1", "h2", "h3"))


def test_one_that_does_not_read_off_blocks_all():
    """It hung long before, so it did not fall silent at our order; the device that we ordered off is its."""
    play = playing(protected=1)
    rewire(play, ("h1", "h2"), ("h2", "h1"))
    play.hosts["h2"].hang()
    play.advance(120_000)
    play.hosts["h1"].hang()
    play.advance(300_000)
    assert "proof.blocked.swapped" in failures(play)
    assert play.where("v1") == ["h1"]


def test_one_that_tells_no_state_blocks_all():
    play = playing(protected=1)
    blind = PowerLevel(feeds=(PowerFeed(device=PowerDeviceId("h2-blind"), reads_state=False),))
    play.configs[1] = msgspec.structs.replace(play.configs[1], power=(blind,))
    play._configure()
    rewire(play, ("h1", "h2"))
    play.hosts["h2"].hang()
    play.hosts["h1"].hang()
    play.advance(300_000)
    assert "proof.blocked.swapped" in failures(play)
    assert play.where("v1") == ["h1"]


def test_one_whose_devices_name_it_is_out_of_the_question():
    play = playing(protected=1)
    play.hosts["h2"].bmc_identity = IdentityMatch.MATCH
    play.test_power(play.hosts["h2"])
    play.tick()
    play.hosts["h2"].hang()
    play.hosts["h1"].hang()
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=30_000)


def test_one_in_maintenance_that_reads_off_blocks_nobody():
    """Nobody orders it off; it was read twice all the same."""
    play = playing(protected=1)
    play.inbox.append(MaintenanceChanged(host_id=HostId("h2"), on=True, by="admin", drain=False))
    play.tick()
    play.hosts["h2"].cut()
    play.advance(60_000)
    play.hosts["h1"].hang()
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=30_000)


@pytest.mark.parametrize("seed", range(60))
def test_no_wiring_proves_a_host_dead_that_lives(seed: int):
    """Any permutation of addresses, any of the hosts hung, without power or well, some in maintenance, some devices dead,
    some hosts switched on again by somebody. ``Play`` itself fails a start while another host runs the VM."""
    dice = random.Random(seed)
    hosts = 6
    play = playing(hosts, protected=dice.randint(1, hosts))
    names = list(play.hosts)
    wired = names[:]
    chosen = dice.sample(range(hosts), dice.randint(2, hosts))
    for at, to in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        wired[at] = names[to]
    rewire(play, *zip(names, wired, strict=True))
    for name in dice.sample(names, dice.randint(0, 1)):
        play.inbox.append(
            MaintenanceChanged(host_id=HostId(name), on=True, by="admin", drain=False)
        )
    for name in dice.sample(names, dice.randint(1, 3)):
        host = play.hosts[name]
        dice.choice([host.hang, host.hang, host.cut])()
        host.bmc_dead = dice.random() < 0.2
        play.advance(dice.choice([TICK_MS, 3_000, 20_000]))
    for _ in range(6):
        play.advance(dice.choice([5_000, 20_000, 60_000]))
        off = [host for host in play.hosts.values() if not host.powered]
        if off and dice.random() < 0.4:
            back = dice.choice(off)
            back.boot_again()
            play._greet(back)
    play.advance(200_000)


# A host that was struck for another one


def test_a_host_that_was_struck_for_another_is_not_struck_again():
    play = playing(protected=1)
    rewire(play, ("h1", "h2"), ("h2", "h1"))
    play.hosts["h1"].hang()
    play.until(lambda: not play.hosts["h2"].powered)
    play.advance(8_000)
    play.hosts["h2"].boot_again()
    play._greet(play.hosts["h2"])
    play.advance(600_000)
    assert play.offs() == ["h1"]
    assert play.hosts["h2"].powered
    assert "fence.blocked.struck_another" in play.why("h1")
    assert play.where("v1") == ["h1"]


def test_a_return_by_chance_only_delays_it():
    """The device says *off* while the other lives: it is not the other's."""
    play = playing(protected=1)
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h2"].cut()
    play.advance(10_000)
    play.hosts["h2"].boot_again()
    play._greet(play.hosts["h2"])
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert play.hosts["h2"].powered


def struck_for_another() -> Play:
    """h1 hangs, its device is h2's, which was switched off and is back."""
    play = playing(protected=1)
    rewire(play, ("h1", "h2"), ("h2", "h1"))
    play.hosts["h1"].hang()
    play.until(lambda: not play.hosts["h2"].powered)
    play.advance(8_000)
    comes_back(play, "h2")
    play.advance(60_000)
    assert "fence.blocked.struck_another" in play.why("h1")
    return play


def comes_back(play: Play, name: str) -> None:
    play.hosts[name].boot_again()
    play._greet(play.hosts[name])


def barred(play: Play) -> bool:
    return "fence.blocked.struck_another" in play.why("h1")


@pytest.mark.req("F9")
def test_somebody_is_told_once_that_it_is_not_struck_again():
    play = struck_for_another()
    play.new_leader()
    play.advance(60_000)
    assert barred(play)
    (told,) = [one for one in play.notices if one.code == "fence.struck_another"]
    assert (told.host_id, told.fields["other"]) == ("h1", "h2")


def test_it_is_not_struck_again_after_its_next_boot_either():
    play = struck_for_another()
    play.advance(3_600_000)
    play.hosts["h2"].cut()
    play.tick()
    comes_back(play, "h2")
    play.advance(1_200_000)
    assert barred(play) and play.offs() == ["h1"]
    assert play.hosts["h2"].powered


def test_one_whose_devices_name_it_was_not_struck():
    play = struck_for_another()
    rewire(play, ("h1", "h1"), ("h2", "h2"))
    play.hosts["h2"].bmc_identity = IdentityMatch.MATCH
    play.test_power(play.hosts["h2"])
    play.advance(60_000)
    assert len(play.offs()) > 1


def unfenced_for_long() -> Play:
    """h1 hangs, its device answers nobody. It is ordered off again and again, at last each ten minutes."""
    return deepcopy(_unfenced_for_long())


@cache
def _unfenced_for_long() -> Play:
    """Played once: more than an hour, step by step."""
    play = playing(protected=1)
    play.hosts["h1"].bmc_dead = True
    play.hosts["h1"].hang()
    play.advance(3_600_000)
    last = len(play.offs())
    play.until(lambda: len(play.offs()) > last, within_ms=700_000)
    play.advance(120_000)
    return play


@pytest.mark.req("F9")
def test_a_reboot_long_after_an_order_bars_nothing():
    play = unfenced_for_long()
    play.hosts["h2"].cut()
    play.advance(20_000)
    comes_back(play, "h2")
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=700_000)


def test_a_reboot_around_one_of_the_later_orders_bars():
    play = unfenced_for_long()
    last = len(play.offs())
    play.until(lambda: len(play.offs()) > last, within_ms=700_000)
    play.advance(5_000)
    play.hosts["h2"].cut()
    play.advance(120_000)
    comes_back(play, "h2")
    play.advance(1_200_000)
    assert barred(play)


@pytest.mark.req("F9")
def test_a_host_that_was_never_seen_before_bars_nothing():
    play = unfenced_for_long()
    played = PlayedHost(9)
    play.hosts["h9"] = played
    play.inbox.append(HostConfigured(host=play._config(played)))
    play._greet(played)
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=700_000)


@pytest.mark.req("F9")
def test_a_new_leader_that_does_not_know_when_it_fell_waits_and_then_goes_on():
    """The order and the return of h2 lie in different terms, and h2 was in nobody's sight between them."""
    play = playing(protected=1)
    play.hosts["h1"].bmc_dead = True
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h2"].cut()
    play.new_leader(away_ms=120_000)
    comes_back(play, "h2")
    play.advance(UNSURE_MS - 60_000)
    assert barred(play) and "fence.struck_another" in play.told()
    before = len(play.offs())
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=700_000)
    assert len(play.offs()) == before + 1


def test_a_host_back_in_a_new_boot_does_not_vouch_for_the_former_one():
    """h1's device is h2's. It was off when it was read, and beats again, in another boot, before anybody asks."""
    play = playing(protected=1)
    rewire(play, ("h1", "h2"), ("h2", "h1"))
    play.hosts["h1"].hang()
    play.until(lambda: not play.hosts["h2"].powered)
    play.hosts["h2"].powered = False
    fence = play.host_record("h1").incident.fence
    play.until(lambda: all(one.confirmed for one in feeds_of(play)), within_ms=5_000)
    assert fence is not None and play.told().count("host.suspected") == 1
    play.hosts["h2"].boot_again()
    play._greet(play.hosts["h2"])
    play.advance(60_000)
    assert "proof.blocked.swapped" in failures(play)
    assert play.where("v1") == ["h1"]


def feeds_of(play: Play) -> tuple[FeedProgress, ...]:
    fence = play.host_record("h1").incident.fence
    assert fence is not None
    return fence.feeds


# One reading of off may be wrong (J6, J5)


def read(play: Play, state: PowerState) -> None:
    play.inbox.append(
        PowerRead(
            order_id=OrderId("1.q999"),
            host_id=HostId("h1"),
            device=PowerDeviceId("h1-power1"),
            state=state,
        )
    )


@pytest.mark.req("F7")
def seen_by_slot(play: Play, boot: str) -> None:
    play.inbox.append(
        SlotChanged(
            witness=HostId("h3"),
            subject=HostId("h2"),
            storage_domain_id=StorageDomainId("ds1"),
            boot=BootId(boot),
        )
    )


def seen_by_neighbour(play: Play, _boot: str) -> None:
    """Whose answer names no boot."""
    play.inbox.append(
        NeighbourAnswered(
            subject=HostId("h2"),
            witness=HostId("h3"),
            network="lan",
            answer=Answer.ALIVE,
        )
    )


@pytest.mark.parametrize("seen", [seen_by_slot, seen_by_neighbour])
@pytest.mark.parametrize("away_ms", [8_000, 90_000])
def test_a_sign_that_names_another_boot_or_none_vouches_for_nobody(
    away_ms: int, seen: Callable[[Play, str], None]
):
    """Swapped: our order struck h2 while h1 hangs. h2 is back, and is seen before its own session reaches us: that is no
    sign of the boot in which it was asked, so it was not "on at the readings", and it did not fall just now."""
    play = playing(protected=1)
    rewire(play, ("h1", "h2"), ("h2", "h1"))
    play.advance(30_000)
    h1, h2 = play.hosts["h1"], play.hosts["h2"]
    h1.hang()
    play.until(lambda: not h2.powered)
    play.advance(away_ms)
    h2.boot_again()
    h2.beating = h2.answers_neighbours = False
    until_ms = play.now + 6_000
    while play.now < until_ms:
        seen(play, h2.boot)
        play.tick()
    h2.beating = h2.answers_neighbours = True
    play.advance(200_000)
    assert play.where("v1") == ["h1"]
    assert h2.powered and h2.boots == 2
    assert "fence.struck_another" in play.told()


def test_one_reading_of_off_does_not_pass_the_brake():
    """Three hosts hang; the device of one says *off* once, by mistake."""
    play = playing(9, protected=9, fencing=FencingPolicy(brake_hosts=3))
    for name in ("h1", "h2", "h3"):
        play.hosts[name].hang()
    play.until(lambda: "fence.brake.tripped" in play.told())
    play.until(lambda: play.verdict("h1").value == "dead_unproven")
    for _ in range(5):
        read(play, PowerState.OFF)
        play.tick()
        read(play, PowerState.ON)
        play.advance(2_000)
    assert play.offs() == []


@pytest.mark.req("F7")
def test_a_sign_after_the_readings_takes_them_back():
    play = playing()
    cluster = play.engine._cluster
    node = cluster.hosts[HostId("h1")]
    play.hosts["h1"].cut()
    play.until(lambda: reads_off(cluster, node, PowerDeviceId("h1-power1")), within_ms=3_000)
    play.hosts["h1"].powered = True
    play.tick()
    assert not reads_off(cluster, node, PowerDeviceId("h1-power1"))
    read(play, PowerState.OFF)
    play.tick()
    assert not reads_off(cluster, node, PowerDeviceId("h1-power1")), "that is the first one since"


@pytest.mark.req("F7")
def test_two_readings_of_off_pass_the_cap():
    play = playing(9, protected=9, fencing=FencingPolicy(brake_hosts=9, cap_count=1))
    for name in ("h1", "h2", "h3"):
        play.hosts[name].cut()
    play.until(lambda: all(play.where(f"v{number}") for number in (1, 2, 3)))
    assert len(play.engine.records().cluster.fence_counts) <= 1
