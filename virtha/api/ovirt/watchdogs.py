"""The watchdogs of VMs and templates (W1, W3): a collection that holds at most one."""

from virtha.api.ovirt.fault import require
from virtha.api.ovirt.route import Call, Reply, Route, delete, get, post, put
from virtha.api.ovirt.templates import TEMPLATE, check_not_blank, the_template
from virtha.api.ovirt.vm_body import card_of
from virtha.api.ovirt.vm_node import BLANK, watchdog_node
from virtha.api.ovirt.vms import VM, the_vm
from virtha.control.requests import WatchdogRequest
from virtha.model.errors import NotFound
from virtha.model.watchdog import Watchdog

SHAPE = "watchdog"


def _one(kind: str, owner_id: str, card: Watchdog | None, status: int = 200) -> Reply:
    assert card is not None, "it has just been given"
    return Reply(shape=SHAPE, body=watchdog_node(kind, owner_id, card), status=status)


def _present(call: Call, owner_id: str, owner: str, card: Watchdog | None) -> Watchdog:
    """The card that the path names. Raises NotFound."""
    if card is None or call.path["watchdog"] != owner_id:
        raise NotFound(f"{owner} has no such watchdog", fix=f"GET the watchdogs of {owner}")
    return card


def _merged(call: Call, card: Watchdog) -> WatchdogRequest:
    """What is left out stays as it is, as in oVirt."""
    return WatchdogRequest(
        model=call.body.get("model", card.model.value),
        action=call.body.get("action", card.action.value),
    )


# Of a VM


async def list_of_vm(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    cards = [vm.watchdog] if vm.watchdog is not None else []
    return Reply(shape=SHAPE, body=[watchdog_node("vm", vm.id, card) for card in cards])


async def add_to_vm(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    require(SHAPE, call.body, "action", "model")
    view = await call.control.vms.add_watchdog(call.caller, vm.id, card_of(call.body))
    return _one("vm", vm.id, view.vm.watchdog, status=201)


async def get_of_vm(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    return _one("vm", vm.id, _present(call, vm.id, vm.name, vm.watchdog))


async def change_of_vm(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    card = _present(call, vm.id, vm.name, vm.watchdog)
    view = await call.control.vms.put_watchdog(call.caller, vm.id, _merged(call, card))
    return _one("vm", vm.id, view.vm.watchdog)


async def remove_from_vm(call: Call) -> Reply:
    vm = (await the_vm(call)).vm
    _present(call, vm.id, vm.name, vm.watchdog)
    await call.control.vms.remove_watchdog(call.caller, vm.id)
    return Reply()


# Of a template


async def list_of_template(call: Call) -> Reply:
    if call.path["template"] == BLANK:
        return Reply(shape=SHAPE, body=[])
    template = (await the_template(call)).template
    cards = [template.watchdog] if template.watchdog is not None else []
    nodes = [watchdog_node("template", template.id, card) for card in cards]
    return Reply(shape=SHAPE, body=nodes)


async def add_to_template(call: Call) -> Reply:
    check_not_blank(call)
    template = (await the_template(call)).template
    require(SHAPE, call.body, "action", "model")
    templates = call.control.templates
    view = await templates.add_watchdog(call.caller, template.id, card_of(call.body))
    return _one("template", template.id, view.template.watchdog, status=201)


async def get_of_template(call: Call) -> Reply:
    template = (await the_template(call)).template
    card = _present(call, template.id, template.name, template.watchdog)
    return _one("template", template.id, card)


async def change_of_template(call: Call) -> Reply:
    template = (await the_template(call)).template
    card = _present(call, template.id, template.name, template.watchdog)
    templates = call.control.templates
    view = await templates.put_watchdog(call.caller, template.id, _merged(call, card))
    return _one("template", template.id, view.template.watchdog)


async def remove_from_template(call: Call) -> Reply:
    template = (await the_template(call)).template
    _present(call, template.id, template.name, template.watchdog)
    await call.control.templates.remove_watchdog(call.caller, template.id)
    return Reply()


ROUTES: tuple[Route, ...] = (
    get(f"{VM}/watchdogs", list_of_vm),
    post(f"{VM}/watchdogs", add_to_vm, SHAPE),
    get(f"{VM}/watchdogs/{{watchdog}}", get_of_vm),
    put(f"{VM}/watchdogs/{{watchdog}}", change_of_vm, SHAPE),
    delete(f"{VM}/watchdogs/{{watchdog}}", remove_from_vm),
    get(f"{TEMPLATE}/watchdogs", list_of_template),
    post(f"{TEMPLATE}/watchdogs", add_to_template, SHAPE),
    get(f"{TEMPLATE}/watchdogs/{{watchdog}}", get_of_template),
    put(f"{TEMPLATE}/watchdogs/{{watchdog}}", change_of_template, SHAPE),
    delete(f"{TEMPLATE}/watchdogs/{{watchdog}}", remove_from_template),
)
