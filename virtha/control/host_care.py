"""What an operator says about a host to its cluster's engine: maintenance, and that it is dead (P6).

The engine decides in its next turn; each call waits for that, and says what came of it.
"""

import hashlib
import secrets
from typing import Any

from virtha.control.engine_words import say, until
from virtha.control.history import record
from virtha.control.names import check_text, the_host
from virtha.control.requests import DeathConfirmation, MaintenanceChange
from virtha.control.views import Caller, DeathTicket, DeathView, MaintenanceView
from virtha.engine.events import DeathConfirmed, MaintenanceChanged
from virtha.engine.records import HostRecord
from virtha.model.codes import REGISTRY, render
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused
from virtha.model.ids import BootId, ClusterId, HostId, Revision
from virtha.model.proof import ProofKind
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.ports.leaders import Leaders
from virtha.store.clusters import all_clusters
from virtha.store.engine import LedRecord, find_host_record, hosts_in_maintenance
from virtha.store.events import EventFilter, events_after
from virtha.store.hosts import find_host, hosts_with_ids
from virtha.store.store import Store, Transaction
from virtha.store.vms import vms_held_by

TICKET_VALID_MS = 600_000
"""P6: ten minutes."""
TICKETS_MAX = 100
_LOOK_AGAIN = "look at the host again before you repeat it"


class _Subject(Value, frozen=True, kw_only=True):
    cluster_id: ClusterId
    host_id: HostId
    name: str
    record: HostRecord | None


class _Word(Value, frozen=True, kw_only=True):
    """What one ticket is about."""

    host_id: HostId
    name: str
    boot: BootId
    incident: int
    user: str


class HostCare:
    def __init__(self, store: Store, leaders: Leaders) -> None:
        self._store = store
        self._leaders = leaders
        self._tickets = _Tickets(store.clock)

    # Maintenance

    async def maintenance(self, ref: str) -> MaintenanceView:
        async with self._store.read() as tx:
            return await _view(tx, await _configured(tx, ref))

    async def in_maintenance(self) -> dict[HostId, MaintenanceView]:
        """All hosts that are."""
        async with self._store.read() as tx:
            ids: set[HostId] = set()
            for cluster in await all_clusters(tx):
                ids |= await hosts_in_maintenance(tx, cluster.id)
            there = await hosts_with_ids(tx, ids)
            return {host_id: await _view(tx, await _configured(tx, host_id)) for host_id in there}

    async def set_maintenance(
        self, caller: Caller, ref: str, request: MaintenanceChange
    ) -> MaintenanceView:
        """No new starts there. ``drain``: its VMs leave it by live migration; without, they stay, and the host is not fenced.

        Raises Unavailable: nobody leads its cluster, or the engine did not answer in time.
        """
        async with self._store.read() as tx:
            subject = await _configured(tx, ref)
            before = await _view(tx, subject)
        event = MaintenanceChanged(
            host_id=subject.host_id, on=request.on, by=caller.name, drain=request.drain
        )
        say(self._leaders, subject.cluster_id, event)

        async def written() -> MaintenanceView | None:
            async with self._store.read() as tx:
                view = await _view(tx, await _configured(tx, subject.host_id))
            as_asked = view.on is request.on and (not view.on or view.drain is request.drain)
            return view if as_asked else None

        view = await until(written, fix=_LOOK_AGAIN)
        if (view.on, view.drain) != (before.on, before.drain):
            await self._tell(caller, subject, view)
        return view

    async def _tell(self, caller: Caller, subject: _Subject, view: MaintenanceView) -> None:
        async with self._store.write() as tx:
            row = await find_host(tx, subject.host_id)
            host = row.host if row is not None else None
            if view.on:
                vms = "are to leave it" if view.drain else "stay there, and it is not fenced"
                code = "host.maintenance.begun"
                await record(tx, code, host=host, by=caller.name, name=subject.name, vms=vms)
            else:
                code = "host.maintenance.ended"
                await record(tx, code, host=host, by=caller.name, name=subject.name)

    # P6

    async def ask_about_death(self, caller: Caller, ref: str) -> DeathTicket:
        """What it would mean to confirm that this host is dead, and a ticket for doing so: for this boot and failure, this
        user, once, within ten minutes. Raises Refused: the engine does not hold it to be dead, or has a proof already."""
        async with self._store.read() as tx:
            subject = await _known(tx, ref)
            held = await vms_held_by(tx, subject.host_id)
        incident = subject.record.incident if subject.record is not None else None
        if incident is None:
            raise Refused(
                f"{subject.name} is not held to be dead: there is nothing to confirm",
                code="confirm.refused.other_incident",
                fix=f"see what the engine says of it: 'virtha host show {subject.name}'",
            )
        word = _Word(
            host_id=subject.host_id,
            name=subject.name,
            boot=incident.boot,
            incident=incident.number,
            user=caller.name,
        )
        return DeathTicket(
            ticket=self._tickets.make(word),
            host_id=subject.host_id,
            host=subject.name,
            boot=incident.boot,
            incident=incident.number,
            vms=tuple(sorted(row.vm.name for row in held)),
            valid_ms=TICKET_VALID_MS,
        )

    async def confirm_death(
        self, caller: Caller, ref: str, request: DeathConfirmation
    ) -> DeathView:
        """The operator's word. Raises InvalidInput: another name was typed (the ticket stays good); Refused, with the engine's
        reason: something speaks against it, which only ``force_reason`` overrides; Conflict: it is about another failure by
        now; Unavailable: no answer in time, and what the engine makes of it is among the events."""
        force = request.force_reason
        if force is not None and not check_text(force, field="force_reason").strip():
            raise InvalidInput(
                "is empty", field="force_reason", fix="say how you know that the host is off"
            )
        async with self._store.read() as tx:
            subject = await _known(tx, ref)
            began = await tx.revision_now()
        if request.name != subject.name:
            raise InvalidInput(
                f"'{request.name[:64]}' is not {subject.name}; nothing was done",
                field="name",
                fix=f"type {subject.name}",
            )
        word = self._tickets.use(request.ticket, subject.host_id, caller)
        incident = subject.record.incident if subject.record is not None else None
        if incident is None or (incident.number, incident.boot) != (word.incident, word.boot):
            raise _about_another(subject.name)
        event = DeathConfirmed(
            host_id=subject.host_id,
            boot=incident.boot,
            incident=incident.number,
            by=caller.name,
            force_reason=force,
        )
        say(self._leaders, subject.cluster_id, event)
        await until(lambda: self._heard(word, began), fix=_LOOK_AGAIN)
        await self._tell_of_death(caller, subject, word, force)
        return DeathView(
            host_id=word.host_id, host=word.name, boot=word.boot, incident=word.incident
        )

    async def _tell_of_death(
        self, caller: Caller, subject: _Subject, word: _Word, force: str | None
    ) -> None:
        """The engine tells what it is a proof of, and of a second proof nothing; whose word it was stands here in any case."""
        why: dict[str, Any] = {} if force is None else {"force_reason": force}
        async with self._store.write() as tx:
            row = await find_host(tx, word.host_id)
            await record(
                tx,
                "host.death_confirmed",
                host=row.host if row is not None else None,
                cluster_id=subject.cluster_id,
                by=caller.name,
                name=word.name,
                incident=word.incident,
                **why,
            )

    async def _heard(self, word: _Word, began: Revision) -> bool | None:
        """None: not yet."""
        refused = EventFilter(code="host.confirmation_refused", host_id=word.host_id)
        async with self._store.read() as tx:
            found = await find_host_record(tx, word.host_id)
            told = await events_after(tx, refused, began, 100)
        incident = found.record.incident if found is not None else None
        same = incident is not None and (incident.number, incident.boot) == (
            word.incident,
            word.boot,
        )
        proofs = incident.proofs if same and incident is not None else ()
        if any(one.kind is ProofKind.OPERATOR for one in proofs):
            return True
        for event in told:
            if event.fields.get("by") == word.user:
                raise _refusal(word.name, str(event.fields.get("why", "")))
        if not same:
            raise _about_another(word.name)
        return None


