"""How receivers, subscriptions and messages are shown."""

from typing import Any

from virtha.cli.output import Column, Object, View, at, moment
from virtha.model.codes import REGISTRY
from virtha.model.time import format_duration_ms


def _target(item: Object) -> str:
    settings = item["receiver"]["settings"]
    if "url" in settings:
        return str(settings["url"])
    host = settings["host"]
    return f"[{host}]:{settings['port']}" if ":" in host else f"{host}:{settings['port']}"


def _state(item: Object) -> str:
    if not item["receiver"]["enabled"]:
        return "off"
    return "away" if item["status"]["away_since"] else "ok"


def _count(state: str) -> Any:
    return lambda item: item["deliveries"].get(state, 0)


def _receiver_details(item: Object) -> list[tuple[str, Any]]:
    receiver, status = item["receiver"], item["status"]
    lines: list[tuple[str, Any]] = [
        ("name", receiver["name"]),
        ("id", receiver["id"]),
        ("state", _state(item)),
        ("away since", moment(status["away_since"])),
        ("why", item["reason_text"]),
        ("its words", status["detail"]),
        ("last took one", moment(status["accepted_at"])),
        *[
            (name.replace("_", " "), value)
            for name, value in receiver["settings"].items()
            if name != "authority_pem"
        ],
        ("authority", "its own" if receiver["settings"].get("authority_pem") else None),
        ("secrets set", receiver["secrets"]),
        ("subscriptions", item["subscriptions"]),
        *[(f"messages {state}", count) for state, count in sorted(item["deliveries"].items())],
        ("oldest that waits", moment(item["oldest_pending"])),
        ("revision", receiver["revision"]),
    ]
    return [(label, value) for label, value in lines if value not in (None, "", [])]


RECEIVER = View(
    name=at("receiver", "name"),
    columns=(
        Column("NAME", at("receiver", "name")),
        Column("TYPE", at("kind")),
        Column("TARGET", _target),
        Column("STATE", _state),
        Column("PENDING", _count("pending")),
        Column("SENT", _count("sent")),
        Column("REFUSED", _count("refused")),
        Column("EXPIRED", _count("expired")),
        Column("WHY", at("reason_text")),
        Column("OLDEST PENDING", lambda item: moment(item["oldest_pending"]), wide=True),
        Column("SUBSCRIPTIONS", at("subscriptions"), wide=True),
        Column("ID", at("receiver", "id"), wide=True),
    ),
    details=_receiver_details,
)


def _whom(item: Object) -> str:
    return str(item["subscription"]["address"] or item["user_name"] or "")


def _about(item: Object) -> list[str]:
    """A thing that was removed meanwhile is shown by its id."""
    return [
        f"{kind} {item[f'{kind}_name'] or item['subscription'][f'{kind}_id']}"
        for kind in ("cluster", "host", "vm")
        if item["subscription"][f"{kind}_id"]
    ]


def _grouping(item: Object) -> str:
    one = item["subscription"]
    return "" if one["group_by"] == "none" else str(one["group_by"])


def quiet_text(span: Object) -> str:
    """As ``--quiet-hours`` reads it."""
    days = "" if len(span["days"]) == _WEEK else ",".join(span["days"]) + " "
    zone = "" if span["zone"] == "UTC" else f" {span['zone']}"
    return f"{days}{span['begins']}-{span['ends']}{zone}"


_WEEK = 7


def weight_lines(item: Object) -> list[str]:
    """What a route would have told, and what to do where that is remarkable."""
    weight = item.get("weight")
    if not weight or not weight["events"]:
        return []
    known = REGISTRY.get(weight["code"])
    advice = [known.help] if known is not None and known.help else []
    return [weight["reason_text"], *advice]


def _route_details(item: Object) -> list[tuple[str, Any]]:
    one = item["subscription"]
    grouped = one["group_by"] != "none"
    lines: list[tuple[str, Any]] = [
        ("name", one["name"]),
        ("id", one["id"]),
        ("enabled", one["enabled"]),
        ("receiver", item["receiver_name"]),
        ("to", _whom(item)),
        ("events", one["codes"] or "all"),
        ("severity", one["severity"]),
        ("about", _about(item)),
        ("labels", [f"{name}={value}" for name, value in sorted(one["labels"].items())]),
        ("ends of problems", "told" if one["solved"] else "not told"),
        ("grouped by", _grouping(item)),
        ("group waits", format_duration_ms(one["group_wait_ms"]) if grouped else None),
        ("group interval", format_duration_ms(one["group_interval_ms"]) if grouped else None),
        ("repeated", format_duration_ms(one["repeat_ms"]) if one["repeat_ms"] else None),
        ("same again after", format_duration_ms(one["same_again_ms"] or 0)),
        ("quiet hours", [quiet_text(span) for span in one["quiet"]]),
        ("weight", (item.get("weight") or {}).get("reason_text")),
        ("revision", one["revision"]),
    ]
    return [(label, value) for label, value in lines if value not in (None, "", [])]


