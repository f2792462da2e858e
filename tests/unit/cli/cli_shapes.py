"""Answers of the API, built from the structs that the server itself encodes."""

from typing import Any

import msgspec
from cli_fake_api import Answer

from virtha.api.times import encode
from virtha.control.views import (
    HostView,
    StatusHost,
    StatusTotals,
    StatusView,
    StatusVm,
    VmView,
)
from virtha.model.codes import REGISTRY, render
from virtha.model.event import Event
from virtha.model.host import Host, HostCapabilities, HostState, HostStatus
from virtha.model.ids import ClusterId, HostId, InstallationId, OperationId, Revision, VmId
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
