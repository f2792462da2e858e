"""Hosts: what operators ask of them, and their sessions' beginnings and ends."""

import builtins

import msgspec

from virtha.control.effects import Dispatcher, Effects
from virtha.control.hellos import HelloBook
from virtha.control.history import changes_between, record
from virtha.control.hold_reasons import as_seen
from virtha.control.host_settings import settings_for
from virtha.control.known_settings import CLOCK_OFFSET_MAX, setting_values
from virtha.control.names import check_limit, check_revision, page_of, the_host
from virtha.control.operations import check_nothing_open
from virtha.control.own_machine import OwnMachine
from virtha.control.plan import AdoptFound, Give, Plan, Step
from virtha.control.power import drop_power_of_host
from virtha.control.power_summaries import last_failure, power_summaries
from virtha.control.protection import texts
from virtha.control.requests import AdoptRequest, SearchQuery
from virtha.control.runner import Runner
from virtha.control.searching import page_of_search
from virtha.control.storage_marks import compare_marks
from virtha.control.views import (
    Caller,
    CapabilitiesView,
    GuardianAnswer,
    HelloAnswer,
    HostView,
    Page,
    PowerSummary,
    WatchdogOffer,
)
from virtha.model.errors import InvalidInput, NotFound, Refused, Unauthenticated
from virtha.model.host import HostState
from virtha.model.ids import BootId, ClusterId, HostId, Revision, Term
from virtha.model.machine import MachineType
from virtha.model.operation import Operation
from virtha.model.orders import HostSettings, ScanForeign
from virtha.model.watchdog import WatchdogAction, models_that_fit
from virtha.ports.leaders import Leaders
from virtha.store.clusters import cluster_names, find_cluster, storage_of_cluster
from virtha.store.hosts import (
    HostRow,
    all_hosts,
    certificate_is_valid,
    drop_host,
    find_host,
    hosts_after,
    hosts_with_ids,
    revoke_certificates,
    save_fact_acknowledged,
    save_host_status,
)
from virtha.store.installations import set_term, the_installation
from virtha.store.operations import unanswered_orders
from virtha.store.search_fields import HOSTS
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import Held, held_on, show_states_of, vms_held_by

_ARCHITECTURES = ("x86_64", "s390x")
ADOPT_NAMES_MAX = 10_000


