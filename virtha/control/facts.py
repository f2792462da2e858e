"""What hosts report, into the store: each batch in one transaction, nothing lost, nothing doubled."""

from collections.abc import Sequence

import msgspec
import structlog

from virtha.control.copies import copies_on, counts, released, reported, seen_off, without
from virtha.control.effects import Dispatcher, Effects
from virtha.control.hellos import HelloBook
from virtha.control.history import message_of, record, severity_of
from virtha.control.incident_fold import AGENT_ANSWERS
from virtha.control.incident_log import agent_answered
from virtha.control.runner import Runner
from virtha.control.storage_marks import compare_marks
from virtha.model.codes import MAY_RUN_TWICE, SOLVED_BY, SOLVES, Severity
from virtha.model.domain import DomainState
from virtha.model.errors import NotFound, Unavailable
from virtha.model.event import PAST, Event
from virtha.model.facts import (
    Fact,
    Happened,
    HostReport,
    Inventory,
    Outcome,
    Progress,
    Released,
    RunsWith,
    StorageReport,
    VmReport,
)
from virtha.model.ids import HostId
from virtha.model.time import UtcMillis
from virtha.model.vm import Running, VmState, VmStatus
from virtha.ports.leaders import Leaders
from virtha.store.clusters import find_report, find_storage, save_report
from virtha.store.events import add_event
from virtha.store.hosts import (
    HostRow,
    find_host,
    save_fact_acknowledged,
    save_fact_sequence,
    save_host_status,
    save_inventory_timeline,
    save_settled,
)
from virtha.store.incidents import recovered_from
from virtha.store.installations import the_installation
from virtha.store.store import Store, WriteTransaction
from virtha.store.vms import VmRow, find_vm, save_vm_status, vms_held_by, vms_with_ids

log = structlog.get_logger("virtha.facts")

_ALIVE = (
    DomainState.RUNNING,
    DomainState.PAUSED,
    DomainState.SHUTTING_DOWN,
    DomainState.PMSUSPENDED,
    # Its QEMU is there and has the disks open, whatever the guest does.
    DomainState.CRASHED,
    DomainState.NOSTATE,
)
_SHOWN = {DomainState.RUNNING: VmState.RUNNING, DomainState.PAUSED: VmState.PAUSED}
_RUNS = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING)
_OF_A_BOOT_THAT_ENDED = ("vm.stop.reconstructed", "vm.restart.blocked")
_STARTS = ("vm.started", "vm.restarted")
_LIBVIRT_LOST, _LIBVIRT_BACK = "host.libvirt.lost", "host.libvirt.back"
_WATCHDOG_CODES = ("vm.watchdog.fired", "vm.watchdog.reconstructed")


