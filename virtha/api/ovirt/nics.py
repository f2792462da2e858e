"""Network cards of VMs and templates."""

from msgspec import UNSET

from virtha.api.ovirt.fault import not_here, require
from virtha.api.ovirt.networks import network_id, nic_of, profile_id
from virtha.api.ovirt.operations import being_added, status_of_addition, waited
from virtha.api.ovirt.route import Call, Reply, Route, delete, get, post, put, ref
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.templates import TEMPLATE, the_template
from virtha.api.ovirt.vm_node import BLANK
from virtha.api.ovirt.vms import VM, the_vm
from virtha.model.errors import NotFound, Refused
from virtha.model.template import Template
from virtha.model.vm import Nic, Vm

NICS, NIC = "nics", "nics/{nic}"
_INTERFACES = {"virtio": "virtio", "e1000": "e1000", "e1000e": "e1000e", "rtl8139": "rtl8139"}


async def _of_vm(call: Call) -> list[Node]:
    """Those, too, that are on their way: who was told of one finds it again."""
    vm = (await the_vm(call)).vm
    own = {nic.id for nic in vm.nics}
    coming = [one for one in await being_added(call, vm.id) if isinstance(one, Nic)]
    return [_vm_nic(vm, nic) for nic in (*vm.nics, *(it for it in coming if it.id not in own))]


def _vm_nic(vm: Vm, nic: Nic) -> Node:
    return {
        **ref(f"vms/{vm.id}/nics", nic.id),
        **_card(vm.cluster_id, nic.called, nic.bridge, nic.model),
        "link": [
            (rel, f"/vms/{vm.id}/nics/{nic.id}/{rel}") for rel in ("reporteddevices", "statistics")
        ],
        "mac": {"address": nic.mac},
        "vm": ref("vms", vm.id),
    }


def template_nics(template: Template) -> list[Node]:
    """A template's cards never change: one without a name is called by its place."""
    return [
        {
            **ref(f"templates/{template.id}/nics", str(number)),
            **_card(
                template.cluster_id,
                f"nic{number}" if nic.name is UNSET else nic.name,
                nic.bridge,
                nic.model,
            ),
            "template": ref("templates", template.id),
        }
        for number, nic in enumerate(template.nics, 1)
    ]


def _card(cluster_id: str, name: str, bridge: str, model: str) -> Node:
    return {
        "name": name,
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
    return Reply(shape="nic", body=await _of_vm(call))


async def get_of_vm(call: Call) -> Reply:
    return Reply(shape="nic", body=_chosen(call, await _of_vm(call)))


async def _of_template(call: Call) -> list[Node]:
    if call.path["template"] == BLANK:
        return []
    return template_nics((await the_template(call)).template)


async def list_of_template(call: Call) -> Reply:
    return Reply(shape="nic", body=await _of_template(call))


async def get_of_template(call: Call) -> Reply:
    return Reply(shape="nic", body=_chosen(call, await _of_template(call)))


async def add_nic(call: Call) -> Reply:
    """Its name is kept: Ansible adds a card when it finds none of its name, and removes it by that."""
    vm = (await the_vm(call)).vm
    require("nic", call.body, "name")
    request = await nic_of(call, vm.cluster_id, call.body)
    devices = call.control.vms.devices
    operation = await devices.add_nic(call.caller, vm.id, request)
    made = await devices.added_by(operation.id)
    assert isinstance(made, Nic), "it is what was asked for"
    seen = await waited(call, operation)
    return Reply(shape="nic", body=_vm_nic(vm, made), status=status_of_addition(seen))


async def change_nic(call: Call) -> Reply:
    """A card stays as it was made: to change it is to remove it and to add another. Raises Refused."""
    node = _chosen(call, await _of_vm(call))
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
    node = _chosen(call, await _of_vm(call))
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
