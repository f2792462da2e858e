"""Power devices of clusters and hosts: their settings. What is done with them is ``power_orders``'."""

from collections import defaultdict
from typing import Any
from uuid import uuid4

from msgspec.structs import fields

from virtha.control.device_turns import DeviceTurns
from virtha.control.history import changes_between, record, secrets_changed
from virtha.control.names import check_name, check_revision, the_cluster, the_host
from virtha.control.power_checks import (
    CIPHERS_UNPROTECTED,
    check_given,
    check_led_elsewhere,
    check_no_secrets,
    check_whole,
    same_address,
    same_place,
)
from virtha.control.power_neighbours import neighbours_of
from virtha.control.power_views import ClusterPowerView, HostPowerView, PowerPut
from virtha.control.secret_box import SecretBox
from virtha.control.views import Caller
from virtha.model.codes import render
from virtha.model.command_syntax import variables_of
from virtha.model.errors import Conflict, InvalidInput, NotFound, Unavailable, VirthaError
from virtha.model.evidence import IdentityMatch
from virtha.model.host import Host
from virtha.model.ids import ClusterId, HostId, Revision
from virtha.model.power_settings import (
    OWN_FIELDS,
    SYNTAX,
    CertificateCheck,
    PowerDriver,
    PowerRecord,
    PowerSettings,
    PowerTest,
    merged,
)
from virtha.model.value import Value
from virtha.ports.power import AgentForm, NeighbourPower, PowerDevice, PowerDevices
from virtha.store.hosts import HostRow, hosts_of_cluster
from virtha.store.power import (
    PowerRow,
    drop_power,
    power_of_all_hosts,
    power_of_cluster,
    power_of_host,
    power_of_hosts,
    power_tests,
    save_power,
    sealed_power,
)
from virtha.store.store import Store, Transaction, WriteTransaction

_LOOKED_AT = 1_000


class Reached(Value, frozen=True, kw_only=True):
    """A host's device with all that it takes to reach it. Its secrets are not for showing."""

    row: HostRow
    name: str
    settings: PowerSettings
    secrets: dict[str, str]
    revision: Revision
    """Of the newer of the cluster's and the host's settings."""

    @property
    def level(self) -> int:
        return 1 if self.settings.level is None else self.settings.level