class FactRecorder:
    def __init__(
        self,
        store: Store,
        runner: Runner,
        dispatcher: Dispatcher,
        hellos: HelloBook,
        leaders: Leaders,
    ) -> None:
        self._store = store
        self._runner = runner
        self._dispatcher = dispatcher
        self._hellos = hellos
        self._leaders = leaders

    async def record_facts(self, host_id: HostId, facts: Sequence[Fact]) -> int:
        """Returns the last sequence that is recorded now. Where engines lead, the host may forget it only when what
        they make of it is durable as well; else at once.

        Raises NotFound (the host was removed), Unavailable (nothing was recorded; send them again).
        """
        effects = Effects()
        async with self._store.write() as tx:
            acknowledged = await self._record(tx, effects, host_id, facts)
        await self._dispatcher.carry_out(effects)
        return acknowledged

    async def _record(
        self, tx: WriteTransaction, effects: Effects, host_id: HostId, facts: Sequence[Fact]
    ) -> int:
        host = await find_host(tx, host_id)
        if host is None:
            raise NotFound(f"there is no host {host_id}")
        last = host.fact_sequence
        for fact in facts:
            if fact.sequence <= last:
                continue  # sent again, because our acknowledgement got lost
            if fact.sequence > last + 1:
                count = fact.sequence - last - 1
                await record(
                    tx, "host.facts.lost", host=host.host, name=host.host.name, count=count
                )
            await self._take(tx, effects, host, fact)
            last = fact.sequence
        if last > host.fact_sequence:
            await save_fact_sequence(tx, host_id, last)
        if not self._leaders.lead:
            await save_fact_acknowledged(tx, host_id, last)
        return last

    async def _take(
        self, tx: WriteTransaction, effects: Effects, host: HostRow, fact: Fact
    ) -> None:
        match fact.body:
            case Happened() as body:
                await self._happened(tx, host, fact, body)
            case VmReport() as body:
                await self._vm_report(tx, effects, host, body)
            case RunsWith() as body:
                await self._runs_with(tx, host, body)
            case Released() as body:
                await self._released(tx, effects, host, body)
            case Inventory() as body:
                await self._inventory(tx, effects, host, fact, body)
            case HostReport() as body:
                await self._host_report(tx, host, body)
            case StorageReport() as body:
                await self._storage_report(tx, host, body)
            case Outcome() as body:
                await self._runner.take_outcome(tx, effects, host.host.id, body)
            case Progress() as body:
                await self._runner.take_progress(tx, body)

    async def _happened(
        self, tx: WriteTransaction, host: HostRow, fact: Fact, body: Happened
    ) -> None:
        row = await find_vm(tx, body.vm_id) if body.vm_id is not None else None
        names = {"host": host.host.name}
        names |= {"vm": row.vm.name} if row is not None else {}
        names |= {"name": host.host.name} if body.code.startswith("host.") else {}
        fields = {**names, **body.fields}
        is_history = row is not None and _is_history(host, fact, body, row.status)
        fields |= {PAST: True} if is_history else await _cause(tx, row)
        event = await add_event(
            tx,
            Event(
                code=body.code,
                severity=Severity.INFO if is_history else severity_of(body.code),
                message=message_of(body.code, fields),
                fields=fields,
                cluster_id=host.host.cluster_id,
                host_id=host.host.id,
                vm_id=body.vm_id,
                host_at=UtcMillis(fact.wall_ms),
                host_boot=fact.boot,
                host_sequence=fact.sequence,
            ),
        )
        if body.code in (_LIBVIRT_LOST, _LIBVIRT_BACK):
            await self._libvirt_told(tx, host, lost=body.code == _LIBVIRT_LOST)
        if body.code == AGENT_ANSWERS:
            await _end_path(tx, event)
        if row is not None and body.code in _WATCHDOG_CODES:
            await save_vm_status(
                tx,
                msgspec.structs.replace(
                    row.status,
                    last_watchdog=tx.clock.wall_ms(),
                    watchdog_count=row.status.watchdog_count + 1,
                ),
            )

    async def _vm_report(
        self, tx: WriteTransaction, effects: Effects, host: HostRow, body: VmReport
    ) -> None:
        row = await find_vm(tx, body.vm_id)
        if row is None or not counts(row.status, host.host.id, body.incarnation):
            return  # deleted, or about a copy that a later start has superseded
        status = row.status
        if host.host.id not in status.holders and host.host.id != status.host_id:
            return  # not the copy that counts; a running one is told of by the inventory
        changed = msgspec.structs.replace(
            reported(status, host.host.id, body.incarnation),
            state=body.state,
            reasons=body.reasons,
            guest_agent=body.guest_agent,
            restart_count=body.restart_count,
            incarnation=max(status.incarnation, body.incarnation),
            host_id=host.host.id,
            since=status.since if body.state is status.state else tx.clock.wall_ms(),
        )
        if (changed.holders, changed.copies) != (status.holders, status.copies):
            effects.configure(row.vm.cluster_id)
        if changed != status or row.shown is not changed.state:
            await save_vm_status(tx, changed)

    async def _runs_with(self, tx: WriteTransaction, host: HostRow, body: RunsWith) -> None:
        row = await find_vm(tx, body.vm_id)
        if row is None or not counts(row.status, host.host.id, body.incarnation):
            return
        if host.host.id not in row.status.holders:
            return  # nothing of it runs there any more
        running = Running(incarnation=body.incarnation, hardware=body.hardware)
        if running != row.status.running:
            await save_vm_status(tx, msgspec.structs.replace(row.status, running=running))

    async def _released(
        self, tx: WriteTransaction, effects: Effects, host: HostRow, body: Released
    ) -> None:
        row = await find_vm(tx, body.vm_id)
        if row is None:
            return
        changed = released(row.status, host.host.id, body.incarnation, host.status.boot)
        await self._save_copies(tx, effects, row, changed)

    async def _save_copies(
        self, tx: WriteTransaction, effects: Effects, row: VmRow, changed: VmStatus
    ) -> None:
        if changed != row.status:
            await save_vm_status(tx, changed)
            effects.configure(row.vm.cluster_id)

    async def _inventory(
        self, tx: WriteTransaction, effects: Effects, host: HostRow, fact: Fact, body: Inventory
    ) -> None:
        timeline = (await the_installation(tx)).timeline
        if self._hellos.made_after(host.host.id, timeline, fact):
            await save_inventory_timeline(tx, host.host.id, timeline)
            if not self._leaders.lead:
                await save_settled(tx, host.host.id, timeline)
        if fact.boot != host.status.boot:
            return  # what ran in a former boot is dead (P4), and says nothing of this one
        fresh = await find_host(tx, host.host.id)
        assert fresh is not None
        if fresh.status.libvirt_lost:
            # Its agent began anew, or it booted, meanwhile: only the process that lost it would say so itself.
            await record(tx, _LIBVIRT_BACK, host=host.host, name=host.host.name)
        status = msgspec.structs.replace(
            fresh.status, inventory_revision=body.revision, libvirt_lost=False
        )
        if status != fresh.status:
            await save_host_status(tx, status)
        states = {domain.vm_id: domain.state for domain in body.domains}
        for row in await vms_with_ids(tx, tuple(sorted(states))):
            state = states[row.vm.id]
            if state in _ALIVE:
                await self._active_domain(tx, effects, host, row, state)
            elif host.host.id in row.status.holders:
                await self._inactive_domain(tx, effects, host, fact, row, absent=False)
        for row in await vms_held_by(tx, host.host.id):
            if row.vm.id not in states:
                await self._inactive_domain(tx, effects, host, fact, row, absent=True)

    async def _libvirt_told(self, tx: WriteTransaction, host: HostRow, *, lost: bool) -> None:
        fresh = await find_host(tx, host.host.id)
        assert fresh is not None
        if fresh.status.libvirt_lost is not lost:
            await save_host_status(tx, msgspec.structs.replace(fresh.status, libvirt_lost=lost))

    async def _active_domain(
        self,
        tx: WriteTransaction,
        effects: Effects,
        host: HostRow,
        row: VmRow,
        state: DomainState,
    ) -> None:
        status, host_id = row.status, host.host.id
        if host_id not in status.holders:
            # A copy that nobody granted. Its host does hold one now, so nothing starts elsewhere.
            holders = (*status.holders, host_id)
            await save_vm_status(tx, msgspec.structs.replace(status, holders=holders))
            effects.configure(row.vm.cluster_id)
            await record(tx, "vm.unmanaged_copy", vm=row.vm, host=host.host)
        elif host_id == status.host_id and status.state is VmState.UNKNOWN and state in _SHOWN:
            # A list made between an exit and the restart may have come after the report of both.
            changed = msgspec.structs.replace(status, state=_SHOWN[state], since=tx.clock.wall_ms())
            await save_vm_status(tx, changed)

    async def _inactive_domain(
        self,
        tx: WriteTransaction,
        effects: Effects,
        host: HostRow,
        fact: Fact,
        row: VmRow,
        *,
        absent: bool,
    ) -> None:
        """A holder's full list without an active domain of the VM: no release, but it ends doubts."""
        host_id = host.host.id
        changed = seen_off(row.status, host_id, fact.boot, fact.monotonic_ms, host.status.boot)
        if host_id != row.status.host_id and not copies_on(changed, host_id):
            # That copy is gone. It had no grant and no record there, so nothing starts it again:
            # the agent's own durable word that it is off is its release.
            changed = without(changed, host_id)
        runs = host_id == row.status.host_id and row.status.state in _RUNS
        if runs:  # else told already, or about to be started there
            changed = msgspec.structs.replace(
                changed, state=VmState.UNKNOWN, since=tx.clock.wall_ms(), guest_agent=None
            )
            if absent:
                await record(tx, "vm.absent", vm=row.vm, host=host.host)
        await self._save_copies(tx, effects, row, changed)

    async def _host_report(self, tx: WriteTransaction, host: HostRow, body: HostReport) -> None:
        fresh = await find_host(tx, host.host.id)
        assert fresh is not None
        if fresh.status.capabilities != body.capabilities:
            await save_host_status(
                tx, msgspec.structs.replace(fresh.status, capabilities=body.capabilities)
            )

    async def _storage_report(
        self, tx: WriteTransaction, host: HostRow, body: StorageReport
    ) -> None:
        domain = await find_storage(tx, body.storage_domain_id)
        if domain is None:
            return  # removed in the meantime
        before = await find_report(tx, host.host.id, domain.id)
        await save_report(tx, host.host.id, body)
        if before is None or body.mark != before.mark:
            await compare_marks(tx, domain)
        if not body.usable and (before is None or before.usable):
            await record(
                tx, "storage.unusable", host=host.host, name=domain.name, detail=body.detail
            )


