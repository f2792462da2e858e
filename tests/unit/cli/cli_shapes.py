"""Answers of the API, built from the structs that the server itself encodes."""

from typing import Any

import msgspec
from cli_fake_api import Answer
from msgspec.structs import replace

from virtha.api.times import encode
from virtha.control.incident_fold import Moment, fold_host, fold_vm, opened, path_of
from virtha.control.incident_views import IncidentView, view_of
from virtha.control.views import (
    HostView,
    StatusHost,
    StatusTotals,
    StatusView,
    StatusVm,
    VmView,
)
from virtha.engine.records import Incident
from virtha.model.codes import REGISTRY, render
from virtha.model.event import Event
from virtha.model.host import Host, HostCapabilities, HostState, HostStatus
from virtha.model.ids import BootId, ClusterId, HostId, InstallationId, OperationId, Revision, VmId
from virtha.model.incident import IncidentEntry, Sighting
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.time import UtcMillis
from virtha.model.value import Fields
from virtha.model.vm import Reason, Vm, VmState, VmStatus
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel

CLUSTER, HOST = ClusterId("c-1"), HostId("h-1")
INSTALLATION = InstallationId("i-1")
NOON = UtcMillis(1_767_268_800_000)  # 2026-01-01T12:00:00Z


def plain(value: Any) -> Any:
    """As it is on the wire."""
    return msgspec.json.decode(encode(value, type(value)))


def page(*items: Any, next: str | None = None, revision: int = 7) -> dict[str, Any]:
    return {"items": [plain(item) for item in items], "revision": revision, "next": next}


def accepted(op: dict[str, Any]) -> Answer:
    """Work has begun on it."""
    return Answer(op, status=202, headers={"Location": f"/v1/operations/{op['id']}"})


def vm_view(name: str = "web1", *, state: VmState = VmState.RUNNING) -> VmView:
    ident = VmId(f"id-of-{name}")
    return VmView(
        vm=Vm(
            id=ident,
            name=name,
            cluster_id=CLUSTER,
            memory_bytes=134_217_728,
            ha=True,
            watchdog=Watchdog(model=WatchdogModel.I6300ESB, action=WatchdogAction.RESET),
            revision=Revision(5),
        ),
        status=VmStatus(vm_id=ident, state=state, host_id=HOST, holders=(HOST,), since=NOON),
        host_name="h1",
        cluster_name="default",
        protection=(Reason(code="protection.ok"),),
        protection_text=("protected",),
        reason_text=("runs since it was started by root",),
        last_events=(event(3, "vm.watchdog.fired", {"vm": name, "action": "reset"}),),
    )


def host_view(name: str = "h1") -> HostView:
    ident = HostId(f"id-of-{name}")
    return HostView(
        host=Host(id=ident, name=name, number=1, cluster_id=CLUSTER),
        status=HostStatus(
            host_id=ident,
            state=HostState.UP,
            capabilities=HostCapabilities(memory_bytes=1 << 30, libvirt_version=9_000_000),
        ),
        cluster_name="default",
        vms=("web1",),
        free_memory_bytes=1 << 29,
    )


def operation(
    state: OperationState = OperationState.DONE,
    *,
    kind: str = "vm.start",
    code: str | None = None,
    message: str = "",
    steps: tuple[tuple[str, OperationState], ...] = (("start on h1", OperationState.DONE),),
) -> dict[str, Any]:
    made: dict[str, Any] = plain(
        Operation(
            id=OperationId("o-1"),
            kind=kind,
            subject="id-of-web1",
            state=state,
            steps=tuple(OperationStep(name=name, state=step) for name, step in steps),
            progress=100 if state is OperationState.DONE else 50,
            code=code,
            message=message,
            created=NOON,
            ended=UtcMillis(NOON + 2_500) if state is not OperationState.RUNNING else None,
        )
    )
    return made


def event(revision: int, code: str = "vm.started", fields: Fields | None = None) -> Event:
    fields = fields or {}
    return Event(
        revision=Revision(revision),
        code=code,
        severity=REGISTRY[code].severity,
        message=render(code, fields),
        fields=fields,
        at=NOON,
    )


def status_view(*, hold: str | None = None, verdict: str = "degraded") -> StatusView:
    def vm(name: str, protected: bool, code: str, ha: bool = True) -> StatusVm:
        return StatusVm(
            id=VmId(name),
            name=name,
            host_name="h1",
            state=VmState.RUNNING,
            ha=ha,
            protected=protected,
            protection=(Reason(code=code),),
            protection_text=(render(code, {}),),
        )

    return StatusView(
        installation_name="virtha",
        hold=hold,
        verdict=verdict,
        verdict_text="1 of 2 HA VMs has something against it",
        totals=StatusTotals(hosts=1, hosts_up=1, vms=3, vms_running=3, vms_ha=2, vms_protected=1),
        hosts=(
            StatusHost(
                id=HOST,
                name="h1",
                cluster_name="default",
                state=HostState.UP,
                gate_in_force=True,
                libvirt_connected=True,
                vms=3,
                memory_bytes=1 << 30,
                free_memory_bytes=1 << 29,
            ),
        ),
        vms=(
            vm("fine", True, "protection.ok"),
            vm("bare", True, "protection.no_watchdog"),
            vm("plain", False, "protection.no_ha", ha=False),
        ),
        revision=Revision(7),
    )


def incident_view() -> IncidentView:
    """h1 lost its power: web1 runs on h2, db1 stays down."""
    now = Moment(at=UtcMillis(NOON + 12_000), clock_ms=12_000)
    engines = Incident(number=3, boot=BootId("boot1"), silent_since_ms=0, began_ms=12_000)
    found = opened(now, CLUSTER, HOST, "h1", engines)
    judged = now.entry("host.judged_dead", host="h1", silent_ms=12_000)
    sighting = Sighting(by="h2", via="management", said="silent", age_ms=300)
    why = Reason(code="host.dead.unproven", fields={"silent_ms": 12_000})
    proven = now.entry("host.proven_dead", host="h1", proof="power_off", detail="", after_ms=0)
    found = fold_host(found, [replace(judged, seen=(sighting,), reasons=(why,)), proven])
    of_h2 = replace(now.entry("vm.recovered", vm="web1", host="h2", after_ms=0), clock_ms=14_000)
    of_h2 = replace(of_h2, host_id=HOST)
    answers = IncidentEntry(code="vm.agent.connected", at=UtcMillis(now.at + 900), host_id=HOST)
    started = now.entry("vm.recovery_started", vm="web1", host="h2", attempt=1)
    started = replace(started, host_id=HOST)
    web1 = fold_vm(path_of(found, VmId("v-1"), "web1"), [started, of_h2, answers])
    given_up = now.entry("vm.recovery_given_up", vm="db1", attempts=5)
    db1 = fold_vm(path_of(found, VmId("v-2"), "db1"), [given_up])
    waits = Reason(code="recovery.given_up")
    return view_of(found, [web1, db1], engine=(why,), of_vms={db1.vm_id: (waits,)})
