"""Hosts that die or hang, on real hosts: switched off by their power device, proven dead, their VMs up elsewhere, once."""

import time

import pytest
from event_times import seconds_after
from fenced import fenced
from lab_slots import LAB_LEASE, Slots

from virtha.lab import faults
from virtha.lab.api import Json
from virtha.lab.bmc import Bmc
from virtha.lab.node import wait_until
from virtha.lab.records import begin_writing
from virtha.lab.story import BY_COMMAND, Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(500)]
RECOVERED_S = 150.0


def _codes(story: Story, after: int) -> list[str]:
    return [event["code"] for event in story.api.events(after=after)]


def _runs_on(story: Story, vm: str, host: str) -> bool:
    copies = story.lab.copies_of(vm)
    assert len(copies) <= 1, copies
    return copies == [host] and story.api.vm(vm)["status"]["state"] == "running"


def _recovered(story: Story, vm: str, host: str, bmc: Bmc, revision: int) -> None:
    began_s = time.monotonic()
    wait_until(
        lambda: _runs_on(story, vm, host),
        f"{vm} runs on {host}",
        timeout_s=RECOVERED_S,
        pause_s=0.1,
    )
    print(
        f"{vm} up again after {time.monotonic() - began_s:.1f} s; its BMC was told {bmc.orders()}"
    )
    # Its host tells that it runs; that this was the recovery, the engine says with its next turn.
    wait_until(
        lambda: "vm.recovered" in _codes(story, revision),
        f"{vm} counts as recovered",
        timeout_s=60.0,
        pause_s=0.1,
    )
    codes = _codes(story, revision)
    for code in ("fence.began", "host.proven_dead", "vm.recovery_started", "vm.recovered"):
        assert codes.count(code) == 1, (code, codes)
    story.wait_agent(vm)


@pytest.mark.req("F1", "F3", "F4", "F5", "X4")
def test_the_plug_of_a_host_is_pulled_and_its_vm_runs_elsewhere(story: Story) -> None:
    """Nobody hears a goodbye; its BMC lives and says off."""
    with fenced(story) as made:
        story.create_vm("web1", host="h1")
        story.wait_agent("web1")
        revision = story.revision()
        faults.kill_host(story.lab, "h1", silent=True)
        _recovered(story, "web1", "h2", made["h1"], revision)
        assert made["h1"].orders() == ["off"], "ordered all the same, and it found the host off"
        assert made["h2"].orders() == []
        # The host returns and starts nothing by itself.
        faults.boot_host(story.lab, "h1")
        wait_until(
            lambda: "host.returned" in _codes(story, revision),
            "h1 is back",
            timeout_s=90.0,
            pause_s=0.2,
        )
        assert story.lab.copies_of("web1") == ["h2"]
        _is_on_record(story, "web1", "h2")


def _is_on_record(story: Story, vm: str, host: str) -> None:
    """From the last beat to the guest agent's answer (X4)."""
    (listed,) = story.api.get("/v1/incidents", vm=vm)["items"]

    def answers() -> bool:
        (way,) = story.api.get(f"/v1/incidents/{listed['id']}")["vms"]
        return bool(way["state"] == "answers" and way["host"] == host)

    wait_until(answers, "its guest agent's answer is on record", timeout_s=60.0, pause_s=0.2)
    shown = story.api.get(f"/v1/incidents/{listed['id']}")
    took = {one["name"]: one["ms"] for one in shown["phases"]}
    assert all(ms is not None for ms in took.values()), took
    assert not shown["incident"]["open"], shown["incident"]
    print(f"measured by the server itself, in ms: {took}")


@pytest.mark.long
@pytest.mark.req("F1", "F4", "F5")
def test_a_host_that_hangs_is_switched_off_before_its_vm_runs_elsewhere(story: Story) -> None:
    """All of its processes stand still, and its connections stand: it could go on any moment. Its BMC is
    switched by a program."""
    with fenced(story, BY_COMMAND) as made:
        story.create_vm("web1", host="h1")
        story.wait_agent("web1")
        revision = story.revision()
        faults.hang_host(story.lab, "h1")
        _recovered(story, "web1", "h2", made["h1"], revision)
        # Its own watchdog ends it as well; on a slow machine that may come first.
        assert made["h1"].orders() in (["off!"], ["off"]), "one off"
        assert made["h2"].orders() == []


@pytest.mark.req("F1", "F2")
def test_a_host_without_its_network_whose_vm_writes_is_left_alone(story: Story) -> None:
    """Its BMC would say on and obey; its neighbour reaches it as little as the server does, but sees its disk change. Without
    leases, or its slot would tell that it lives."""
    with fenced(story, lease={"enabled": False}) as made:
        story.create_vm("web1", host="h1")
        story.wait_agent("web1")
        begin_writing(story, "web1")
        revision = story.revision()
        faults.cut_net(story.lab, "h1")
        # Said once it was silent for so long that it would be judged dead.
        wait_until(
            lambda: "host.suspect.disks_change" in _engine_says(story, "h1"),
            "its disk is seen to change",
            timeout_s=RECOVERED_S,
            pause_s=0.2,
        )
        assert made["h1"].orders() == [], "asked whether it is on, and nothing else"
        _comes_back_untouched(story, revision)


@pytest.mark.req("F1", "F2")
def test_a_host_without_its_network_that_keeps_its_lease_is_told_as_isolated_at_once(
    story: Story,
) -> None:
    """Its neighbour sees on the storage that it lives, long before anybody would judge it dead."""
    slots = Slots(story)
    with fenced(story) as made:
        wait_until(
            lambda: all(slots.is_armed(host, LAB_LEASE) for host in story.lab.hosts),
            "each host keeps its lease",
            timeout_s=RECOVERED_S,
            pause_s=0.2,
        )
        story.create_vm("web1", host="h1")
        story.wait_agent("web1")
        begin_writing(story, "web1", pause_s=0.5)
        revision, began_s = story.revision(), time.time()
        faults.cut_net(story.lab, "h1")
        told: list[Json] = []

        def is_told() -> bool:
            told[:] = story.api.events(after=revision, code="host.isolated")
            return bool(told)

        wait_until(is_told, "h1 is told as isolated", timeout_s=RECOVERED_S, pause_s=0.1)
        after_s = seconds_after(began_s, told[0])
        print(f"isolated {after_s:.2f} s after the cut (`bench/failover`, network_cut: at most 5)")
        assert story.api.get("/v1/hosts/h1")["verdict"] == "isolated"
        _comes_back_untouched(story, revision)
        assert made["h1"].orders() == [] and made["h2"].orders() == []


def _comes_back_untouched(story: Story, revision: int) -> None:
    """With its network; nobody was judged dead, fenced or recovered."""
    faults.heal_net(story.lab, "h1")

    def is_back() -> bool:
        told = _codes(story, revision)
        assert {"host.judged_dead", "fence.began", "vm.recovery_started"}.isdisjoint(told), told
        return "host.answers_again" in told

    wait_until(is_back, "h1 is back", timeout_s=RECOVERED_S, pause_s=0.2)
    assert story.lab.copies_of("web1") == ["h1"]


def _engine_says(story: Story, host: str) -> list[str]:
    return [one["code"] for one in story.api.get(f"/v1/hosts/{host}")["engine"]]
