"""Writing the audit log: severity and message come from the registry, names are filled in."""

from collections.abc import Collection, Iterable
from hashlib import sha256
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
_VALUE_LENGTHS_MAX = (CHANGE_LENGTH_MAX, 1_000, 300, 100)
"""Of each value, tried in this order until all of them fit."""
_NOT_TOLD = ("id", "revision")
HIDDEN = "(not shown)"


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
    if by is not None and "by" in REGISTRY[code].fields:
        fields["by"] = by
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


def changes_between(
    before: Struct | None, after: Struct | None, *, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """For the fields of an event: ``before`` and ``after``, as JSON of what differs. None: it was not there, or is no more. Nothing
    secret may be in either, but for ``hidden``: values of which only the names are told, inner ones behind dots."""
    whole = before is None or after is None
    was, now = (_told(one, whole=whole) for one in (before, after))
    lost, made = _apart(was, now, hidden, "")
    found: dict[str, Any] = {}
    for key, one, told in (("before", before, lost), ("after", after, made)):
        if one is not None:
            found[key] = _shortened(told)
    return found


def secrets_changed(names: Iterable[str]) -> dict[str, Any]:
    """For the fields of an event: which secrets were given anew or taken away, and nothing of what they are or were."""
    changed = sorted(names)
    return {"secrets_changed": ", ".join(changed)} if changed else {}


def _told(one: Struct | None, *, whole: bool) -> dict[str, Any]:
    """``whole``: all of it is told, so what is not set needs no word."""
    if one is None:
        return {}
    told = {name: value for name, value in to_builtins(one).items() if name not in _NOT_TOLD}
    return _set_ones(told) if whole else told


def _set_ones(told: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _set_ones(value) if isinstance(value, dict) else value
        for name, value in told.items()
        if value is not None
    }


def _apart(
    was: dict[str, Any], now: dict[str, Any], hidden: Collection[str], path: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each what the other has not, or has otherwise."""
    lost: dict[str, Any] = {}
    made: dict[str, Any] = {}
    for name in {**was, **now}:
        if name in was and name in now and was[name] == now[name]:
            continue
        its_path = f"{path}{name}"
        old, new = was.get(name), now.get(name)
        if isinstance(old, dict) or isinstance(new, dict):
            inner = _apart(_of(old), _of(new), hidden, f"{its_path}.")
            # In place of an object stood something else, or nothing.
            old, new = (
                part if isinstance(one, dict) else one
                for one, part in zip((old, new), inner, strict=True)
            )
        for side, told, value in ((was, lost, old), (now, made, new)):
            if name in side:
                told[name] = HIDDEN if its_path in hidden else value
    return lost, made


def _of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _shortened(told: dict[str, Any]) -> str:
    """JSON in any case, with every name as long as there is room for them; what is cut says of itself that it is, and differs where it differed."""
    for most in _VALUE_LENGTHS_MAX:
        text = json.encode(_cut(told, most)).decode()
        if len(text) <= CHANGE_LENGTH_MAX:
            return text
    return json.encode({"…": _cut(json.encode(told).decode(), _VALUE_LENGTHS_MAX[1])}).decode()


def _cut(value: Any, most: int) -> Any:
    if isinstance(value, dict):
        return {name: _cut(inner, most) for name, inner in value.items()}
    text = value if isinstance(value, str) else json.encode(value).decode()
    if len(text) <= most:
        return value
    digest = sha256(text.encode()).hexdigest()[:16]
    return f"{text[: most // 2]}… ({len(text)} characters, SHA-256 {digest}…)"


def severity_of(code: str) -> Severity:
    """A code of a newer agent is kept, and is worth a look."""
    known = REGISTRY.get(code)
    return known.severity if known is not None else Severity.WARNING


def message_of(code: str, fields: Fields) -> str:
    if code in REGISTRY:
        return render(code, fields)
    told = ", ".join(f"{name}={value}" for name, value in sorted(fields.items()))
    return f"{code} ({told})" if told else code
