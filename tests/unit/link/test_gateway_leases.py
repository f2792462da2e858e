"""Leases over the real gateway on loopback: what a guardian is asked, what it answers, and who is not asked."""

import asyncio
from collections.abc import Sequence

import pytest
from link_rig import Pki, start_server, until

from virtha.model.evidence import Answer
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot_round import LeaseDuty
from virtha.wire.lease_messages import KeepLease, LeaseAnswer, LeaseKept, LeaseOrder, ReadSlots
from virtha.wire.messages import Beat, PeerRole
from virtha.wire.witness_messages import (
    DisksLooked,
    HostProbed,
    LookAtDisks,
    ProbeHost,
    WitnessAnswer,
    WitnessOrder,
)

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
        self.found: list[tuple[HostId, WitnessAnswer]] = []

    def beat(self, host_id: HostId, beat: Beat) -> None: ...

    def session(
        self, host_id: HostId, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None:
        if up:
            self.up.append((host_id, role))

    def lease(self, host_id: HostId, answer: LeaseAnswer) -> None:
        self.told.append((host_id, answer))

    def witness(self, host_id: HostId, answer: WitnessAnswer) -> None:
        self.found.append((host_id, answer))

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


PROBE = ProbeHost(question=1, subject=H2, targets=(), deadline_ms=500)
LOOK = LookAtDisks(question=2, subject=H2, silence="s1", disks=(), gap_ms=1, deadline_ms=1)
PROBED = HostProbed(question=1, network="storage", answer=Answer.ALIVE, boot=BOOT)
LOOKED = DisksLooked(question=2, changed=None)


@pytest.mark.req("F1", "F2")
def test_witnesses_are_asked_by_what_they_can_and_only_agents_look_at_disks(pki: Pki) -> None:
    async def story() -> None:
        rig = await start_server(pki)
        try:
            gateway, watcher = rig.gateway, Watcher()
            gateway.watcher = watcher
            asked: dict[str, list[WitnessOrder]] = {"guardian": [], "agent": []}
            agent = rig.host(PeerRole.AGENT, on_witness=asked["agent"].append)
            rig.host(PeerRole.AGENT, credentials=pki.host("h2"))
            await until(lambda: len(watcher.up) == 2, "agents")
            assert not gateway.ask_witness(H2, PROBE) and not gateway.ask_witness(H2, LOOK)
            assert not gateway.ask_witness(HostId("h9"), PROBE)
            assert gateway.ask_witness(H1, PROBE), "its agent can, while there is no guardian"
            guardian = rig.host(PeerRole.GUARDIAN, on_witness=asked["guardian"].append)
            await until(lambda: len(watcher.up) == 3, "its guardian")
            assert gateway.ask_witness(H1, PROBE) and gateway.ask_witness(H1, LOOK)
            await until(lambda: sum(map(len, asked.values())) == 3, "questions")
            assert asked == {"guardian": [PROBE], "agent": [PROBE, LOOK]}
            assert guardian.link.send_witness(PROBED) and agent.link.send_witness(LOOKED)
            await until(lambda: len(watcher.found) == 2, "answers")
            assert {(H1, PROBED), (H1, LOOKED)} == set(watcher.found)
        finally:
            await rig.stop()

    asyncio.run(story())
