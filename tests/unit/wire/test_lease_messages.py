"""Leases over the wire: what is said arrives as it was, and the largest round fits a frame."""

import msgspec
import pytest

from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.slot import BlockFault, Declaration, Mailbox, Poison, Slot, Unreadable
from virtha.model.slot_round import LeaseDuty, SlotRound, slot_index
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseKept,
    LeaseMessage,
    ReadSlots,
    StopReading,
    WaiveLease,
    heard_round,
    told_round,
)
from virtha.wire.messages import FRAME_BYTES_MAX

pytestmark = pytest.mark.req("F1")

BOOT = BootId("7f7c4a4e-54b5-4c40-8a4e-27a7e3f0a001")
DOMAIN = StorageDomainId("40000000-0000-4000-8000-000000000001")
OURS = InstallationId("10000000-0000-4000-8000-000000000001")
POISON = Poison(boot=BOOT, server="s1", term=Term(3), incident="7")


def host(number: int) -> HostId:
    return HostId(f"20000000-0000-4000-8000-{number:012d}")


def slot(number: int) -> Slot:
    return Slot(
        installation_id=OURS,
        domain_id=DOMAIN,
        index=slot_index(number),
        host_id=host(number),
        boot=BOOT,
        counter=1 << 40,
        submitted_ms=1 << 40,
        good_ms=1 << 40,
        acknowledged_poison=3,
        declaration=Declaration(armed=True, watchdog_ms=10_000, self_fence_after_ms=15_000),
    )


def seen(hosts: int) -> SlotRound:
    mailbox = Mailbox(
        installation_id=OURS, domain_id=DOMAIN, index=0, host_id=host(1), counter=3, poison=POISON
    )
    torn = Unreadable(fault=BlockFault.TORN, detail="half")
    return SlotRound(
        reader_id=host(2),
        reader_boot=BOOT,
        domain_id=DOMAIN,
        began_ms=1_000,
        ended_ms=1_010,
        own_counter=17,
        direct_io=True,
        slots={**{host(number): slot(number) for number in range(1, hosts)}, host(hosts): torn},
        mailboxes={host(1): mailbox, host(2): torn},
    )


def sent(message: LeaseMessage) -> LeaseMessage:
    data = msgspec.msgpack.encode(message)
    assert len(data) <= FRAME_BYTES_MAX
    return msgspec.msgpack.decode(data, type=LeaseMessage)


@pytest.mark.parametrize("hosts", [1, 2, 1_024])
def test_a_round_arrives_as_it_was_read(hosts: int) -> None:
    told = sent(told_round(seen(hosts)))
    assert heard_round(host(2), told) == seen(hosts)


def test_orders_and_answers_arrive_as_they_were_sent() -> None:
    duty = LeaseDuty(domain_id=DOMAIN, places={host(1): 0}, poisons={host(1): POISON})
    for message in (
        ReadSlots(boot=BOOT, duty=duty),
        StopReading(domain_id=DOMAIN),
        WaiveLease(waiver_id="3", boot=BOOT, domain_id=DOMAIN),
        KeepLease(waiver_id="3", boot=BOOT, domain_id=DOMAIN),
        LeaseKept(waiver_id="3", boot=BOOT, domain_id=DOMAIN),
    ):
        assert sent(message) == message
