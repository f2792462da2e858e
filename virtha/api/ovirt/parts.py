"""The lesser collections of VMs, templates, hosts and others: consoles, figures, and what is empty here in truth."""

from uuid import UUID, uuid5

from virtha.api.ovirt.clusters import CLUSTER, the_cluster
from virtha.api.ovirt.hosts import HOST, the_host
from virtha.api.ovirt.route import Call, Handler, Reply, Route, get, listed_and_one, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.templates import TEMPLATE, the_template
from virtha.api.ovirt.vm_node import BLANK
from virtha.api.ovirt.vms import VM, the_vm

VNC_ID = "766e63"
"""oVirt's id of a VNC console: its protocol's name in hexadecimal digits."""
EMPTY_OF_VM = {
    "affinitylabels": "affinity_label",
    "applications": "application",
    "cdroms": "cdrom",
    "hostdevices": "host_device",
    "numanodes": "vm_numa_node",
    "reporteddevices": "reported_device",
    "sessions": "session",
    "tags": "tag",
}
EMPTY_OF_TEMPLATE = {"cdroms": "cdrom", "tags": "tag"}
EMPTY_OF_HOST = {
    "affinitylabels": "affinity_label",
    "devices": "host_device",
    "nics": "host_nic",
    "tags": "tag",
}
EMPTY_OF_CLUSTER = {
    "affinitygroups": "affinity_group",
    "cpuprofiles": "cpu_profile",
    "enabledfeatures": "cluster_feature",
}


async def _check_vm(call: Call) -> None:
    await the_vm(call)


async def _check_template(call: Call) -> None:
    if call.path["template"] != BLANK:
        await the_template(call)


async def _check_host(call: Call) -> None:
    await the_host(call)


async def _check_cluster(call: Call) -> None:
    await the_cluster(call)


_CHECKS = {VM: _check_vm, TEMPLATE: _check_template, HOST: _check_host, CLUSTER: _check_cluster}


def _empty(owner: str, shape: str) -> Handler:
    """A collection that has nothing in it, of an owner that must be there."""

    async def handle(call: Call) -> Reply:
        await _CHECKS[owner](call)
        return Reply(shape=shape, body=[])

    return handle


# Consoles


def _console(kind: str, owner_id: str) -> Node:
    owner = ref(f"{kind}s", owner_id)
    return {
        **ref(f"{kind}s/{owner_id}/graphicsconsoles", VNC_ID),
        "protocol": "vnc",
        kind: owner,
    }


async def vm_consoles(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    return Reply(shape="graphics_console", body=[_console("vm", vm.id)])


async def template_consoles(call: Call) -> Reply:
    await _check_template(call)
    return Reply(shape="graphics_console", body=[_console("template", call.path["template"])])


# Figures: those that are known, and no others


def _figure(
    owner: str, identifier: str, name: str, value: int, unit: str, description: str
) -> Node:
    own = str(uuid5(UUID(identifier), name))
    return {
        **ref(f"{owner}s/{identifier}/statistics", own),
        "name": name,
        "description": description,
        "kind": "gauge",
        "type": "integer",
        "unit": unit,
        "values": [{"datum": value}],
        owner: ref(f"{owner}s", identifier),
    }


async def vm_statistics(call: Call) -> Reply:
    view = await the_vm(call)
    vm, status = view.vm, view.status
    figures = [
        _figure("vm", vm.id, "memory.installed", vm.memory_bytes, "bytes", "Memory"),
        _figure("vm", vm.id, "watchdog.count", status.watchdog_count, "none", "Firings"),
        _figure("vm", vm.id, "restart.count", status.restart_count, "none", "Restarts"),
    ]
    return Reply(shape="statistic", body=figures)


async def host_statistics(call: Call) -> Reply:
    view = await the_host(call)
    host_id, total = view.host.id, view.status.capabilities.memory_bytes
    free = view.free_memory_bytes
    figures = [
        _figure("host", host_id, "memory.total", total, "bytes", "Memory"),
        _figure("host", host_id, "memory.free", free, "bytes", "Memory no VM has"),
        _figure("host", host_id, "memory.used", max(total - free, 0), "bytes", "Memory of VMs"),
    ]
    return Reply(shape="statistic", body=figures)


ROUTES: tuple[Route, ...] = (
    *(get(f"{VM}/{rel}", _empty(VM, shape)) for rel, shape in EMPTY_OF_VM.items()),
    *(
        get(f"{TEMPLATE}/{rel}", _empty(TEMPLATE, shape))
        for rel, shape in EMPTY_OF_TEMPLATE.items()
    ),
    *(get(f"{HOST}/{rel}", _empty(HOST, shape)) for rel, shape in EMPTY_OF_HOST.items()),
    *(get(f"{CLUSTER}/{rel}", _empty(CLUSTER, shape)) for rel, shape in EMPTY_OF_CLUSTER.items()),
    get(f"{VM}/nics/{{nic}}/reporteddevices", _empty(VM, "reported_device")),
    get(f"{VM}/nics/{{nic}}/statistics", _empty(VM, "statistic")),
    *listed_and_one(f"{VM}/graphicsconsoles", vm_consoles),
    *listed_and_one(f"{VM}/statistics", vm_statistics),
    *listed_and_one(f"{TEMPLATE}/graphicsconsoles", template_consoles),
    *listed_and_one(f"{HOST}/statistics", host_statistics),
)
