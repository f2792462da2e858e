"""What an event is about, so that a problem and its end find each other (``model/codes/pairs.py``)."""

from virtha.model.codes import ENDS_ALL_OF, REPLACES, SOLVED_BY, SOLVES
from virtha.model.event import PAST, Event
from virtha.model.ids import IncidentId

INCIDENT_OVER = "host.incident_over"
PARTS = ("domain", "device")
"""Fields that tell several problems of one host apart, with events that are of no VM."""

_KINDS = {
    "cluster": ("storage.", "fence.brake."),
    "vm": ("vm.",),
    "host": ("host.", "fence.", "hold.", "power."),
    "receiver": ("notify.receiver",),
}
"""Troubles of an object that are over with it, by the beginnings of their codes."""


def subject_of(event: Event) -> str:
    """The object and, of hosts and clusters, its part: ``vm:ID``, ``host:ID/DOMAIN``, ``receiver:ID``."""
    if event.code.startswith("notify."):
        return f"receiver:{event.fields.get('receiver_id')}"
    if event.vm_id is not None:
        return f"vm:{event.vm_id}"
    part = next((f"/{event.fields[one]}" for one in PARTS if event.fields.get(one)), "")
    # A storage domain's outage is told of the cluster, its end by each host that sees it again.
    if event.host_id is not None and not event.code.startswith("storage."):
        return f"host:{event.host_id}{part}"
    if event.cluster_id is not None:
        return f"cluster:{event.cluster_id}{part}"
    return f"installation{part}"


def ended_with(event: Event) -> str | None:
    """The object that is gone with this event, and all its troubles with it."""
    match ENDS_ALL_OF.get(event.code):
        case "vm":
            return None if event.vm_id is None else f"vm:{event.vm_id}"
        case "cluster":
            return None if event.cluster_id is None else f"cluster:{event.cluster_id}"
        case "host":
            return None if event.host_id is None else f"host:{event.host_id}"
        case "receiver":
            return subject_of(event)
        case _:
            return None


def awaits_end(event: Event) -> bool:
    """Whether it is a problem of which the end will be told. What was over when it was told has none."""
    return event.code in SOLVED_BY and not event.fields.get(PAST)


def solved_by(event: Event) -> tuple[str, ...]:
    """The problems of its object that it says are over."""
    return () if event.fields.get(PAST) else SOLVES.get(event.code, ())


def _replaced_by(event: Event) -> tuple[str, ...]:
    return () if event.fields.get(PAST) else REPLACES.get(event.code, ())


def ends_at(event: Event, code: str, subject: str) -> bool:
    """Whether it ends that problem there. Of what names no part all parts are meant."""
    if code not in (*solved_by(event), *_replaced_by(event)):
        return False
    mine = subject_of(event)
    return subject == mine or object_of(subject) == mine


def ended_codes(event: Event) -> tuple[str, ...]:
    """The problems that are over with it."""
    whole = ended_with(event)
    if whole is None:
        return solved_by(event) or _replaced_by(event)
    kinds = _KINDS[object_kind(whole)]
    return tuple(code for code in SOLVED_BY if code.startswith(kinds))


def object_kind(subject: str) -> str:
    """``vm``, ``host``, ``receiver``, …"""
    return subject.partition(":")[0]


def object_of(subject: str) -> str:
    """Without the part."""
    return subject.partition("/")[0]


def incident_of(event: Event) -> IncidentId | None:
    """The host's failure that it belongs to."""
    told = event.fields.get("incident_id")
    return IncidentId(told) if isinstance(told, str) else None
