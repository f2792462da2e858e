"""No processors run without the guardian's word that the lease on their disks' storage is held; and an outage is told."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from agent_bench import ALWAYS, DOMAIN, HOST, INSTALLATION, WEB1, Bench, prepared, qemu
from msgspec.structs import replace

from virtha.agent import order_power, reports
from virtha.agent.guardian_channel import ReportFiles
from virtha.agent.guardian_lease import KILLED
from virtha.agent.lease_files import REFUSED
from virtha.agent.lease_watch import LeaseWatch
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.model.facts import Happened, ReleaseCause, Result, StorageReport
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, HostId, Incarnation, OperationId, StorageDomainId, VmId
from virtha.model.orders import MoveDestination, PauseVm, ReceiveVm, ResumeVm
from virtha.model.policy import LeasePolicy, Policy
from virtha.model.slot import Mailbox
from virtha.model.vm import PossibleCopy

LEASE = LeasePolicy()
OFF = Policy(lease=LeasePolicy(enabled=False))
pytestmark = pytest.mark.req("F1")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_power, "LEASE_MS", 200)
    monkeypatch.setattr(reports, "LEASE_INTERVAL_S", 0.02)


def test_without_a_lease_nothing_is_made_and_it_may_be_started_elsewhere(bench: Bench) -> None:
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        Path(bench.storage.path, "disks", "web1.qcow2").touch()
        bench.permit(0)
        outcome = await bench.start(vm)
        assert (outcome.result, outcome.code) == (Result.REFUSED, REFUSED)
        assert qemu(bench) is None
        await bench.until(lambda: len(bench.released()) == 1)
        bench.paths.start_permits.unlink()  # no guardian has ever said anything
        assert (await bench.start(vm, incarnation=2)).code == REFUSED
        bench.agent.on_settings(bench.settings(vm, revision=2, policy=OFF))
        await bench.until(lambda: not bench.agent.host.leases_in_use)
        assert (await bench.start(vm, incarnation=3)).result is Result.OK

    bench.run(story)


def test_a_lease_that_is_lost_while_its_qemu_is_made_ends_it_before_it_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = bench.vm(disks=(bench.disk(),))
    make: Callable[[VmId], Awaitable[None]] = bench.hypervisor.start_paused

    async def slow(vm_id: VmId) -> None:
        await make(vm_id)
        bench.permit(bench.clock.monotonic_ms())

    async def story() -> None:
        await prepared(bench)
        Path(bench.storage.path, "disks", "web1.qcow2").touch()
        monkeypatch.setattr(bench.hypervisor, "start_paused", slow)
        outcome = await bench.start(vm)
        assert (outcome.result, outcome.code) == (Result.REFUSED, REFUSED)
        assert qemu(bench) is None
        assert WEB1 not in bench.agent.host.gate.grants()
        await bench.until(lambda: len(bench.released()) == 1)
        monkeypatch.setattr(bench.hypervisor, "start_paused", make)
        bench.permit(ALWAYS)
        assert (await bench.start(vm, incarnation=2)).result is Result.OK
        one = Incarnation(2)
        assert (await bench.do(PauseVm(vm_id=WEB1, incarnation=one, by="ann"))).result is Result.OK
        bench.permit(0)
        resumed = await bench.do(ResumeVm(vm_id=WEB1, incarnation=one, by="ann"))
        assert (resumed.result, resumed.code) == (Result.REFUSED, REFUSED)

    bench.run(story)


def test_no_copy_is_let_in_where_the_lease_is_not_held(bench: Bench) -> None:
    """libvirt lets it run without asking anybody here: the guardian would only kill it at its next look."""
    bench.destination = MoveDestination(address="192.0.2.7", name="h1", data_uri="tcp://192.0.2.7")
    vm = bench.vm(disks=(bench.disk(),))
    source = PossibleCopy(host_id=HostId("h2"), incarnation=Incarnation(1), boot=BootId("boot-9"))

    def receive(incarnation: int) -> ReceiveVm:
        grant = bench.grant(WEB1, incarnation=incarnation)
        move = OperationId(f"1.{incarnation}")
        return ReceiveVm(vm=vm, migration_id=move, grant=grant, by="engine", source=source)

    async def story() -> None:
        await prepared(bench)
        bench.permit(0)
        outcome = await bench.do(receive(2))
        assert (outcome.result, outcome.code) == (Result.REFUSED, REFUSED)
        assert WEB1 not in bench.agent.host.gate.grants()
        bench.permit(ALWAYS)
        assert (await bench.do(receive(3))).result is Result.OK

    bench.run(story)


def test_what_an_order_tells_of_a_vm_says_whose_leases_it_needs(bench: Bench) -> None:
    """It was never here: another domain, whose lease is lost, is none of its."""
    other = StorageDomain(
        id=StorageDomainId("ds2"), name="ds2", cluster_id=bench.storage.cluster_id, path="/none"
    )
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        host = bench.agent.host
        assert host.settings is not None
        domains = (*host.settings.storage_domains, other)
        host.settings = replace(host.settings, storage_domains=domains, vms=())
        assert not host.lease_allows(WEB1)
        assert host.lease_allows(WEB1, coming=vm)

    bench.run(story)


@pytest.mark.parametrize("told", ["before", "after", "away"])
def test_one_that_is_killed_for_its_lease_is_given_back_whenever_that_is_told(
    bench: Bench, told: str
) -> None:
    """Not restarted here, which would be refused, again and again: it runs elsewhere."""
    vm = bench.vm(disks=(bench.disk(),))
    killed = Happened(code=KILLED, vm_id=WEB1, fields={"domain": DOMAIN, "pid": 1})

    def report() -> None:
        bench.permit(0)  # as its guardian refuses before it kills
        ReportFiles(bench.paths.guardian_kills, bench.files).write(killed, at_ms=1, number=1)

    async def begin() -> None:
        await prepared(bench)
        Path(bench.storage.path, "disks", "web1.qcow2").touch()
        assert (await bench.start(vm)).result is Result.OK
        if told == "away":
            return
        if told == "before":
            report()
            await bench.agent._collect_reports()
        bench.permit(0)
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        if told == "after":
            report()
            bench.agent._collect_reports_soon()
        await given_back()

    async def given_back() -> None:
        await bench.until(lambda: bench.released() != [])
        (released,) = bench.released()
        assert released.cause is ReleaseCause.LEASE_LOST
        assert "vm.restarted" not in bench.codes()
        await bench.until(lambda: KILLED in bench.codes())

    bench.run(begin)
    if told == "away":
        report()
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        bench.run(given_back)


@pytest.mark.req("F2", "S6")
def test_a_policy_that_gives_more_or_less_time_is_no_outage(bench: Bench) -> None:
    """Agents and guardians learn of it in their own time: permits are short or long for a while, also for an agent that
    begins then."""
    clock = bench.clock
    long = LEASE.self_fence_after_ms * 4
    guardian_gives_ms = LEASE.self_fence_after_ms

    def settled(lease: LeasePolicy) -> LeaseWatch:
        bench.agent.host.settings = bench.settings(policy=Policy(lease=lease))
        return LeaseWatch(bench.agent.host)

    def lost(renewed_ago_ms: int | None) -> bool:
        if renewed_ago_ms is not None:
            renewed_ms = clock.monotonic_ms() - renewed_ago_ms
            bench.permit(renewed_ms + guardian_gives_ms, renewed_ms=renewed_ms)
        watch.look()
        return bool(watch.lost)

    bench.make_agent()
    watch = settled(LEASE)
    assert not lost(0)
    settled(LeasePolicy(self_fence_after_ms=long))
    for _ in range(3):
        clock.ahead_ms += 1_000
        assert not lost(100)
    watch = settled(LeasePolicy(self_fence_after_ms=long))
    assert not lost(None)
    guardian_gives_ms = long
    clock.ahead_ms += 1_000
    assert not lost(100)
    watch = settled(LEASE)
    clock.ahead_ms += 1_000
    assert not lost(100)
    # What it permits is no reason to take an outage for none.
    clock.ahead_ms += LEASE.self_fence_after_ms // 4 + 1_000
    assert lost(None)
    # Nobody renews while leases are out of use.
    settled(LeasePolicy(enabled=False))
    assert not lost(None)
    settled(LEASE)
    assert not lost(None)
    assert not lost(0)
    clock.ahead_ms += LEASE.self_fence_after_ms // 4 + 1_000
    assert lost(None)
    watch = settled(LEASE)
    assert lost(None), "its agent begins in the middle of an outage"


async def two_looks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the guardian's permits: what the first of them saw is told when the second begins."""
    looks: list[None] = []
    watch = bench.agent._storage._leases
    look = watch.look

    def counted() -> Any:
        looks.append(None)
        return look()

    monkeypatch.setattr(watch, "look", counted)
    await bench.until(lambda: len(looks) >= 2)
    monkeypatch.setattr(watch, "look", look)


