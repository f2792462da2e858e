"""Leases over the real gateway on loopback: what a guardian is asked, what it answers, and who is not asked."""

import asyncio
from collections.abc import Sequence

import pytest
from link_rig import Pki, start_server, until

from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot_round import LeaseDuty
from virtha.wire.lease_messages import KeepLease, LeaseAnswer, LeaseKept, LeaseOrder, ReadSlots
from virtha.wire.messages import Beat, PeerRole

H1, H2 = HostId("h1"), HostId("h2")
BOOT, DOMAIN = BootId("boot-1"), StorageDomainId("ds1")
KEPT = LeaseKept(waiver_id="3", boot=BOOT, domain_id=DOMAIN)
ORDERS: tuple[LeaseOrder, ...] = (
    ReadSlots(boot=BOOT, duty=LeaseDuty(domain_id=DOMAIN, places={H1: 0})),
    KeepLease(waiver_id="3", boot=BOOT, domain_id=DOMAIN),
)


class Watcher:
    """``HostWatcher``; asks at the moment at which a session begins, as the lease desk does."""

    def __init__(self) -> None:
        self.up: list[tuple[HostId, PeerRole]] = []
        self.told: list[tuple[HostId, LeaseAnswer]] = []

    def beat(self, host_id: HostId, beat: Beat) -> None: ...

    def session(
        self, host_id: HostId, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None:
        if up:
            self.up.append((host_id, role))

    def lease(self, host_id: HostId, answer: LeaseAnswer) -> None:
        self.told.append((host_id, answer))

    async def facts(
        self, host_id: HostId, boot: BootId, facts: Sequence[Fact], recorded: int
    ) -> None: ...


@pytest.mark.req("F2")
def test_guardians_with_leases_are_asked_and_heard_and_no_others(pki: Pki) -> None:
    async def story() -> None:
        rig = await start_server(pki)
        try:
            gateway, watcher = rig.gateway, Watcher()
            gateway.watcher = watcher
            heard: list[LeaseOrder] = []
            h1 = rig.host(PeerRole.GUARDIAN, on_lease=heard.append)
            rig.host(PeerRole.AGENT)
            rig.host(PeerRole.GUARDIAN, credentials=pki.host("h2"))
            await until(lambda: len(watcher.up) == 3, "sessions")
            assert (gateway.lease_boot(H1), gateway.lease_boot(H2)) == (BOOT, None)
            assert gateway.lease_boot(HostId("h9")) is None
            assert not gateway.tell_lease(H2, ORDERS[0])
            assert all(gateway.tell_lease(H1, order) for order in ORDERS)
            await until(lambda: len(heard) == len(ORDERS), "orders")
            assert tuple(heard) == ORDERS
            assert h1.link.send_lease(KEPT)
            await until(lambda: watcher.told, "the answer")
            assert watcher.told == [(H1, KEPT)]
            # Of another boot than its session's it may not speak.
            assert h1.link.send_lease(LeaseKept(waiver_id="3", boot=BootId("b0"), domain_id=DOMAIN))
            await until(lambda: h1.events.ended, "its end")
            assert h1.events.ended[0][0] == "wire.refused.sequence"
            assert len(watcher.told) == 1
        finally:
            await rig.stop()

    asyncio.run(story())
