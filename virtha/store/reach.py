"""What of the records one sees who may see some clusters only: a filter below every query, in the database itself.

A connection for such readers has, for each table, a temporary view of the same name that leaves out what is not theirs; SQLite finds
that one first. So no query has to think of it, none can forget it, and nothing can be written that way: views take no writes.
Decisions are never made on a part of the records: ``Store.write`` refuses where a reach is set.
(With PostgreSQL: row-level security, by the same table of rules.)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from virtha.model.ids import ClusterId
from virtha.store import schema

Reach = frozenset[ClusterId]
_REACH: ContextVar[Reach | None] = ContextVar("reach", default=None)

_REACHED = "IN (SELECT cluster_id FROM temp.reach)"
_ITS_OWN = f"cluster_id {_REACHED}"
SEEN = ""
"""The same for everybody, but for what is covered."""
HIDDEN = "0"
"""Of users, messages and the server's own: nothing for who may see some clusters only."""


def _of(column: str, table: str) -> str:
    its = f"main.{table} AS its WHERE its.id = own.{column} AND its.cluster_id {_REACHED}"
    return f"EXISTS (SELECT 1 FROM {its})"  # noqa: S608 - names of ours


RULES: Mapping[str, str] = {
    "installation": SEEN,
    "cluster": f"id {_REACHED}",
    "host": _ITS_OWN,
    "host_status": _of("host_id", "host"),
    "storage_domain": _ITS_OWN,
    "storage_report": _of("host_id", "host"),
    "vm": f"+{_ITS_OWN}",
    "vm_status": _of("vm_id", "vm"),
    "vm_holder": _of("vm_id", "vm"),
    "vm_definition": _of("vm_id", "vm"),
    "disk": _of("vm_id", "vm"),
    "nic": _of("vm_id", "vm"),
    "template": _ITS_OWN,
    "template_disk": _of("template_id", "template"),
    "template_use": _of("template_id", "template"),
    "snapshot": _of("vm_id", "vm"),
    "event": _ITS_OWN,
    "operation": _ITS_OWN,
    "host_order": _of("host_id", "host"),
    "user_account": HIDDEN,
    "access_role": HIDDEN,
    "access_grant": HIDDEN,
    "external_identity": HIDDEN,
    "sign_in_provider": HIDDEN,
    "token": f"kind = 'join' AND {_ITS_OWN}",
    "setting": (
        f"scope = 'global' OR (scope = 'cluster' AND subject {_REACHED}) "
        f"OR (scope = 'host' AND {_of('subject', 'host')})"
    ),
    "certificate": _of("host_id", "host"),
    "receiver": HIDDEN,
    "receiver_status": HIDDEN,
    "subscription": HIDDEN,
    "delivery": HIDDEN,
    "delivery_count": HIDDEN,
    "route_group": HIDDEN,
    "event_fate": HIDDEN,
    "silence": HIDDEN,
    "inhibition": HIDDEN,
    "keyed_request": HIDDEN,
    "follower": HIDDEN,
    "engine_cluster": _ITS_OWN,
    "engine_host": _ITS_OWN,
    "engine_vm": _ITS_OWN,
    "incident": _ITS_OWN,
    "incident_vm": _of("incident_id", "incident"),
    "engine_grant": _of("vm_id", "vm"),
    "power_device": f"{_ITS_OWN} OR {_of('host_id', 'host')}",
    "power_test": _of("host_id", "host"),
}
"""By table: which rows are seen. The plus keeps SQLite on the order that a list of VMs asks for: by the index of clusters it sorts all
VMs of them for each page (20,000: 50 ms, and 2 this way). Events have an index in their own order. One that is not here is hidden, and a test says so."""


HOLD_REASON = "(the reason is for who sees all clusters)"
COVERED: Mapping[str, Mapping[str, str]] = {
    "installation": {"hold": f"CASE WHEN hold IS NULL THEN NULL ELSE '{HOLD_REASON}' END"}
}
"""By table: what stands in a column instead of what is there. Whether there is a hold concerns everybody; its reason is of the whole
installation, and may name what is in other clusters."""


def _columns(table: str) -> str:
    covered = COVERED.get(table)
    if covered is None:
        return "*"
    names = [one.name for one in schema.metadata.tables[table].columns]
    return ", ".join(f"{covered[name]} AS {name}" if name in covered else name for name in names)


def view_statements() -> tuple[str, ...]:
    """What is said once to each connection for such readers. Until its reach is filled nothing is seen."""
    made = ["CREATE TEMP TABLE reach (cluster_id TEXT PRIMARY KEY) WITHOUT ROWID"]
    for table in sorted(schema.metadata.tables):
        rule = RULES.get(table, HIDDEN)
        if rule != SEEN or table in COVERED:
            rows = f"SELECT {_columns(table)} FROM main.{table} AS own WHERE {rule or 1}"  # noqa: S608 - names of ours
            made.append(f"CREATE TEMP VIEW {table} AS {rows}")
    return tuple(made)


def reach_now() -> Reach | None:
    """What this task's reads see; None: everything."""
    return _REACH.get()


@contextmanager
def seeing(reach: Reach | None) -> Iterator[None]:
    """Reads within it, and those of tasks that are begun within it, see those clusters only. None: everything."""
    token = _REACH.set(reach)
    try:
        yield
    finally:
        _REACH.reset(token)
