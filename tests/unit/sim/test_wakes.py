"""A step for nothing is fine, many in a row are not."""

import pytest

from virtha.engine.events import Command, Decision, Investigate
from virtha.model.ids import HostId
from virtha.model.time import Millis
from virtha.sim.wakes import IDLE_MAX, IDLE_PER_HOST, MINUTE_MS, SOON_MS, BusyWake, Wakes

DONE = Investigate(subject=HostId("h1"), boot=None, witnesses=(), disk_reader=None, vms=(), round=1)


def decided(wake_ms: int, *commands: Command) -> Decision:
    return Decision(wake_at=Millis(wake_ms), commands=commands)


def test_one_that_is_woken_each_millisecond_for_nothing_is_caught():
    wakes = Wakes(hosts=lambda: 3)
    with pytest.raises(BusyWake, match="nothing came or was done"):
        for now in range(IDLE_MAX + 1):
            wakes.stepped(Millis(now), decided(now + 1), came=False)


def test_what_comes_or_is_done_begins_the_count_anew():
    wakes = Wakes(hosts=lambda: 3)
    for now in range(10 * IDLE_MAX):
        done = (DONE,) if now % IDLE_MAX == 3 else ()
        wakes.stepped(Millis(now), decided(now + 1, *done), came=now % IDLE_MAX == 7)


def test_one_that_waits_between_is_not_busy():
    wakes = Wakes(hosts=lambda: 3)
    for now in range(10 * IDLE_MAX):
        wakes.stepped(Millis(now), decided(now + SOON_MS + 1), came=False)


@pytest.mark.req("F9")
def test_a_slower_circle_is_caught_by_the_minute_whatever_is_done_in_it():
    wakes, limit = Wakes(hosts=lambda: 3), IDLE_PER_HOST * 4
    every_ms = MINUTE_MS // limit
    for turn in range(3 * limit):  # just as many in each minute
        now = turn * every_ms
        wakes.stepped(Millis(now), decided(now + every_ms, DONE), came=False)
    last = 3 * MINUTE_MS
    with pytest.raises(BusyWake, match="woke itself 1201 times within a minute"):
        for turn in range(2 * limit):
            now = last + turn * every_ms // 2
            wakes.stepped(Millis(now), decided(now + every_ms, DONE), came=False)


def test_what_comes_is_not_counted():
    wakes = Wakes(hosts=lambda: 0)
    for now in range(3 * IDLE_PER_HOST):
        wakes.stepped(Millis(now), decided(now + SOON_MS + 1), came=True)
