"""Power devices and each of their moods, as the server sees them."""

import pytest

from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.sim.line import SERVER
from virtha.sim.power import SWITCH_MS, Mood, PowerDevice
from virtha.sim.world import World

DEADLINE_MS = 5_000


class Bench:
    """Two hosts; h1 has ``kind`` devices."""

    def __init__(self, kind: str = "bmc", *, named: bool = False) -> None:
        self.world = World()
        hosts = [self.world.add_host(name) for name in ("h1", "h2")]
        self.h1, self.h2 = hosts
        self.devices = self.world.power.add(self.h1, [kind], named=named)
        for host in hosts:
            host.power_on()

    def read(self, device: PowerDevice) -> tuple[PowerState, IdentityMatch]:
        answers: list[tuple[PowerState, IdentityMatch]] = []
        self.world.power.read(device.name, DEADLINE_MS, lambda *answer: answers.append(answer))
        self.world.kernel.advance(DEADLINE_MS)
        assert len(answers) == 1, "one answer, whatever happens"
        return answers[0]

    def order(self, device: PowerDevice, action: PowerAction) -> tuple[Result, str | None]:
        ends: list[tuple[Result, str | None]] = []
        self.world.power.order(device.name, action, DEADLINE_MS, lambda *end: ends.append(end))
        self.world.kernel.advance(DEADLINE_MS)
        assert len(ends) == 1
        return ends[0]


def test_off_and_on_switch_the_host_and_the_reading_follows():
    bench = Bench()
    device = bench.devices[0]
    assert bench.read(device) == (PowerState.ON, IdentityMatch.UNKNOWN)
    assert bench.order(device, PowerAction.OFF) == (Result.OK, None)
    assert not bench.h1.powered and bench.read(device)[0] is PowerState.OFF
    bench.order(device, PowerAction.ON)
    assert bench.h1.powered and bench.h1.boots == 2


@pytest.mark.parametrize(
    ("mood", "state", "result"),
    [
        (Mood.DEAD, PowerState.UNKNOWN, Result.UNKNOWN),
        (Mood.REFUSES, PowerState.UNKNOWN, Result.REFUSED),
        (Mood.LIES, PowerState.OFF, Result.OK),
        (Mood.NOTHING, PowerState.ON, Result.OK),
    ],
)
def test_each_mood_leaves_the_host_on(mood: Mood, state: PowerState, result: Result):
    bench = Bench()
    bench.devices[0].mood = mood
    assert bench.order(bench.devices[0], PowerAction.OFF)[0] is result
    assert bench.h1.powered
    assert bench.read(bench.devices[0])[0] is state


@pytest.mark.parametrize("way", [(SERVER, "h1"), ("h1", SERVER)], ids=["there", "back"])
def test_what_a_cut_network_loses_is_never_answered(way: tuple[str, str]):
    bench = Bench()
    bench.world.bmc_network.link(*way).cut()
    assert bench.read(bench.devices[0])[0] is PowerState.UNKNOWN


def test_an_order_whose_answer_is_lost_was_obeyed_all_the_same():
    bench = Bench()
    bench.world.bmc_network.link("h1", SERVER).cut()
    assert bench.order(bench.devices[0], PowerAction.OFF)[0] is Result.UNKNOWN
    assert not bench.h1.powered


def test_an_answer_later_than_the_deadline_is_none():
    bench = Bench()
    bench.devices[0].delay_ms = DEADLINE_MS + 1
    assert bench.read(bench.devices[0])[0] is PowerState.UNKNOWN


def test_a_bmc_on_the_hosts_own_mains_dies_with_them():
    bench = Bench()
    bench.devices[0].shares_feed = True
    bench.h1.fed = False
    bench.h1.power_cut()
    assert bench.read(bench.devices[0])[0] is PowerState.UNKNOWN


def test_swapped_addresses_strike_the_other_and_a_named_device_says_so():
    bench = Bench(named=True)
    device = bench.devices[0]
    device.strikes = bench.h2
    assert bench.read(device) == (PowerState.ON, IdentityMatch.MISMATCH)
    bench.order(device, PowerAction.OFF)
    assert bench.h1.powered and not bench.h2.powered


def test_one_of_two_feeds_off_is_on():
    bench = Bench("outlets")
    first, second = bench.devices
    bench.order(first, PowerAction.OFF)
    assert bench.h1.powered
    assert [bench.read(one)[0] for one in bench.devices] == [PowerState.OFF, PowerState.ON]
    bench.order(second, PowerAction.OFF)
    assert not bench.h1.powered


def test_the_power_goes_a_while_after_the_order_was_taken():
    bench = Bench()
    bench.devices[0].order(PowerAction.OFF)
    bench.world.kernel.advance(SWITCH_MS - 1)
    assert bench.h1.powered
    bench.world.kernel.advance(1)
    assert not bench.h1.powered