class _Tickets:
    """In memory: a restart of the server ends them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[str, tuple[int, _Word]] = {}

    def make(self, word: _Word) -> str:
        """A user's earlier one about that host is over."""
        now = self._clock.monotonic_ms()
        kept = {
            digest: (ends, one)
            for digest, (ends, one) in self._open.items()
            if now < ends and (one.host_id, one.user) != (word.host_id, word.user)
        }
        while len(kept) >= TICKETS_MAX:
            del kept[next(iter(kept))]
        ticket = secrets.token_urlsafe(16)
        self._open = {**kept, _digest(ticket): (now + TICKET_VALID_MS, word)}
        return ticket

    def use(self, ticket: str, host_id: HostId, caller: Caller) -> _Word:
        """Raises Refused: used, too old, or of another host or user."""
        ends, word = self._open.get(_digest(ticket), (0, None))
        mine = word is not None and (word.host_id, word.user) == (host_id, caller.name)
        if word is None or not mine or self._clock.monotonic_ms() >= ends:
            raise Refused(
                "this ticket was used, is too old, or is about another host or of another user",
                code="problem.token.unknown",
                field="ticket",
                fix="look at the host again, then ask for a new one: POST /v1/hosts/{ref}/death-tickets",
            )
        del self._open[_digest(ticket)]
        return word


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()


async def _configured(tx: Transaction, ref: str) -> _Subject:
    row = await the_host(tx, ref)
    found = await find_host_record(tx, row.host.id)
    return _Subject(
        cluster_id=row.host.cluster_id,
        host_id=row.host.id,
        name=row.host.name,
        record=found.record if found is not None else None,
    )


async def _known(tx: Transaction, ref: str) -> _Subject:
    """Also one that was removed while VMs might run there, by its id. Raises NotFound."""
    try:
        return await _configured(tx, ref)
    except NotFound:
        found: LedRecord | None = await find_host_record(tx, HostId(ref))
        if found is None or found.record.name is None:
            raise
    return _Subject(
        cluster_id=found.cluster_id,
        host_id=found.record.host_id,
        name=found.record.name,
        record=found.record,
    )


async def _view(tx: Transaction, subject: _Subject) -> MaintenanceView:
    record = subject.record
    held = await vms_held_by(tx, subject.host_id)
    return MaintenanceView(
        host=subject.name,
        on=record is not None and record.maintenance is not None,
        by=record.maintenance if record is not None else None,
        drain=record is not None and record.drain is not None,
        vms=tuple(sorted(row.vm.name for row in held)),
    )


def _about_another(name: str) -> Conflict:
    return Conflict(
        f"{name} has failed anew, or returned, since you looked at it",
        code="confirm.refused.other_incident",
        fix="look at it again",
    )


def _refusal(name: str, code: str) -> Refused:
    known = REGISTRY.get(code)
    return Refused(
        f"{name} is not taken for dead: {render(code, {}) if known is not None else code}",
        code=code if known is not None else "problem.refused",
        fix="if you know for certain that it is off, say how you know: force_reason",
    )
