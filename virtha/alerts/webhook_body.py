"""What a webhook is sent: JSON in a versioned schema, and the headers that sign it.

The body is the same at each attempt; only the time stamp and with it the signature differ.
"""

import hashlib
import hmac

import msgspec

from virtha.alerts.notice import kind_of
from virtha.alerts.subject import solved_by
from virtha.model.codes import REGISTRY
from virtha.model.event import Event
from virtha.model.notification import Message, MessageGroup, VmLine
from virtha.model.time import format_utc
from virtha.model.value import Fields, Value

SCHEMA = "virtha.event/1"
"""Within ``/1`` fields are only added."""


class Named(Value, frozen=True, kw_only=True):
    id: str
    name: str | None


class EventBody(Value, frozen=True, kw_only=True):
    """``at``, ``host_at``: RFC 3339 in UTC; the host's own clock may be wrong. ``solves``: codes of earlier events
    of the same object that are over now."""

    number: int
    code: str
    code_number: int
    severity: str
    message: str
    help: str
    solves: tuple[str, ...]
    fields: Fields
    at: str
    host_at: str | None
    operation_id: str | None
    user: str | None


class GroupBody(Value, frozen=True, kw_only=True):
    """What goes with the event, where the route groups events. ``reason``: ``notify.told.…``, why it is sent now; ``open``:
    problems of the group that go on; ``unfollowed``: further ones, too many to know of each whether it does; ``more``: events that are only counted."""

    id: str
    key: str
    reason: str
    open: int
    cause: Named | None
    incident_id: str | None
    others: tuple[EventBody, ...]
    more: int
    vms: tuple[VmLine, ...]
    vms_left_out: int
    unfollowed: int = 0


class WebhookBody(Value, frozen=True, kw_only=True):
    """``id``: of the delivery, the same when it is sent again. ``kind``: problem, solved, notice or test."""

    schema: str
    id: str
    kind: str
    test: bool
    installation: Named
    cluster: Named | None
    host: Named | None
    vm: Named | None
    event: EventBody
    group: GroupBody | None = None


def webhook_body(message: Message) -> bytes:
    """JSON in UTF-8."""
    event = message.event
    return msgspec.json.encode(
        WebhookBody(
            schema=SCHEMA,
            id=message.delivery_id,
            kind=kind_of(message),
            test=message.test,
            installation=Named(id=message.installation_id, name=message.installation),
            cluster=_named(event.cluster_id, message.cluster),
            host=_named(event.host_id, message.host),
            vm=_named(event.vm_id, message.vm),
            event=_event(event),
            group=_group(message.group) if message.group is not None else None,
        )
    )


def _event(event: Event) -> EventBody:
    known = REGISTRY.get(event.code)
    return EventBody(
        number=event.revision,
        code=event.code,
        code_number=known.number if known is not None else 0,
        severity=event.severity,
        message=event.message,
        help=known.help if known is not None else "",
        solves=solved_by(event),
        fields=event.fields,
        at=format_utc(event.at),
        host_at=None if event.host_at is None else format_utc(event.host_at),
        operation_id=event.operation_id,
        user=event.user,
    )


def _group(group: MessageGroup) -> GroupBody:
    note = group.note
    return GroupBody(
        id=note.group_id,
        key=note.key,
        reason=note.reason,
        open=note.open,
        cause=_named(note.host_id, group.cause),
        incident_id=note.incident_id,
        others=tuple(_event(one) for one in group.others),
        more=group.more,
        vms=group.vms,
        vms_left_out=group.vms_left_out,
        unfollowed=note.unfollowed,
    )


def signature(secret: str, body: bytes, *, at_s: int) -> str:
    """``v1=`` and the hexadecimal HMAC-SHA256 over ``<seconds since 1970>.<body>``: the time is signed with the
    body, so that whoever caught a message can't send it again later."""
    signed = str(at_s).encode() + b"." + body
    return "v1=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def webhook_headers(
    message: Message, body: bytes, *, secret: str | None, at_s: int
) -> dict[str, str]:
    """Unsigned when there is no secret."""
    headers = {
        "Content-Type": "application/json",
        "X-Virtha-Delivery": _plain(message.delivery_id),
        "X-Virtha-Code": _plain(message.event.code),
        "X-Virtha-Timestamp": str(at_s),
    }
    if secret:
        headers["X-Virtha-Signature"] = signature(secret, body, at_s=at_s)
    return headers


def _named(found: str | None, name: str | None) -> Named | None:
    return None if found is None else Named(id=found, name=name)


def _plain(text: str) -> str:
    return "".join(
        character if character.isascii() and character.isprintable() else "_" for character in text
    )
