"""The steps of an operation that are about a template's record."""

import msgspec

from virtha.control.history import changes_between, record
from virtha.control.plan import DropTemplate, ReadyTemplate
from virtha.model.ids import OperationId
from virtha.model.template import TemplateState
from virtha.store.store import WriteTransaction
from virtha.store.templates import drop_template, find_template, save_template


async def carry_out(
    tx: WriteTransaction,
    step: ReadyTemplate | DropTemplate,
    *,
    operation_id: OperationId,
    by: str,
) -> None:
    """Gone already is done already."""
    template = await find_template(tx, step.template_id)
    if template is None:
        return
    if isinstance(step, ReadyTemplate):
        ready = msgspec.structs.replace(template, state=TemplateState.READY)
        await save_template(tx, ready)
        await record(
            tx,
            "template.created",
            cluster_id=template.cluster_id,
            operation_id=operation_id,
            by=by,
            name=template.name,
            source=template.source_vm,
            **changes_between(None, ready),
        )
        return
    await drop_template(tx, template.id)
    if step.code is not None:
        await record(
            tx,
            step.code,
            cluster_id=template.cluster_id,
            operation_id=operation_id,
            by=by,
            name=template.name,
            **changes_between(template, None),
        )
