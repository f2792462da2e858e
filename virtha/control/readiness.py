"""`virtha doctor`: what would fail today, per host, VM, cluster, or of all there is (X5)."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import UNSET

from virtha import __version__
from virtha.control.engine_power import LedDevice, led_devices
from virtha.control.known_settings import (
    CLOCK_OFFSET_MAX,
    POWER_TEST_INTERVAL,
    SettingValues,
    setting_values,
)
from virtha.control.launch import Surroundings, read_surroundings
from virtha.control.names import the_cluster, the_host, the_vm
from virtha.control.own_machine import OwnMachine
from virtha.control.protection import OK
from virtha.control.readiness_views import (
    NOT_LOOKED_AT,
    WATCHDOGS_NOT_LOOKED_AT,
    Finding,
    ReadinessView,
)
from virtha.control.ready_checks import (
    HostFacts,
    finding,
    of_cluster,
    of_host,
    of_references,
    probe_lacks,
    storage_lacks,
    verdict_of,
    worst_first,
)
from virtha.control.ready_room import without_room
from virtha.control.ready_storage_fence import storage_fence_lacks
from virtha.control.subscriber_reach import reaches_of
from virtha.control.vm_views import VmViews
from virtha.engine.records import HostRecord
from virtha.model.codes import render
from virtha.model.host import Cluster, HostState
from virtha.model.ids import ClusterId, HostId, StorageDomainId, SubscriptionId, VmId
from virtha.model.notification import Subscription
from virtha.model.power_settings import PowerDriver, PowerTest
from virtha.model.time import UtcMillis
from virtha.model.value import Fields, Value
from virtha.model.vm import Reason
from virtha.ports.hosts import HostLinks
from virtha.ports.leaders import Leaders, Prospects
from virtha.ports.power import NeighbourPower
from virtha.ports.references import NoReferences, References
from virtha.store.changed import adopted_on
from virtha.store.clusters import all_clusters, find_cluster, storage_of_cluster
from virtha.store.engine import find_host_records
from virtha.store.hosts import HostRow, certificate_ends
from virtha.store.installations import the_installation
from virtha.store.notifications import live_subscriptions
from virtha.store.power import power_tests_of
from virtha.store.reach import Reach, seeing
from virtha.store.store import Store, Transaction
from virtha.store.vms import VmRow, vms_of_cluster

NAMES_MAX = 10
NOT_SHARED = "host.storage.not_shared"
Lacking = dict[HostId, dict[VmId, tuple[Reason, ...]]]


AT_ONCE = 100
"""Hosts or VMs that are looked at before others get their turn: beats, and the engine's own stall (J1), wait as long."""


class _Facts(Value, frozen=True, kw_only=True):
    """Of one cluster, in one snapshot."""

    cluster: Cluster
    surroundings: Surroundings
    vms: tuple[VmRow, ...]
    defined: Mapping[HostId, frozenset[VmId]]
    devices: Mapping[HostId, list[LedDevice]]
    tests: Mapping[tuple[HostId, str], PowerTest]
    records: Mapping[HostId, HostRecord]
    certificates: Mapping[HostId, UtcMillis]
    settings: SettingValues
    subscriptions: tuple[Subscription, ...]
    hold: str | None
    leases: Prospects | None
    protection: Mapping[VmId, tuple[Reason, ...]]
    host_names: Mapping[HostId, str]
    vm_names: Mapping[VmId, str]
    on_ceph: frozenset[StorageDomainId]
    protected_on: frozenset[StorageDomainId]


class _Told(NamedTuple):
    """``seen``: of subscriptions to users who see some clusters only, those."""

    subscriptions: tuple[Subscription, ...]
    seen: Mapping[SubscriptionId, Reach]

    def of(self, cluster_id: ClusterId) -> tuple[Subscription, ...]:
        """Those that may tell of it."""
        return tuple(
            one
            for one in self.subscriptions
            if (reach := self.seen.get(one.id)) is None or cluster_id in reach
        )


