"""A notified world whose events tell of hosts and VMs, and what routes are asked for there."""

from collections.abc import Awaitable, Callable
from typing import Any

from notified_world import NotifiedWorld

from virtha.control.history import message_of, severity_of
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import ClusterId, HostId, IncidentId, Revision, VmId
from virtha.model.incident import HostIncident, IncidentCause, PathState, VmPath
from virtha.model.routing import GroupBy
from virtha.model.time import UtcMillis
from virtha.store.events import add_event
from virtha.store.incidents import save_incidents, save_paths

Story = Callable[[NotifiedWorld], Awaitable[None]]
GROUPED: dict[str, Any] = {"codes": (), "severity": Severity.WARNING, "group_by": GroupBy.CAUSE}
INCIDENT = IncidentId("i-1")


async def happens(
    world: NotifiedWorld, code: str, host: str | None = None, vm: str | None = None, **fields: str
) -> Revision:
    told = {"host": host or "?", "name": host or "?", "vm": vm or "?", **fields}
    async with world.store.write() as tx:
        made = await add_event(
            tx,
            Event(
                code=code,
                severity=severity_of(code),
                message=message_of(code, dict(told)),
                fields=dict(told),
                host_id=HostId(host) if host else None,
                vm_id=VmId(vm) if vm else None,
            ),
        )
    return made.revision


async def host_dies(world: NotifiedWorld) -> Revision:
    """With six VMs, of which two run elsewhere by now."""
    incident = HostIncident(
        id=INCIDENT,
        cluster_id=ClusterId("c"),
        host_id=HostId("h1"),
        host="h1",
        boot="b",
        number=1,
        cause=IncidentCause.JUDGED,
        opened=UtcMillis(world.clock.wall),
        opened_ms=0,
        silent_since_ms=0,
        vms=6,
    )
    paths = [
        VmPath(
            incident_id=INCIDENT,
            vm_id=VmId(f"v{number}"),
            vm=f"web{number}",
            state=PathState.RUNS if number < 2 else PathState.WAITING,
            host="h2" if number < 2 else None,
        )
        for number in range(6)
    ]
    async with world.store.write() as tx:
        await save_incidents(tx, [incident], new={INCIDENT})
        await save_paths(tx, paths, new={(INCIDENT, one.vm_id) for one in paths})
    await happens(world, "host.unreachable", "h1")
    dead = await happens(world, "host.judged_dead", "h1", incident_id=INCIDENT)
    for number in range(6):
        await happens(world, "vm.agent.lost", "h1", f"v{number}")
    return dead


async def host_returns(world: NotifiedWorld) -> None:
    for number in range(6):
        await happens(world, "vm.agent.connected", "h2", f"v{number}")
    await happens(world, "host.reachable", "h1")
    await happens(world, "host.incident_over", "h1", incident_id=INCIDENT, vms="6", after_ms="1")


async def pass_time(world: NotifiedWorld, seconds: int) -> None:
    world.clock.wall += seconds * 1_000
    await world.route_all()
