"""The messages about storage leases, as ``freeze_wire.py`` freezes them."""

from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.slot import BlockFault, Declaration, Mailbox, Poison, Slot, Unreadable
from virtha.model.slot_round import LeaseDuty
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseKept,
    ReadSlots,
    SlotsRead,
    StopReading,
    WaiveLease,
)
from virtha.wire.messages import Message

LEASE_DOMAIN = StorageDomainId("4b2f5f0e-1111-4a7a-9d55-000000000001")
LEASE_HOST, LEASE_READER = (
    HostId("2b2f5f0e-1111-4a7a-9d55-000000000001"),
    HostId("2b2f5f0e-1111-4a7a-9d55-000000000002"),
)
LEASE_OWNER = InstallationId("1b2f5f0e-1111-4a7a-9d55-000000000001")


def lease_messages(boot: BootId) -> dict[str, Message]:
    poison = Poison(boot=boot, server="s1", term=Term(3), incident="7")
    return {
        "read_slots": ReadSlots(
            boot=boot,
            duty=LeaseDuty(
                domain_id=LEASE_DOMAIN,
                places={LEASE_HOST: 0, LEASE_READER: 1},
                poisons={LEASE_HOST: poison},
            ),
        ),
        "stop_reading": StopReading(domain_id=LEASE_DOMAIN),
        "waive_lease": WaiveLease(waiver_id="3", boot=boot, domain_id=LEASE_DOMAIN),
        "keep_lease": KeepLease(waiver_id="3", boot=boot, domain_id=LEASE_DOMAIN),
        "lease_kept": LeaseKept(waiver_id="3", boot=boot, domain_id=LEASE_DOMAIN),
        "slots_read": SlotsRead(
            boot=boot,
            domain_id=LEASE_DOMAIN,
            began_ms=1_000,
            ended_ms=1_010,
            own_counter=17,
            direct_io=True,
            slots={
                LEASE_HOST: Slot(
                    installation_id=LEASE_OWNER,
                    domain_id=LEASE_DOMAIN,
                    index=0,
                    host_id=LEASE_HOST,
                    boot=boot,
                    counter=41,
                    submitted_ms=5_000,
                    good_ms=4_000,
                    acknowledged_poison=2,
                    declaration=Declaration(
                        armed=True,
                        no_way_out=True,
                        fed_by_renewer=True,
                        direct_io=True,
                        watchdog_ms=10_000,
                        self_fence_after_ms=15_000,
                        kill_ms=3_000,
                    ),
                )
            },
            unreadable_slots={LEASE_READER: Unreadable(fault=BlockFault.TORN, detail="half")},
            mailboxes={
                LEASE_HOST: Mailbox(
                    installation_id=LEASE_OWNER,
                    domain_id=LEASE_DOMAIN,
                    index=0,
                    host_id=LEASE_HOST,
                    counter=2,
                    poison=poison,
                )
            },
            unreadable_mailboxes={LEASE_READER: Unreadable(fault=BlockFault.UNREAD)},
        ),
    }
