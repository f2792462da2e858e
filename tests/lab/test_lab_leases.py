"""Storage that hangs, guardians that hang, a server that is away: hosts fence themselves where they must, and only there.

No host has a power device here. What ends a host is its watchdog's stand-in, outside of its PID namespace.
"""

import signal
from collections.abc import Iterator

import pytest
from lab_slots import Slots, boots

from virtha.drivers.machine_clock import MachineClock
from virtha.lab import faults
from virtha.lab.node import wait_until
from virtha.lab.story import Story, no_restart_limit
from virtha.model.errors import Failed
from virtha.model.policy import LeasePolicy

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
PATIENCE_S = 180.0
LEASE = LeasePolicy()
SLACK_MS = 10_000
RENEWALS_AWAY = 120
"""Two minutes of a server that is away."""


@pytest.fixture
def slots(story: Story) -> Iterator[Slots]:
    made = Slots(story)
    yield made
    for host in story.lab.hosts:
        if host.is_on():
            faults.resume_storage(story.lab, host.name)
    story.set_policy(no_restart_limit())


def _promise(story: Story, slots: Slots, policy: LeasePolicy) -> None:
    """From here on each host's slot promises this, its watchdog runs, and no other boot's or policy's is meant."""
    lease = {"self_fence_after_ms": policy.self_fence_after_ms}
    story.set_policy({**no_restart_limit(), "lease": lease})
    wait_until(
        lambda: all(slots.is_armed(host, policy) for host in story.lab.hosts),
        "each host's slot declares an armed watchdog and the policy's times",
        timeout_s=PATIENCE_S,
        pause_s=0.2,
    )


def _codes(story: Story, after: int) -> list[str]:
    return [event["code"] for event in story.api.events(after=after)]


def _moved(story: Story, vm: str, host: str) -> bool:
    """Whoever is killed and does not end counts as a copy: a write of it may be on its way."""
    copies = story.lab.copies_of(vm)
    assert len(copies) <= 1, copies
    return copies == [host] and story.api.vm(vm)["status"]["state"] == "running"


def _wait_moved(story: Story, vm: str, host: str, revision: int) -> None:
    try:
        wait_until(
            lambda: _moved(story, vm, host),
            f"{vm} runs on {host}",
            timeout_s=PATIENCE_S,
            pause_s=0.1,
        )
    except Failed as error:
        told = [(event["code"], event["fields"]) for event in story.api.events(after=revision)]
        status = story.api.vm(vm)["status"]
        raise Failed(
            f"{error.message}; its copies: {story.lab.copies_of(vm)}; {status}; {told}"
        ) from error


def _web1_runs_on_h1(story: Story, slots: Slots) -> int:
    """All hosts promise what ``LEASE`` says. Returns the revision from then on."""
    _promise(story, slots, LEASE)
    story.create_vm("web1", host="h1")
    story.wait_agent("web1")
    return story.revision()


@pytest.mark.req("F1", "F2")
def test_a_host_whose_storage_hangs_gives_its_vm_up_and_it_runs_elsewhere(
    story: Story, slots: Slots
) -> None:
    """Network, agent, guardian and server are well: it alone lacks the storage, and nobody need be asked about that."""
    revision = _web1_runs_on_h1(story, slots)
    faults.stall_storage(story.lab, "h1")
    _wait_moved(story, "web1", "h2", revision)
    h1 = story.lab.host("h1")
    codes = _codes(story, revision)
    print(f"h1 was {'reset' if h1.was_bitten() else 'rid of its VM'}: {codes}")
    assert "storage.outage" not in codes, "h2 sees it"
    if h1.is_on():
        assert "host.lease.killed_vm" in codes
        assert "fence.began" not in codes, "nothing was silent"
    else:
        assert h1.was_bitten()
    story.wait_agent("web1")
    assert story.lab.host("h2").is_on() and not story.lab.host("h2").was_bitten()


