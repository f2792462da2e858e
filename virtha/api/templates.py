"""Templates, and VMs made from them: thin over control."""

from virtha.api.inventory import accepted
from virtha.api.route import OPERATOR, VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.api.watchdogs import watchdog_routes
from virtha.control.requests import SearchQuery, TemplateCreate, VmFromTemplate
from virtha.control.views import Page, TemplateView
from virtha.model.errors import NotFound
from virtha.model.operation import Operation


async def list_templates(call: Call[SearchQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.templates.list(call.query))


async def create_template(call: Call[NoQuery, TemplateCreate]) -> Answer:
    return accepted(await call.control.templates.create(call.caller, call.body))


async def get_template(call: Call[NoQuery, NoBody]) -> Answer:
    view = await call.control.templates.get(call.ref)
    return Answer(body=view, revision=view.template.revision)


async def delete_template(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.templates.delete(call.caller, call.ref, call.if_match))


async def create_vm(call: Call[NoQuery, VmFromTemplate]) -> Answer:
    return accepted(await call.control.templates.create_vm(call.caller, call.ref, call.body))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/templates",
        role=VIEWER,
        summary="List templates, and which VMs need each",
        handler=list_templates,
        query=SearchQuery,
        answer=Page[TemplateView],
    ),
    Route(
        method="POST",
        path="/v1/templates",
        role=OPERATOR,
        summary="Make a template from a VM that is down; the operation's subject is the VM",
        handler=create_template,
        body=TemplateCreate,
        answer=Operation,
        status=202,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/templates/{ref}",
        role=VIEWER,
        summary="Show a template",
        handler=get_template,
        answer=TemplateView,
    ),
    Route(
        method="DELETE",
        path="/v1/templates/{ref}",
        role=OPERATOR,
        summary="Delete a template that nothing needs, and its disks",
        handler=delete_template,
        answer=Operation,
        status=202,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/templates/{ref}/vms",
        role=OPERATOR,
        own_area="vms",
        summary="Create a VM from a template; the operation's subject is the VM's id",
        handler=create_vm,
        body=VmFromTemplate,
        answer=Operation,
        status=202,
    ),
    *watchdog_routes(
        "templates",
        "a template",
        keeper=lambda control: control.templates,
        record=lambda view: view.template,
    ),
)
