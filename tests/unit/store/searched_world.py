"""A small installation with what searches trip over: wildcards of SQL in names, letters of any case and of no alphabet, values
that are missing, times at the edges of days. Written by the store's own functions, and told to the oracle row by row."""

from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET
from search_oracle import Row

from virtha.engine.events import SaveHost
from virtha.engine.records import Drain, HostRecord
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.host import (
    Cluster,
    Host,
    HostCapabilities,
    HostState,
    HostStatus,
    Installation,
    StorageDomain,
)
from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    HostId,
    IncidentId,
    InstallationId,
    OperationId,
    StorageDomainId,
    TemplateId,
    UserId,
    VmId,
)
from virtha.model.incident import HostIncident, IncidentCause, VmPath
from virtha.model.machine import MachineType
from virtha.model.operation import Operation
from virtha.model.policy import PermissionGrade
from virtha.model.policy.document import FIELD_TABLE
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.model.template import Template, TemplateState
from virtha.model.time import Millis, UtcMillis
from virtha.model.user import Role, User
from virtha.model.vm import Disk, OnIoError, Vm, VmState, VmStatus
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel
from virtha.store import Store
from virtha.store.clusters import save_cluster, save_storage
from virtha.store.engine import save_intent
from virtha.store.events import add_event
from virtha.store.hosts import add_host, save_host_status
from virtha.store.incidents import save_incidents, save_paths
from virtha.store.installations import add_installation
from virtha.store.operations import save_operation
from virtha.store.store import WriteTransaction
from virtha.store.templates import save_template, use_template
from virtha.store.users import add_user
from virtha.store.vms import save_vm, save_vm_status

NOW = UtcMillis(1_774_440_000_000)  # Wednesday, 2026-03-25T12:00:00Z
HOUR, DAY = 3_600_000, 86_400_000
TODAY = NOW // DAY * DAY
MIB, GIB = 1 << 20, 1 << 30
TEXTS = (
    *(
        "w",
        "eb",
        "web1",
        "WEB",
        "h1",
        "%",
        "_",
        "[",
        "]",
        "?",
        "\\",
        "'",
        ";",
        "--",
        "a*b",
        "É",
        "é",
    ),
    *("db", "100%", "a_b", "kernel panic", "vm.watchdog.fired", "vm.", "east", "admin", "x86_64"),
)
"""What is looked for: parts of what is there, and what stands nowhere."""
MOMENTS = (
    TODAY,
    TODAY - 1,
    TODAY + 1,
    NOW,
    NOW - HOUR,
    NOW - DAY,
    TODAY - 6 * DAY,
    TODAY - 8 * DAY,
)


class PutClock:
    """Stands where the test puts it."""

    def __init__(self) -> None:
        self.now = NOW

    def monotonic_ms(self) -> Millis:
        return Millis(1)

    def wall_ms(self) -> UtcMillis:
        return self.now


@dataclass
class World:
    clock: PutClock = field(default_factory=PutClock)
    rows: dict[str, list[Row]] = field(default_factory=lambda: {noun: [] for noun in NOUNS})

    def row(self, noun: str, name: str) -> Row:
        return next(row for row in self.rows[noun] if row.values["name"] == name)


