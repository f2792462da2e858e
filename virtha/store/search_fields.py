"""What can be searched for, by which fields, and where the database has each. The one table of it: the parser's names and
errors, the SQL and docs/reference/search.md come from here.

Fields that every VM's row is looked through for are columns; those of small tables come from the record's body.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select

from virtha.model.codes import Severity
from virtha.model.host import HostState
from virtha.model.ovirt_words import HOST_WORDS, TEMPLATE_WORDS, VM_WORDS, other_names
from virtha.model.policy import PermissionGrade
from virtha.model.template import TemplateState
from virtha.model.user import Role
from virtha.model.vm import OnIoError, VmState
from virtha.model.watchdog import WatchdogAction, WatchdogModel
from virtha.search.vocabulary import Field, Kind, Noun
from virtha.store import schema
from virtha.store.events import RANK
from virtha.store.search_policy import policy_fields, policy_of_cluster_fields
from virtha.store.search_source import (
    BOOLEAN,
    Condition,
    Rows,
    SearchField,
    Source,
    from_body,
    number_from_body,
    plain,
    through,
)
from virtha.store.search_status import OVIRT_STATUS, ovirt_status_fields

VMS, HOSTS, TEMPLATES = "Vms", "Hosts", "Templates"
EVENTS, CLUSTERS, STORAGE, USERS = "Events", "Clusters", "Storage", "Users"
_SEVERITIES = {"normal": Severity.INFO}


Link = Callable[[Rows, Rows, Condition], Condition]
"""Rows of the one sought, rows of the other, a condition on the other -> one on the one sought: such another belongs to it."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """One noun. Of its ``own`` table, ``key`` is the column that identifies a row, ``order`` the one, unique too, by which lists
    are that are not sorted by something else."""

    name: str
    aliases: tuple[str, ...]
    rows: Callable[[], Rows]
    own: str
    key: str = "id"
    order: str = "name"
    fields: tuple[SearchField, ...]
    links: Mapping[str, Link]

    def key_of(self, rows: Rows) -> ColumnElement[Any]:
        found: ColumnElement[Any] = rows[self.own][self.key]
        return found

    def name_of(self, rows: Rows) -> ColumnElement[Any]:
        found: ColumnElement[Any] = rows[self.own][self.order]
        return found

    def field(self, name: str) -> SearchField:
        return next(one for one in self.fields if one.field.name == name)

    @property
    def noun(self) -> Noun:
        return Noun(
            name=self.name,
            aliases=self.aliases,
            fields={one.field.name: one.field for one in self.fields},
            related=tuple(self.links),
        )


def _rows(table: Any, more: Any = None, *, on: tuple[str, str] | None = None) -> Callable[[], Rows]:
    def make() -> Rows:
        first = table.alias()
        if more is None or on is None:
            return Rows(tables={table.name: first}, joined=first)
        second = more.alias()
        joined = first.join(second, first.c[on[0]] == second.c[on[1]])
        return Rows(tables={table.name: first, more.name: second}, joined=joined)

    return make


def _column(table: str, column: str) -> Callable[[Rows], Source]:
    return lambda rows: plain(rows[table][column])


def _body(table: str, *path: str) -> Callable[[Rows], Source]:
    return lambda rows: plain(from_body(rows[table].body, *path))


def _number(table: str, *path: str) -> Callable[[Rows], Source]:
    return lambda rows: plain(func.coalesce(number_from_body(rows[table].body, *path), 0))


def _name_of(table: str, key: str, other: Any, identity: str = "id") -> Callable[[Rows], Source]:
    def make(rows: Rows) -> Source:
        found = other.alias()
        return through(rows[table][key], found.c[identity], found.c.name)

    return make


def _text(
    name: str,
    help: str,
    source: Callable[[Rows], Source],
    *,
    free: bool = False,
    nullable: bool = False,
) -> SearchField:
    field = Field(name=name, kind=Kind.TEXT, help=help, free=free, nullable=nullable)
    return SearchField(field=field, source=source)


def _count(
    name: str, help: str, source: Callable[[Rows], Source], kind: Kind = Kind.NUMBER
) -> SearchField:
    return SearchField(field=Field(name=name, kind=kind, help=help), source=source)


def _time(
    name: str, help: str, source: Callable[[Rows], Source], *, nullable: bool = False
) -> SearchField:
    field = Field(name=name, kind=Kind.TIME, help=help, nullable=nullable)
    return SearchField(field=field, source=source)


def _words(
    name: str,
    help: str,
    source: Callable[[Rows], Source],
    words: type[StrEnum],
    *,
    also: Mapping[str, StrEnum] | None = None,
    nullable: bool = False,
) -> SearchField:
    written = {one.value: one.value for one in words}
    written |= {name: one.value for name, one in (also or {}).items()}
    field = Field(name=name, kind=Kind.WORD, help=help, words=written, nullable=nullable)
    return SearchField(field=field, source=source)


def _truth(name: str, help: str, source: Callable[[Rows], Source]) -> SearchField:
    field = Field(name=name, kind=Kind.WORD, help=help, words={one: one for one in BOOLEAN})
    return SearchField(field=field, source=source, stored=BOOLEAN)


def _grade(rows: Rows) -> Source:
    """A record without one has the highest."""
    limit = from_body(rows["vm"].body, "grade")
    return plain(func.coalesce(limit, PermissionGrade.FENCE.value))


def _open_incident_of_vm(rows: Rows) -> Source:
    path, incident = schema.incident_vm.alias(), schema.incident.alias()
    joined = path.join(incident, incident.c.id == path.c.incident_id)
    open_ones = select(path.c.vm_id).select_from(joined).where(incident.c.open.is_(True))
    newest = (
        select(incident.c.id)
        .select_from(joined)
        .where(incident.c.open.is_(True), path.c.vm_id == rows["vm"].id)
        .order_by(incident.c.number.desc())
        .limit(1)
    )
    return Source(
        where=lambda predicate: rows["vm"].id.in_(open_ones.where(predicate(incident.c.id))),
        order=newest.scalar_subquery(),
    )


def _open_incident_of_host(rows: Rows) -> Source:
    incident = schema.incident.alias()
    open_ones = select(incident.c.host_id).where(incident.c.open.is_(True))
    newest = (
        select(incident.c.id)
        .where(incident.c.open.is_(True), incident.c.host_id == rows["host"].id)
        .order_by(incident.c.number.desc())
        .limit(1)
    )
    return Source(
        where=lambda predicate: rows["host"].id.in_(open_ones.where(predicate(incident.c.id))),
        order=newest.scalar_subquery(),
    )


def _vms_held(rows: Rows) -> Source:
    holder = schema.vm_holder.alias()
    counted = select(func.count()).where(holder.c.host_id == rows["host"].id)
    return plain(counted.scalar_subquery())


def _cluster_of(table: str) -> tuple[SearchField, SearchField]:
    source = _name_of(table, "cluster_id", schema.cluster)
    return (
        _text("cluster", "its cluster's name", source, free=True),
        _text("datacenter", "the same: oVirt's data centers are clusters here", source),
    )


_VM_STATUS, _HOST_STATUS, _TEMPLATE_STATUS = ovirt_status_fields()
_VM_FIELDS = (
    _text("name", "its name", _column("vm", "name"), free=True),
    _text("id", "its id", _column("vm", "id")),
    _text("description", "the remark", _column("vm", "description"), free=True),
    _words(
        "status",
        "its state, as shown",
        _column("vm_status", "state"),
        VmState,
        also=other_names(VM_WORDS),
    ),
    _VM_STATUS,
    _text(
        "host",
        "the host where it runs, or last ran",
        _name_of("vm_status", "host_id", schema.host),
        free=True,
        nullable=True,
    ),
    *_cluster_of("vm"),
    _count("memory", "its memory", _column("vm", "memory_bytes"), Kind.SIZE),
    _count("vcpus", "its virtual processors", _column("vm", "vcpus")),
    _text("architecture", "its processor architecture", _body("vm", "architecture")),
    _truth("ha", "whether it is restarted after a failure", _column("vm", "ha")),
    _count(
        "priority", "of VMs that come back, the higher is started first", _column("vm", "priority")
    ),
    _words(
        "watchdog",
        "the model of its watchdog card",
        _column("vm", "watchdog"),
        WatchdogModel,
        nullable=True,
    ),
    _words(
        "watchdog_action",
        "what its watchdog does",
        _column("vm", "watchdog_action"),
        WatchdogAction,
        nullable=True,
    ),
    _time(
        "last_event",
        "when its watchdog last fired",
        _column("vm_status", "last_watchdog"),
        nullable=True,
    ),
    _count("watchdog_events", "how often it fired", _column("vm_status", "watchdog_count")),
    _words("on_io_error", "what an I/O error does to it", _body("vm", "on_io_error"), OnIoError),
    _words("grade", "how far automatic action may go with it at most", _grade, PermissionGrade),
    _text(
        "incident", "the id of the open incident that it is in", _open_incident_of_vm, nullable=True
    ),
    *policy_of_cluster_fields("vm", described_by=CLUSTERS),
)
_HOST_FIELDS = (
    _text("name", "its name", _column("host", "name"), free=True),
    _text("id", "its id", _column("host", "id")),
    _text(
        "address", "the same as its name, as oVirt's clients are shown it", _column("host", "name")
    ),
    _count("number", "the number that counts up", _column("host", "number")),
    _words(
        "status",
        "how it answers",
        _column("host_status", "state"),
        HostState,
        also=other_names(HOST_WORDS),
    ),
    _HOST_STATUS,
    *_cluster_of("host"),
    _count("active_vms", "how many VMs it may hold", _vms_held),
    _count(
        "memory",
        "what it may promise to VMs",
        _number("host_status", "capabilities", "memory_bytes"),
        Kind.SIZE,
    ),
    _count("cpus", "its processors", _number("host_status", "capabilities", "cpus")),
    _text(
        "architecture",
        "its processor architecture",
        _body("host_status", "capabilities", "architecture"),
    ),
    _text("incident", "the id of its open incident", _open_incident_of_host, nullable=True),
    *policy_of_cluster_fields("host", described_by=CLUSTERS),
)
_TEMPLATE_FIELDS = (
    _text("name", "its name", _column("template", "name"), free=True),
    _text("id", "its id", _column("template", "id")),
    _text("description", "the remark", _body("template", "description"), free=True),
    _words(
        "status",
        "its state",
        _body("template", "state"),
        TemplateState,
        also=other_names(TEMPLATE_WORDS),
    ),
    _TEMPLATE_STATUS,
    *_cluster_of("template"),
    _count("memory", "its memory", _number("template", "memory_bytes"), Kind.SIZE),
    _count("vcpus", "its virtual processors", _number("template", "vcpus")),
    _text("architecture", "its processor architecture", _body("template", "architecture")),
    _truth(
        "ha",
        "whether VMs made from it are restarted after a failure",
        lambda rows: plain(number_from_body(rows["template"].body, "ha")),
    ),
    _count("priority", "the priority of VMs made from it", _number("template", "priority")),
    _words(
        "watchdog",
        "the model of its watchdog card",
        _body("template", "watchdog", "model"),
        WatchdogModel,
        nullable=True,
    ),
    _words(
        "watchdog_action",
        "what its watchdog does",
        _body("template", "watchdog", "action"),
        WatchdogAction,
        nullable=True,
    ),
    _time("creationdate", "when it was made", _number("template", "created")),
)
_BY_REVISION = frozenset({"id", "time"})
"""By what events can be sorted: both mean the order in which they were recorded."""
_EVENT_WHOLE = (
    _count("id", "its revision", _column("event", "revision")),
    _text("code", "its code", _column("event", "code"), free=True),
    SearchField(
        field=Field(
            name="severity",
            kind=Kind.WORD,
            help="how bad it is",
            words={one.value: one.value for one in Severity} | dict(_SEVERITIES),
            ordered=True,
        ),
        source=_column("event", "severity"),
        stored={severity.value: rank for severity, rank in RANK.items()},
    ),
    _text("message", "its text", _body("event", "message"), free=True),
    _time("time", "when it was recorded", _column("event", "at")),
    _text("usrname", "who caused it", _body("event", "user"), nullable=True),
    _text("event_vm", "its VM's name", _name_of("event", "vm_id", schema.vm), nullable=True),
    _text(
        "event_host", "its host's name", _name_of("event", "host_id", schema.host), nullable=True
    ),
    _text(
        "event_cluster",
        "its cluster's name",
        _name_of("event", "cluster_id", schema.cluster),
        nullable=True,
    ),
    _text(
        "correlation_id",
        "the operation that it belongs to",
        _body("event", "operation_id"),
        nullable=True,
    ),
)
_EVENT_FIELDS = tuple(
    replace(one, field=replace(one.field, sortable=one.field.name in _BY_REVISION))
    for one in _EVENT_WHOLE
)
_CLUSTER_FIELDS = (
    _text("name", "its name", _column("cluster", "name"), free=True),
    _text("id", "its id", _column("cluster", "id")),
    _text("description", "the remark", _body("cluster", "description"), free=True),
    _text(
        "datacenter", "its name: oVirt's data centers are clusters here", _column("cluster", "name")
    ),
    *policy_fields(),
)
_STORAGE_FIELDS = (
    _text("name", "its name", _column("storage_domain", "name"), free=True),
    _text("id", "its id", _column("storage_domain", "id")),
    _text("type", "directory or ceph-rbd", _body("storage_domain", "kind")),
    _text("path", "where it lies", _column("storage_domain", "path"), free=True),
    *_cluster_of("storage_domain"),
)
_USER_FIELDS = (
    _text("usrname", "the name that they sign in with", _column("user_account", "name"), free=True),
    _text("name", "the same", _column("user_account", "name")),
    _text("id", "the id", _column("user_account", "id")),
    _words("role", "what they may do", _column("user_account", "role"), Role),
    _truth("enabled", "whether they may sign in", _column("user_account", "enabled")),
    _text("email", "where their mail goes", _column("user_account", "email"), nullable=True),
)


def _link(mine: tuple[str, str], theirs: tuple[str, str]) -> Link:
    """Both have the same value in these columns."""

    def where(rows: Rows, others: Rows, condition: Condition) -> Condition:
        found = select(others[theirs[0]][theirs[1]]).select_from(others.joined).where(condition)
        key: ColumnElement[Any] = rows[mine[0]][mine[1]]
        return key.in_(found)

    return where


def _pairs(table: Any, mine: tuple[str, str], theirs: tuple[str, str]) -> Link:
    """``table`` has a row for each pair: (name of the noun's own table, the pair's column with its id), and the other's."""

    def where(rows: Rows, others: Rows, condition: Condition) -> Condition:
        pair = table.alias()
        same = pair.c[theirs[1]] == others[theirs[0]].id
        found = select(pair.c[mine[1]]).select_from(pair.join(others.joined, same)).where(condition)
        key: ColumnElement[Any] = rows[mine[0]].id
        return key.in_(found)

    return where


