"""Is this VM protected? Pure: what stands against it, each with a code (X1)."""

from virtha.model.codes import render
from virtha.model.host import Cluster, HostState
from virtha.model.policy import PermissionGrade
from virtha.model.vm import Reason, VmState
from virtha.store.hosts import HostRow
from virtha.store.vms import VmRow

OK = Reason(code="protection.ok")
_HARMLESS = {
    "protection.ok",
    "protection.no_watchdog",
    "protection.single_host",
    "protection.grade",
}
"""Protection works with these, though not against everything."""
_DOWN = (VmState.DOWN, VmState.CRASHED)


def protection_of(
    row: VmRow,
    host: HostRow | None,
    cluster: Cluster,
    *,
    hold: str | None,
    other_host_fits: bool,
) -> tuple[Reason, ...]:
    """``host``: where it runs or ran last; ``other_host_fits``: another one could take it."""
    if not row.vm.ha:
        return (Reason(code="protection.no_ha"),)
    found: list[Reason] = []
    if row.status.wanted_up:
        found += _of_host(host)
        if row.shown in _DOWN:
            found.append(Reason(code="protection.not_running"))
    if hold is not None:
        found.append(Reason(code="protection.hold", fields={"reason": hold}))
    grade = cluster.policy.recovery.grade.but_at_most(row.vm.grade_max)
    if grade is PermissionGrade.OBSERVE:
        found.append(Reason(code="protection.ignored"))
    elif not grade.permits(PermissionGrade.MOVE):
        found.append(Reason(code="protection.grade", fields={"grade": grade.value}))
    if not cluster.policy.restart.enabled or cluster.policy.restart.restarts_max == 0:
        found.append(Reason(code="protection.policy"))
    if any(reason.code == "restart.blocked.limit" for reason in row.status.reasons):
        found.append(Reason(code="protection.exhausted"))
    if row.vm.watchdog is None:
        found.append(Reason(code="protection.no_watchdog"))
    if not other_host_fits:
        found.append(Reason(code="protection.single_host"))
    return tuple(found) or (OK,)


def _of_host(host: HostRow | None) -> list[Reason]:
    if host is None:
        return []
    fields: dict[str, str | int | bool | None] = {"host": host.host.name}
    match host.status.state:
        case HostState.UNREACHABLE | HostState.NEVER_SEEN:
            return [Reason(code="protection.host_unreachable", fields=fields)]
        case HostState.AGENT_DOWN:
            return [Reason(code="protection.agent_down", fields=fields)]
        case HostState.UP:
            pass
    found = []
    if not host.status.capabilities.libvirt_connected:
        found.append(Reason(code="protection.libvirt", fields=fields))
    if not host.status.capabilities.gate_in_force:
        found.append(Reason(code="protection.gate", fields=fields))
    return found


def is_protected(reasons: tuple[Reason, ...]) -> bool:
    return all(reason.code in _HARMLESS for reason in reasons)


def texts(reasons: tuple[Reason, ...]) -> tuple[str, ...]:
    return tuple(render(reason.code, reason.fields) for reason in reasons)
