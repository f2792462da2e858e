"""Each fencing action, and the cap, with real hosts: people are told by mail and by SNMP, and the fourth power-down does not happen."""

import os
from collections.abc import Iterator

import pytest
from told_receivers import MailWitness, TrapWitness, told

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.bmc import Bmc
from virtha.lab.node import wait_until
from virtha.lab.progress import Steps
from virtha.lab.story import Story, bmcs, temporary_lab

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(1_800)]
PATIENCE_S = 180.0
VICTIM = "h1"
ROUNDS = (
    ("nothing", "fence.left_alone", []),
    ("blink", "fence.blinked", ["blink"]),
    ("power_off", "fence.began", ["off!"]),
    ("reboot", "fence.began", ["off!", "on"]),
    ("power_off", "fence.began", ["off!"]),
    ("power_off", "fence.capped", []),
)
"""Action, event, and what its BMC is told. Three power-downs, and the fourth that does not happen."""


def _policy(action: str) -> Json:
    """The default one but for leases, by which its own watchdog would end the host before it is ordered off; and it does not count."""
    return {"fencing": {"action": action}, "lease": {"enabled": False}}


@pytest.fixture
def own_story() -> Iterator[Story]:
    """Of a cluster in which nothing was powered down within the hour."""
    with temporary_lab(f"told-{os.getpid()}", hosts=2, steps=Steps()) as story:
        yield story


@pytest.mark.req("F4", "F7")
def test_each_action_is_told_and_the_fourth_power_down_does_not_happen(own_story: Story) -> None:
    story = own_story
    with bmcs(story) as made, told(story, "fence.*") as (mails, traps):
        for number, (action, code, orders) in enumerate(ROUNDS, start=1):
            print(f"round {number}: {action}")
            made[VICTIM].begin_anew()
            story.set_policy(_policy(action))
            marks = (mails.mark(), traps.mark())
            _one_host_hangs(story, f"round{number}")
            _is_told(mails, traps, marks, code, action if code == "fence.began" else VICTIM)
            _is_done(story, made[VICTIM], orders)
            _comes_back(story, f"round{number}", by_itself="on" in orders)
            assert made[VICTIM].orders() == orders, "nor was it ordered later"
        assert made["h2"].orders() == []


def _one_host_hangs(story: Story, vm: str) -> None:
    story.create_vm(vm, host=VICTIM)
    story.wait_agent(vm)
    faults.hang_host(story.lab, VICTIM, with_watchdog=False)


def _is_told(
    mails: MailWitness, traps: TrapWitness, marks: tuple[int, int], code: str, word: str
) -> None:
    """Since these positions."""
    mail = mails.wait_for(code, after=marks[0], timeout_s=PATIENCE_S).mail
    notice = traps.wait_for(code, after=marks[1], timeout_s=PATIENCE_S).objects
    body = mail.get_body(("plain",))
    assert body is not None and word in body.get_content()
    assert word in notice["virthaMessage"] and notice["virthaHost"] == VICTIM


def _is_done(story: Story, bmc: Bmc, orders: list[str]) -> None:
    wait_until(lambda: bmc.orders() == orders, f"{VICTIM} is told {orders}", timeout_s=PATIENCE_S)
    if "off!" in orders:
        if "on" not in orders:  # the BMC says what it was told before it has done it
            wait_until(
                lambda: not story.lab.host(VICTIM).is_on(), f"{VICTIM} is off", timeout_s=PATIENCE_S
            )
        return
    # Nothing proves its death, and it is on.
    assert story.lab.host(VICTIM).is_on()
    said = [one["code"] for one in story.api.get(f"/v1/hosts/{VICTIM}")["engine"]]
    assert "host.dead.unproven" in said, said


def _comes_back(story: Story, vm: str, *, by_itself: bool) -> None:
    """A person switches it off and on where nobody else does: its next boot is the proof."""
    if not by_itself:
        if story.lab.host(VICTIM).is_on():
            faults.kill_host(story.lab, VICTIM)
        faults.boot_host(story.lab, VICTIM)
    story.wait_state(vm, "running", timeout_s=PATIENCE_S)
    wait_until(
        lambda: story.api.get(f"/v1/hosts/{VICTIM}")["status"]["state"] == "up",
        f"{VICTIM} is back",
        timeout_s=PATIENCE_S,
    )
    story.delete_vm(vm)
