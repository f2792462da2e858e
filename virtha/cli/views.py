"""Which fields of the API's objects are shown, per kind."""

from typing import Any

from virtha.cli.output import Column, Object, View, at, moment, size
from virtha.model.codes import render
from virtha.model.host import format_version
from virtha.model.time import format_duration_ms


def _size_at(*path: str) -> Any:
    read = at(*path)
    return lambda item: size(read(item))


def _time_at(*path: str) -> Any:
    read = at(*path)
    return lambda item: moment(read(item))


def _watchdog(item: Object) -> str:
    card = at("vm", "watchdog")(item)
    return f"{card['model']}:{card['action']}" if card else ""


def _protection(item: Object) -> str:
    texts = item.get("protection_text") or [
        render(reason["code"], reason.get("fields") or {}) for reason in item.get("protection", ())
    ]
    return "; ".join(texts)


def _disk(disk: Object) -> str:
    return f"{disk['name']}: {size(disk['size_bytes'])} {disk['format']} {disk['path']}"


def _nic(nic: Object) -> str:
    name = f"{nic['name']}: " if "name" in nic else ""
    return f"{name}{nic['bridge']} {nic['mac']} ({nic['model']})"


def _pending_value(field: str, value: Any) -> str:
    if value is None:
        return "none"
    return size(value) if field.endswith("_bytes") else str(value)


def pending_lines(item: Object) -> list[str]:
    """``memory: 1 GiB now, 2 GiB wanted``."""
    return [
        f"{field.removesuffix('_bytes')}: {_pending_value(field, one['running'])} now, "
        f"{_pending_value(field, one['wanted'])} wanted"
        for one in item.get("pending") or ()
        for field in (one["field"],)
    ]


def _vm_details(item: Object) -> list[tuple[str, Any]]:
    vm, status = item["vm"], item["status"]
    lines: list[tuple[str, Any]] = [
        ("name", vm["name"]),
        ("id", vm["id"]),
        ("description", vm["description"]),
        ("state", status["state"]),
        ("since", moment(status["since"])),
        *[("why", text) for text in item.get("reason_text") or ()],
        *[("recovery", text) for text in item.get("engine_text") or ()],
        ("host", item["host_name"]),
        ("may be held by", item.get("holder_names")),
        ("wanted up", status["wanted_up"]),
        ("protection", _protection(item)),
        ("highly available", vm["ha"]),
        ("priority", vm.get("priority")),
        ("grade at most", vm.get("grade")),
        ("on I/O error", vm["on_io_error"]),
        ("watchdog", _watchdog(item) or "host's default"),
        ("watchdog fired", _fired(status)),
        ("restarts in window", status["restart_count"]),
        ("guest agent", {True: "answers", False: "does not answer"}.get(status["guest_agent"])),
        ("cluster", item["cluster_name"]),
        ("memory", size(vm["memory_bytes"])),
        ("vcpus", vm["vcpus"]),
        ("machine", f"{vm['machine']} ({vm['architecture']})"),
        *[("disk", _disk(disk)) for disk in vm["disks"]],
        *[("nic", _nic(nic)) for nic in vm["nics"]],
        *[("at next start", line) for line in pending_lines(item)],
        ("adopted", vm["adopted"]),
        ("incarnation", status["incarnation"]),
        ("revision", vm["revision"]),
    ]
    lines += [("event", event_line(event)) for event in item.get("last_events") or ()]
    return [(label, value) for label, value in lines if value not in (None, "", [], ())]


def _fired(status: Object) -> str:
    count = status["watchdog_count"]
    return f"{count} times, last {moment(status['last_watchdog'])}" if count else ""


def event_line(event: Object) -> str:
    return f"{moment(event['at'])} {event['severity']:<7} {event['message']} [{event['code']}]"


VM = View(
    name=at("vm", "name"),
    columns=(
        Column("NAME", at("vm", "name")),
        Column("STATE", at("status", "state")),
        Column("HOST", at("host_name")),
        Column("HA", at("vm", "ha")),
        Column("WATCHDOG", _watchdog),
        Column("PROTECTION", _protection),
        Column("WHY", at("reason_text"), wide=True),
        Column("MEMORY", _size_at("vm", "memory_bytes"), wide=True),
        Column("VCPUS", at("vm", "vcpus"), wide=True),
        Column("FIRED", at("status", "watchdog_count"), wide=True),
        Column("RESTARTS", at("status", "restart_count"), wide=True),
        Column("CLUSTER", at("cluster_name"), wide=True),
        Column("ID", at("vm", "id"), wide=True),
    ),
    details=_vm_details,
)


