"""Which alerts an Alertmanager may have of an object and of its parts, when they are over."""

from virtha.alerts.subject import PARTS, ended_codes, ended_with, object_kind, object_of, subject_of
from virtha.model.codes import REGISTRY
from virtha.model.event import Event
from virtha.store.events import EventFilter, codes_before, events_before
from virtha.store.store import Transaction

LOOKED_AT_MAX = 200
"""Events of one code: the parts of a host are some dozens."""


async def parts_over_with(tx: Transaction, event: Event) -> tuple[Event, ...]:
    """The newest problem of each part (a domain, a device) that is over with ``event``, which names none. Perhaps it was over before:
    an alert that has ended may end again."""
    whole = ended_with(event) or subject_of(event)
    host_id = event.host_id if object_kind(whole) == "host" else None
    newest: dict[tuple[str, str], Event] = {}
    for code in ended_codes(event):
        if whole != object_of(whole) or not {*PARTS} & {*REGISTRY[code].fields}:
            continue
        wanted = EventFilter(code=code, host_id=host_id)
        for one in await events_before(tx, wanted, event.revision, LOOKED_AT_MAX):
            subject = subject_of(one)
            if object_of(subject) == whole and subject != whole:
                newest.setdefault((code, subject), one)
    return tuple(newest.values())


async def had_before(tx: Transaction, event: Event) -> tuple[str, ...] | None:
    """The codes of the problems that are over with ``event`` and that its VM or host had. Perhaps they were over before. None: of
    anything else there are few, and all may have been."""
    codes = ended_codes(event)
    match object_kind(ended_with(event) or subject_of(event)):
        case "vm":
            wanted = EventFilter(vm_id=event.vm_id)
        case "host":
            wanted = EventFilter(host_id=event.host_id)
        case _:
            return None
    if not codes:
        return None
    found = await codes_before(tx, wanted, codes, event.revision)
    return tuple(code for code in codes if code in found)