NOUNS = ("Vms", "Hosts", "Templates", "Events", "Clusters", "Storage", "Users")
_HOSTS = (
    ("h1", "east", HostState.UP, 4, 8 * GIB, "x86_64", "preparing_for_maintenance"),
    ("H1", "east", HostState.UNREACHABLE, 8, 8 * GIB, "x86_64", "non_responsive"),
    ("host_2", "We%st", HostState.NEVER_SEEN, 0, 0, "s390x", "connecting"),
)
_VMS = (
    # name, cluster, description, host, state, memory, vcpus, ha, watchdog, last_event, fired, storage
    ("web1", "east", "", "h1", VmState.RUNNING, GIB, 1, True, "i6300esb:reset", TODAY, 1, "nfs1"),
    (
        "WEB2",
        "east",
        "100% É",
        "h1",
        VmState.PAUSED,
        GIB,
        2,
        True,
        "ib700:none",
        NOW - HOUR,
        2,
        "nfs1",
    ),
    ("web[3]", "east", "a_b", "H1", VmState.UNKNOWN, 2 * GIB, 2, False, None, None, 0, "rbd"),
    (
        "db",
        "We%st",
        "é'; DROP TABLE vm; --",
        None,
        VmState.DOWN,
        512 * MIB,
        4,
        True,
        None,
        TODAY - 1,
        7,
        None,
    ),
    (
        "a*b",
        "We%st",
        "kernel\\panic\nhere",
        "host_2",
        VmState.STARTING,
        512,
        1,
        False,
        "itco:dump",
        TODAY - 6 * DAY,
        1,
        "nfs1",
    ),
)
_SHOWN = {
    VmState.RUNNING: "up",
    VmState.PAUSED: "paused",
    VmState.UNKNOWN: "unknown",
    VmState.DOWN: "wait_for_launch",
    VmState.STARTING: "powering_up",
}
"""To oVirt's clients: the VM that is down is being started."""
_PRIORITIES = {"web1": 50, "db": 100, "a*b": 1}
_GRADES = {"web1": PermissionGrade.OBSERVE, "db": PermissionGrade.MOVE}
_THIN = {"web1": "web", "a*b": "web"}
"""VMs with a disk that needs a template, and which."""
_EVENTS = (
    # code, severity, message, vm, host, cluster, user, operation, at
    (
        "server.started",
        Severity.INFO,
        "Server started",
        None,
        None,
        None,
        None,
        None,
        TODAY - 8 * DAY,
    ),
    (
        "vm.created",
        Severity.INFO,
        "web1 was made by admin",
        "web1",
        None,
        "east",
        "admin",
        "op1",
        TODAY - DAY,
    ),
    (
        "vm.watchdog.fired",
        Severity.WARNING,
        "Watchdog of web1 fired",
        "web1",
        "h1",
        "east",
        None,
        None,
        TODAY - 1,
    ),
    (
        "vm.watchdog.fired",
        Severity.WARNING,
        "kernel panic",
        "WEB2",
        "h1",
        "east",
        None,
        None,
        TODAY,
    ),
    (
        "host.unreachable",
        Severity.ERROR,
        "H1 100% away",
        None,
        "H1",
        "east",
        None,
        None,
        NOW - HOUR,
    ),
    ("incident.opened", Severity.ALERT, "É_", None, "H1", "east", None, None, NOW),
    ("vm.deleted", Severity.INFO, "gone was deleted", "gone", None, "We%st", "Admin", "op2", NOW),
)


async def fill(store: Store, world: World) -> None:
    async with store.write() as tx:
        made = Installation(id=InstallationId("i1"))
        await add_installation(tx, made, timeline="t1")
        await _places(tx, world)
        await _vms(tx, world)
        await _incidents(tx, world)
        await _templates(tx, world)
        await _users(tx, world)
    async with store.write() as tx:
        await _events(tx, world)
    _relate(world)


