"""The words for states that oVirt's clients are shown (model/ovirt_words.py), as SQL: each row has one, and is found by it alone."""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, select

from virtha.model.host import HostState
from virtha.model.ovirt_words import (
    HOST_DEAD,
    HOST_IN_MAINTENANCE,
    HOST_LEAVING,
    HOST_STATUSES,
    HOST_WORDS,
    TEMPLATE_STATUSES,
    TEMPLATE_WORDS,
    VM_STATUSES,
    VM_WORDS,
    VMS_UNDER_WAY,
)
from virtha.search.vocabulary import Field, Kind
from virtha.store import schema
from virtha.store.search_source import Rows, SearchField, Source, from_body, plain

OVIRT_STATUS = "ovirt_status"


def ovirt_status_fields() -> tuple[SearchField, SearchField, SearchField]:
    """Of VMs, hosts and templates."""
    return (
        _field(VM_STATUSES, lambda rows: plain(_of_vm(rows))),
        _field(HOST_STATUSES, lambda rows: plain(_of_host(rows))),
        _field(TEMPLATE_STATUSES, lambda rows: plain(_of_template(rows))),
    )


def _field(words: tuple[str, ...], source: Callable[[Rows], Source]) -> SearchField:
    field = Field(
        name=OVIRT_STATUS,
        kind=Kind.WORD,
        help="what oVirt's clients are shown as its `status`, and search by under that name",
        words={word: word for word in words},
    )
    return SearchField(field=field, source=source)


def _called(state: ColumnElement[Any], words: Mapping[Any, str]) -> ColumnElement[Any]:
    return case({one.value: word for one, word in words.items()}, value=state)


def _of_vm(rows: Rows) -> ColumnElement[Any]:
    """Open operations are found by index, those of one VM at a time, and only for states where they matter."""
    state, operation = rows["vm_status"].state, schema.operation.alias()

    def open_one(kinds: frozenset[str]) -> ColumnElement[bool]:
        of_it = (operation.c.subject == rows["vm"].id, operation.c.open.is_(True))
        return exists(select(operation.c.id).where(*of_it, operation.c.kind.in_(sorted(kinds))))

    special = [
        (and_(state == one.state.value, open_one(one.kinds)), one.word) for one in VMS_UNDER_WAY
    ]
    return case(*special, else_=_called(state, VM_WORDS))


def _of_host(rows: Rows) -> ColumnElement[Any]:
    """By the records: that a leader suspects a host is in none."""
    state, record, holder = (
        rows["host_status"].state,
        schema.engine_host.alias(),
        schema.vm_holder.alias(),
    )

    def is_told(*path: str | int) -> ColumnElement[bool]:
        found = select(from_body(record.c.body, *path)).where(record.c.host_id == rows["host"].id)
        return found.scalar_subquery().is_not(None)

    holds = exists(select(holder.c.vm_id).where(holder.c.host_id == rows["host"].id))
    maintained = and_(is_told("maintenance"), state != HostState.UNREACHABLE.value)
    return case(
        (is_told("incident", "proofs", 0), HOST_DEAD),
        (and_(maintained, is_told("drain"), holds), HOST_LEAVING),
        (maintained, HOST_IN_MAINTENANCE),
        else_=_called(state, HOST_WORDS),
    )


def _of_template(rows: Rows) -> ColumnElement[Any]:
    return _called(from_body(rows["template"].body, "state"), TEMPLATE_WORDS)
