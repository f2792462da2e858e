"""Writing the audit log: severity and message come from the registry, names are filled in."""

from typing import Any

from msgspec import Struct, json, to_builtins

from virtha.model.codes import REGISTRY, Severity, render
from virtha.model.event import Event
from virtha.model.host import Host
from virtha.model.ids import ClusterId, OperationId
from virtha.model.value import Fields, Scalar
from virtha.model.vm import Vm
from virtha.store.events import add_event
from virtha.store.store import WriteTransaction

CHANGE_LENGTH_MAX = 4_000
"""Of what was, and of what is: a policy fits whole."""
_NOT_TOLD = ("id", "revision")


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


def changes_between(before: Struct | None, after: Struct | None) -> dict[str, Any]:
    """For the fields of an event: ``before`` and ``after``, as JSON of what differs. None: it was not there, or is no more. Nothing
    secret may be in either."""
    was, now = (to_builtins(one) if one is not None else {} for one in (before, after))
    names = [name for name in {**was, **now} if name not in _NOT_TOLD]
    differ = [name for name in names if was.get(name) != now.get(name)]
    found: dict[str, Any] = {}
    for key, one, told in (("before", before, was), ("after", after, now)):
        if one is not None:
            found[key] = _shortened({name: told[name] for name in differ if name in told})
    return found


def _shortened(told: dict[str, Any]) -> str:
    text = json.encode(told).decode()
    return text if len(text) <= CHANGE_LENGTH_MAX else f"{text[:CHANGE_LENGTH_MAX]}…"


def severity_of(code: str) -> Severity:
    """A code of a newer agent is kept, and is worth a look."""
    known = REGISTRY.get(code)
    return known.severity if known is not None else Severity.WARNING


def message_of(code: str, fields: Fields) -> str:
    if code in REGISTRY:
        return render(code, fields)
    told = ", ".join(f"{name}={value}" for name, value in sorted(fields.items()))
    return f"{code} ({told})" if told else code