async def _places(tx: WriteTransaction, world: World) -> None:
    for name, description, profile in (
        ("east", "The EAST", Profile.BALANCED),
        ("We%st", "", Profile.FAST),
    ):
        policy = PROFILES[profile]
        cluster = Cluster(
            id=ClusterId(f"id-{name}"), name=name, description=description, policy=policy
        )
        await save_cluster(tx, cluster)
        values: dict[str, Any] = {"name": name, "id": cluster.id, "description": description}
        for about in FIELD_TABLE.values():
            value = policy.read(about.path)
            values[f"policy.{about.shown}"] = (
                str(value).lower() if isinstance(value, bool) else value
            )
        world.rows["Clusters"].append(Row(values))
    for number, (name, of, state, cpus, memory, architecture, shown) in enumerate(_HOSTS, 1):
        host = Host(
            id=HostId(f"id-{name}"), name=name, number=number, cluster_id=ClusterId(f"id-{of}")
        )
        await add_host(tx, host, libvirt_uuid=None, timeline="t1")
        able = HostCapabilities(cpus=cpus, memory_bytes=memory, architecture=architecture)
        await save_host_status(tx, HostStatus(host_id=host.id, state=state, capabilities=able))
        if shown == "preparing_for_maintenance":
            record = HostRecord(host_id=host.id, maintenance="admin", drain=Drain.DRAINING)
            await save_intent(tx, host.cluster_id, SaveHost(record=record))
        values = {
            "name": name,
            "id": host.id,
            "address": name,
            "number": number,
            "status": state.value,
            "ovirt_status": shown,
            "cluster": of,
        }
        values |= {"cpus": cpus, "memory": memory, "architecture": architecture, "incident": None}
        world.rows["Hosts"].append(Row({**values, "active_vms": 0, **policy_of(world, of)}))
    for name, of, kind, path in (
        ("nfs1", "east", "directory", "/srv"),
        ("rbd", "We%st", "ceph-rbd", "rbd:x@m"),
    ):
        domain = StorageDomain(
            id=StorageDomainId(f"id-{name}"),
            name=name,
            cluster_id=ClusterId(f"id-{of}"),
            kind=kind,
            path=path,
        )
        await save_storage(tx, domain)
        values = {"name": name, "id": domain.id, "type": kind, "path": path, "cluster": of}
        world.rows["Storage"].append(Row(values))


def policy_of(world: World, cluster: str) -> dict[str, Any]:
    values = world.row("Clusters", cluster).values
    return {name: value for name, value in values.items() if name.startswith("policy.")}


async def _vms(tx: WriteTransaction, world: World) -> None:
    for (
        name,
        of,
        description,
        host,
        state,
        memory,
        vcpus,
        ha,
        card,
        fired_at,
        fired,
        storage,
    ) in _VMS:
        model, _, action = (card or "").partition(":")
        watchdog = (
            Watchdog(model=WatchdogModel(model), action=WatchdogAction(action)) if card else None
        )
        disks = (
            Disk(
                id=DiskId(f"disk-{name}"),
                name="disk",
                storage_domain_id=StorageDomainId(f"id-{storage}"),
                path=f"vms/{name}",
                size_bytes=1,
            ),
        )
        on_io_error = OnIoError.KILL if ha else OnIoError.AUTO_RESUME
        vm = Vm(
            id=VmId(f"id-{name}"),
            name=name,
            cluster_id=ClusterId(f"id-{of}"),
            description=description,
            memory_bytes=memory,
            vcpus=vcpus,
            ha=ha,
            machine=MachineType.Q35,
            watchdog=watchdog,
            on_io_error=on_io_error,
            priority=_PRIORITIES.get(name, UNSET),
            grade=_GRADES.get(name, UNSET),
            disks=disks if storage else (),
        )
        await save_vm(tx, vm)
        host_id = HostId(f"id-{host}") if host else None
        holders = (host_id,) if host_id is not None and state is not VmState.UNKNOWN else ()
        status = VmStatus(
            vm_id=vm.id,
            state=state,
            host_id=host_id,
            holders=holders,
            last_watchdog=fired_at,
            watchdog_count=fired,
        )
        await save_vm_status(tx, status)
        for row in world.rows["Hosts"]:
            row.values["active_vms"] += row.values["id"] in holders
        if state is VmState.DOWN:
            start = Operation(id=OperationId("starts"), kind="vm.start", subject=vm.id)
            await save_operation(tx, start, "{}")
        values = {"name": name, "id": vm.id, "description": description, "status": state.value}
        values["ovirt_status"] = _SHOWN[state]
        values |= {"host": host, "cluster": of, "memory": memory, "vcpus": vcpus, "incident": None}
        values |= {
            "architecture": "x86_64",
            "ha": "true" if ha else "false",
            "watchdog": model or None,
        }
        values |= {
            "watchdog_action": action or None,
            "last_event": fired_at,
            "watchdog_events": fired,
        }
        values |= {"on_io_error": on_io_error.value, "priority": _PRIORITIES.get(name, 0)}
        values["grade"] = _GRADES.get(name, PermissionGrade.FENCE).value
        world.rows["Vms"].append(Row({**values, **policy_of(world, of)}))


