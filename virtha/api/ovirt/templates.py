"""``/templates``: thin over the use cases of templates. ``Blank``, oVirt's template of nothing, is always there."""

from msgspec import UNSET

from virtha.api.ovirt.clusters import cluster_ref
from virtha.api.ovirt.fault import require
from virtha.api.ovirt.listing import listed, the_search
from virtha.api.ovirt.operations import status_of_addition, waited
from virtha.api.ovirt.route import Call, Reply, Route, delete, get, named, post, put, searched
from virtha.api.ovirt.search import Anything, Words, fits
from virtha.api.ovirt.vm_body import refuse_other_machine, refuse_unkept, watchdog_of
from virtha.api.ovirt.vm_node import BLANK, BLANK_NAME, blank_node, template_node
from virtha.control.requests import SearchQuery, TemplateCreate
from virtha.control.searching import OVIRT_STATUS
from virtha.control.views import TemplateView, VmView
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused
from virtha.model.watchdog import Watchdog

TEMPLATE = "/templates/{template}"
BLANK_WORDS: Words = {
    "name": BLANK_NAME,
    "id": BLANK,
    "description": "Blank template",
    OVIRT_STATUS: "ok",
    "cluster": Anything.FITS,
    "datacenter": Anything.FITS,
}
"""Clients look for the templates of a cluster: this one is of none, and there for each."""


async def the_template(call: Call) -> TemplateView:
    """The template that the path names, by its id only. Raises NotFound."""
    template_id = call.path["template"]
    view = await call.control.templates.get(template_id)
    if view.template.id != template_id:
        raise NotFound(f"there is no template with the id '{template_id[:64]}'")
    return view


def check_not_blank(call: Call) -> None:
    if call.path["template"] == BLANK:
        raise Refused(f"{BLANK_NAME} stays as it is", fix="make a template from a VM")


async def list_templates(call: Call) -> Reply:
    found = await listed(call.parameters, "Templates", call.control.templates.list, SearchQuery())
    nodes = [template_node(view) for view in found]
    if _blank_fits(call):
        nodes.insert(0, blank_node())
    return Reply(shape="template", body=nodes[: call.parameters.max])


def _blank_fits(call: Call) -> bool:
    search = the_search(call.parameters, "Templates")
    if search is None:
        return True
    return search.page in (None, 1) and fits(search, BLANK_WORDS, call.parameters)


async def get_template(call: Call) -> Reply:
    if call.path["template"] == BLANK:
        return Reply(shape="template", body=blank_node())
    return Reply(shape="template", body=template_node(await the_template(call)))


async def add_template(call: Call) -> Reply:
    """From a VM that is down, with all that it has; a watchdog that is said goes before its own (W5). Raises Refused."""
    body = call.body
    require("template", body, "name", "vm.id|name")
    refuse_unkept(body)
    view = await call.control.vms.get(str(named(body["vm"])))
    vm = view.vm
    await _check_cluster(call, view)
    refuse_other_machine(
        body,
        vm,
        owner=f"{vm.name}, which it is made from",
        fix="change the VM first, or leave it out",
        priority=vm.start_priority,
    )
    request = TemplateCreate(
        name=body["name"],
        vm=vm.id,
        description=body.get("description", ""),
        watchdog=watchdog_of(body),
    )
    operation = await call.control.templates.create(call.caller, request)
    status = status_of_addition(await waited(call, operation))
    made = await call.control.templates.get(body["name"])
    return Reply(shape="template", body=template_node(made), status=status)


async def _check_cluster(call: Call, vm: VmView) -> None:
    """Raises InvalidInput: a template of another cluster than its VM's."""
    wanted = call.body.get("cluster")
    if not wanted or not named(wanted):
        return
    if await cluster_ref(call, wanted) != vm.vm.cluster_id:
        raise InvalidInput(
            f"{vm.vm.name} belongs to {vm.cluster_name}, and so do its templates",
            field="cluster",
            allowed=(vm.cluster_name,),
        )


async def change_template(call: Call) -> Reply:
    """Its watchdog. What else the body says must be as it is. Raises Refused."""
    check_not_blank(call)
    view = await the_template(call)
    refuse_unkept(call.body)
    templates, template = call.control.templates, view.template
    for name, present in (("name", template.name), ("description", template.description)):
        if call.body.get(name) not in (None, present):
            raise Refused(
                f"the {name} of a template can't be changed: only its watchdog can",
                field=name,
                fix="make a new template, or leave it out",
            )
    refuse_other_machine(
        call.body,
        template,
        owner="the template, of which only the watchdog can be changed",
        fix="make a new template, or leave it out",
        priority=template.priority,
    )
    wanted = watchdog_of(call.body)
    if wanted is not UNSET and not _is(template.watchdog, wanted.model, wanted.action):
        view = await templates.put_watchdog(call.caller, template.id, wanted)
    return Reply(shape="template", body=template_node(view))


def _is(card: Watchdog | None, model: str, action: str) -> bool:
    return card is not None and (card.model.value, card.action.value) == (model, action)


async def remove_template(call: Call) -> Reply:
    if call.path["template"] == BLANK:
        raise Conflict(f"{BLANK_NAME} can't be removed")
    template = (await the_template(call)).template
    await waited(call, await call.control.templates.delete(call.caller, template.id))
    return Reply()


ROUTES: tuple[Route, ...] = (
    searched("/templates", list_templates),
    post("/templates", add_template, "template"),
    get(TEMPLATE, get_template),
    put(TEMPLATE, change_template, "template"),
    delete(TEMPLATE, remove_template),
)
