"""Which subscriptions an event belongs to, and whether a pattern of codes can match anything at all."""

from collections.abc import Iterable
from difflib import get_close_matches

from virtha.model.codes import EVENTS, Severity
from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.ids import ReceiverId
from virtha.model.notification import Subscription

OWN_CODES = "notify."
"""Of events about notifications themselves."""
PATTERNS_MAX = 100
_RANK = {severity: rank for rank, severity in enumerate(Severity)}
_EVENT_CODES = tuple(code.name for code in EVENTS)


def matches(subscription: Subscription, event: Event) -> bool:
    """Whether the event goes out by this subscription."""
    return (
        subscription.enabled
        and event.revision > subscription.since
        and _RANK[event.severity] >= _RANK[subscription.severity]
        and about_receiver(event) != subscription.receiver_id
        and subscription.cluster_id in (None, event.cluster_id)
        and subscription.host_id in (None, event.host_id)
        and subscription.vm_id in (None, event.vm_id)
        and (not subscription.codes or any(fits(one, event.code) for one in subscription.codes))
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
        highest = max(severities, key=lambda one: _RANK[one])
        if _RANK[highest] < _RANK[severity]:
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