async def _incidents(tx: WriteTransaction, world: World) -> None:
    """An open one of H1 with web[3] in it, a closed one with web1."""
    for name, host, vm, is_open in (
        ("open", "H1", "web[3]", True),
        ("closed", "h1", "web1", False),
    ):
        incident = HostIncident(
            id=IncidentId(f"incident-{name}"),
            cluster_id=ClusterId("id-east"),
            host_id=HostId(f"id-{host}"),
            host=host,
            boot=BootId("b"),
            number=1,
            cause=IncidentCause.JUDGED,
            opened=NOW,
            opened_ms=1,
            silent_since_ms=1,
            closed=None if is_open else NOW,
        )
        await save_incidents(tx, [incident], new={incident.id})
        path = VmPath(incident_id=incident.id, vm_id=VmId(f"id-{vm}"), vm=vm)
        await save_paths(tx, [path], new={(path.incident_id, path.vm_id)})
        if is_open:
            world.row("Hosts", host).values["incident"] = incident.id
            world.row("Vms", vm).values["incident"] = incident.id


async def _templates(tx: WriteTransaction, world: World) -> None:
    for name, card, created in (
        ("web", "i6300esb:reset", TODAY),
        ("old_WEB", None, TODAY - 6 * DAY),
    ):
        model, _, action = (card or "").partition(":")
        watchdog = (
            Watchdog(model=WatchdogModel(model), action=WatchdogAction(action)) if card else None
        )
        disk = Disk(
            id=DiskId(f"t-{name}"),
            name="disk",
            storage_domain_id=StorageDomainId("id-nfs1"),
            path=f"templates/{name}",
            size_bytes=1,
        )
        template = Template(
            id=TemplateId(f"id-{name}"),
            name=name,
            cluster_id=ClusterId("id-east"),
            description="from web1",
            source_vm="web1",
            state=TemplateState.READY if card else TemplateState.CREATING,
            memory_bytes=GIB,
            vcpus=2,
            architecture="x86_64",
            machine=MachineType.Q35,
            watchdog=watchdog,
            ha=card is not None,
            priority=7 if card else 0,
            disks=(disk,) if card else (),
            created=UtcMillis(created),
        )
        await save_template(tx, template)
        values = {"name": name, "id": template.id, "description": "from web1", "cluster": "east"}
        values["ovirt_status"] = "ok" if card else "locked"
        values |= {"status": template.state.value, "memory": GIB, "vcpus": 2}
        values |= {"architecture": "x86_64", "ha": "true" if card else "false"}
        values |= {"priority": 7 if card else 0}
        values |= {
            "watchdog": model or None,
            "watchdog_action": action or None,
            "creationdate": created,
        }
        world.rows["Templates"].append(Row(values))
    for name, template_name in _THIN.items():
        storage = next(row[-1] for row in _VMS if row[0] == name)
        file = Disk(
            id=DiskId(f"disk-{name}"),
            name="disk",
            storage_domain_id=StorageDomainId(f"id-{storage}"),
            path=f"vms/{name}",
            size_bytes=1,
        )
        await use_template(tx, TemplateId(f"id-{template_name}"), file)


