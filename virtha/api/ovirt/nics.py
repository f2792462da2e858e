"""Network cards of VMs and templates."""

from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.networks import bridges, network_id, profile_id
from virtha.api.ovirt.operations import waited
from virtha.api.ovirt.route import Call, Reply, Route, delete, get, post, put, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.templates import TEMPLATE, the_template
from virtha.api.ovirt.vm_body import nic_of
from virtha.api.ovirt.vm_node import BLANK
from virtha.api.ovirt.vms import VM, the_vm
from virtha.control.requests import NicCreate
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.template import Template
from virtha.model.vm import Vm

NICS, NIC = "nics", "nics/{nic}"
_INTERFACES = {"virtio": "virtio", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}


def vm_nics(vm: Vm) -> list[Node]:
    """oVirt's cards have names, ours are known by their address: the first is ``nic1``."""
    return [
        {
            **ref(f"vms/{vm.id}/nics", nic.id),
            **_card(vm.cluster_id, number, nic.bridge, nic.model),
            "link": [
                (rel, f"/vms/{vm.id}/nics/{nic.id}/{rel}")
                for rel in ("reporteddevices", "statistics")
            ],
            "mac": {"address": nic.mac},
            "vm": ref("vms", vm.id),
        }
        for number, nic in enumerate(vm.nics, 1)
    ]


def template_nics(template: Template) -> list[Node]:
    return [
        {
            **ref(f"templates/{template.id}/nics", str(number)),
            **_card(template.cluster_id, number, nic.bridge, nic.model),
            "template": ref("templates", template.id),
        }
        for number, nic in enumerate(template.nics, 1)
    ]


def _card(cluster_id: str, number: int, bridge: str, model: str) -> Node:
    return {
        "name": f"nic{number}",
        "interface": _INTERFACES.get(model, model),
        "linked": True,
        "plugged": True,
        "network": {**ref("networks", network_id(cluster_id, bridge)), "name": bridge},
        "vnic_profile": {**ref("vnicprofiles", profile_id(cluster_id, bridge)), "name": bridge},
    }


def _chosen(call: Call, there: list[Node]) -> Node:
    for one in there:
        if one["id"] == call.path["nic"]:
            return one
    raise NotFound(f"it has no network card with the id '{call.path['nic'][:64]}'")


async def list_of_vm(call: Call) -> Reply:
    return Reply(shape="nic", body=vm_nics((await the_vm(call)).vm))


async def get_of_vm(call: Call) -> Reply:
    return Reply(shape="nic", body=_chosen(call, vm_nics((await the_vm(call)).vm)))


async def _of_template(call: Call) -> list[Node]:
    if call.path["template"] == BLANK:
        return []
    return template_nics((await the_template(call)).template)


async def list_of_template(call: Call) -> Reply:
    return Reply(shape="nic", body=await _of_template(call))


async def get_of_template(call: Call) -> Reply:
    return Reply(shape="nic", body=_chosen(call, await _of_template(call)))


async def add_nic(call: Call) -> Reply:
    view = await the_vm(call)
    require("nic", call.body, "name")
    _check_name(call.body["name"], len(view.vm.nics) + 1)
    request = await _with_bridge(call, view.vm.cluster_id)
    before = {nic.id for nic in view.vm.nics}
    devices = call.control.vms.devices
    seen = await waited(call, await devices.add_nic(call.caller, view.vm.id, request))
    vm = (await call.control.vms.get(view.vm.id)).vm
    for node in vm_nics(vm):
        if node["id"] not in before:
            return Reply(shape="nic", body=node, status=201)
    pending = {"description": f"it is being added: job {seen.id}", "vm": ref("vms", vm.id)}
    return Reply(shape="nic", body=pending, status=202)


def _check_name(wanted: str, number: int) -> None:
    """Ansible adds a card when it finds none of its name: one that lost it would be added again at each run. Raises InvalidInput."""
    if wanted != f"nic{number}":
        raise InvalidInput(
            f"'{wanted[:64]}' can't be kept: cards are called by their place",
            field="nic.name",
            allowed=(f"nic{number}",),
        )


async def _with_bridge(call: Call, cluster_id: str) -> NicCreate:
    """Where the body names a network or a profile by its id: the bridge that it stands for. Raises InvalidInput."""
    wanted = nic_of(call.body)
    for known_cluster, bridge in await bridges(call):
        known = (network_id(known_cluster, bridge), profile_id(known_cluster, bridge))
        if known_cluster == cluster_id and wanted.bridge in (*known, bridge):
            return NicCreate(bridge=bridge, mac=wanted.mac, model=wanted.model)
    names = tuple(bridge for cluster, bridge in await bridges(call) if cluster == cluster_id)
    raise InvalidInput(
        f"'{wanted.bridge[:64]}' is no network of the cluster", field="nic.network", allowed=names
    )


async def change_nic(call: Call) -> Reply:
    """A card stays as it was made: to change it is to remove it and to add another. Raises Refused."""
    node = _chosen(call, vm_nics((await the_vm(call)).vm))
    for name in ("name", "interface", "linked", "plugged"):
        if call.body.get(name) not in (None, node[name]):
            raise Refused(
                f"a card's {name} can't be changed", field=name, fix="remove it, and add another"
            )
    said = (call.body.get("mac") or {}).get("address", node["mac"]["address"])
    if said.lower() != node["mac"]["address"]:
        raise Refused("a card's address can't be changed", field="mac.address")
    for name in ("network", "vnic_profile"):
        body = call.body.get(name) or {}
        if any(body.get(key) not in (None, node[name][key]) for key in ("id", "name")):
            raise Refused("a card's network can't be changed", field=name)
    return Reply(shape="nic", body=node)


async def remove_nic(call: Call) -> Reply:
    view = await the_vm(call)
    node = _chosen(call, vm_nics(view.vm))
    devices = call.control.vms.devices
    await waited(call, await devices.remove_nic(call.caller, view.vm.id, node["id"]))
    return Reply()


async def refuse_template_nic(_call: Call) -> Reply:
    raise not_here("changing a template's network cards", "make a new template")


ROUTES: tuple[Route, ...] = (
    get(f"{VM}/{NICS}", list_of_vm),
    post(f"{VM}/{NICS}", add_nic, "nic"),
    get(f"{VM}/{NIC}", get_of_vm),
    put(f"{VM}/{NIC}", change_nic, "nic"),
    delete(f"{VM}/{NIC}", remove_nic),
    get(f"{TEMPLATE}/{NICS}", list_of_template),
    post(f"{TEMPLATE}/{NICS}", refuse_template_nic, "nic"),
    get(f"{TEMPLATE}/{NIC}", get_of_template),
)