def _power(one: Object) -> str:
    """`bmc (level 1): tested 2026-01-31 12:00:00Z, it says on`."""
    test, name = one["test"], f"{one['name']} (level {one['level']})"
    if test is None:
        return f"{name}: never tested"
    at_ = moment(test["at"])
    why = f"; {one['reason']}" if one["reason"] else ""
    if one["tested"]:
        return f"{name}: tested {at_}, it says {test['state']}{why}"
    word = "changed since its test" if test["passed"] else "failed its test"
    return f"{name}: {word} {at_}{why}"


def _host_details(item: Object) -> list[tuple[str, Any]]:
    host, status = item["host"], item["status"]
    found = status["capabilities"]
    offset = status["clock_offset_ms"]
    return [
        ("name", host["name"]),
        ("id", host["id"]),
        ("number", host["number"]),
        ("state", status["state"]),
        ("agent connected", item["agent_connected"]),
        ("guardian beats", item["beating"]),
        ("judged", (item.get("verdict") or "").replace("_", " ")),
        *[("because", text) for text in item.get("engine_text") or ()],
        *[("power", _power(one)) for one in item.get("power") or ()],
        ("last seen", moment(status["last_seen"])),
        ("cluster", item["cluster_name"]),
        ("vms", item["vms"]),
        ("start gate in force", found["gate_in_force"]),
        ("libvirt answers", found["libvirt_connected"]),
        ("memory", f"{size(found['memory_bytes'])}, free {size(item['free_memory_bytes'])}"),
        ("overcommit", size(found["memory_overcommit_bytes"])),
        ("cpus", f"{found['cpus']} ({found['architecture']}, {found['domain_type']})"),
        ("libvirt", format_version(found["libvirt_version"])),
        ("qemu", format_version(found["qemu_version"])),
        ("watchdog models", found["watchdog_models"]),
        ("bridges", found["bridges"]),
        ("agent", found["agent_version"]),
        ("clock", "" if offset is None else f"{format_duration_ms(abs(offset))} off"),
        ("boot", status["boot"]),
        ("certificate", host["certificate_serial"]),
        ("revision", host["revision"]),
    ]


HOST = View(
    name=at("host", "name"),
    columns=(
        Column("NAME", at("host", "name")),
        Column("STATE", at("status", "state")),
        Column("CLUSTER", at("cluster_name")),
        Column("VMS", lambda item: len(item["vms"])),
        Column("MEMORY", _size_at("status", "capabilities", "memory_bytes")),
        Column("FREE", _size_at("free_memory_bytes")),
        Column("GATE", at("status", "capabilities", "gate_in_force")),
        Column("LAST SEEN", _time_at("status", "last_seen"), wide=True),
        Column(
            "LIBVIRT",
            lambda i: format_version(i["status"]["capabilities"]["libvirt_version"]),
            True,
        ),
        Column("WATCHDOGS", at("status", "capabilities", "watchdog_models"), wide=True),
        Column("NUMBER", at("host", "number"), wide=True),
        Column("ID", at("host", "id"), wide=True),
    ),
    details=_host_details,
)

CLUSTER = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("DESCRIPTION", at("description")),
        Column("ID", at("id"), wide=True),
        Column("REVISION", at("revision"), wide=True),
    ),
    details=lambda item: [
        ("name", item["name"]),
        ("id", item["id"]),
        ("description", item["description"]),
        ("restarts", "on" if item["policy"]["restart"]["enabled"] else "off"),
        ("revision", item["revision"]),
    ],
)


def _usable(item: Object) -> list[str]:
    words = {True: "yes", False: "no", None: "not known"}
    detail = item.get("detail") or {}
    return [
        f"{host}: {words[usable]}" + (f" ({detail[host]})" if detail.get(host) else "")
        for host, usable in sorted(item["usable_by"].items())
    ]


STORAGE = View(
    name=at("domain", "name"),
    columns=(
        Column("NAME", at("domain", "name")),
        Column("CLUSTER", at("cluster_name")),
        Column("PATH", at("domain", "path")),
        Column("SIZE", _size_at("size_bytes")),
        Column("FREE", _size_at("free_bytes")),
        Column("USABLE BY", _usable),
        Column("IMAGES", lambda item: [image["name"] for image in item["images"]], wide=True),
        Column("ID", at("domain", "id"), wide=True),
    ),
    details=lambda item: [
        ("name", item["domain"]["name"]),
        ("id", item["domain"]["id"]),
        ("kind", item["domain"]["kind"]),
        ("path", item["domain"]["path"]),
        ("cluster", item["cluster_name"]),
        ("size", f"{size(item['size_bytes'])}, free {size(item['free_bytes'])}"),
        *[("usable by", line) for line in _usable(item)],
        *[("image", image["name"]) for image in item["images"]],
    ],
)