async def _users(tx: WriteTransaction, world: World) -> None:
    for name, role, email in (
        ("admin", Role.ADMINISTRATOR, None),
        ("Eve", Role.VIEWER, "eve_x@example.org"),
    ):
        user = User(
            id=UserId(f"id-{name}"), name=name, role=role, enabled=email is None, email=email
        )
        await add_user(tx, user, "hash")
        values = {"usrname": name, "name": name, "id": user.id, "role": role.value, "email": email}
        world.rows["Users"].append(Row({**values, "enabled": "true" if user.enabled else "false"}))


async def _events(tx: WriteTransaction, world: World) -> None:
    for code, severity, message, vm, host, cluster, user, operation, at in _EVENTS:
        world.clock.now = UtcMillis(at)
        saved = await add_event(
            tx,
            Event(
                code=code,
                severity=severity,
                message=message,
                vm_id=VmId(f"id-{vm}") if vm else None,
                host_id=HostId(f"id-{host}") if host else None,
                cluster_id=ClusterId(f"id-{cluster}") if cluster else None,
                user=user,
                operation_id=OperationId(operation) if operation else None,
            ),
        )
        values = {"id": saved.revision, "code": code, "severity": severity.value, "time": at}
        values |= {
            "message": message,
            "usrname": user,
            "event_host": host,
            "event_cluster": cluster,
        }
        values |= {"event_vm": vm if vm != "gone" else None, "correlation_id": operation}
        world.rows["Events"].append(Row(values))
    world.clock.now = NOW


def _relate(world: World) -> None:
    rows = world.rows
    for vm, made in zip(rows["Vms"], _VMS, strict=True):
        vm.related["Hosts"] = [
            one for one in rows["Hosts"] if one.values["name"] == vm.values["host"]
        ]
        vm.related["Storage"] = [one for one in rows["Storage"] if one.values["name"] == made[-1]]
        vm.related["Events"] = _of("event_vm", vm, rows["Events"])
    for host in rows["Hosts"]:
        host.related["Vms"] = [
            one for one in rows["Vms"] if one.values["host"] == host.values["name"]
        ]
        host.related["Events"] = _of("event_host", host, rows["Events"])
    for domain in rows["Storage"]:
        domain.related["Vms"] = [one for one in rows["Vms"] if domain in one.related["Storage"]]
    for vm in rows["Vms"]:
        needed = _THIN.get(vm.values["name"])
        vm.related["Templates"] = [one for one in rows["Templates"] if one.values["name"] == needed]
    for template in rows["Templates"]:
        template.related["Vms"] = [
            one for one in rows["Vms"] if template in one.related["Templates"]
        ]
        has_disk = template.values["status"] == "ready"
        template.related["Storage"] = [
            one for one in rows["Storage"] if has_disk and one.values["name"] == "nfs1"
        ]
    for event in rows["Events"]:
        for noun, by in (
            ("Vms", "event_vm"),
            ("Hosts", "event_host"),
            ("Clusters", "event_cluster"),
        ):
            event.related[noun] = [
                one for one in rows[noun] if one.values["name"] == event.values[by]
            ]
    for cluster in rows["Clusters"]:
        for noun in ("Vms", "Hosts", "Storage"):
            cluster.related[noun] = _of("cluster", cluster, rows[noun])
        cluster.related["Events"] = _of("event_cluster", cluster, rows["Events"])
    for cluster in rows["Clusters"]:
        cluster.values["datacenter"] = cluster.values["name"]
    for noun in ("Vms", "Hosts", "Templates", "Storage"):
        for row in rows[noun]:
            row.values["datacenter"] = row.values["cluster"]
            row.related["Clusters"] = [
                one for one in rows["Clusters"] if one.values["name"] == row.values["cluster"]
            ]
    for noun, other in (("Hosts", "Storage"), ("Storage", "Hosts")):
        for row in rows[noun]:
            row.related[other] = [
                one for one in rows[other] if one.values["cluster"] == row.values["cluster"]
            ]


def _of(by: str, owner: Row, rows: list[Row]) -> list[Row]:
    return [one for one in rows if one.values[by] == owner.values["name"]]