class Power:
    def __init__(
        self,
        store: Store,
        box: SecretBox,
        devices: PowerDevices | None,
        neighbours: NeighbourPower | None = None,
        turns: DeviceTurns | None = None,
    ) -> None:
        self._store = store
        self._box = box
        self._devices = devices
        self._neighbours = neighbours
        self._turns = turns or DeviceTurns()

    @property
    def devices(self) -> PowerDevices:
        """Raises Unavailable."""
        if self._devices is None:
            raise Unavailable("this server switches no power", fix="ask a running server")
        return self._devices

    def open(self, reached: Reached) -> PowerDevice:
        """For one person's attempts, which wait for their turn (``DeviceTurns``). Raises Unavailable."""
        host_id = reached.row.host.id
        return self._turns.taking(host_id, reached.name, self._device(reached))

    def _device(self, reached: Reached) -> PowerDevice:
        if not reached.settings.from_agents:
            return self.devices.device(reached.settings, reached.secrets)
        if self._neighbours is None:
            raise Unavailable("this server asks no agents", fix="ask a running server")
        host_id = reached.row.host.id
        return self._neighbours.device(
            host_id,
            reached.name,
            reached.settings,
            reached.secrets,
            among=neighbours_of(self._store, host_id),
            term=None,
        )

    # Looking

    async def of_cluster(self, ref: str) -> tuple[ClusterPowerView, ...]:
        async with self._store.read() as tx:
            rows = await power_of_cluster(tx, (await the_cluster(tx, ref)).id)
            return tuple(ClusterPowerView(power=row.record) for row in rows)

    async def of_host(self, ref: str) -> tuple[HostPowerView, ...]:
        async with self._store.read() as tx:
            return await self._views(tx, (await the_host(tx, ref)).host)

    async def get(self, ref: str, name: str) -> HostPowerView:
        async with self._store.read() as tx:
            host = (await the_host(tx, ref)).host
            return _named(await self._views(tx, host), name, host.name)

    async def agents(self) -> tuple[str, ...]:
        return await self.devices.agents()

    async def agent(self, name: str) -> AgentForm:
        return await self.devices.agent(name)

    async def reach(self, ref: str, name: str | None) -> Reached:
        """``name`` None: its only one. Raises NotFound, InvalidInput where it can't be used."""
        async with self._store.read() as tx:
            row = await the_host(tx, ref)
            own = {one.record.name: one for one in await power_of_host(tx, row.host.id)}
            if name is None and len(own) == 1:
                name = next(iter(own))
            if name is None or name not in own:
                raise _no_device(row.host.name, name, tuple(own))
            shared = await _cluster_device(tx, row.host.cluster_id, name)
            given = own[name]
        whole = _whole(shared, given)
        secrets = self._opened(shared) | self._opened(given)
        check_whole(given.record.settings, whole, secrets, await self._form(whole))
        return Reached(
            row=row,
            name=name,
            settings=whole,
            secrets=secrets,
            revision=max(given.record.revision, shared.record.revision if shared else Revision(0)),
        )

    async def levels(self, ref: str, name: str | None) -> tuple[tuple[Reached, ...], ...]:
        """All devices of a host, those of the first level first; ``name``: only that one. Raises NotFound, InvalidInput
        where one can't be used: left out, the others of its level would stand for what they don't switch."""
        if name is None:
            async with self._store.read() as tx:
                host = (await the_host(tx, ref)).host
                names = [one.record.name for one in await power_of_host(tx, host.id)]
            if not names:
                raise _no_device(host.name, None, ())
        else:
            names = [name]
        by_level: dict[int, list[Reached]] = defaultdict(list)
        for one in sorted(names):
            reached = await self.reach(ref, one)
            by_level[reached.level].append(reached)
        return tuple(tuple(by_level[level]) for level in sorted(by_level))

    async def check_secrets_readable(self) -> None:
        """At the server's start: with an unusable key it is told, and other things go on."""
        async with self._store.read() as tx:
            rows = await sealed_power(tx, _LOOKED_AT)
        for row in rows:
            try:
                self._opened(row)
            except VirthaError as error:
                async with self._store.write() as wtx:
                    await record(wtx, "power.secrets_unreadable", detail=error.message)
                return

    # Changing

    async def put_of_cluster(
        self, caller: Caller, ref: str, name: str, request: PowerPut, if_match: Revision | None
    ) -> ClusterPowerView:
        check_name(name, field="name")
        check_given(request.settings, of_cluster=True)
        form = await self._form_if_any(request.settings)
        if form is not None:
            check_no_secrets(request.settings, form)
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, ref)
            present = await _cluster_device(tx, cluster.id, name)
            saved = await self._save(
                tx, present, request, if_match, name=name, cluster_id=cluster.id
            )
            await record(
                tx,
                "power.settings.changed",
                by=caller.name,
                cluster_id=cluster.id,
                device=name,
                of=cluster.name,
                **_told(present, saved, form),
                **secrets_changed(request.secrets),
            )
            return ClusterPowerView(power=saved)

    async def put_of_host(
        self, caller: Caller, ref: str, name: str, request: PowerPut, if_match: Revision | None
    ) -> HostPowerView:
        check_name(name, field="name")
        check_given(request.settings, of_cluster=False)
        form = await self._form_for(ref, name, request.settings)
        async with self._store.write() as tx:
            host = (await the_host(tx, ref)).host
            shared = await _cluster_device(tx, host.cluster_id, name)
            present = _find(await power_of_host(tx, host.id), name)
            whole = merged(shared.record.settings if shared else PowerSettings(), request.settings)
            secrets = self._opened(shared) | self._after(present, request)
            check_whole(request.settings, whole, secrets, form)
            await _check_address_is_its_own(tx, host, name, whole)
            saved = await self._save(tx, present, request, if_match, name=name, host_id=host.id)
            await record(
                tx,
                "power.settings.changed",
                by=caller.name,
                host=host,
                device=name,
                of=host.name,
                **_told(present, saved, form),
                **secrets_changed(request.secrets),
            )
            return _named(await self._views(tx, host), name, host.name)

    async def delete_of_cluster(
        self, caller: Caller, ref: str, name: str, if_match: Revision | None
    ) -> None:
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, ref)
            present = await _cluster_device(tx, cluster.id, name)
            await _drop(tx, caller, present, if_match, name, cluster.name, cluster_id=cluster.id)
            # Theirs say something else from now on: none of them is the one that was tested (P1).
            hosts = await hosts_of_cluster(tx, cluster.id)
            for row in await power_of_hosts(tx, [each.host.id for each in hosts]):
                if row.record.name == name:
                    await save_power(tx, row.record, row.sealed)

    async def delete_of_host(
        self, caller: Caller, ref: str, name: str, if_match: Revision | None
    ) -> None:
        async with self._store.write() as tx:
            host = (await the_host(tx, ref)).host
            present = _find(await power_of_host(tx, host.id), name)
            await _drop(tx, caller, present, if_match, name, host.name, host=host)

    async def _save(
        self,
        tx: WriteTransaction,
        present: PowerRow | None,
        request: PowerPut,
        if_match: Revision | None,
        *,
        name: str,
        cluster_id: ClusterId | None = None,
        host_id: HostId | None = None,
    ) -> PowerRecord:
        if present is not None:
            check_revision(if_match, present.record.revision)
        elif if_match is not None:
            raise NotFound("it is gone by now", field="name")
        device_id = present.record.id if present is not None else str(uuid4())
        secrets = self._after(present, request)
        made = PowerRecord(
            id=device_id,
            name=name,
            cluster_id=cluster_id,
            host_id=host_id,
            settings=request.settings,
            secrets=tuple(sorted(secrets)),
        )
        sealed = self._box.seal(secrets, of=device_id) if secrets else None
        return await save_power(tx, made, sealed)

    def _after(self, present: PowerRow | None, request: PowerPut) -> dict[str, str]:
        """Its secrets once changed. Those that are there are opened only where some stay: with the key lost, all can be
        given anew."""
        there = set(present.record.secrets) if present is not None else set()
        kept = self._opened(present) if there - request.secrets.keys() else {}
        after = {name: value for name, value in kept.items() if name not in request.secrets}
        return after | {name: one for name, one in request.secrets.items() if one is not None}

    def _opened(self, row: PowerRow | None) -> dict[str, str]:
        """Raises Failed, which names the key's file."""
        if row is None or row.sealed is None:
            return {}
        return self._box.open(row.sealed, of=row.record.id)

    async def _form_for(self, ref: str, name: str, given: PowerSettings) -> AgentForm | None:
        """Read outside of any transaction: a program is run for it."""
        async with self._store.read() as tx:
            host = (await the_host(tx, ref)).host
            shared = await _cluster_device(tx, host.cluster_id, name)
        return await self._form(
            merged(shared.record.settings if shared else PowerSettings(), given)
        )

    async def _form(self, whole: PowerSettings) -> AgentForm | None:
        if whole.driver is not PowerDriver.FENCE_AGENT or not whole.agent:
            return None
        try:
            return await self.devices.agent(whole.agent)
        except NotFound as error:
            raise InvalidInput(error.message, field="settings.agent", fix=error.fix) from None

    async def _form_if_any(self, settings: PowerSettings) -> AgentForm | None:
        """Of what a cluster says: its hosts may name the program, or another."""
        try:
            return await self._form(settings)
        except VirthaError:
            return None

    async def _views(self, tx: Transaction, host: Host) -> tuple[HostPowerView, ...]:
        own = {one.record.name: one for one in await power_of_host(tx, host.id)}
        shared = {one.record.name: one for one in await power_of_cluster(tx, host.cluster_id)}
        tests = await power_tests(tx, host.id)
        return tuple(
            _view(host, name, shared.get(name), own.get(name), tests.get(name))
            for name in sorted(own.keys() | shared.keys())
        )


