"""The guardian's leases on real files and real processes: renewed, lost, waived, poisoned, taken over."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agent_bench import CLUSTER, DOMAIN, HOST, INSTALLATION, WEB1, WEB2, Bench
from breakable_slots import BreakableSlots, RecordedWatchdog
from fake_qemus import FakeQemus
from hasty_policy import hasty_policy
from msgspec.structs import replace
from structlog.testing import capture_logs
from whole_promise import whole_promise

from virtha.agent.files import Files
from virtha.agent.guardian_channel import ReportFiles
from virtha.agent.guardian_lease import LeaseKit
from virtha.agent.guardian_process import GuardianProcess
from virtha.agent.lease_files import LeaseMemory, load_memory, load_permits
from virtha.agent.paths import AgentPaths
from virtha.agent.process_table import look
from virtha.agent.qemu_ledger import LedgerLook, QemuLedger
from virtha.agent.records import SettingsStore
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, DiskId, HostId, Incarnation, StorageDomainId, Term
from virtha.model.policy import (
    LeasePolicy,
)
from virtha.model.slot import Mailbox, Poison, Slot
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.sentinel.guardian import ProcessesSeen, Welcomed
from virtha.sentinel.lease import LeaseState
from virtha.sentinel.lease_events import HostNature, WaiverEnded, WaiverGiven

pytestmark = [pytest.mark.req("F1"), pytest.mark.usefixtures("process_table")]

LEASE = LeasePolicy(
    renew_ms=200,
    self_fence_after_ms=240_000,
    kill_ms=60_000,
    watchdog_ms=120_000,
    read_period_ms=200,
)
"""Longer than any machine stands still: what is to run out has its clock moved."""
POLICY = hasty_policy(LEASE)
OTHER, NEIGHBOUR = StorageDomainId("40000000-0000-4000-8000-000000000002"), HostId("neighbour")


class LeasedHost:
    """A host with two domains, a VM on each, and a neighbour's place on the first."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.watchdog = RecordedWatchdog()
        self.nature = HostNature(is_virtual=False, suspend_blocked=True)
        self.rounds: list[SlotRound] = []
        self.waivers_over: list[StorageDomainId] = []
        self.looks = 0
        """At this machine's processes."""
        self.slots: dict[StorageDomainId, BreakableSlots] = {}
        second = StorageDomain(
            id=OTHER, name="ds2", cluster_id=CLUSTER, path=bench.storage.path + "-2"
        )
        self.domains = {each.id: each for each in (bench.storage, second)}
        for domain in self.domains.values():
            Path(domain.path).mkdir(exist_ok=True)
            with closing(self.blocks(domain.id)) as blocks:
                blocks.prepare(0, HOST)
                if domain.id == DOMAIN:
                    blocks.prepare(1, NEIGHBOUR)
        web1 = bench.vm(disks=(bench.disk(),))
        web2 = bench.vm(
            WEB2,
            "web2",
            disks=(replace(bench.disk(), id=DiskId("d2"), storage_domain_id=OTHER),),
        )
        settings = bench.settings(
            web1, web2, policy=POLICY, storage_domains=tuple(self.domains.values())
        )
        bench.make_agent()
        gate = bench.agent.host.gate
        gate.write(settings)
        gate.restored()
        for vm_id in (WEB1, WEB2):
            gate.hold(vm_id, Incarnation(1))
        SettingsStore(bench.paths.settings, Files()).save(settings)
        bench.agent.disk.close()
        bench.agent.outbox.close()

    def blocks(self, domain_id: StorageDomainId = DOMAIN) -> DirectoryDomain:
        """As another host sees them."""
        return DirectoryDomain(
            self.domains[domain_id].path, installation_id=INSTALLATION, domain_id=domain_id
        )

    def slot(self, domain_id: StorageDomainId = DOMAIN) -> Slot:
        # Asked again and again by what waits: a descriptor left by each made a worker run out of them.
        with closing(self.blocks(domain_id)) as blocks:
            slot = blocks.read_slot(0)
        assert isinstance(slot, Slot)
        return slot

    def kit(self) -> LeaseKit:
        self.slots.clear()

        def slots_of(domain: StorageDomain) -> BreakableSlots:
            made = BreakableSlots(domain.path, domain.id)
            made.way = self.slots.setdefault(domain.id, made)
            return made

        return LeaseKit(
            installation_id=INSTALLATION,
            host_id=HOST,
            index=0,
            nature=self.nature,
            watchdog=self.watchdog,
            reset=self.watchdog,
            slots_of=slots_of,
        )

    def run(self, story: Callable[[GuardianProcess], Awaitable[None]]) -> None:
        async def live() -> None:
            process = GuardianProcess(
                paths=self.bench.paths,
                boot=self.bench.boot,
                clock=self.bench.clock,
                files=Files(),
                look=self._look,
                lease_kit=self.kit(),
            )
            assert process.lease is not None
            process.lease.hands.tell_round = self.rounds.append
            process.lease.hands.tell_waiver_over = self.waivers_over.append
            process.lease.tell(Welcomed(beat_interval_ms=1_000))
            life = asyncio.create_task(process.run())
            try:
                async with asyncio.timeout(200):
                    await story(process)
            finally:
                process.stopping.set()
                for slots in self.slots.values():
                    slots.goes.set()
                await asyncio.wait([life], timeout=200)
            life.result()

        asyncio.run(live())

    async def held(self, guardian: GuardianProcess, *, armed: bool = True) -> None:
        def all_held() -> bool:
            states = self.states(guardian)
            return len(states) == 2 and set(states.values()) == {LeaseState.HELD}

        await self.bench.until(all_held)
        if armed:
            await self.bench.until(lambda: self.slot().declaration.armed)

    async def later(self, by_ms: int, *renewed: StorageDomainId) -> None:
        """Time goes on, step by step, and ``renewed`` are renewed in each."""
        while by_ms > 0:
            step_ms = min(by_ms, LEASE.self_fence_after_ms // 4)
            self.bench.clock.ahead_ms += step_ms
            by_ms -= step_ms
            for domain_id in renewed:
                # The next one may have been on its way when the time moved.
                wanted = self.slot(domain_id).counter + 2
                await self.bench.until(partial(self._counts, domain_id, wanted))

    def _look(self, paths: AgentPaths, boot: BootId) -> ProcessesSeen:
        self.looks += 1
        return look(paths, boot)

    async def looked(self, guardian: GuardianProcess) -> None:
        """At all that is there now; what came of it is done."""
        enough = (
            self.looks + 4
        )  # the first may be under way, and the loop has heard of the one before the last
        while self.looks < enough:
            before = self.looks
            guardian._look_soon.set()
            await self.bench.until(lambda before=before: self.looks > before)
        done = [threading.Event(), threading.Event()]
        assert guardian._killer.put(done[0].set) and guardian._writer.put(done[1].set)
        await self.bench.until(lambda: all(each.is_set() for each in done))

    def _counts(self, domain_id: StorageDomainId, wanted: int) -> bool:
        return self.slot(domain_id).counter >= wanted

    def states(self, guardian: GuardianProcess) -> dict[StorageDomainId, LeaseState]:
        assert guardian.lease is not None
        return guardian.lease.states()

    def told(self) -> list[str]:
        reports = ReportFiles(self.bench.paths.guardian_kills, Files()).read()
        return [event.code for _, event in reports]

    def until_told(self, code: str) -> None:
        """Reports are written by a thread that nobody waits for."""
        deadline = time.monotonic() + 60
        while code not in self.told():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.01)


