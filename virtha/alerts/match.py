"""Which subscriptions an event belongs to, and whether a pattern of codes can match anything at all."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from virtha.model.codes import EVENTS, Code, Severity
from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.ids import ReceiverId
from virtha.model.notification import Subscription
from virtha.model.routing import Matcher

OWN_CODES = "notify."
"""Of events about notifications themselves."""
PATTERNS_MAX = 100
LABELS_MAX = 20
LABEL_LENGTH_MAX = 200
RANK = {severity: rank for rank, severity in enumerate(Severity)}
_EVENT_CODES = tuple(code.name for code in EVENTS)


def matches(subscription: Subscription, event: Event) -> bool:
    """Whether the event goes out by this subscription."""
    return why_not(subscription, event) is None


def why_not(subscription: Subscription, event: Event) -> str | None:
    """The first reason (``notify.why.…``) why an event doesn't go this way; None: it does."""
    if not subscription.enabled:
        return "notify.why.switched_off"
    if event.revision <= subscription.since:
        return "notify.why.before"
    if about_receiver(event) == subscription.receiver_id:
        return "notify.why.own"
    return _why_no_fit(matcher_of(subscription), event)


def matcher_of(subscription: Subscription) -> Matcher:
    return Matcher(
        codes=subscription.codes,
        severity=subscription.severity,
        cluster_id=subscription.cluster_id,
        host_id=subscription.host_id,
        vm_id=subscription.vm_id,
        labels=subscription.labels,
    )


def fits_matcher(matcher: Matcher, event: Event) -> bool:
    return _why_no_fit(matcher, event) is None


def _why_no_fit(matcher: Matcher, event: Event) -> str | None:
    if RANK[event.severity] < RANK[matcher.severity]:
        return "notify.why.severity"
    if not names_code(matcher, event.code):
        return "notify.why.code"
    if matcher.cluster_id not in (None, event.cluster_id):
        return "notify.why.cluster"
    if matcher.host_id not in (None, event.host_id):
        return "notify.why.host"
    if matcher.vm_id not in (None, event.vm_id):
        return "notify.why.vm"
    if not all(fits(wanted, label_of(event, name)) for name, wanted in matcher.labels.items()):
        return "notify.why.label"
    return None


def label_of(event: Event, name: str) -> str:
    """A field of the event as text; one that it has not is empty, and fits no value but ``*``."""
    value = event.fields.get(name)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def could_match(matcher: Matcher, code: Code) -> bool:
    """Whether an event of that code can fit, as far as its code and its severity tell."""
    return RANK[code.severity] >= RANK[matcher.severity] and names_code(matcher, code.name)


def names_code(matcher: Matcher, code: str) -> bool:
    return not matcher.codes or any(fits(one, code) for one in matcher.codes)


def check_labels(labels: Mapping[str, str], codes: tuple[str, ...], *, field: str) -> None:
    """Each is a field of some event that ``codes`` names. Raises InvalidInput naming the nearest."""
    if len(labels) > LABELS_MAX:
        raise InvalidInput(
            f"has {len(labels)} labels", field=field, allowed=(f"at most {LABELS_MAX}",)
        )
    known = {
        name
        for code in EVENTS
        if not codes or any(fits(one, code.name) for one in codes)
        for name in code.fields
    } | {"incident_id", "incident"}
    for name, value in labels.items():
        if name not in known:
            near = get_close_matches(name, sorted(known), n=1)
            raise InvalidInput(
                f"no event that is asked for has a field '{name[:50]}'",
                field=f"{field}.{name[:50]}",
                fix=f"did you mean {near[0]}?"
                if near
                else "the fields are listed by 'virtha codes'",
            )
        if len(value) > LABEL_LENGTH_MAX or not value:
            raise InvalidInput(
                "is empty or too long",
                field=f"{field}.{name}",
                allowed=(f"1 to {LABEL_LENGTH_MAX} characters",),
            )


def fits(pattern: str, code: str) -> bool:
    """``vm.watchdog.*`` fits all that begins with ``vm.watchdog.``, ``*`` everything."""
    return code.startswith(pattern[:-1]) if pattern.endswith("*") else code == pattern


def is_own(code: str) -> bool:
    """Whether it is an event about notifications. How its deliveries fare is no event again: two receivers
    would tell of each other's failures for ever."""
    return code.startswith(OWN_CODES)


def about_receiver(event: Event) -> ReceiverId | None:
    """The receiver that an event is about, and through which it therefore never goes."""
    if not is_own(event.code):
        return None
    told = event.fields.get("receiver_id")
    return ReceiverId(told) if isinstance(told, str) else None


def check_patterns(
    patterns: Iterable[str], severity: Severity, *, field: str = "codes"
) -> tuple[str, ...]:
    """Each is the code of an event, or the beginning of one and ``*``, and can be as severe as ``severity``.
    Raises InvalidInput naming the nearest. Returns them without doubles, in their order."""
    found = tuple(dict.fromkeys(patterns))
    if len(found) > PATTERNS_MAX:
        raise InvalidInput(
            f"has {len(found)} patterns", field=field, allowed=(f"at most {PATTERNS_MAX}",)
        )
    for number, pattern in enumerate(found):
        severities = [code.severity for code in EVENTS if fits(pattern, code.name)]
        if not severities:
            raise _unknown(pattern, f"{field}[{number}]")
        highest = max(severities, key=lambda one: RANK[one])
        if RANK[highest] < RANK[severity]:
            raise InvalidInput(
                f"'{pattern}' is of severity {highest} at most, so with the least severity {severity} "
                "it would never come",
                field=f"{field}[{number}]",
                fix=f"lower the least severity to {highest}, or leave it out",
            )
    return found


def default_severity(patterns: tuple[str, ...]) -> Severity:
    """Where none is asked for: who names codes wants them all."""
    return Severity.INFO if patterns else Severity.WARNING


def _unknown(pattern: str, field: str) -> InvalidInput:
    near = get_close_matches(pattern.rstrip("*").rstrip("."), _groups() | {*_EVENT_CODES}, n=1)
    suggested = (
        f"did you mean {near[0] + '.*' if near[0] in _groups() else near[0]}? " if near else ""
    )
    return InvalidInput(
        f"no event has the code '{pattern[:100]}'",
        field=field,
        fix=f"{suggested}'virtha codes' lists all; one may end in *",
    )


def _groups() -> set[str]:
    """``vm`` and ``vm.watchdog`` of ``vm.watchdog.fired``."""
    found: set[str] = set()
    for code in _EVENT_CODES:
        parts = code.split(".")
        found |= {".".join(parts[:length]) for length in range(1, len(parts))}
    return found
