"""A host and its fence agents as oVirt describes them."""

from virtha.api.ovirt.clusters import VERSION
from virtha.api.ovirt.route import ref
from virtha.api.ovirt.shape import Node
from virtha.control.power_views import HostPowerView
from virtha.control.views import HostView, MaintenanceView
from virtha.model.host import HostState
from virtha.model.ovirt_words import (
    HOST_DEAD,
    HOST_IN_MAINTENANCE,
    HOST_LEAVING,
    HOST_SUSPECT,
    HOST_WORDS,
)
from virtha.model.power_settings import CertificateCheck, PowerDriver, PowerSettings

HOST_ACTIONS = ("activate", "deactivate", "fence")
_LINKS = (
    "affinitylabels",
    "devices",
    "fenceagents",
    "nics",
    "permissions",
    "statistics",
    "tags",
)
IPMI_TYPES = ("ipmilan", "drac7", "idrac", "ilo2", "ilo3", "ilo4", "ilo5")
"""oVirt's names of agents that are IPMI, as its FenceAgentMapping has them."""
REDFISH_TYPE = "redfish"
AGENT_PREFIX = "fence_"
IPMI_OPTIONS = {"cipher": "cipher", "privlvl": "privilege"}
"""Options of ``fence_ipmilan`` and what they are called here."""


def host_status(view: HostView, care: MaintenanceView | None) -> str:
    """``care``: None is like one that says it is in no maintenance."""
    state = view.status.state
    if view.verdict == "dead_proven":
        return HOST_DEAD
    if care is not None and care.on and state is not HostState.UNREACHABLE:
        return HOST_LEAVING if care.vms and care.drain else HOST_IN_MAINTENANCE
    if view.verdict == "suspect":
        return HOST_SUSPECT
    return HOST_WORDS[state]


def host_node(view: HostView, care: MaintenanceView | None) -> Node:
    host, able = view.host, view.status.capabilities
    usable = bool(view.power)
    node: Node = {
        "id": host.id,
        "href": f"/hosts/{host.id}",
        "actions": HOST_ACTIONS,
        "link": [(rel, f"/hosts/{host.id}/{rel}") for rel in _LINKS],
        "name": host.name,
        "description": "",
        "comment": "",
        "address": host.name,
        "cluster": ref("clusters", host.cluster_id),
        "cpu": {
            "architecture": able.architecture,
            "topology": {"cores": max(able.cpus, 1), "sockets": 1, "threads": 1},
        },
        "external_status": "ok",
        "kdump_status": "disabled",
        "libvirt_version": _version(able.libvirt_version),
        "max_scheduling_memory": view.free_memory_bytes,
        "memory": able.memory_bytes,
        "power_management": {
            "enabled": usable,
            "automatic_pm_enabled": usable,
            "kdump_detection": False,
            "pm_proxies": [],
        },
        "protocol": "stomp",
        "status": host_status(view, care),
        "status_detail": view.engine_text[0] if view.engine_text else None,
        "summary": {"active": len(view.vms), "migrating": 0, "total": len(view.vms)},
        "type": "rhel",
        "update_available": False,
        "version": VERSION,
    }
    return node


def _version(number: int) -> Node:
    """libvirt counts major * 1,000,000 + minor * 1,000 + release."""
    major, rest = divmod(number, 1_000_000)
    minor, release = divmod(rest, 1_000)
    return {
        "major": major,
        "minor": minor,
        "build": release,
        "revision": 0,
        "full_version": f"libvirt-{major}.{minor}.{release}",
    }


# Fence agents


def agent_type(settings: PowerSettings) -> str:
    match settings.driver:
        case PowerDriver.IPMI:
            return IPMI_TYPES[0]
        case PowerDriver.REDFISH:
            return REDFISH_TYPE
        case PowerDriver.FENCE_AGENT:
            return (settings.agent or "").removeprefix(AGENT_PREFIX)
        case _:
            return "command"


def _shown_type(name: str, settings: PowerSettings) -> str:
    """Of IPMI by which of its names it was added, which is the device's: Ansible would change it at each run."""
    added_as = name.partition("-")[0]
    if settings.driver is PowerDriver.IPMI and added_as in IPMI_TYPES:
        return added_as
    return agent_type(settings)


def agent_node(host_id: str, view: HostPowerView) -> Node:
    """``options``: what is set, but for secrets. The password is never shown."""
    assert view.power is not None, "only those that the host has of its own are shown"
    whole = view.whole
    node: Node = {
        **ref(f"hosts/{host_id}/fenceagents", view.power.id),
        "name": view.name,
        "address": whole.address,
        "concurrent": False,
        "encrypt_options": False,
        "host": ref("hosts", host_id),
        "options": agent_options(whole),
        "order": whole.level or 1,
        "type": _shown_type(view.name, whole),
        "username": whole.user or "",
    }
    if whole.port is not None:
        node["port"] = whole.port
    return node


def agent_options(settings: PowerSettings) -> list[Node]:
    found = dict(settings.parameters or {})
    if settings.plug:
        found["plug"] = settings.plug
    if settings.cipher is not None:
        found["cipher"] = str(settings.cipher)
    if settings.privilege is not None:
        found["privlvl"] = settings.privilege.value
    if settings.driver is PowerDriver.REDFISH and settings.certificate is CertificateCheck.NONE:
        found["ssl_insecure"] = "1"
    return [{"name": name, "value": value} for name, value in sorted(found.items())]