class Hosts:
    def __init__(
        self,
        store: Store,
        runner: Runner,
        dispatcher: Dispatcher,
        hellos: HelloBook,
        leaders: Leaders,
        own: OwnMachine = OwnMachine(),
    ) -> None:
        """``own``: the machine that this server runs on."""
        self._own = own
        self._store = store
        self._runner = runner
        self._dispatcher = dispatcher
        self._hellos = hellos
        self._leaders = leaders

    async def list(self, query: SearchQuery) -> Page[HostView]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            if query.search is not None:
                now = self._store.clock.wall_ms()
                ids, after = await page_of_search(tx, HOSTS, query.search, query, now=now)
                by_id = await hosts_with_ids(tx, tuple(map(HostId, ids)))
                rows = tuple(by_id[HostId(one)] for one in ids)
            else:
                rows, more = page_of(await hosts_after(tx, query.after or "", limit + 1), limit)
                after = rows[-1].host.name if more else None
            views = await self._views(tx, rows)
            return Page(items=views, revision=await tx.revision_now(), next=after)

    async def get(self, ref: str) -> HostView:
        async with self._store.read() as tx:
            (view,) = await self._views(tx, (await the_host(tx, ref),))
            return view

    async def bridges(self) -> tuple[tuple[ClusterId, str], ...]:
        """Of all clusters, each that a host of it has, once, by cluster and name."""
        async with self._store.read() as tx:
            rows = await all_hosts(tx)
        found = {
            (row.host.cluster_id, bridge)
            for row in rows
            for bridge in row.status.capabilities.bridges
        }
        return tuple(sorted(found))

    async def _views(self, tx: Transaction, rows: tuple[HostRow, ...]) -> tuple[HostView, ...]:
        names = await cluster_names(tx)
        power = await power_summaries(tx, rows)
        held = await held_on(tx, [row.host.id for row in rows])
        return tuple(
            [
                await self._view(
                    tx,
                    row,
                    names[row.host.cluster_id],
                    tuple(held.get(row.host.id, {}).values()),
                    power.get(row.host.id, ()),
                )
                for row in rows
            ]
        )

    async def _view(
        self,
        tx: Transaction,
        row: HostRow,
        cluster_name: str,
        held: tuple[Held, ...],
        power: tuple[PowerSummary, ...],
    ) -> HostView:
        used_bytes = sum(one.memory_bytes for one in held)
        reasons = as_seen(self._leaders.explain_host(row.host.id))
        if any(one.code == "fence.waiting.retry" for one in reasons):
            reasons += await last_failure(tx, row.host.id)
        return HostView(
            host=row.host,
            status=row.status,
            cluster_name=cluster_name,
            vms=tuple(one.name for one in held),
            free_memory_bytes=max(row.status.capabilities.memory_bytes - used_bytes, 0),
            agent_connected=self._dispatcher.agent_connected(row.host.id),
            beating=self._dispatcher.beating(row),
            verdict=self._leaders.verdict(row.host.id),
            engine=reasons,
            engine_text=texts(reasons),
            power=power,
        )

    async def states(self) -> dict[HostId, HostState]:
        async with self._store.read() as tx:
            return {row.host.id: row.status.state for row in await all_hosts(tx)}

    async def capabilities(self) -> CapabilitiesView:
        async with self._store.read() as tx:
            rows = [row for row in await all_hosts(tx) if row.status.capabilities.libvirt_version]
        offers = []
        for architecture in _ARCHITECTURES:
            hosts = [row for row in rows if row.status.capabilities.architecture == architecture]
            accepted = {model for row in hosts for model in row.status.capabilities.watchdog_models}
            for machine in MachineType:
                models = models_that_fit(architecture, machine, libvirt_version=None)
                if not models:
                    continue
                offers.append(
                    WatchdogOffer(
                        architecture=architecture,
                        machine=machine.value,
                        models=models,
                        accepted=tuple(one for one in models if one in accepted or not hosts),
                    )
                )
        return CapabilitiesView(
            watchdogs=tuple(offers),
            actions=tuple(WatchdogAction),
            hosts={row.host.name: row.status.capabilities.watchdog_models for row in rows},
        )

    async def delete(
        self,
        caller: Caller,
        ref: str,
        if_match: Revision | None = None,
        *,
        powered_off: bool = False,
    ) -> None:
        """Forget a host and revoke its certificate. Refused while it may hold a VM (G1).

        ``powered_off``: the operator's word for a host that has not spoken since a restore.
        """
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_host(tx, ref)
            check_revision(if_match, row.host.revision)
            held = await vms_held_by(tx, row.host.id)
            if held:
                raise Refused(
                    f"{row.host.name} may still hold {', '.join(one.vm.name for one in held[:5])}",
                    code="problem.host.busy",
                    fix="power these VMs off there first, or release them",
                )
            await _check_heard(tx, row, powered_off=powered_off)
            for waiting in await unanswered_orders(tx, row.host.id):
                await self._runner.give_up(
                    tx,
                    effects,
                    waiting.order.operation_id,
                    waiting.order.step,
                    f"host {row.host.name} was removed",
                )
            await revoke_certificates(tx, row.host.id)
            await drop_power_of_host(tx, caller, row.host)
            await drop_host(tx, row.host.id)
            for domain in await storage_of_cluster(tx, row.host.cluster_id):
                await compare_marks(tx, domain)
            told = changes_between(row.host, None)
            if powered_off:
                told["powered_off"] = True
            await record(
                tx, "host.removed", host=row.host, by=caller.name, name=row.host.name, **told
            )
            effects.configure(row.host.cluster_id)
            effects.disconnect(row.host.id, "wire.refused.revoked")
            self._hellos.forget(row.host.id)
        await self._dispatcher.carry_out(effects)

    async def scan(self, caller: Caller, ref: str) -> Operation:
        """List the domains that virtha does not manage; the answer is the operation's ``foreign``."""
        return await self._begin(caller, ref, "host.scan", None)

    async def adopt(self, caller: Caller, ref: str, request: AdoptRequest) -> Operation:
        if request.all == bool(request.names):
            raise InvalidInput(
                "give the names of domains, or all",
                field="names",
                allowed=("names", "all"),
                fix="find out what there is by a scan of the host",
            )
        if len(request.names) > ADOPT_NAMES_MAX:
            raise InvalidInput("too many", field="names", allowed=(f"{ADOPT_NAMES_MAX}",))
        return await self._begin(caller, ref, "host.adopt", request)

    async def _begin(
        self, caller: Caller, ref: str, kind: str, adopt: AdoptRequest | None
    ) -> Operation:
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_host(tx, ref)
            host_id = row.host.id
            if adopt is not None:
                await check_nothing_open(tx, host_id, f"adopting on {row.host.name}")
            steps: builtins.list[Step] = [
                Give(name=f"scan {row.host.name}", host_id=host_id, order=ScanForeign())
            ]
            if adopt is not None:
                steps.append(
                    AdoptFound(
                        name="choose domains",
                        host_id=host_id,
                        names=adopt.names,
                        ha=adopt.ha,
                        dry_run=adopt.dry_run,
                    )
                )
            operation = await self._runner.begin(
                tx,
                effects,
                kind=kind,
                subject=host_id,
                by=caller.name,
                plan=Plan(steps=tuple(steps)),
            )
        await self._dispatcher.carry_out(effects)
        return operation

    # sessions

    async def certificate_allowed(self, host_id: HostId, serial: str) -> bool:
        async with self._store.read() as tx:
            return await certificate_is_valid(tx, serial, host_id)

    async def hello(
        self,
        host_id: HostId,
        *,
        boot: BootId,
        certificate_serial: str,
        term_elsewhere: Term,
        fact_sequence_last: int,
    ) -> HelloAnswer:
        """An agent's session begins. ``term_elsewhere``: see ``wire.hellos.followed_elsewhere``. Raises
        Unauthenticated (`wire.refused.revoked`), NotFound."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await find_host(tx, host_id)
            if row is None or not await certificate_is_valid(tx, certificate_serial, host_id):
                raise Unauthenticated(
                    "this certificate is not valid any more",
                    code="wire.refused.revoked",
                    fix="join the host again: 'virtha agent join'",
                )
            installation = await the_installation(tx)
            term = await self._term_above(tx, term_elsewhere)
            acknowledged = await self._check_sequence(tx, row, fact_sequence_last)
            await self._note_hello(tx, row, boot)
            if fact_sequence_last <= row.fact_sequence:
                # All that it said is recorded, so no answer to them is on its way.
                await self._runner.void_starts(tx, effects, host_id)
        self._hellos.note(
            host_id, installation.timeline, boot, max(fact_sequence_last, row.fact_sequence)
        )
        await self._dispatcher.carry_out(effects)
        async with self._store.read() as tx:
            row = await find_host(tx, host_id)
            if row is None:
                raise NotFound("the host was removed in the meantime")
            settings = (await settings_for(tx, row.host.cluster_id, (row,)))[host_id]
            return HelloAnswer(
                installation_id=settings.installation_id,
                term=term,
                fact_sequence_acknowledged=acknowledged,
                settings=settings,
                orders=await self._dispatcher.unanswered(tx, row),
            )

    async def guardian_hello(self, host_id: HostId, *, term_elsewhere: Term) -> GuardianAnswer:
        """A guardian's session begins; ``term_elsewhere`` as above: it refuses a server that goes by a lower one, and its
        agent, whose hello would tell, may be down. Raises NotFound."""
        async with self._store.read() as tx:
            row = await find_host(tx, host_id)
            cluster = await find_cluster(tx, row.host.cluster_id) if row is not None else None
            installation = await the_installation(tx)
        term = installation.term
        if cluster is None:
            raise NotFound("the host was removed in the meantime")
        if term_elsewhere and term_elsewhere >= term:
            async with self._store.write() as writing:
                term = await self._term_above(writing, term_elsewhere)
        return GuardianAnswer(
            term=term, revision=installation.revision, detection=cluster.policy.detection
        )

    async def _term_above(self, tx: WriteTransaction, elsewhere: Term) -> Term:
        """Ours, counted on where a host followed one that our records don't know: a restored database (M1)."""
        term = (await the_installation(tx)).term
        if elsewhere and elsewhere >= term:
            term = Term(elsewhere + 1)
            self._leaders.term_raised(term)
            await set_term(tx, term)
        return term

    async def _check_sequence(
        self, tx: WriteTransaction, row: HostRow, fact_sequence_last: int
    ) -> int:
        """The last fact that it may forget. A host that counts from below what we have has lost its outbox. Its numbers
        go on after ours, so that (host, sequence) stays an order; what it had not sent yet is lost, and told."""
        if fact_sequence_last < row.fact_sequence:
            await record(
                tx,
                "host.outbox.truncated",
                host=row.host,
                name=row.host.name,
                lost="an unknown number of",
                sequence_known=row.fact_sequence,
                sequence_last=fact_sequence_last,
            )
            await save_fact_acknowledged(tx, row.host.id, row.fact_sequence)
            return row.fact_sequence
        return row.fact_acknowledged

    async def _note_hello(self, tx: WriteTransaction, row: HostRow, boot: BootId) -> None:
        before = row.status
        name = row.host.name
        await save_host_status(
            tx,
            msgspec.structs.replace(
                before,
                boot=boot,
                state=HostState.UP,
                last_seen=tx.clock.wall_ms(),
                carries=self._own.mark(boot),
            ),
        )
        if before.boot is not None and before.boot != boot:
            await record(
                tx, "host.rebooted", host=row.host, name=name, boot=boot, old_boot=before.boot
            )
        await _tell_presence(tx, row, HostState.UP)
        await record(tx, "host.connected", host=row.host, name=name, boot=boot)
        await show_states_of(tx, row.host.id, unknown=False)

    async def agent_lost(self, host_id: HostId) -> None:
        """An agent's session ended. That alone says nothing; when it was there is kept."""
        async with self._store.write() as tx:
            row = await find_host(tx, host_id)
            if row is not None:
                status = msgspec.structs.replace(row.status, last_seen=tx.clock.wall_ms())
                await save_host_status(tx, status)

    async def presence_changed(self, host_id: HostId, state: HostState) -> None:
        """The server judges differently how a host answers. Says nothing about its VMs' lives."""
        async with self._store.write() as tx:
            row = await find_host(tx, host_id)
            if row is None or row.status.state is state:
                return
            await save_host_status(tx, msgspec.structs.replace(row.status, state=state))
            await _tell_presence(tx, row, state)
            await show_states_of(tx, host_id, unknown=state is HostState.UNREACHABLE)
        if state is HostState.UP:
            await self._dispatcher.resend(host_id)

    async def clock_measured(self, host_id: HostId, offset_ms: int) -> None:
        """How far the host's wall clock is from ours; told when it crosses the setting's bound."""
        async with self._store.write() as tx:
            row = await find_host(tx, host_id)
            if row is None:
                return
            bound_ms = (await setting_values(tx)).get(CLOCK_OFFSET_MAX)
            was_wrong = abs(row.status.clock_offset_ms or 0) > bound_ms
            is_wrong = abs(offset_ms) > bound_ms
            if was_wrong == is_wrong and row.status.clock_offset_ms is not None:
                return  # the figure wanders by milliseconds: not worth a write
            await save_host_status(
                tx, msgspec.structs.replace(row.status, clock_offset_ms=offset_ms)
            )
            if is_wrong:
                await record(
                    tx,
                    "host.clock.wrong",
                    host=row.host,
                    name=row.host.name,
                    offset_ms=offset_ms,
                )

    async def resend(self, host_id: HostId) -> int:
        """Send the orders that this host has not answered; a start waits until a beat can be quoted."""
        return await self._dispatcher.resend(host_id)

    async def settings_for_host(self, host_id: HostId) -> HostSettings:
        async with self._store.read() as tx:
            row = await find_host(tx, host_id)
            if row is None:
                raise NotFound(f"there is no host {host_id}")
            return (await settings_for(tx, row.host.cluster_id, (row,)))[host_id]