async def _cluster_device(tx: Transaction, cluster_id: ClusterId, name: str) -> PowerRow | None:
    return _find(await power_of_cluster(tx, cluster_id), name)


def _find(rows: tuple[PowerRow, ...], name: str) -> PowerRow | None:
    return next((row for row in rows if row.record.name == name), None)


def _whole(shared: PowerRow | None, own: PowerRow | None) -> PowerSettings:
    return merged(
        shared.record.settings if shared is not None else PowerSettings(),
        own.record.settings if own is not None else PowerSettings(),
    )


def _named(views: tuple[HostPowerView, ...], name: str, host: str) -> HostPowerView:
    for view in views:
        if view.name == name:
            return view
    raise _no_device(host, name, tuple(view.name for view in views))


def _no_device(host: str, name: str | None, there: tuple[str, ...]) -> VirthaError:
    fix = "virtha host power set HOST --device NAME …"
    if name is None and there:
        return InvalidInput(f"{host} has several", field="device", allowed=there)
    if name is None:
        return NotFound(f"{host} has no power device", field="device", fix=fix)
    return NotFound(
        f"{host} has no power device '{name[:64]}' of its own",
        field="device",
        fix=f"it has {', '.join(there)}" if there else fix,
    )


async def drop_power_of_host(tx: WriteTransaction, caller: Caller, host: Host) -> None:
    """With the host they go, too: each is told as it was."""
    for row in await power_of_host(tx, host.id):
        await _drop(tx, caller, row, None, row.record.name, host.name, host=host)


