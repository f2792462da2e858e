"""What Alertmanager's API (version 2, ``POST …/api/v2/alerts``) is sent: alerts that begin, and alerts that end.

Alertmanager knows an alert by its labels, so they are made of the problem's code and of its object alone: the same
when it ends, wherever its VM runs by then. It forgets an alert that nobody repeats; a problem whose end will be told
says by itself how long it stands.
"""

import msgspec

from virtha.alerts.match import about_receiver
from virtha.alerts.notice import one_line, vm_lines
from virtha.alerts.subject import PARTS, awaits_end, ended_codes
from virtha.model.codes import REGISTRY, REPLACES
from virtha.model.event import Event
from virtha.model.notification import AlertmanagerSettings, Message
from virtha.model.time import UtcMillis, format_utc
from virtha.model.value import Value

NOTICE_MS = 900_000
"""How long an alert stands of which no end will be told."""
LABEL_CHARACTERS = 200


class Alert(Value, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """As the API has it; times are RFC 3339."""

    labels: dict[str, str]
    annotations: dict[str, str] = {}
    starts_at: str | None = None
    ends_at: str | None = None


def alertmanager_body(message: Message, settings: AlertmanagerSettings, at: UtcMillis) -> bytes:
    """JSON in UTF-8: one alert per problem; of a problem that is over as well only its end. ``at``: when it is sent. What came
    with an end that is past would never be told there, however long it had waited here."""
    others = message.group.others if message.group is not None else ()
    events = sorted((message.event, *others), key=lambda one: one.revision)
    found: dict[tuple[tuple[str, str], ...], Alert] = {}
    for event in events:
        for alert in _alerts(message, event, settings, at):
            found[tuple(sorted(alert.labels.items()))] = alert
    return msgspec.json.encode(list(found.values()))


def _alerts(
    message: Message, event: Event, settings: AlertmanagerSettings, at: UtcMillis
) -> list[Alert]:
    ends_at = format_utc(event.at)
    codes, over = ended_codes(event), message.over.get(event.revision, ())
    had = message.had.get(event.revision, codes)
    ended = [
        Alert(labels=_labels(message, event, code), ends_at=ends_at)
        for code in codes
        if code in had
    ]
    ended += [Alert(labels=_labels(message, one, one.code), ends_at=ends_at) for one in over]
    if codes and event.code not in REPLACES:
        return ended
    stands_ms = settings.resolve_after_ms if awaits_end(event) else NOTICE_MS
    return [
        *ended,
        Alert(
            labels=_labels(message, event, event.code),
            annotations=_annotations(message, event),
            starts_at=format_utc(event.at),
            ends_at=format_utc(UtcMillis(max(event.at, at) + stands_ms)),
        ),
    ]


def _labels(message: Message, event: Event, code: str) -> dict[str, str]:
    known = REGISTRY.get(code)
    labels = {
        "alertname": code,
        "severity": str(known.severity if known is not None else event.severity),
        "installation": message.installation,
    }
    names = _names(message)
    if event.cluster_id is not None:
        labels["cluster"] = names.get(event.cluster_id, event.cluster_id)
    told = event.fields
    if event.vm_id is not None:
        labels["vm"] = _text(told.get("vm")) or names.get(event.vm_id, event.vm_id)
    elif event.host_id is not None and not code.startswith("storage."):
        said = _text(told.get("host")) or _text(told.get("name"))
        labels["host"] = said or names.get(event.host_id, event.host_id)
    if about_receiver(event) is not None:
        labels["receiver"] = _text(told.get("receiver")) or str(told["receiver_id"])
    for part in PARTS:
        if event.vm_id is None and told.get(part):
            labels[part] = str(told[part])
    return {name: one_line(value, LABEL_CHARACTERS) for name, value in labels.items() if value}


def _names(message: Message) -> dict[str, str]:
    """By id, of all that the message is about: an alert must be called the same whichever event of a group heads it."""
    event, found = message.event, dict(message.group.names) if message.group is not None else {}
    for one_id, name in (
        (event.cluster_id, message.cluster),
        (event.host_id, message.host),
        (event.vm_id, message.vm),
    ):
        if one_id is not None and name:
            found[one_id] = name
    return found


def _annotations(message: Message, event: Event) -> dict[str, str]:
    known = REGISTRY.get(event.code)
    said = {
        "summary": one_line(event.message) or event.code,
        "description": known.help if known is not None else "",
        "event": str(int(event.revision)),
        "message_id": message.delivery_id,
    }
    if message.group is not None and message.event.revision == event.revision:
        said["vms"] = "; ".join(vm_lines(message.group))
    if message.test:
        said["description"] = "This is a test. Nothing happened."
    return {name: value for name, value in said.items() if value}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