class Readiness:
    def __init__(
        self,
        store: Store,
        links: HostLinks,
        leaders: Leaders,
        own: OwnMachine = OwnMachine(),
        neighbours: NeighbourPower | None = None,
        references: References | None = None,
    ) -> None:
        """``own``: the machine that this server runs on. ``neighbours``: who makes attempts at others' power devices. ``references``: what
        this server reaches of its reference addresses."""
        self._references = references or NoReferences()
        self._neighbours = neighbours
        self._store = store
        self._views = VmViews(store, links, leaders)
        self._leaders = leaders
        self._own = own

    async def all(self) -> ReadinessView:
        told = await self._subscriptions()
        async with self._store.read() as tx:
            facts = [await self._facts(tx, cluster, told) for cluster in await all_clusters(tx)]
        found = of_references(self._references.seen())
        found += _of_hold(facts[0]) if facts else []
        for one in facts:
            found += await self._whole(one)
        return _view("installation", found, facts)

    async def of_cluster(self, ref: str) -> ReadinessView:
        told = await self._subscriptions()
        async with self._store.read() as tx:
            facts = await self._facts(tx, await the_cluster(tx, ref), told)
        found = of_references(self._references.seen()) + _of_hold(facts)
        found += await self._whole(facts)
        return _view(f"cluster/{facts.cluster.name}", found, [facts])

    async def of_host(self, ref: str) -> ReadinessView:
        """Of the host itself, and whether its VMs would fit elsewhere."""
        told = await self._subscriptions()
        async with self._store.read() as tx:
            host = (await the_host(tx, ref)).host
            cluster = await find_cluster(tx, host.cluster_id)
            assert cluster is not None
            facts = await self._facts(tx, cluster, told)
        row = next(one for one in facts.surroundings.hosts if one.host.id == host.id)
        found = self._of_host(facts, row, await _lacking(facts, (host.id,)))
        held = [one for one in facts.vms if host.id in one.status.holders]
        return _view(f"host/{host.name}", found, [facts], hosts=1, vms=len(held))

    async def of_vm(self, ref: str) -> ReadinessView:
        """Of the VM, and of the hosts that may hold it: it comes back only when their death is proven."""
        told = await self._subscriptions()
        async with self._store.read() as tx:
            row = await the_vm(tx, ref)
            cluster = await find_cluster(tx, row.vm.cluster_id)
            assert cluster is not None
            facts = await self._facts(tx, cluster, told)
        lacking = await _lacking(facts, row.status.holders)
        found = _of_hold(facts) + _of_vm(facts, row, lacking)
        hosts = [one for one in facts.surroundings.hosts if one.host.id in row.status.holders]
        if row.vm.ha:
            for host in hosts:
                found += self._of_host(facts, host, {})
        return _view(f"vm/{row.vm.name}", found, [facts], hosts=len(hosts), vms=1)

    async def _whole(self, facts: _Facts) -> list[Finding]:
        rows = facts.surroundings.hosts
        lacking = await _lacking(facts, tuple(row.host.id for row in rows))
        found = of_cluster(
            facts.cluster, facts.surroundings, facts.protected_on, facts.subscriptions
        )
        for number, row in enumerate(rows):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            found += self._of_host(facts, row, lacking)
        for number, vm in enumerate(facts.vms):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            found += _of_vm(facts, vm, lacking)
        return found

    def _of_host(self, facts: _Facts, row: HostRow, lacking: Lacking) -> list[Finding]:
        host_id, cluster = row.host.id, facts.cluster
        devices = facts.devices.get(host_id, [])
        record = facts.records.get(host_id, HostRecord(host_id=host_id))
        found = of_host(
            HostFacts(
                row=row,
                devices=devices,
                tests={
                    one.name: test
                    for one in devices
                    if (test := facts.tests.get((host_id, one.name))) is not None
                },
                action=cluster.policy.fencing.action,
                test_interval_ms=facts.settings.get(POWER_TEST_INTERVAL, cluster_id=cluster.id),
                clock_offset_max_ms=facts.settings.get(CLOCK_OFFSET_MAX),
                helpers=self._helpers(facts, host_id, devices),
                own=self._own,
                disbelieved=frozenset((*record.disproved_devices, *record.foreign_devices)),
                storage={
                    domain_id: name
                    for domain_id, name in facts.surroundings.storage_names.items()
                    if facts.surroundings.usable.get((host_id, domain_id), False)
                },
                leases=None if facts.leases is None else facts.leases.get(host_id, {}),
                certificate_ends=facts.certificates.get(host_id),
                version=__version__,
                now=self._store.clock.wall_ms(),
            )
        )
        about = f"host/{row.host.name}"
        lacks = storage_lacks(row, facts.surroundings, facts.protected_on)
        lacks += probe_lacks(row, facts.surroundings)
        found += [finding(about, one) for one in lacks]
        found += [finding(about, one) for one in self._storage_fence(facts, row, record)]
        # Of an engine that leads: nothing is started by itself on such a storage, on no host.
        engine = self._leaders.explain_host(host_id)
        found += [finding(about, one) for one in engine if one.code == NOT_SHARED]
        left = lacking.get(host_id)
        if left:
            names = sorted(facts.vm_names[vm_id] for vm_id in left)
            more = f" and {len(names) - NAMES_MAX} more" if len(names) > NAMES_MAX else ""
            vms = ", ".join(names[:NAMES_MAX]) + more
            fields: Fields = {"host": row.host.name, "count": len(names), "vms": vms}
            found.append(finding(about, Reason(code="ready.no_room", fields=fields)))
        return found

    def _storage_fence(self, facts: _Facts, row: HostRow, record: HostRecord) -> list[Reason]:
        names = facts.surroundings.storage_names
        usable = facts.surroundings.usable
        return storage_fence_lacks(
            row.host,
            row.status.boot,
            record,
            policy=facts.cluster.policy,
            usable={key: name for key, name in names.items() if usable.get((row.host.id, key))},
            on_ceph=facts.on_ceph,
        )

    def _helpers(
        self, facts: _Facts, host_id: HostId, devices: Sequence[LedDevice]
    ) -> frozenset[PowerDriver]:
        wanted = {one.settings.driver for one in devices if one.settings.from_agents}
        if not wanted or self._neighbours is None:
            return frozenset()
        others = [
            row.host.id
            for row in facts.surroundings.hosts
            if row.host.id != host_id and row.status.state is HostState.UP
        ]
        return frozenset(
            driver for driver in wanted if driver and self._neighbours.able(others, driver)
        )

    async def _subscriptions(self) -> "_Told":
        """All there are: whether somebody would be told of a cluster's failures doesn't depend on who asks. Apart from the rest, for
        they are hidden from who may see some clusters only."""
        with seeing(None):
            async with self._store.read() as tx:
                live = (await live_subscriptions(tx)).readable
                return _Told(live, await reaches_of(tx, live))

    async def _facts(self, tx: Transaction, cluster: Cluster, told: "_Told") -> _Facts:
        surroundings = await read_surroundings(tx, cluster.id)
        ids = [row.host.id for row in surroundings.hosts]
        vms = await vms_of_cluster(tx, cluster.id)
        views = await self._views.make(tx, vms)
        return _Facts(
            cluster=cluster,
            surroundings=surroundings,
            vms=vms,
            defined=await adopted_on(tx, ids),
            devices=await led_devices(tx, dict.fromkeys(ids, cluster.id)),
            tests=await power_tests_of(tx, ids),
            records=await find_host_records(tx, ids),
            certificates=await certificate_ends(tx, ids),
            settings=await setting_values(tx),
            subscriptions=told.of(cluster.id),
            hold=(await the_installation(tx)).installation.hold,
            leases=self._leaders.lease_prospects(cluster.id),
            protection={view.vm.id: view.protection for view in views},
            host_names={row.host.id: row.host.name for row in surroundings.hosts},
            vm_names={row.vm.id: row.vm.name for row in vms},
            on_ceph=frozenset(
                one.id for one in await storage_of_cluster(tx, cluster.id) if one.ceph is not UNSET
            ),
            protected_on=frozenset(
                disk.storage_domain_id for row in vms if row.vm.ha for disk in row.vm.disks
            ),
        )