IMAGE = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("STORAGE", at("storage_domain")),
        Column("FORMAT", at("format")),
        Column("SIZE", _size_at("size_bytes")),
        Column("DISK SIZE", _size_at("virtual_size_bytes")),
        Column("PATH", at("path"), wide=True),
    ),
)

EVENT = View(
    name=lambda item: str(item["revision"]),
    columns=(
        Column("TIME", _time_at("at")),
        Column("SEVERITY", at("severity")),
        Column("MESSAGE", at("message")),
        Column("CODE", at("code")),
        Column("USER", at("user"), wide=True),
        Column("HOST TIME", _time_at("host_at"), wide=True),
        Column("REVISION", at("revision"), wide=True),
    ),
)

OPERATION = View(
    name=at("id"),
    columns=(
        Column("ID", at("id")),
        Column("KIND", at("kind")),
        Column("STATE", at("state")),
        Column("PROGRESS", lambda item: f"{item['progress']}%"),
        Column("STARTED", _time_at("created")),
        Column("BY", at("asked_by")),
        Column("RESULT", lambda item: item["message"] or item["code"]),
        Column("SUBJECT", at("subject"), wide=True),
        Column("ENDED", _time_at("ended"), wide=True),
        Column("CODE", at("code"), wide=True),
    ),
    details=lambda item: [
        ("id", item["id"]),
        ("kind", item["kind"]),
        ("subject", item["subject"]),
        ("state", item["state"]),
        ("progress", f"{item['progress']}%"),
        ("asked by", item["asked_by"]),
        ("started", moment(item["created"])),
        ("ended", moment(item["ended"])),
        ("result", item["message"]),
        ("code", item["code"]),
        *[("step", f"{s['name']}: {s['state']} {s['detail']}".rstrip()) for s in item["steps"]],
    ],
)

TOKEN = View(
    name=at("id"),
    columns=(
        Column("ID", at("id")),
        Column("KIND", at("kind")),
        Column("DESCRIPTION", at("description")),
        Column("EXPIRES", _time_at("expires")),
        Column("USED", lambda i: f"{i['uses']} of {i['uses_max'] if i['uses_max'] else 'any'}"),
        Column("CREATED", _time_at("created"), wide=True),
        Column("CLUSTER", at("cluster_id"), wide=True),
    ),
)

USER = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("ROLE", at("role")),
        Column("ENABLED", at("enabled")),
        Column("EMAIL", at("email")),
        Column("ID", at("id"), wide=True),
    ),
)

ROLE = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("PERMISSIONS", lambda item: ", ".join(item["permissions"]) or "only sees"),
        Column("DESCRIPTION", at("description")),
        Column("ID", at("id"), wide=True),
    ),
)

GRANT = View(
    name=at("grant", "role"),
    columns=(
        Column("ROLE", at("grant", "role")),
        Column("CLUSTER", lambda item: item["cluster_name"] or "all"),
        Column("ID", at("grant", "id"), wide=True),
    ),
)

SESSION = View(
    name=at("id"),
    columns=(
        Column("ID", at("id")),
        Column("FOR", lambda item: item["description"] or "sign-in"),
        Column("USER", at("user")),
        Column("AT MOST", lambda item: item["role"] or "as its user"),
        Column("CLUSTER", lambda item: item["cluster_name"] or "all"),
        Column("EXPIRES", _time_at("expires")),
        Column("FROM", at("address"), wide=True),
        Column("CREATED", _time_at("created"), wide=True),
    ),
)

SETTING = View(
    name=at("key"),
    columns=(
        Column("KEY", at("key")),
        Column("SCOPE", at("scope")),
        Column("SUBJECT", at("subject")),
        Column("VALUE", lambda item: item["value"] if item["value"] is not None else "(default)"),
        Column("DEFAULT", at("default")),
        Column("ALLOWED", at("allowed"), wide=True),
        Column("MEANING", at("help"), wide=True),
    ),
)

FOREIGN = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("STATE", at("state")),
        Column("ADOPTABLE", lambda item: item["vm"] is not None and not item["obstacles"]),
        Column("OBSTACLES", at("obstacles")),
        Column("CHANGES", at("changes")),
    ),
)