@pytest.mark.req("F2", "S6")
def test_renewals_that_stop_are_told_long_before_anything_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[tuple[bool, str]]:
        found = [fact.body for fact in bench.facts() if isinstance(fact.body, StorageReport)]
        return [(report.usable, report.detail) for report in found]

    def renewed(ago_ms: int) -> None:
        bench.permit(ALWAYS, renewed_ms=bench.clock.monotonic_ms() - ago_ms)

    async def story() -> None:
        await prepared(bench)
        await bench.until(lambda: told()[-1:] == [(True, "")])
        before = len(told())
        renewed(LEASE.renew_ms)
        await two_looks(bench, monkeypatch)
        assert len(told()) == before, "a late renewal is nobody's business"
        renewed(LEASE.self_fence_after_ms // 4 + 50)
        await bench.until(lambda: len(told()) == before + 1)
        assert told()[-1] == (False, "this host's heartbeat there can't be renewed")
        bench.paths.start_permits.unlink()  # lost, or its guardian begins anew
        await two_looks(bench, monkeypatch)
        assert len(told()) == before + 1
        renewed(0)
        await bench.until(lambda: told()[-1] == (True, ""))

    bench.run(story)


def test_renewals_that_come_back_during_a_look_are_told_after_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untold until the next look, in half a minute, its host could start nothing."""
    monkeypatch.setattr(reports, "STORAGE_INTERVAL_S", 3_600)

    def told() -> list[bool]:
        return [fact.body.usable for fact in bench.facts() if isinstance(fact.body, StorageReport)]

    def renewed(ago_ms: int) -> None:
        bench.permit(ALWAYS, renewed_ms=bench.clock.monotonic_ms() - ago_ms)

    async def story() -> None:
        await prepared(bench)
        await bench.until(lambda: told()[-1:] == [True])
        reporter, seen, may_end = bench.agent._storage, asyncio.Event(), asyncio.Event()
        look = reporter.look

        async def slow(domain: StorageDomain) -> StorageReport:
            report = await look(domain)
            seen.set()
            await may_end.wait()
            return report

        renewed(LEASE.self_fence_after_ms)
        await bench.until(lambda: not told()[-1])
        monkeypatch.setattr(reporter, "look", slow)
        reporter.changed()
        await seen.wait()
        monkeypatch.setattr(reporter, "look", look)
        renewed(0)
        await bench.until(lambda: bool(reporter._overtaken))
        may_end.set()
        await bench.until(lambda: told()[-1])

    bench.run(story)


def test_its_place_is_made_when_the_domain_is_prepared_or_found(bench: Bench) -> None:
    slots = DirectoryDomain(bench.storage.path, installation_id=INSTALLATION, domain_id=DOMAIN)

    async def story() -> None:
        await prepared(bench)
        mailbox = slots.read_mailbox(0)
        assert isinstance(mailbox, Mailbox)
        assert (mailbox.host_id, mailbox.counter, mailbox.poison) == (HOST, 0, None)
        slots.close()
        # As of a domain from before there were heartbeats.
        slots.file.unlink()
        bench.agent._storage._placed.clear()
        bench.agent._storage.changed()
        await bench.until(slots.file.exists)

    bench.run(story)
