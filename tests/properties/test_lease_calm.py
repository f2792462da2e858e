"""A lease guardian that takes the short way in calm decides, step by step, what one without it does.

Two domains, and all that can befall them: renewals that fail, answer late or find a poison, changed policies, waivers,
feedings that fail, QEMUs that come and go. The stories of ``test_shortcuts.py`` have one domain, and mostly calm.
"""

import random
from collections import Counter

import pytest

from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, VmId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import BlockFault, Mailbox, MailboxReading, Poison, Unreadable
from virtha.model.time import Millis
from virtha.sentinel.guardian import LinkLost, QemuProcess, Welcomed
from virtha.sentinel.guardian_lease import LeaseGuardian
from virtha.sentinel.lease_events import (
    ArmWatchdog,
    DisarmWatchdog,
    DomainAttached,
    FeedWatchdog,
    HostNature,
    LeasedQemu,
    LeaseEvent,
    LeaseOwner,
    PolicySet,
    QemuEnded,
    QemusSeen,
    RenewDone,
    RenewSlot,
    WaiverEnded,
    WaiverGiven,
    WatchdogArmed,
    WatchdogDisarmed,
    WatchdogFailed,
    WatchdogFed,
)

DOMAINS = (StorageDomainId("one"), StorageDomainId("two"))
OWNER = LeaseOwner(installation_id=InstallationId("installation"), host_id=HostId("h1"))
BOOT = BootId("boot")
POLICIES = (
    LeasePolicy(),
    LeasePolicy(),
    LeasePolicy(self_fence_after_ms=20_000),
    LeasePolicy(renew_ms=2_000, kill_ms=5_000),
    LeasePolicy(enabled=False),
)
QEMUS = tuple(
    LeasedQemu(
        process=QemuProcess(pid=number, start_ticks=1, vm_id=VmId(f"vm{number}")),
        domain_ids=frozenset({domain_id}),
    )
    for number, domain_id in enumerate(DOMAINS)
)
STEPS = 1_500


class Surroundings:
    """What happens next, as the guardian's commands and chance have it. ``trouble``: of 1,000 steps, how many see some."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._trouble = self._chance.choice((2, 10, 50))
        self._due: list[tuple[int, LeaseEvent]] = []
        self.now = 0

    def heard(self, commands: object) -> None:
        assert isinstance(commands, tuple)
        for command in commands:
            match command:
                case RenewSlot():
                    late = self._strikes()
                    done = RenewDone(
                        domain_id=command.domain_id,
                        number=command.number,
                        written=not self._strikes(),
                        mailbox=self._mailbox(command),
                    )
                    self._later(self._chance.choice((4_000, 30_000)) if late else 4, done)
                case FeedWatchdog():
                    failed = WatchdogFailed(detail="busy")
                    self._later(1, failed if self._strikes() else WatchdogFed())
                case ArmWatchdog(timeout_ms=timeout_ms):
                    self._later(5, WatchdogArmed(timeout_ms=timeout_ms, no_way_out=False))
                case DisarmWatchdog():
                    self._later(1, WatchdogDisarmed())
                case _:
                    pass

    def _mailbox(self, command: RenewSlot) -> MailboxReading:
        if self._strikes():
            return Unreadable(fault=BlockFault.UNREAD)
        poison = None
        if self._chance.random() < self._trouble / 20_000:
            poison = Poison(boot=BOOT, server="s", term=1, incident="i")
        return Mailbox(
            installation_id=OWNER.installation_id,
            domain_id=command.domain_id,
            index=0,
            host_id=OWNER.host_id,
            counter=1 if poison else 0,
            poison=poison,
        )

    def next(self, wake_at: int | None) -> list[LeaseEvent]:
        """Goes on to the next moment at which something is due: an answer, a look, or the guardian itself."""
        look_at = self.now + 1_000 - self.now % 1_000
        self.now = min([look_at, *(at for at, _ in self._due), *([wake_at] if wake_at else ())])
        events = [event for at, event in self._due if at <= self.now]
        self._due = [(at, event) for at, event in self._due if at > self.now]
        if self.now == look_at:
            events.append(
                QemusSeen(began_ms=self.now, qemus=QEMUS[: self._chance.choice((2, 2, 2, 1))])
            )
        if self._strikes():
            events.append(self._trouble_of_its_own())
        return events

    def _trouble_of_its_own(self) -> LeaseEvent:
        domain_id = self._chance.choice(DOMAINS)
        return self._chance.choice(
            (
                PolicySet(policy=self._chance.choice(POLICIES)),
                WaiverGiven(domain_id=domain_id),
                WaiverEnded(domain_id=domain_id),
                WaiverEnded(domain_id=domain_id),
                LinkLost(),
                Welcomed(beat_interval_ms=1_000),
                QemuEnded(process=self._chance.choice(QEMUS).process),
            )
        )

    def _strikes(self) -> bool:
        return self._chance.random() < self._trouble / 1_000

    def _later(self, delay_ms: int, event: LeaseEvent) -> None:
        self._due.append((self.now + delay_ms, event))


def guardian() -> LeaseGuardian:
    return LeaseGuardian(
        owner=OWNER,
        boot=BOOT,
        nature=HostNature(is_virtual=False, suspend_blocked=True),
        policy=LeasePolicy(),
        now=Millis(0),
        first_of_boot=True,
    )


@pytest.mark.req("X3")
def test_in_calm_a_guardian_decides_what_it_would_the_long_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: Counter[str] = Counter()
    for seed in range(20):
        around, short, long = Surroundings(seed), guardian(), guardian()
        monkeypatch.setattr(long, "_is_calm", lambda: False)
        blank = Unreadable(fault=BlockFault.EMPTY)
        events: list[LeaseEvent] = [
            DomainAttached(domain_id=domain_id, index=0, own=blank, direct_io=True)
            for domain_id in DOMAINS
        ]
        events.append(Welcomed(beat_interval_ms=1_000))
        wake_at: Millis | None = None
        for _ in range(STEPS):
            now = Millis(around.now)
            decision = long.step(now, events)
            look = events[0] if len(events) == 1 else None
            if isinstance(look, QemusSeen) and short.takes_in_passing(look, now):
                taken["in passing"] += 1
                assert not decision.commands
                assert decision.wake_at == wake_at, (seed, now, look)
            else:
                assert short.step(now, events) == decision, (seed, now, events)
            wake_at = decision.wake_at
            assert short.states() == long.states()
            taken["calm" if short._was_calm else "trouble"] += 1
            around.heard(decision.commands)
            events = around.next(decision.wake_at)
    assert min(taken["calm"], taken["trouble"]) > STEPS
    assert taken["in passing"] > 200
