"""Writing the audit log: severity and message come from the registry, names are filled in."""

from virtha.model.codes import REGISTRY, Severity, render
from virtha.model.event import Event
from virtha.model.host import Host
from virtha.model.ids import ClusterId, OperationId
from virtha.model.value import Fields, Scalar
from virtha.model.vm import Vm
from virtha.store.events import add_event
from virtha.store.store import WriteTransaction


async def record(
    tx: WriteTransaction,
    code: str,
    *,
    vm: Vm | None = None,
    host: Host | None = None,
    cluster_id: ClusterId | None = None,
    operation_id: OperationId | None = None,
    by: str | None = None,
    **fields: Scalar,
) -> Event:
    """An event of the server's own, so its code is known."""
    assert code in REGISTRY, code
    if vm is not None:
        fields.setdefault("vm", vm.name)
    if host is not None:
        fields.setdefault("host", host.name)
    return await add_event(
        tx,
        Event(
            code=code,
            severity=severity_of(code),
            message=render(code, fields),
            fields=fields,
            cluster_id=cluster_id or (vm and vm.cluster_id) or (host and host.cluster_id) or None,
            host_id=host.id if host is not None else None,
            vm_id=vm.id if vm is not None else None,
            operation_id=operation_id,
            user=by,
        ),
    )


def severity_of(code: str) -> Severity:
    """A code of a newer agent is kept, and is worth a look."""
    known = REGISTRY.get(code)
    return known.severity if known is not None else Severity.WARNING


def message_of(code: str, fields: Fields) -> str:
    if code in REGISTRY:
        return render(code, fields)
    told = ", ".join(f"{name}={value}" for name, value in sorted(fields.items()))
    return f"{code} ({told})" if told else code