def _is_history(host: HostRow, fact: Fact, body: Happened, status: VmStatus) -> bool:
    """Whether it says nothing of the VM as it is by now, and so calls nobody, ends no trouble and begins none.

    A host that returns tells how its copies fared and ended, with its boot or before it, and that it starts them no more: of a VM
    that is seen to run elsewhere. Incarnations alone don't tell it: a move that failed has raised them, and a start that is under
    way. And it tells of starts in a boot that is over, and of good news from copies that don't count any more.
    """
    code, mine, host_id = body.code, body.incarnation, host.host.id
    if code in MAY_RUN_TWICE:
        return False
    elsewhere = status.state in _RUNS and status.host_id not in (None, host_id)
    if code in _OF_A_BOOT_THAT_ENDED:
        return elsewhere
    if code in _STARTS and host.status.boot not in (None, fact.boot):
        return True
    if mine is None or mine >= status.incarnation:
        return False
    if code in SOLVED_BY:
        return elsewhere
    # Where no host holds it nothing runs: a late word of its end is true, one of its start is not.
    held = host_id in status.holders or (not status.holders and code not in _STARTS)
    return code in SOLVES and not (held and counts(status, host_id, mine))


async def _cause(tx: WriteTransaction, row: VmRow | None) -> dict[str, str]:
    """What a host tells of a VM that is on its way back belongs to the failure that it was lost in: there routes group it
    (W7), wherever it runs now."""
    found = await recovered_from(tx, row.vm.id) if row is not None else None
    return {"incident_id": found} if found is not None else {}


async def _end_path(tx: WriteTransaction, event: Event) -> None:
    """No fact waits for an incident's record: where that can't be kept, it is left as it was, and the log says so."""
    try:
        async with tx.apart():
            await agent_answered(tx, event)
    except Unavailable:
        raise  # locked, or no room: the fact can't be written either
    except (
        Exception
    ):  # a host's facts come in order: a broken record of what was would hold up all behind it
        log.exception("the end of a VM's recovery can't be kept", vm=event.vm_id)
