"""A step for nothing is fine, many in a row are not."""

import pytest

from virtha.engine.events import Command, Decision, Investigate
from virtha.model.ids import HostId
from virtha.model.time import Millis
from virtha.sim.wakes import IDLE_MAX, SOON_MS, BusyWake, Wakes

DONE = Investigate(subject=HostId("h1"), boot=None, witnesses=(), disk_reader=None, vms=(), round=1)


def decided(wake_ms: int, *commands: Command) -> Decision:
    return Decision(wake_at=Millis(wake_ms), commands=commands)


def test_one_that_is_woken_each_millisecond_for_nothing_is_caught():
    wakes = Wakes()
    with pytest.raises(BusyWake, match="nothing came or was done"):
        for now in range(IDLE_MAX + 1):
            wakes.stepped(Millis(now), decided(now + 1), came=False)


def test_what_comes_or_is_done_begins_the_count_anew():
    wakes = Wakes()
    for now in range(10 * IDLE_MAX):
        done = (DONE,) if now % IDLE_MAX == 3 else ()
        wakes.stepped(Millis(now), decided(now + 1, *done), came=now % IDLE_MAX == 7)


def test_one_that_waits_between_is_not_busy():
    wakes = Wakes()
    for now in range(10 * IDLE_MAX):
        wakes.stepped(Millis(now), decided(now + SOON_MS + 1), came=False)