@pytest.mark.long
@pytest.mark.req("F1", "F2")
def test_a_host_whose_guardian_hangs_is_reset_and_its_lease_is_the_proof(
    story: Story, slots: Slots
) -> None:
    """No power device, no goodbye, and its QEMU writes on until the watchdog ends the host."""
    revision = _web1_runs_on_h1(story, slots)
    story.lab.host("h1").signal_service("guardian", signal.SIGSTOP)
    faults.kill_agent(story.lab, "h1")
    wait_until(
        lambda: not story.lab.host("h1").is_on(), "h1 is reset", timeout_s=PATIENCE_S, pause_s=0.1
    )
    assert story.lab.host("h1").was_bitten()
    assert story.lab.copies_of("web1") == []
    _wait_moved(story, "web1", "h2", revision)
    (proven,) = story.api.events(after=revision, code="host.proven_dead")
    print(proven)
    assert "lease" in str(proven["fields"]), proven
    assert not story.lab.host("h2").was_bitten()
    story.wait_agent("web1")


@pytest.mark.long
@pytest.mark.req("F1", "A8")
def test_a_server_that_is_away_for_minutes_costs_nobody_anything(
    story: Story, slots: Slots
) -> None:
    _promise(story, slots, LEASE)
    story.create_vm("web1", host="h1")
    story.create_vm("web2", host="h2")
    for name in ("web1", "web2"):
        story.wait_agent(name)
    booted, revision = boots(story), story.revision()
    qemus = {host.name: host.qemus() for host in story.lab.hosts}
    faults.kill_server(story.lab)
    wanted = {host.name: slots.counter(host) + RENEWALS_AWAY for host in story.lab.hosts}
    wait_until(
        lambda: all(slots.counter(host) >= wanted[host.name] for host in story.lab.hosts),
        f"{RENEWALS_AWAY} renewals without a server",
        timeout_s=600.0,
        pause_s=1.0,
    )
    assert {host.name: host.qemus() for host in story.lab.hosts} == qemus
    faults.start_server_again(story.lab)
    for name in ("web1", "web2"):
        story.wait_state(name, "running")
        story.wait_agent(name)
    assert {host.name: host.qemus() for host in story.lab.hosts} == qemus
    assert boots(story) == booted
    codes = _codes(story, revision)
    assert not {"host.lease.lost", "host.lease.killed_vm", "host.lease.reset"} & set(codes), codes
    assert not any(host.was_bitten() for host in story.lab.hosts)


@pytest.mark.long
@pytest.mark.req("F1", "F8")
def test_storage_that_hangs_for_all_hosts_costs_no_host_and_no_vm(
    story: Story, slots: Slots
) -> None:
    """The server says so in time; what would have been killed waits, and goes on. A slow machine has time to say it."""
    policy = LeasePolicy(self_fence_after_ms=40_000)
    _promise(story, slots, policy)
    story.create_vm("web1", host="h1")
    story.create_vm("web2", host="h2")
    for name in ("web1", "web2"):
        story.wait_agent(name)
    booted, revision = boots(story), story.revision()
    qemus = {host.name: host.qemus() for host in story.lab.hosts}
    last = {host.name: slots.of(host) for host in story.lab.hosts}
    for host in story.lab.hosts:
        faults.stall_storage(story.lab, host.name)
    wait_until(
        lambda: "storage.outage" in _codes(story, revision), "the outage is told", timeout_s=60.0
    )
    # By then every promise in the slots has run out: whoever would be killed or reset is.
    over_ms = (
        max(slot.submitted_ms for slot in last.values() if slot is not None) + policy.host_side_ms
    )
    clock = MachineClock()
    wait_until(
        lambda: clock.monotonic_ms() > over_ms + SLACK_MS,
        "the end of all promises",
        timeout_s=PATIENCE_S,
        pause_s=0.5,
    )
    assert {host.name: host.qemus() for host in story.lab.hosts} == qemus
    assert boots(story) == booted and all(host.is_on() for host in story.lab.hosts)
    for host in story.lab.hosts:
        faults.resume_storage(story.lab, host.name)
    wait_until(
        lambda: all(slots.is_armed(host, policy) for host in story.lab.hosts),
        "each host keeps its lease again",
        timeout_s=PATIENCE_S,
        pause_s=0.2,
    )
    for name in ("web1", "web2"):
        story.wait_state(name, "running")
        story.wait_agent(name)
    assert {host.name: host.qemus() for host in story.lab.hosts} == qemus
    codes = _codes(story, revision)
    assert "host.lease.killed_vm" not in codes and "host.lease.reset" not in codes, codes