ROUTE = View(
    name=at("subscription", "name"),
    columns=(
        Column("NAME", at("subscription", "name")),
        Column("RECEIVER", at("receiver_name")),
        Column("TO", _whom),
        Column("EVENTS", lambda item: item["subscription"]["codes"] or "all"),
        Column("SEVERITY", at("subscription", "severity")),
        Column("ABOUT", _about),
        Column("GROUP", _grouping),
        Column("ENABLED", at("subscription", "enabled")),
        Column("ID", at("subscription", "id"), wide=True),
    ),
    details=_route_details,
)


def _matched(matcher: Object, item: Object | None = None) -> list[str]:
    found = list(matcher["codes"]) or ["all"]
    if matcher["severity"] != "info":
        found.append(f"{matcher['severity']} or worse")
    for kind in ("cluster", "host", "vm"):
        if matcher[f"{kind}_id"]:
            name = (item or {}).get(f"{kind}_name") or matcher[f"{kind}_id"]
            found.append(f"{kind} {name}")
    return found + [f"{name}={value}" for name, value in sorted(matcher["labels"].items())]


SILENCE = View(
    name=at("silence", "id"),
    columns=(
        Column("ID", at("silence", "id")),
        Column("STATE", at("state")),
        Column("EVENTS", lambda item: _matched(item["silence"]["matcher"], item)),
        Column("FROM", lambda item: moment(item["silence"]["begins"])),
        Column("UNTIL", lambda item: moment(item["silence"]["ends"])),
        Column("BY", at("silence", "by")),
        Column("WHY", at("silence", "reason")),
    ),
)
INHIBITION = View(
    name=at("inhibition", "name"),
    columns=(
        Column("NAME", at("inhibition", "name")),
        Column("WHILE", lambda item: _matched(item["inhibition"]["source"])),
        Column("NOT TOLD", lambda item: _matched(item["inhibition"]["target"])),
        Column("SAME", at("inhibition", "same")),
        Column("ID", at("inhibition", "id"), wide=True),
    ),
)


def _because(item: Object) -> str:
    named = item["by_text"] or item["by"]
    return f"{item['reason_text']} ({named})" if named else str(item["reason_text"])


FATE = View(
    name=at("subscription_id"),
    columns=(
        Column(
            "ROUTE", lambda item: item["subscription"] or f"removed ({item['subscription_id']})"
        ),
        Column("RECEIVER", at("receiver")),
        Column("FATE", lambda item: item["state"] or "not wanted"),
        Column("WHY", _because),
        Column("MESSAGE", at("delivery_id")),
        Column("MESSAGE STATE", at("delivery_state")),
        Column("SINCE", lambda item: moment(item["at"]), wide=True),
        Column("CODE", at("code"), wide=True),
    ),
)


def _event(item: Object) -> str:
    event = item["event"]
    return event["message"] if event else "(no longer kept)"


def _count_of_events(one: Object) -> int | None:
    about = one.get("about")
    return len(about["revisions"]) + about.get("counted", 0) if about else None


def _delivery_details(item: Object) -> list[tuple[str, Any]]:
    one, event = item["delivery"], item["event"] or {}
    lines: list[tuple[str, Any]] = [
        ("id", one["id"]),
        ("state", one["state"]),
        ("why", item["reason_text"]),
        ("its words", one["detail"]),
        ("code", one["code"]),
        ("attempts", one["attempts"]),
        ("receiver", item["receiver_name"] or f"removed ({one['receiver_id']})"),
        ("subscription", item["subscription_name"] or ("test" if one["test"] else "removed")),
        ("address", one["address"]),
        ("made", moment(one["created"])),
        ("next attempt", moment(one["next_at"]) if one["state"] == "pending" else None),
        ("expires", moment(one["expires"]) if one["state"] == "pending" else None),
        ("over", moment(one["done_at"])),
        ("sent because", (one.get("about") or {}).get("reason")),
        ("events in it", _count_of_events(one)),
        ("event", _event(item)),
        ("event code", event.get("code")),
        ("event revision", one["event_revision"]),
        ("event time", moment(event.get("at"))),
    ]
    return [(label, value) for label, value in lines if value not in (None, "")]


DELIVERY = View(
    name=at("delivery", "id"),
    columns=(
        Column("TIME", lambda item: moment(item["delivery"]["created"])),
        Column("STATE", at("delivery", "state")),
        Column("RECEIVER", at("receiver_name")),
        Column("EVENT", _event),
        Column("ATTEMPTS", at("delivery", "attempts")),
        Column("WHY", at("reason_text")),
        Column("ID", at("delivery", "id")),
        Column("ADDRESS", at("delivery", "address"), wide=True),
        Column("SUBSCRIPTION", at("subscription_name"), wide=True),
        Column("ITS WORDS", at("delivery", "detail"), wide=True),
    ),
    details=_delivery_details,
)


def tested_line(item: Object) -> str:
    """How a test fared, for people."""
    words = f" ({item['detail']})" if item["detail"] else ""
    return f"{item['reason_text']}{words}, after {format_duration_ms(item['duration_ms'])}"
