"""A guardian's lease core on a host whose storage and watchdog answer as told."""

from collections.abc import Iterator

import msgspec

from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term, VmId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import (
    BlockFault,
    Declaration,
    Mailbox,
    MailboxReading,
    Poison,
    Slot,
    SlotReading,
    Unreadable,
)
from virtha.model.time import Millis
from virtha.sentinel.guardian import Kill, QemuProcess, Report, Welcomed
from virtha.sentinel.guardian_lease import LeaseGuardian
from virtha.sentinel.lease import LeaseState
from virtha.sentinel.lease_events import (
    DomainAttached,
    FeedWatchdog,
    HostNature,
    LeaseDecision,
    LeasedQemu,
    LeaseEvent,
    LeaseOwner,
    RenewDone,
    RenewSlot,
    WatchdogArmed,
    WatchdogFed,
)

OURS, HOST, BOOT = InstallationId("ours"), HostId("h1"), BootId("boot-1")
DS1, DS2 = StorageDomainId("ds1"), StorageDomainId("ds2")
POLICY = LeasePolicy()
FENCE, KILL, WATCHDOG = POLICY.self_fence_after_ms, POLICY.kill_ms, POLICY.watchdog_ms
EMPTY = Unreadable(fault=BlockFault.EMPTY)
REAL = HostNature(is_virtual=False, suspend_blocked=True)


def qemu(pid: int, *domains: StorageDomainId) -> LeasedQemu:
    process = QemuProcess(pid=pid, start_ticks=pid, vm_id=VmId(f"vm{pid}"))
    return LeasedQemu(process=process, domain_ids=frozenset(domains) if domains else None)


def mailbox(counter: int = 0, *, poisons: BootId | None = None) -> Mailbox:
    poison = poisons and Poison(boot=poisons, server="s1", term=Term(1), incident="i1")
    return Mailbox(
        installation_id=OURS, domain_id=DS1, index=0, host_id=HOST, counter=counter, poison=poison
    )


def own_slot(boot: BootId = BOOT, **said: object) -> Slot:
    slot = Slot(
        installation_id=OURS,
        domain_id=DS1,
        index=0,
        host_id=HOST,
        boot=boot,
        counter=9,
        submitted_ms=4_000,
        good_ms=3_000,
        declaration=Declaration(
            armed=True, watchdog_ms=WATCHDOG, self_fence_after_ms=FENCE, kill_ms=KILL
        ),
    )
    return msgspec.structs.replace(slot, **said)


class Bench:
    """Answers renewals as told, so that a test says only what goes wrong."""

    def __init__(
        self,
        *,
        nature: HostNature = REAL,
        domains: tuple[StorageDomainId, ...] = (DS1,),
        own: SlotReading = EMPTY,
        now: int = 0,
        first_of_boot: bool = True,
        works: bool = True,
        watchdog_runs_ms: int = 0,
    ) -> None:
        self.core = LeaseGuardian(
            owner=LeaseOwner(installation_id=OURS, host_id=HOST),
            boot=BOOT,
            nature=nature,
            policy=POLICY,
            now=Millis(now),
            first_of_boot=first_of_boot,
            watchdog_runs_ms=watchdog_runs_ms,
        )
        self.now = now
        self.mailbox: MailboxReading = mailbox()
        self.mailboxes: dict[StorageDomainId, MailboxReading] = {}
        """Of domains whose mailbox is another than ``mailbox``."""
        self.works = dict.fromkeys(domains, works)
        self.feeds = True
        self.slots: list[Slot] = []
        self.said: list[tuple[int, object]] = []
        self.step(
            *(DomainAttached(domain_id=each, index=0, own=own, direct_io=True) for each in domains)
        )

    def step(self, *events: LeaseEvent) -> LeaseDecision:
        decision = self.core.step(Millis(self.now), events)
        self.said += [(self.now, command) for command in decision.commands]
        answers = list(self._answers(decision))
        return self.step(*answers) if answers else decision

    def _answers(self, decision: LeaseDecision) -> Iterator[LeaseEvent]:
        for command in decision.commands:
            match command:
                case RenewSlot(domain_id=domain_id, number=number, slot=slot):
                    self.slots.append(slot)
                    if self.works[domain_id]:
                        found = self.mailboxes.get(domain_id, self.mailbox)
                        yield RenewDone(
                            domain_id=domain_id, number=number, written=True, mailbox=found
                        )
                case FeedWatchdog() if self.feeds:
                    yield WatchdogFed()

    def until(self, now: int) -> "Bench":
        """Time passes; each moment that the core asked for gets its step."""
        while self.now < now:
            wake_at = self.core.step(Millis(self.now), ()).wake_at
            self.now = now if wake_at is None else min(now, wake_at)
            self.step()
        return self

    def state(self, domain_id: StorageDomainId = DS1) -> LeaseState:
        return self.core.states()[domain_id]

    def times(self, kind: type) -> list[int]:
        return [at for at, command in self.said if isinstance(command, kind)]

    def codes(self) -> list[str]:
        return [each.code for _, each in self.said if isinstance(each, Report)]

    def killed(self) -> set[int]:
        return {each.process.pid for _, each in self.said if isinstance(each, Kill)}


def armed(**more: object) -> Bench:
    bench = Bench(**more)
    bench.step(Welcomed(beat_interval_ms=1_000))
    bench.until(bench.now + 2_000)
    bench.step(WatchdogArmed(timeout_ms=WATCHDOG, no_way_out=True))
    return bench.until(bench.now + 2_000)