async def _lacking(facts: _Facts, host_ids: tuple[HostId, ...]) -> Lacking:
    """In a thread: of a large cluster it takes a while."""
    policy = facts.cluster.policy.recovery
    return await asyncio.to_thread(
        without_room, facts.surroundings, facts.vms, facts.defined, policy, host_ids
    )


def _of_hold(facts: _Facts) -> list[Finding]:
    if facts.hold is None:
        return []
    reason = Reason(code="protection.hold", fields={"reason": facts.hold})
    return [finding("installation", reason)]


def _of_vm(facts: _Facts, row: VmRow, lacking: Lacking) -> list[Finding]:
    """What `virtha status` says of its protection, and why it would not fit if its host died."""
    about = f"vm/{row.vm.name}"
    # Told once, of all.
    reasons = [
        one for one in facts.protection[row.vm.id] if one != OK and one.code != "protection.hold"
    ]
    for host_id in row.status.holders:
        against = lacking.get(host_id, {}).get(row.vm.id)
        if against is not None:
            why = "; ".join(render(one.code, one.fields) for one in against)
            fields: Fields = {"host": facts.host_names.get(host_id, host_id), "why": why}
            reasons.append(Reason(code="ready.vm.no_room", fields=fields))
    return [finding(about, one) for one in reasons]


def _view(
    about: str,
    found: list[Finding],
    facts: list[_Facts],
    *,
    hosts: int | None = None,
    vms: int | None = None,
) -> ReadinessView:
    unknown = (WATCHDOGS_NOT_LOOKED_AT,) if any(one.leases is None for one in facts) else ()
    return ReadinessView(
        about=about,
        verdict=verdict_of(found),
        findings=worst_first(found),
        hosts=sum(len(one.surroundings.hosts) for one in facts) if hosts is None else hosts,
        vms=sum(len(one.vms) for one in facts) if vms is None else vms,
        not_looked_at=(*NOT_LOOKED_AT, *unknown),
    )
