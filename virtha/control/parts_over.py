"""Which alerts of an object's parts an Alertmanager may have, when all of them are over at once."""

from virtha.alerts.subject import PARTS, ended_codes, ended_with, object_kind, object_of, subject_of
from virtha.model.codes import REGISTRY
from virtha.model.event import Event
from virtha.store.events import EventFilter, events_before
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