async def _drop(
    tx: WriteTransaction,
    caller: Caller,
    present: PowerRow | None,
    if_match: Revision | None,
    name: str,
    of: str,
    *,
    host: Host | None = None,
    cluster_id: ClusterId | None = None,
) -> None:
    if present is None:
        raise _no_device(of, name, ())
    check_revision(if_match, present.record.revision)
    await drop_power(tx, present.record)
    await record(
        tx,
        "power.settings.removed",
        by=caller.name,
        host=host,
        cluster_id=cluster_id,
        device=name,
        of=of,
        **_told(present, None, None),
    )


def _told(
    present: PowerRow | None, saved: PowerRecord | None, form: AgentForm | None
) -> dict[str, Any]:
    """A fence agent's parameters by name, and by value those of which its form says that they are no secrets."""
    before = present.record if present is not None else None
    plain = {one.name for one in form.parameters if not one.secret} if form is not None else set()
    given = {
        name for one in (before, saved) if one is not None for name in one.settings.parameters or {}
    }
    hidden = {f"settings.parameters.{name}" for name in given - plain}
    return changes_between(before, saved, hidden=hidden)


async def _check_address_is_its_own(
    tx: Transaction, host: Host, name: str, whole: PowerSettings
) -> None:
    """A BMC's address belongs to one host (P1); where there is none, all that the device is told. Raises Conflict."""
    for row in await power_of_all_hosts(tx):
        other = row.record
        itself = other.host_id == host.id and other.name == name
        nowhere = not whole.address and not other.settings.address
        if itself or not (nowhere or same_address(whole, other.settings)):
            continue
        owner = (await the_host(tx, str(other.host_id))).host
        shared = await _cluster_device(tx, owner.cluster_id, other.name)
        if same_place(whole, _whole(shared, row)):
            whose = "another device of it" if owner.id == host.id else owner.name
            raise Conflict(
                f"that is the machine of {whose} ({other.name}) already"
                if nowhere
                else f"{whole.address} is the address of {whose} ({other.name}) already",
                field="settings.plug" if nowhere else "settings.address",
                fix="give each host its own; where one address serves several, set plug",
            )


def _view(
    host: Host,
    name: str,
    shared: PowerRow | None,
    own: PowerRow | None,
    test: PowerTest | None,
) -> HostPowerView:
    whole = _whole(shared, own)
    given = own.record.settings if own is not None else PowerSettings()
    secrets = {*(shared.record.secrets if shared else ()), *(own.record.secrets if own else ())}
    problem = problem_of(given, whole, secrets) if own is not None else "the host gives no address"
    newest = max((row.record.revision for row in (shared, own) if row is not None), default=0)
    tested = test is not None and test.passed and test.settings_revision >= newest
    warnings = _warnings(whole, test)
    return HostPowerView(
        name=name,
        host=host.name,
        power=own.record if own is not None else None,
        whole=whole,
        inherited=tuple(
            one.name
            for one in fields(whole)
            if one.name not in OWN_FIELDS
            and getattr(given, one.name) is None
            and getattr(whole, one.name) is not None
        ),
        secrets=tuple(sorted(secrets)),
        usable=not problem,
        problem=problem,
        proves=whole.has_status,
        warnings=warnings,
        warning_texts=tuple(render(one, {}) for one in warnings),
        test=test,
        tested=tested,
    )


def problem_of(given: PowerSettings, whole: PowerSettings, secrets: set[str]) -> str:
    """Without running anything: a fence agent's own parameters were checked when they were set."""
    if whole.driver is PowerDriver.FENCE_AGENT and not whole.agent:
        return "settings.agent: is missing"
    try:
        if whole.driver is PowerDriver.FENCE_AGENT:
            check_led_elsewhere(whole)
        else:
            check_whole(given, whole, dict.fromkeys(secrets, "x"), None)
    except InvalidInput as error:
        return str(error)
    return ""


def _warnings(whole: PowerSettings, test: PowerTest | None) -> tuple[str, ...]:
    found = []
    if not whole.has_status:
        found.append("power.no_status")
    if whole.driver is PowerDriver.COMMAND and "IPMI_PASSWORD" in variables_of(
        whole.syntax or SYNTAX
    ):
        found.append("power.password_shown")
    if whole.driver is PowerDriver.IPMI and whole.cipher in CIPHERS_UNPROTECTED:
        found.append("power.unprotected")
    if whole.driver is PowerDriver.REDFISH and whole.certificate is CertificateCheck.NONE:
        found.append("power.unchecked")
    if test is not None and test.identity is IdentityMatch.UNKNOWN:
        found.append("power.no_identity")
    if test is not None and test.identity is IdentityMatch.MISMATCH:
        found.append("power.other_machine")
    return tuple(found)
