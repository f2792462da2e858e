"""The record of incidents, made of writes as leaders make them: what each adds, what ends it, what it costs (X4)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from counted_statements import statements
from empty_database import lay_empty_database
from msgspec.structs import replace

from virtha.control.incident_fold import VMS_MAX
from virtha.control.incident_log import follow_incidents
from virtha.control.incident_views import IncidentStage, IncidentView
from virtha.control.incidents import Incidents
from virtha.control.leading import Leading
from virtha.control.requests import IncidentQuery
from virtha.engine.events import DropHost, DropVm, Intent, Notice, SaveHost, SaveVm
from virtha.engine.records import HostRecord, Incident, OrderId, Start, VmRecord, VmStage
from virtha.model.codes import render
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.host import Cluster, Installation
from virtha.model.ids import (
    BootId,
    ClusterId,
    HostId,
    Incarnation,
    IncidentId,
    InstallationId,
    VmId,
)
from virtha.model.incident import IncidentCause, PathState
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import Millis, UtcMillis
from virtha.model.vm import PossibleCopy, Vm
from virtha.ports.leaders import NobodyLeads
from virtha.store import Store, open_store
from virtha.store.clusters import save_cluster
from virtha.store.engine import save_intent
from virtha.store.events import EventFilter, events_after
from virtha.store.installations import add_installation
from virtha.store.vms import save_vm

pytestmark = pytest.mark.req("X4")
C1, H1, H2, H3, V1 = ClusterId("c1"), HostId("h1"), HostId("h2"), HostId("h3"), VmId("v1")
BOOT = BootId("boot1")
DAY_MS = 86_400_000


class _Clock:
    """Of wall time and cluster time at once, an offset between them."""

    now = 1_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(1_700_000_000_000 + self.now)


class _Leader:
    """Writes as ``control/leading.py`` does, and no more."""

    def __init__(self, store: Store, clock: _Clock) -> None:
        self.store, self.clock = store, clock
        self.incidents = Incidents(store, NobodyLeads())

    async def write(self, *intents: Intent, told: Iterable[Notice] = ()) -> list[IncidentId | None]:
        """A second later."""
        self.clock.now += 1_000
        async with self.store.write() as tx:
            kept = await follow_incidents(
                tx, C1, intents=intents, notices=tuple(told), clock=Millis(self.clock.now)
            )
            for intent in intents:
                await save_intent(tx, C1, intent)
        return list(kept.about)

    async def judged(self, host: HostId = H1, *vms: VmRecord, number: int = 1) -> list[VmRecord]:
        """``host`` is dead, for all that is known, and what it held is lost."""
        lost = [replace(one, stage=VmStage.LOST, lost_ms=self.clock.now + 1_000) for one in vms]
        await self.write(SaveHost(record=_host(host)), *(SaveVm(record=one) for one in vms))
        incident = self.incident(number=number)
        notice = Notice(
            code="host.judged_dead",
            host_id=host,
            incident=number,
            fields={"host": f"name of {host}", "silent_ms": 5_000},
        )
        record = replace(_host(host), incident=incident)
        await self.write(
            SaveHost(record=record), *(SaveVm(record=one) for one in lost), told=[notice]
        )
        return lost

    def incident(self, *, number: int = 1, by_removal: bool = False) -> Incident:
        now = self.clock.now + 1_000
        return Incident(
            number=number,
            boot=BOOT,
            silent_since_ms=now - 5_000,
            began_ms=now,
            by_removal=by_removal,
        )

    async def over(self, host: HostId, code: str | None, number: int = 1) -> None:
        """The engine ends its incident."""
        told = [Notice(code=code, host_id=host, incident=number)] if code is not None else []
        await self.write(SaveHost(record=_host(host)), told=told)

    async def the_incident(self, **wanted: object) -> IncidentView:
        query = IncidentQuery(**wanted)
        (only,) = (await self.incidents.list(query)).items
        found = await self.incidents.get(only.id)
        assert found.incident == only, "a list shows what the incident itself shows"
        return found


def _host(host_id: HostId) -> HostRecord:
    return HostRecord(host_id=host_id, boot=BOOT)


def _vm(vm_id: VmId = V1, host_id: HostId = H1) -> VmRecord:
    copy = PossibleCopy(host_id=host_id, incarnation=Incarnation(1), boot=BOOT)
    return VmRecord(vm_id=vm_id, incarnation=Incarnation(1), copies=(copy,))


def told(code: str, vm_id: VmId = V1, host: HostId | None = None, **fields: str) -> Notice:
    return Notice(code=code, vm_id=vm_id, host_id=host, fields={"vm": f"name of {vm_id}", **fields})


async def of(led: _Leader, host: HostId) -> IncidentView:
    items = (await led.incidents.list(IncidentQuery())).items
    (found,) = [one.id for one in items if one.host_id == host]
    return await led.incidents.get(found)


def codes(view: IncidentView) -> list[str]:
    return [line.code for line in view.timeline]


def play(directory: Path, story: Callable[[_Leader], Awaitable[None]]) -> None:
    async def main() -> None:
        lay_empty_database(directory)
        clock = _Clock()
        store = await open_store(f"sqlite:///{directory}/virtha.db", clock=clock)
        try:
            async with store.write() as tx:
                made = Installation(id=InstallationId("i1"), name="virtha")
                await add_installation(tx, made, timeline="one")
                await save_cluster(tx, Cluster(id=C1, name="c1"))
            await story(_Leader(store, clock))
        finally:
            await store.close()

    asyncio.run(main())


def test_a_vm_goes_its_way_and_the_second_host_on_it_has_its_own_record(tmp_path: Path) -> None:
    """h2, where it is started, dies as well: both records follow it until it runs on h3."""

    async def story(led: _Leader) -> None:
        (lost,) = await led.judged(H1, _vm())
        at = led.clock.now + 1_000
        copy = PossibleCopy(host_id=H2, incarnation=Incarnation(2), boot=BOOT)
        start = Start(
            order_id=OrderId("1.1"),
            host_id=H2,
            boot=BOOT,
            incarnation=Incarnation(2),
            ordered_ms=at,
        )
        starting = replace(lost, stage=VmStage.STARTING, copies=(copy,), start=start, ready_ms=at)
        await led.write(SaveVm(record=starting), told=[told("vm.recovery_started", host=H2)])
        assert (await led.the_incident()).vms[0].state is PathState.STARTING
        (again,) = await led.judged(H2, starting, number=2)
        ready = replace(again, stage=VmStage.READY, copies=(), start=None, ready_ms=led.clock.now)
        blocked = told("vm.recovery_blocked", why="recovery.blocked.no_capacity")
        (about,) = await led.write(SaveVm(record=ready), told=[blocked])
        first, second = await of(led, H1), await of(led, H2)
        assert about in (first.incident.id, second.incident.id)
        for view in (first, second):
            (way,) = view.vms
            assert (way.state, way.code) == (PathState.WAITING, "recovery.blocked.no_capacity")
            assert way.text is not None and "can't be started anywhere" in way.text
        await led.write(
            SaveVm(record=replace(ready, stage=VmStage.SETTLED)),
            told=[told("vm.recovered", host=H3)],
        )
        await led.over(H1, "host.returned")
        first, second = await led.the_incident(open=False), await led.the_incident(open=True)
        assert first.incident.stage is IncidentStage.CLOSED
        assert codes(first).count("incident.vm.lost") == 2, "once with each host"
        assert codes(second).count("incident.vm.lost") == 1
        assert second.incident.stage is IncidentStage.UNPROVEN
        assert first.vms[0].host == second.vms[0].host == H3

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("stage", "left", "told_of_it", "state", "is_open"),
    [
        (VmStage.SETTLED, True, None, PathState.UNHARMED, False),
        (VmStage.MIGRATING, True, None, PathState.UNHARMED, False),
        (VmStage.SETTLED, False, None, PathState.DOWN, False),
        (VmStage.SETTLED, False, "vm.not_recovered", PathState.DOWN, False),
        (VmStage.QUARANTINED, False, "vm.quarantined", PathState.DOWN, True),
        (VmStage.GIVEN_UP, False, "vm.recovery_given_up", PathState.DOWN, True),
    ],
)
def test_how_a_path_ends_and_what_keeps_an_incident_open(
    tmp_path: Path,
    stage: VmStage,
    left: bool,
    told_of_it: str | None,
    state: PathState,
    is_open: bool,
) -> None:
    async def story(led: _Leader) -> None:
        (lost,) = await led.judged(H1, _vm())
        await led.over(H1, "host.returned")
        after = replace(lost, stage=stage, copies=lost.copies if left else ())
        notices = [] if told_of_it is None else [told(told_of_it)]
        await led.write(SaveVm(record=after), told=notices)
        view = await led.the_incident(open=is_open)
        (way,) = view.vms
        assert way.state is state
        assert (way.code is None) is (state is PathState.UNHARMED)
        if is_open:
            assert view.incident.stage is IncidentStage.RECOVERING
            await led.write(DropVm(vm_id=V1))
            view = await led.the_incident(open=False)
            assert view.vms[0].state is PathState.DELETED
        assert codes(view)[-1] == "incident.closed"

    play(tmp_path, story)


def test_an_operators_word_closes_it_without_the_host(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        (lost,) = await led.judged(H1, _vm())
        proven = Notice(
            code="host.proven_dead",
            host_id=H1,
            incident=1,
            fields={"host": "h1", "proof": "operator", "detail": "anna", "after_ms": 7_000},
        )
        (about,) = await led.write(told=[proven])
        assert about == (await led.the_incident(open=True)).incident.id
        await led.write(SaveVm(record=replace(lost, stage=VmStage.SETTLED, copies=())))
        view = await led.the_incident(open=False)
        assert view.incident.proof == "operator" and view.incident.stage is IncidentStage.CLOSED
        await led.over(H1, "host.returned")
        assert codes(await led.the_incident(open=False))[-1] == "host.returned", "it is told still"

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("intent", "end"),
    [
        (SaveHost(record=_host(H1)), "incident.ended"),
        (DropHost(host_id=H1), "incident.host_removed"),
    ],
)
def test_an_end_that_no_event_tells_has_a_code_too(
    tmp_path: Path, intent: Intent, end: str
) -> None:
    async def story(led: _Leader) -> None:
        await led.judged(H1)
        await led.write(intent)
        view = await led.the_incident(open=False)
        assert codes(view)[-2:] == [end, "incident.closed"]

    play(tmp_path, story)


def test_a_removed_host_has_one_of_that_cause(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        record = replace(_host(H1), name="old1", incident=led.incident(by_removal=True))
        fields = {"host": "old1", "vms": "web1", "boot": str(BOOT)}
        notice = Notice(code="host.removed_unproven", host_id=H1, incident=1, fields={**fields})
        await led.write(SaveHost(record=record), told=[notice])
        view = await led.the_incident()
        assert view.incident.cause is IncidentCause.REMOVED and view.incident.host == "old1"
        assert codes(view) == ["incident.last_sign", "host.removed_unproven"]

    play(tmp_path, story)


def test_a_reboot_has_one_only_if_a_vm_went_down_with_it(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        vms = (SaveVm(record=_vm()), SaveVm(record=_vm(VmId("v2"), H2)))
        await led.write(SaveHost(record=_host(H1)), SaveHost(record=_host(H2)), *vms)
        for host in (H2, H1):
            after = replace(_host(host), boot=BootId("boot2"))
            notice = Notice(code="host.rebooted_unseen", host_id=host, fields={"host": host})
            down = replace(_vm(), stage=VmStage.READY, copies=(), ready_ms=led.clock.now)
            gone = (SaveVm(record=down),) if host == H1 else ()
            await led.write(SaveHost(record=after), *gone, told=[notice])
        view = await led.the_incident(open=True)
        assert view.incident.cause is IncidentCause.REBOOTED and view.incident.number == 0
        assert (view.incident.boot, view.incident.host_id) == (BOOT, H1)
        assert view.incident.stage is IncidentStage.RECOVERING
        assert codes(view) == ["host.rebooted_unseen", "incident.vm.lost", "incident.vm.ready"]

    play(tmp_path, story)


def test_what_ended_while_nobody_led_keeps_none_open(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        async with led.store.write() as tx:
            v2 = await save_vm(tx, Vm(id=VmId("v2"), name="v2", cluster_id=C1, memory_bytes=1))
        _, waits = await led.judged(H1, _vm(), _vm(v2.id))
        async with led.store.write() as tx:
            for intent in (DropHost(host_id=H1), DropVm(vm_id=V1)):
                await save_intent(tx, C1, intent)
        await led.incidents.prune()
        view = await led.the_incident(open=True)
        assert codes(view)[-2:] == ["incident.ended", "incident.vm.deleted"]
        assert [line.clock for line in view.timeline[-2:]] == ["wall"] * 2
        async with led.store.write() as tx:
            settled = replace(waits, stage=VmStage.SETTLED)
            await save_intent(tx, C1, SaveVm(record=settled))
        await led.incidents.prune()
        view = await led.the_incident(open=False)
        assert codes(view)[-1] == "incident.closed" and view.incident.lasted_ms is not None

    play(tmp_path, story)


@pytest.mark.req("F9")
def test_hundreds_of_hosts_at_once_cost_as_many_statements_as_ten(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        counted = []
        for first, many in ((0, 10), (10, 400)):
            hosts = [HostId(f"host{number:04}") for number in range(first, first + many)]
            vms = [_vm(VmId(f"vm of {host}"), host) for host in hosts]
            fell = [
                SaveHost(record=replace(_host(host), incident=led.incident(number=number)))
                for number, host in enumerate(hosts, first + 1)
            ]
            lost = [SaveVm(record=replace(one, stage=VmStage.LOST)) for one in vms]
            async with led.store.write() as tx:
                with statements(led.store) as made:
                    await follow_incidents(
                        tx,
                        C1,
                        intents=[*fell, *lost],
                        notices=(),
                        clock=Millis(led.clock.now),
                    )
            counted.append(len(made))
        assert counted[0] == counted[1] < 20, counted
        page = await led.incidents.list(IncidentQuery(limit=400))
        assert len(page.items) == 400 and page.next is not None
        rest = await led.incidents.list(IncidentQuery(limit=400, after=page.next))
        assert len(rest.items) == 10 and rest.next is None
        assert len({one.id for one in (*page.items, *rest.items)}) == 410

    play(tmp_path, story)


def test_a_host_with_more_vms_than_are_kept_says_how_many_are_not(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        vms = [_vm(VmId(f"v{number:04}")) for number in range(VMS_MAX + 3)]
        fell = SaveHost(record=replace(_host(H1), incident=led.incident()))
        lost = [SaveVm(record=replace(one, stage=VmStage.LOST)) for one in vms]
        async with led.store.write() as tx:
            clock = Millis(led.clock.now)
            await follow_incidents(tx, C1, intents=[fell, *lost], notices=(), clock=clock)
        view = await led.the_incident()
        assert len(view.vms) == VMS_MAX and view.vms_left_out == 3
        assert view.incident.vms.all == VMS_MAX + 3

        last = vms[-1]
        proof = Proof(kind=ProofKind.POWER_OFF, host_id=H1, boot=led.incident().boot, at_ms=1)
        on_its_way = replace(last, stage=VmStage.STARTING, copies=(), proofs=(proof,))
        async with led.store.write() as tx:
            await save_intent(tx, C1, SaveVm(record=on_its_way))
            clock = Millis(led.clock.now)
            again = SaveVm(record=replace(on_its_way, stage=VmStage.LOST))
            await follow_incidents(tx, C1, intents=[again], notices=(), clock=clock)
        assert (await led.the_incident()).vms_left_out == 3, "lost anew on its way back"

    play(tmp_path, story)


@pytest.mark.bad_input("incident that is none")
def test_ids_and_filters_that_name_nothing_are_refused(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        async with led.store.write() as tx:
            elsewhere = Cluster(id=ClusterId("3b5e7c1e-0000-4a7a-9d55-000000000001"), name="c2")
            await save_cluster(tx, elsewhere)
        await led.judged(H1)
        mine = (await led.the_incident(cluster="c1")).incident.id
        assert (await led.incidents.get(mine.upper())).incident.id == mine
        assert (await led.incidents.list(IncidentQuery(cluster="c2"))).items == ()
        unknown = f"{mine[:-1]}{'0' if mine[-1] != '0' else '1'}"
        for ident in (unknown, elsewhere.id):
            with pytest.raises(NotFound) as unfound:
                await led.incidents.get(ident)
            assert "virtha incident list" in (unfound.value.fix or "")
        for ident in ("h1", "", "../..", "x" * 5_000, f"{mine}0"):
            with pytest.raises(InvalidInput) as refused:
                await led.incidents.get(ident)
            assert refused.value.field == "id" and len(str(refused.value)) < 300
        for query, field in (
            (IncidentQuery(cluster="nowhere"), "cluster"),
            (IncidentQuery(host="h9"), "host"),
            (IncidentQuery(vm="web9"), "vm"),
            (IncidentQuery(after="h1"), "after"),
            (IncidentQuery(after="1" * 30), "after"),
            (IncidentQuery(limit=0), "limit"),
        ):
            with pytest.raises((NotFound, InvalidInput)) as unlisted:
                await led.incidents.list(query)
            assert unlisted.value.field == field

    play(tmp_path, story)


class _NoHosts:
    async def carry_out(self, _effects: object) -> None: ...


@pytest.mark.req("W7")
def test_that_it_is_over_is_told_after_all_that_was_told_of_it(tmp_path: Path) -> None:
    """Of the very write that ends it: routes call all well by it."""

    async def story(led: _Leader) -> None:
        (lost,) = await led.judged(H1, _vm())
        nobody: Any = _NoHosts()
        leading = Leading(led.store, nobody, nobody)
        runs = replace(lost, stage=_vm().stage)
        assert await leading.write(
            C1,
            await leading.lead(),
            intents=[SaveHost(record=_host(H1)), SaveVm(record=runs)],
            notices=[
                told("vm.recovered", host=H2),
                Notice(code="host.returned", host_id=H1, incident=1, fields={"host": "h1"}),
            ],
            receipts={},
            told=(),
            clock=Millis(led.clock.now),
        )
        async with led.store.read() as tx:
            events = await events_after(tx, EventFilter(), 0, 100)
        assert [one.code for one in events][-3:] == [
            "vm.recovered",
            "host.returned",
            "host.incident_over",
        ]
        over = events[-1]
        assert (over.host_id, over.cluster_id) == (H1, C1)
        assert over.fields["incident_id"] == (await led.the_incident()).incident.id
        assert over.message == render(over.code, over.fields) and over.fields["vms"] == 1

    play(tmp_path, story)


def test_closed_ones_go_with_their_time_and_open_ones_stay(tmp_path: Path) -> None:
    async def story(led: _Leader) -> None:
        for number, host in enumerate((H1, H2), 1):
            await led.judged(host, number=number)
        await led.over(H1, "host.alive_after_all")
        assert await led.incidents.prune() == 0
        led.clock.now += 91 * DAY_MS
        assert await led.incidents.prune() == 1
        left = await led.the_incident(open=True)
        assert left.incident.host_id == H2

    play(tmp_path, story)