def _made_from(mine: str, theirs: str) -> Link:
    """VMs and the templates that files of theirs need: of thin disks, and of copies that are being made."""

    def where(rows: Rows, others: Rows, condition: Condition) -> Condition:
        use, file = schema.template_use.alias(), schema.disk.alias()
        keys = {"vm": file.c.vm_id, "template": use.c.template_id}
        same = and_(file.c.storage_domain_id == use.c.storage_domain_id, file.c.path == use.c.path)
        files = use.join(file, same).join(others.joined, keys[theirs] == others[theirs].id)
        key: ColumnElement[Any] = rows[mine].id
        return key.in_(select(keys[mine]).select_from(files).where(condition))

    return where


_ALL = (
    Searched(
        name=VMS,
        aliases=("vm",),
        rows=_rows(schema.vm, schema.vm_status, on=("id", "vm_id")),
        own="vm",
        fields=_VM_FIELDS,
        links={
            HOSTS: _link(("vm_status", "host_id"), ("host", "id")),
            CLUSTERS: _link(("vm", "cluster_id"), ("cluster", "id")),
            STORAGE: _pairs(schema.disk, ("vm", "vm_id"), ("storage_domain", "storage_domain_id")),
            TEMPLATES: _made_from("vm", "template"),
            EVENTS: _link(("vm", "id"), ("event", "vm_id")),
        },
    ),
    Searched(
        name=HOSTS,
        aliases=("host",),
        rows=_rows(schema.host, schema.host_status, on=("id", "host_id")),
        own="host",
        fields=_HOST_FIELDS,
        links={
            VMS: _link(("host", "id"), ("vm_status", "host_id")),
            CLUSTERS: _link(("host", "cluster_id"), ("cluster", "id")),
            STORAGE: _link(("host", "cluster_id"), ("storage_domain", "cluster_id")),
            EVENTS: _link(("host", "id"), ("event", "host_id")),
        },
    ),
    Searched(
        name=TEMPLATES,
        aliases=("template",),
        rows=_rows(schema.template),
        own="template",
        fields=_TEMPLATE_FIELDS,
        links={
            VMS: _made_from("template", "vm"),
            CLUSTERS: _link(("template", "cluster_id"), ("cluster", "id")),
            STORAGE: _pairs(
                schema.template_disk,
                ("template", "template_id"),
                ("storage_domain", "storage_domain_id"),
            ),
        },
    ),
    Searched(
        name=EVENTS,
        aliases=("event",),
        rows=_rows(schema.event),
        own="event",
        key="revision",
        order="revision",
        fields=_EVENT_FIELDS,
        links={
            VMS: _link(("event", "vm_id"), ("vm", "id")),
            HOSTS: _link(("event", "host_id"), ("host", "id")),
            CLUSTERS: _link(("event", "cluster_id"), ("cluster", "id")),
        },
    ),
    Searched(
        name=CLUSTERS,
        aliases=("cluster",),
        rows=_rows(schema.cluster),
        own="cluster",
        fields=_CLUSTER_FIELDS,
        links={
            VMS: _link(("cluster", "id"), ("vm", "cluster_id")),
            HOSTS: _link(("cluster", "id"), ("host", "cluster_id")),
            STORAGE: _link(("cluster", "id"), ("storage_domain", "cluster_id")),
            EVENTS: _link(("cluster", "id"), ("event", "cluster_id")),
        },
    ),
    Searched(
        name=STORAGE,
        aliases=("storages",),
        rows=_rows(schema.storage_domain),
        own="storage_domain",
        fields=_STORAGE_FIELDS,
        links={
            VMS: _pairs(schema.disk, ("storage_domain", "storage_domain_id"), ("vm", "vm_id")),
            HOSTS: _link(("storage_domain", "cluster_id"), ("host", "cluster_id")),
            CLUSTERS: _link(("storage_domain", "cluster_id"), ("cluster", "id")),
        },
    ),
    Searched(
        name=USERS,
        aliases=("user",),
        rows=_rows(schema.user_account),
        own="user_account",
        fields=_USER_FIELDS,
        links={},
    ),
)
SEARCHED: dict[str, Searched] = {one.name: one for one in _ALL}
VOCABULARY: dict[str, Noun] = {one.name: one.noun for one in _ALL}
"""What the parser knows of it."""
CLIENTS_VOCABULARY: dict[str, Noun] = {
    name: replace(noun, fields={**noun.fields, "status": replace(shown, name="status")})
    if (shown := noun.fields.get(OVIRT_STATUS)) is not None
    else noun
    for name, noun in VOCABULARY.items()
}
"""As oVirt's clients know it: ``status`` is what they are shown."""
