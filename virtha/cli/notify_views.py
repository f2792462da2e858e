"""How receivers, subscriptions and messages are shown."""

from typing import Any

from virtha.cli.output import Column, Object, View, at, moment
from virtha.model.time import format_duration_ms


def _target(item: Object) -> str:
    settings = item["receiver"]["settings"]
    if settings["type"] == "webhook":
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


SUBSCRIPTION = View(
    name=at("subscription", "name"),
    columns=(
        Column("NAME", at("subscription", "name")),
        Column("RECEIVER", at("receiver_name")),
        Column("TO", _whom),
        Column("EVENTS", lambda item: item["subscription"]["codes"] or "all"),
        Column("SEVERITY", at("subscription", "severity")),
        Column("ABOUT", _about),
        Column("ENABLED", at("subscription", "enabled")),
        Column("ID", at("subscription", "id"), wide=True),
    ),
)


def _event(item: Object) -> str:
    event = item["event"]
    return event["message"] if event else "(no longer kept)"


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
