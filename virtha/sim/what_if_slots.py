"""The heartbeat slots of a what-if question: living hosts renew theirs, those of the others stand still.

The real lease judge reads them; only what it would look at is there: the slots of the hosts that it watches, of the
reader, and of one more living host, whose slot shows that the reading is fresh.
"""

from collections.abc import Collection

from virtha.engine.events import Poison as PoisonCommand
from virtha.engine.lease import LeaseJudge, LeaseTarget
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.proof import Proof
from virtha.model.slot import Declaration, Mailbox, MailboxReading, Poison, Slot, SlotReading
from virtha.model.slot_round import SlotRound
from virtha.model.time import Millis
from virtha.model.vm import Reason
from virtha.scenario.inventory import Inventory, InventoryHost

READ_MS = 20
"""One look at a domain's slots, which lie in one piece."""
_INSTALLATION = InstallationId("what-if")


class Slots:
    """``lost``: stand still from ``failed_ms`` on. ``watching``: the hosts whose leases have not expired yet."""

    def __init__(self, inventory: Inventory, *, lost: Collection[HostId], failed_ms: int) -> None:
        self._lease = inventory.policy.lease
        self._failed_ms = failed_ms
        self._hosts = {HostId(host.name): host for host in inventory.hosts}
        self._lost = lost
        self._used = {
            host_id: frozenset(
                StorageDomainId(domain)
                for vm in inventory.vms
                if vm.on == host_id
                for domain in vm.storage
            )
            for host_id in lost
        }
        self._judge = LeaseJudge(
            _INSTALLATION, inventory.policy.lease, two_hosts=len(inventory.hosts) == 2
        )
        self._poisoned: dict[HostId, tuple[PoisonCommand, int]] = {}
        self._has_read = False
        self.watching: set[HostId] = set()

    def poison(self, command: PoisonCommand, *, at_ms: int) -> None:
        """On storage from ``at_ms`` on; nothing comes of it where its VMs have no disk on any."""
        domains = self._used.get(command.host_id)
        if not domains or command.host_id in self._poisoned:
            return
        self._poisoned[command.host_id] = (command, at_ms)
        self.watching.add(command.host_id)
        self._judge.watch(
            LeaseTarget(host_id=command.host_id, boot=command.boot, domain_ids=domains)
        )

    def reasons(self, host_id: HostId) -> tuple[Reason, ...]:
        """Why its lease proves nothing, or not yet: each once, whatever the number of domains."""
        found = self._judge.reasons(host_id)
        return tuple({one.code: one for _, one in sorted(found.items())}.values())

    def read(self, now: int) -> list[Proof]:
        """One round over every domain in which somebody is watched. Readers read all the time; of the rounds
        before the first that matters, those are made up for here that it is compared with."""
        period_ms = self._lease.read_period_ms
        moments = [now]
        if not self._has_read:
            self._has_read = True
            alive_ms = self._failed_ms - period_ms
            moments = [alive_ms - period_ms, alive_ms, now - period_ms, now]
        proofs: dict[HostId, Proof] = {}
        for moment in moments:
            for domain in sorted({one for host in self.watching for one in self._used[host]}):
                seen = self._round(domain, moment)
                if seen is not None:
                    found = self._judge.read(Millis(now), seen)
                    proofs.update((proof.host_id, proof) for proof in found)
        self.watching -= proofs.keys()
        return [proofs[host_id] for host_id in sorted(proofs)]

    def _round(self, domain: StorageDomainId, now: int) -> SlotRound | None:
        living = [
            host
            for host_id, host in self._hosts.items()
            if host_id not in self._lost and domain in host.storage
        ]
        if not living:
            return None
        watched = [self._hosts[one] for one in sorted(self._poisoned) if domain in self._used[one]]
        reader = living[0]
        slots: dict[HostId, SlotReading] = {
            HostId(host.name): self._slot(host, domain, now) for host in (*living[:2], *watched)
        }
        mailboxes: dict[HostId, MailboxReading] = {
            HostId(host.name): self._mailbox(host, domain, now) for host in watched
        }
        return SlotRound(
            reader_id=HostId(reader.name),
            reader_boot=boot_of(HostId(reader.name)),
            domain_id=domain,
            began_ms=now - READ_MS,
            ended_ms=now,
            own_counter=self._counter(reader, now),
            direct_io=True,
            slots=slots,
            mailboxes=mailboxes,
        )

    def _counter(self, host: InventoryHost, now: int) -> int:
        until = min(now, self._failed_ms) if HostId(host.name) in self._lost else now
        return until // self._lease.renew_ms

    def _slot(self, host: InventoryHost, domain: StorageDomainId, now: int) -> Slot:
        return Slot(
            installation_id=_INSTALLATION,
            domain_id=domain,
            index=host.number,
            host_id=HostId(host.name),
            boot=boot_of(HostId(host.name)),
            counter=self._counter(host, now),
            declaration=Declaration(
                armed=host.watchdog,
                no_way_out=host.watchdog,
                fed_by_renewer=host.watchdog,
                direct_io=True,
                watchdog_ms=self._lease.watchdog_ms,
                self_fence_after_ms=self._lease.self_fence_after_ms,
                kill_ms=self._lease.kill_ms,
            ),
        )

    def _mailbox(self, host: InventoryHost, domain: StorageDomainId, now: int) -> Mailbox:
        command, at_ms = self._poisoned[HostId(host.name)]
        poison = None
        if now >= at_ms:
            poison = Poison(
                boot=command.boot, server="server", term=Term(1), incident=str(command.incident)
            )
        return Mailbox(
            installation_id=_INSTALLATION,
            domain_id=domain,
            index=host.number,
            host_id=HostId(host.name),
            counter=0 if poison is None else 1,
            poison=poison,
        )


def boot_of(host_id: HostId) -> BootId:
    """The one boot that a host of an inventory has."""
    return BootId(f"{host_id}-boot")
