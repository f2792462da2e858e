"""A VM and a template as oVirt describes them."""

from collections.abc import Collection

from virtha.api.ovirt.route import ref
from virtha.api.ovirt.shape import Node
from virtha.control.views import TemplateView, VmView
from virtha.model.machine import MachineType
from virtha.model.ovirt_words import TEMPLATE_WORDS, VM_WORDS, VMS_UNDER_WAY
from virtha.model.template import Template
from virtha.model.vm import IO_PAUSES, NO_ROOM_PAUSE, Vm, VmState
from virtha.model.watchdog import Watchdog

BLANK = "00000000-0000-0000-0000-000000000000"
"""oVirt's template of nothing, by its fixed id; it is called ``Blank``."""
BLANK_NAME = "Blank"
VM_ACTIONS = (
    "start",
    "stop",
    "shutdown",
    "reboot",
    "reset",
    "suspend",
    "migrate",
    "cancelmigration",
)
_VM_LINKS = (
    "affinitylabels",
    "applications",
    "cdroms",
    "diskattachments",
    "graphicsconsoles",
    "hostdevices",
    "nics",
    "numanodes",
    "permissions",
    "reporteddevices",
    "sessions",
    "snapshots",
    "statistics",
    "tags",
    "watchdogs",
)
_TEMPLATE_LINKS = (
    "cdroms",
    "diskattachments",
    "graphicsconsoles",
    "nics",
    "permissions",
    "tags",
    "watchdogs",
)
BIOS = {
    MachineType.Q35: "q35_sea_bios",
    MachineType.PC: "i440fx_sea_bios",
    MachineType.S390_CCW: "cluster_default",
}
MIB = 1 << 20
UNKEPT: Node = {
    "delete_protected": False,
    "placement_policy": {"affinity": "migratable"},
    "stateless": False,
}
"""Of each VM and template, and never otherwise."""


def vm_status(state: VmState, under_way: Collection[str]) -> str:
    """``under_way``: kinds of the VM's open operations."""
    for one in VMS_UNDER_WAY:
        if one.state is state and one.kinds.intersection(under_way):
            return one.word
    return VM_WORDS[state]


def vm_node(view: VmView, under_way: Collection[str] = (), template_id: str | None = None) -> Node:
    """``template_id``: of the template that its disks need; a full copy is oVirt's ``Blank``, as there."""
    vm, status = view.vm, view.status
    template = ref("templates", template_id or BLANK)
    down = status.state is VmState.DOWN
    node: Node = {
        "id": vm.id,
        "href": f"/vms/{vm.id}",
        "actions": VM_ACTIONS,
        "link": [(rel, f"/vms/{vm.id}/{rel}") for rel in _VM_LINKS],
        **_machine(vm, vm.start_priority),
        "status": vm_status(status.state, under_way),
        "status_detail": _status_detail(view),
        "next_run_configuration_exists": bool(view.pending),
        "original_template": template,
        "template": template,
        "run_once": False,
        "has_illegal_images": False,
        "stop_time" if down else "start_time": status.since,
    }
    if not down and status.host_id is not None:
        node["host"] = ref("hosts", status.host_id)
    return node


def template_node(view: TemplateView) -> Node:
    template = view.template
    return {
        "id": template.id,
        "href": f"/templates/{template.id}",
        "link": [(rel, f"/templates/{template.id}/{rel}") for rel in _TEMPLATE_LINKS],
        **_machine(template, template.priority),
        "status": TEMPLATE_WORDS[template.state],
        "creation_time": template.created,
        "version": {"version_number": 1, "version_name": ""},
    }


def blank_node() -> Node:
    """What a VM without disks is made from."""
    return {
        "id": BLANK,
        "href": f"/templates/{BLANK}",
        "link": [(rel, f"/templates/{BLANK}/{rel}") for rel in _TEMPLATE_LINKS],
        "name": BLANK_NAME,
        "description": "Blank template",
        "memory": 1024 * MIB,
        "cpu": {"architecture": "undefined", "topology": {"cores": 1, "sockets": 1, "threads": 1}},
        "high_availability": {"enabled": False, "priority": 0},
        "os": {"type": "other"},
        "status": "ok",
        "type": "server",
        "version": {"version_number": 1, "version_name": ""},
    }


def watchdog_node(kind: str, owner_id: str, card: Watchdog) -> Node:
    """``kind``: ``vm`` or ``template``. A card's id is its owner's: there is never a second one."""
    owner = ref(f"{kind}s", owner_id)
    return {
        "id": owner_id,
        "href": f"{owner['href']}/watchdogs/{owner_id}",
        "action": card.action.value,
        "model": card.model.value,
        kind: owner,
    }


def _machine(one: Vm | Template, priority: int) -> Node:
    node: Node = {
        "name": one.name,
        "description": one.description,
        "comment": "",
        "bios": {"boot_menu": {"enabled": False}, "type": BIOS[one.machine]},
        "cluster": ref("clusters", one.cluster_id),
        "cpu": {
            "architecture": one.architecture,
            "topology": {"cores": 1, "sockets": one.vcpus, "threads": 1},
        },
        **UNKEPT,
        "display": {"type": "vnc"},
        "high_availability": {"enabled": one.ha, "priority": priority},
        # Ansible's modules look into these without asking whether they are there.
        "io": {"threads": 0},
        "soundcard_enabled": False,
        "sso": {"methods": []},
        "usb": {"enabled": False},
        "memory": one.memory_bytes,
        "memory_policy": {
            "ballooning": False,
            "guaranteed": one.memory_bytes,
            "max": one.memory_bytes,
        },
        "origin": "virtha",
        "os": {"type": "other_s390x" if one.architecture == "s390x" else "other"},
        "storage_error_resume_behaviour": one.on_io_error.value,
        "type": "server",
    }
    if one.watchdog is not None:
        # The source document's form; oVirt's own is behind the link.
        card = {"action": one.watchdog.action.value, "model": one.watchdog.model.value}
        node["watchdog"] = card
    return node


def _status_detail(view: VmView) -> str | None:
    """oVirt's words for why a VM is paused; of others the first reason's code."""
    codes = [reason.code for reason in view.status.reasons]
    if view.status.state is VmState.PAUSED and NO_ROOM_PAUSE in codes:
        return "enospc"
    if view.status.state is VmState.PAUSED and IO_PAUSES.intersection(codes):
        return "eio"
    return codes[0] if codes else None
