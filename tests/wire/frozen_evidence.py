"""What is said about leases and silent neighbours, frozen."""

from virtha.model.evidence import Answer, WatchedDisk
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
from virtha.wire.witness_messages import (
    DisksLooked,
    HostProbed,
    LookAtDisks,
    ProbeHost,
    ProbeTarget,
)

BOOT = BootId("7f7c4a4e-54b5-4c40-8a4e-27a7e3f0a001")
LEASE_DOMAIN = StorageDomainId("4b2f5f0e-1111-4a7a-9d55-000000000001")
LEASE_HOST, LEASE_READER = (
    HostId("2b2f5f0e-1111-4a7a-9d55-000000000001"),
    HostId("2b2f5f0e-1111-4a7a-9d55-000000000002"),
)
LEASE_OWNER = InstallationId("1b2f5f0e-1111-4a7a-9d55-000000000001")
LEASE_POISON = Poison(boot=BOOT, server="s1", term=Term(3), incident="7")
LEASE_MESSAGES: dict[str, Message] = {
    "read_slots": ReadSlots(
        boot=BOOT,
        duty=LeaseDuty(
            domain_id=LEASE_DOMAIN,
            places={LEASE_HOST: 0, LEASE_READER: 1},
            poisons={LEASE_HOST: LEASE_POISON},
        ),
    ),
    "stop_reading": StopReading(domain_id=LEASE_DOMAIN),
    "waive_lease": WaiveLease(waiver_id="3", boot=BOOT, domain_id=LEASE_DOMAIN),
    "keep_lease": KeepLease(waiver_id="3", boot=BOOT, domain_id=LEASE_DOMAIN),
    "lease_kept": LeaseKept(waiver_id="3", boot=BOOT, domain_id=LEASE_DOMAIN),
    "slots_read": SlotsRead(
        boot=BOOT,
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
                boot=BOOT,
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
                poison=LEASE_POISON,
            )
        },
        unreadable_mailboxes={LEASE_READER: Unreadable(fault=BlockFault.UNREAD)},
    ),
}
WITNESS_MESSAGES: dict[str, Message] = {
    "probe_host": ProbeHost(
        question=7,
        subject=LEASE_HOST,
        targets=(
            ProbeTarget(network="management", address="192.0.2.11", port=8252, source="192.0.2.12"),
            ProbeTarget(
                network="storage", address="2001:db8::11", port=8252, source="2001:db8::12"
            ),
        ),
        deadline_ms=500,
    ),
    "host_probed": HostProbed(question=7, network="storage", answer=Answer.ALIVE, boot=BOOT),
    "host_probed_silent": HostProbed(question=7, network="management", answer=Answer.SILENT),
    "look_at_disks": LookAtDisks(
        question=8,
        subject=LEASE_HOST,
        silence="s1 3",
        disks=(WatchedDisk(domain_id=LEASE_DOMAIN, path="vms/web1/vda.qcow2"),),
        gap_ms=600,
        deadline_ms=2_000,
    ),
    "disks_looked": DisksLooked(question=8, changed=True, disks=1),
    "disks_looked_unknown": DisksLooked(question=8, changed=None),
}
