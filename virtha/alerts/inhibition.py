"""Which problem keeps which event from being told; and rules that would keep each other from it."""

from collections.abc import Iterable

from virtha.alerts.match import could_match, fits_matcher
from virtha.alerts.subject import incident_of
from virtha.model.codes import EVENTS
from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.routing import Inhibition, Same


def inhibits(rule: Inhibition, source: Event, target: Event) -> bool:
    """Never an event itself, however the rule is written."""
    return (
        source.revision != target.revision
        and fits_matcher(rule.source, source)
        and fits_matcher(rule.target, target)
        and _in_common(rule.same, source, target)
    )


def _in_common(same: Same, source: Event, target: Event) -> bool:
    found = shared(same, source)
    return found is not None and found == shared(same, target)


def shared(same: Same, event: Event) -> str | None:
    """What another event must have as well; None: it has none, and so nothing in common with any."""
    match same:
        case Same.ANYTHING:
            return ""
        case Same.HOST:
            return event.host_id
        case Same.VM:
            return event.vm_id
        case Same.CLUSTER:
            return event.cluster_id
        case Same.INCIDENT:
            return incident_of(event)


def check_no_circle(rules: Iterable[Inhibition]) -> None:
    """Raises InvalidInput (field ``target``) that names the codes, where an event's code could inhibit itself by
    way of any number of rules. By codes and severities alone: that two rules are about different hosts today says
    nothing of tomorrow."""
    after: dict[str, dict[str, str]] = {}
    for rule in rules:
        sources = [code.name for code in EVENTS if could_match(rule.source, code)]
        targets = [code.name for code in EVENTS if could_match(rule.target, code)]
        for source in sources:
            for target in targets:
                after.setdefault(source, {}).setdefault(target, rule.name)
    circle = _circle(after)
    if circle:
        way = " → ".join((*circle, circle[0]))
        names = sorted(
            {after[one][two] for one, two in zip(circle, (*circle[1:], circle[0]), strict=True)}
        )
        raise InvalidInput(
            f"would silence itself: {way} (by {', '.join(names)}): both could stay untold",
            field="target",
            fix="name fewer codes as source or target",
        )


def _circle(after: dict[str, dict[str, str]]) -> tuple[str, ...]:
    """The first found, in the order of names; empty: there is none. As deep as there are codes at most."""
    done: set[str] = set()

    def visit(code: str, way: tuple[str, ...]) -> tuple[str, ...]:
        if code in way:
            return way[way.index(code) :]
        if code in done:
            return ()
        for following in sorted(after.get(code, ())):
            found = visit(following, (*way, code))
            if found:
                return found
        done.add(code)
        return ()

    return next((found for code in sorted(after) if (found := visit(code, ()))), ())