async def _check_heard(tx: Transaction, row: HostRow, *, powered_off: bool) -> None:
    """M2: a host that may run what a restored database does not know can't be forgotten silently, for
    every start would then go past it. Raises Refused."""
    if row.settled_timeline == (await the_installation(tx)).timeline:
        return
    name = row.host.name
    if not powered_off:
        raise Refused(
            f"{name} has not reported its VMs since the restore, or not long enough ago: it may run some of them",
            code="start.blocked.inventory",
            fix=f"bring it back and wait a minute; or power {name} off, and repeat this with --powered-off "
            "(powered_off=true)",
        )
    if row.status.state in (HostState.UP, HostState.AGENT_DOWN):
        raise Refused(
            f"{name} is not off: it is {row.status.state.value}",
            code="problem.host.busy",
            fix="wait until its agent has reported its VMs, or power it off",
        )


async def _tell_presence(tx: WriteTransaction, row: HostRow, state: HostState) -> None:
    """The events of going from ``row.status.state`` to ``state``."""
    before = row.status.state
    name = row.host.name
    if before is HostState.UNREACHABLE and state is not HostState.UNREACHABLE:
        await record(tx, "host.reachable", host=row.host, name=name)
    if before is HostState.AGENT_DOWN and state is HostState.UP:
        await record(tx, "host.agent.up", host=row.host, name=name)
    if state is HostState.AGENT_DOWN and before is not state:
        await record(tx, "host.agent.down", host=row.host, name=name)
    if state is HostState.UNREACHABLE and before is not state:
        await record(tx, "host.unreachable", host=row.host, name=name)