@pytest.fixture
def host(bench: Bench) -> LeasedHost:
    return LeasedHost(bench)


@pytest.mark.parametrize("armed", [True, False])
def test_a_guardian_that_stops_says_whether_the_watchdog_counts(
    host: LeasedHost, *, armed: bool
) -> None:
    host.nature = HostNature(is_virtual=not armed, suspend_blocked=True)
    with capture_logs() as logged:
        host.run(lambda guardian: host.held(guardian, armed=armed))
    (said,) = [one for one in logged if one["event"].startswith("guardian stopped")]
    assert said.get("within_ms") == (LEASE.watchdog_ms if armed else None)
    assert said["log_level"] == ("warning" if armed else "info")


def test_a_healthy_host_renews_declares_and_permits(host: LeasedHost, qemus: FakeQemus) -> None:
    vm = qemus.start(WEB1)
    bench = host.bench

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        before = host.slot()
        assert before.declaration == whole_promise(LEASE)
        await bench.until(lambda: host.slot().counter >= before.counter + 5)
        permits = load_permits(bench.paths.start_permits, bench.boot)
        assert permits.objection([DOMAIN, OTHER], bench.clock.monotonic_ms()) is None
        late = bench.clock.monotonic_ms() + LEASE.self_fence_after_ms
        assert permits.objection([DOMAIN], late) == "order.refused.lease"
        await host.later(LEASE.self_fence_after_ms, DOMAIN, OTHER)
        await bench.until(lambda: host.watchdog.feedings > 0)

    host.run(story)
    assert vm.poll() is None
    assert not host.watchdog.resets
    host.until_told("host.watchdog.armed")
    assert len(host.told()) == 1


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_a_lost_domain_costs_its_vms_at_the_deadline_and_no_others(
    host: LeasedHost, qemus: FakeQemus, trouble: str
) -> None:
    lost, other, unmanaged = qemus.start(WEB1), qemus.start(WEB2), qemus.start(HOST)
    bench = host.bench

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        broken = host.slots[DOMAIN]
        if trouble == "hangs":
            broken.goes.clear()
        else:
            broken.fails = True
        await host.later(LEASE.self_fence_after_ms // 2, OTHER)
        assert host.states(guardian)[DOMAIN] is LeaseState.HELD and lost.poll() is None
        await host.later(LEASE.self_fence_after_ms // 2, OTHER)
        assert await asyncio.to_thread(lost.wait, 60) == -9
        assert "host.lease.killed_vm" in host.told()  # written before the kill
        permits = load_permits(bench.paths.start_permits, bench.boot)
        assert permits.objection([DOMAIN], bench.clock.monotonic_ms()) == "order.refused.lease"
        await bench.until(lambda: host.states(guardian)[DOMAIN] is LeaseState.CLEARED)
        before = host.slot(OTHER).counter
        await bench.until(lambda: host.slot(OTHER).counter > before)
        assert not host.watchdog.resets
        broken.fails = False
        broken.goes.set()
        await host.held(guardian)

    host.run(story)
    assert other.poll() is None
    assert unmanaged.poll() is None
    host.until_told("host.lease.held_again")
    assert [code for code in host.told() if code.startswith("host.lease")] == [
        "host.lease.killed_vm",
        "host.lease.lost",
        "host.lease.cleared",
        "host.lease.held_again",
    ]


def test_hung_storage_holds_up_neither_the_loop_nor_the_other_domain(host: LeasedHost) -> None:
    """A thread that hangs in the kernel can't be ended: what counts is that nobody waits for it."""
    bench = host.bench

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        host.slots[DOMAIN].goes.clear()
        turns, before = 0, host.slot(OTHER).counter
        while host.slot(OTHER).counter < before + 10:
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 20
        await host.later(LEASE.self_fence_after_ms, OTHER)
        await bench.until(lambda: host.states(guardian)[DOMAIN] is LeaseState.CLEARED)
        assert host.states(guardian)[OTHER] is LeaseState.HELD

    host.run(story)


def test_a_kill_that_is_not_confirmed_ends_in_a_reset(
    host: LeasedHost, qemus: FakeQemus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A QEMU that vanished but whose writes wait in the kernel has not ended."""
    monkeypatch.setattr(
        "virtha.agent.guardian_process.QemuLedger", lambda: QemuLedger(ended=lambda process: False)
    )
    vm = qemus.start(WEB1)

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        host.slots[DOMAIN].fails = True
        await host.later(LEASE.self_fence_after_ms, OTHER)
        await host.later(LEASE.kill_ms, OTHER)
        await host.bench.until(lambda: host.watchdog.resets > 0)
        assert host.states(guardian)[DOMAIN] is LeaseState.LOST

    host.run(story)
    assert vm.poll() == -9
    host.until_told("host.lease.reset")


def test_what_was_written_through_the_cache_has_to_be_written_back(
    host: LeasedHost, qemus: FakeQemus, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, looks = threading.Event(), []
    monkeypatch.setattr(BreakableSlots, "write_back", lambda self: waits.wait())

    class CountedLooks(QemuLedger):
        def look(self, *seen: Any) -> LedgerLook:
            found = super().look(*seen)
            looks.append(found)
            return found

    monkeypatch.setattr("virtha.agent.guardian_process.QemuLedger", CountedLooks)
    disk = Path(host.domains[DOMAIN].path, "disk")
    vm = qemus.start(WEB1, code=f"import time; f = open({str(disk)!r}, 'wb'); time.sleep(600)")

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        await host.bench.until(disk.exists)
        before = len(looks)
        await host.bench.until(lambda: len(looks) > before + 1)  # one that began since
        host.slots[DOMAIN].fails = True
        await host.later(LEASE.self_fence_after_ms, OTHER)
        assert await asyncio.to_thread(vm.wait, 60) == -9
        await host.bench.until(lambda: any(each.ended for each in looks))
        await host.looked(guardian)
        assert host.states(guardian)[DOMAIN] is LeaseState.LOST
        waits.set()
        await host.bench.until(lambda: host.states(guardian)[DOMAIN] is LeaseState.CLEARED)

    host.run(story)
    assert not host.watchdog.resets


def test_poison_is_read_and_costs_every_vm_for_good(host: LeasedHost, qemus: FakeQemus) -> None:
    vms = [qemus.start(WEB1), qemus.start(WEB2)]
    bench = host.bench
    poison = Poison(boot=bench.boot, server="s1", term=Term(2), incident="7")

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        blocks = host.blocks()
        clean = blocks.read_mailbox(0)
        assert isinstance(clean, Mailbox)
        blocks.write_mailbox(replace(clean, counter=clean.counter + 1, poison=poison))
        for vm in vms:
            assert await asyncio.to_thread(vm.wait, 60) == -9
        await bench.until(lambda: host.slot().acknowledged_poison == 1)
        await bench.until(lambda: set(host.states(guardian).values()) == {LeaseState.CLEARED})

    host.run(story)
    blocks = host.blocks()
    mailbox = blocks.read_mailbox(0)
    assert isinstance(mailbox, Mailbox)
    blocks.write_mailbox(replace(mailbox, counter=mailbox.counter + 1, poison=None))

    async def again(guardian: GuardianProcess) -> None:
        """The next guardian of this boot knows it by the slot alone."""
        await bench.until(lambda: len(host.states(guardian)) == 2)
        await bench.until(lambda: host.states(guardian)[DOMAIN] is not LeaseState.UNKNOWN)
        # Renewals go on, and each asks anew whether it may be held.
        wanted = {each: host.slot(each).counter + 5 for each in host.domains}
        for domain_id, counter in wanted.items():
            await bench.until(partial(host._counts, domain_id, counter))
        assert LeaseState.HELD not in host.states(guardian).values()
        permits = load_permits(bench.paths.start_permits, bench.boot)
        assert permits.objection([OTHER], bench.clock.monotonic_ms()) == "order.refused.lease"

    host.run(again)


def test_a_waiver_keeps_vms_and_its_end_is_told(host: LeasedHost, qemus: FakeQemus) -> None:
    vm = qemus.start(WEB1)

    async def story(guardian: GuardianProcess) -> None:
        assert guardian.lease is not None
        await host.held(guardian)
        host.slots[DOMAIN].goes.clear()
        guardian.lease.tell(WaiverGiven(domain_id=DOMAIN))
        await host.later(LEASE.self_fence_after_ms + 1_000, OTHER)
        assert host.states(guardian)[DOMAIN] is LeaseState.WAIVED
        host.slots[DOMAIN].goes.set()
        await host.bench.until(lambda: host.slot().declaration.waived)
        assert host.waivers_over == []
        guardian.lease.tell(WaiverEnded(domain_id=DOMAIN))
        await host.bench.until(lambda: host.waivers_over == [DOMAIN])
        assert host.states(guardian)[DOMAIN] is LeaseState.HELD

    host.run(story)
    assert vm.poll() is None


def test_a_reader_poisons_whom_it_is_told_and_tells_its_rounds(host: LeasedHost) -> None:
    poison = Poison(boot=replace(POISONED).boot, server="s1", term=Term(2), incident="7")

    async def story(guardian: GuardianProcess) -> None:
        assert guardian.lease is not None
        await host.held(guardian)
        duty = LeaseDuty(
            domain_id=DOMAIN, places={HOST: 0, NEIGHBOUR: 1}, poisons={NEIGHBOUR: poison}
        )
        guardian.lease.duties[DOMAIN] = duty
        await host.bench.until(lambda: len(host.rounds) >= 4)
        # A leader of before that woke up again: its poison is older than what stands there.
        old = Poison(boot=poison.boot, server="s0", term=Term(1), incident="6")
        guardian.lease.duties[DOMAIN] = replace(duty, poisons={NEIGHBOUR: old})
        count = len(host.rounds)
        await host.bench.until(lambda: len(host.rounds) >= count + 3)

    host.run(story)
    first, last = host.rounds[0], host.rounds[-1]
    assert first.reader_id == HOST and first.domain_id == DOMAIN and first.direct_io
    for seen in host.rounds:
        own, mailbox = seen.slots[HOST], seen.mailboxes[NEIGHBOUR]
        assert isinstance(own, Slot) and own.counter == seen.own_counter
        assert isinstance(mailbox, Mailbox) and mailbox.poison == poison
        assert mailbox.counter == 1
        assert seen.began_ms <= seen.ended_ms
    assert last.own_counter > first.own_counter
    assert all(
        one.began_ms + LEASE.read_period_ms <= other.began_ms
        for one, other in zip(host.rounds, host.rounds[1:], strict=False)
    )


POISONED = Poison(boot="boot-9", server="s", term=Term(1), incident="1")


def test_the_next_guardian_of_the_boot_goes_on_where_the_last_one_was(
    host: LeasedHost, qemus: FakeQemus
) -> None:
    vm = qemus.start(WEB1)

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)

    host.run(story)
    before, bench = host.slot(), host.bench
    memory = load_memory(bench.paths.lease_memory, bench.boot)
    assert isinstance(memory, LeaseMemory)
    assert {each.domain_id for each in memory.domains} == {DOMAIN, OTHER}
    assert all(each.direct_io for each in memory.domains)

    async def goes_on(guardian: GuardianProcess) -> None:
        await host.held(guardian)  # so it is taken over; it renews when that is due
        await host.bench.until(lambda: host.slot().counter > before.counter)

    host.run(goes_on)
    assert vm.poll() is None
    assert host.watchdog.armings == 2  # taken over, at once
    assert "host.lease.lost" not in host.told()


def test_a_refusal_of_starts_that_can_not_be_told_ends_the_guardian(
    host: LeasedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its watchdog does the rest; to go on would be to promise what it can't keep."""
    permits = host.bench.paths.start_permits

    async def story(guardian: GuardianProcess) -> None:
        await host.held(guardian)
        host.slots[DOMAIN].fails = True
        await host.bench.until(lambda: host.slots[DOMAIN].failures > 0)
        permits.unlink()
        permits.mkdir()
        host.bench.clock.ahead_ms += LEASE.self_fence_after_ms
        await asyncio.wait_for(guardian.stopping.wait(), 60)

    with pytest.raises(OSError, match="start-permits"):
        host.run(story)


@pytest.mark.parametrize(
    "settings", ["none", "damaged", "leases off", "another installation", "not prepared"]
)
def test_without_leases_nothing_is_touched(
    host: LeasedHost, qemus: FakeQemus, settings: str
) -> None:
    vm, bench = qemus.start(WEB1), host.bench
    store = SettingsStore(bench.paths.settings, Files())
    kept = store.load()
    assert kept is not None
    match settings:
        case "none":
            bench.paths.settings.unlink()
        case "damaged":
            bench.paths.settings.write_bytes(b"{")
        case "leases off":
            store.save(replace(kept, policy=replace(POLICY, lease=replace(LEASE, enabled=False))))
        case "another installation":
            store.save(replace(kept, installation_id="other"))
        case "not prepared":
            for domain_id in (DOMAIN, OTHER):
                host.blocks(domain_id).file.unlink()

    async def story(guardian: GuardianProcess) -> None:
        await host.looked(guardian)
        bench.clock.ahead_ms += LEASE.self_fence_after_ms + LEASE.kill_ms
        await host.looked(guardian)
        if settings == "not prepared":
            seen = {each: slots.looks_at_slots for each, slots in host.slots.items()}
            assert seen.keys() == host.domains.keys()
            await bench.until(
                lambda: all(host.slots[each].looks_at_slots > seen[each] + 2 for each in seen)
            )
        else:
            assert host.slots == {}
        assert host.states(guardian) == {}

    host.run(story)
    assert vm.poll() is None
    assert host.told() == []
    if settings == "damaged":
        assert bench.paths.settings.read_bytes() == b"{"  # it is the agent's to set aside


def test_a_place_that_is_not_prepared_yet_is_waited_for(host: LeasedHost) -> None:
    """A renewal that fails binds this boot: none is ordered before the agent has prepared the place."""
    blocks = host.blocks(OTHER)
    blocks.file.unlink()
    blocks.prepare(1, NEIGHBOUR)

    async def story(guardian: GuardianProcess) -> None:
        await host.bench.until(lambda: host.states(guardian).get(DOMAIN) is LeaseState.HELD)
        looks_at_slots = host.slots[OTHER].looks_at_slots
        await host.bench.until(lambda: host.slots[OTHER].looks_at_slots > looks_at_slots + 3)
        assert host.states(guardian).get(OTHER) in (None, LeaseState.UNKNOWN)
        assert not isinstance(blocks.read_slot(0), Slot)
        blocks.prepare(0, HOST)
        await host.held(guardian)

    host.run(story)
