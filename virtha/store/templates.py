"""Templates, their disks, and which files need them."""

from collections.abc import Collection

import msgspec
from sqlalchemy import and_, delete, func, insert, or_, select

from virtha.model.ids import StorageDomainId, TemplateId, VmId
from virtha.model.template import Template
from virtha.model.vm import Disk
from virtha.store.body import decode, encode, in_parts, put
from virtha.store.schema import disk, template, template_disk, template_use, vm
from virtha.store.store import Transaction, WriteTransaction


async def find_template(tx: Transaction, ref: str) -> Template | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(template.c.body).where(or_(template.c.id == ref, template.c.name == ref))
    )
    return decode(Template, body) if body is not None else None


async def templates_after(tx: Transaction, name: str, limit: int) -> tuple[Template, ...]:
    rows = await tx.connection.scalars(
        select(template.c.body).where(template.c.name > name).order_by(template.c.name).limit(limit)
    )
    return tuple(decode(Template, body) for body in rows)


async def save_template(tx: WriteTransaction, value: Template) -> Template:
    """With its disks, which never change."""
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await put(
        tx,
        template,
        {"id": saved.id},
        {
            "name": saved.name,
            "cluster_id": saved.cluster_id,
            "body": encode(saved),
            "revision": saved.revision,
        },
    )
    await tx.connection.execute(
        delete(template_disk).where(template_disk.c.template_id == saved.id)
    )
    for one in saved.disks:
        await tx.connection.execute(
            insert(template_disk).values(
                id=one.id,
                template_id=saved.id,
                storage_domain_id=one.storage_domain_id,
                path=one.path,
            )
        )
    return saved


async def drop_template(tx: WriteTransaction, template_id: TemplateId) -> None:
    """The database refuses it while a file needs it."""
    _ = tx.revision
    await tx.connection.execute(delete(template).where(template.c.id == template_id))


async def template_disk_count(tx: Transaction, storage_domain_id: StorageDomainId) -> int:
    counted = await tx.connection.scalar(
        select(func.count())
        .select_from(template_disk)
        .where(template_disk.c.storage_domain_id == storage_domain_id)
    )
    return int(counted or 0)


async def use_template(tx: WriteTransaction, template_id: TemplateId, file: Disk) -> None:
    """From now on ``file`` needs the template."""
    _ = tx.revision
    await tx.connection.execute(
        insert(template_use).values(
            storage_domain_id=file.storage_domain_id, path=file.path, template_id=template_id
        )
    )


async def end_template_use(tx: WriteTransaction, file: Disk) -> None:
    """It is gone, or whole without the template. Not used by it is done already."""
    _ = tx.revision
    await tx.connection.execute(
        delete(template_use).where(
            template_use.c.storage_domain_id == file.storage_domain_id,
            template_use.c.path == file.path,
        )
    )


async def templates_of_vms(tx: Transaction, ids: Collection[VmId] | None) -> dict[VmId, TemplateId]:
    """Which each VM's disks need. ``ids``: None: of all VMs."""
    of_file = and_(
        disk.c.storage_domain_id == template_use.c.storage_domain_id,
        disk.c.path == template_use.c.path,
    )
    wanted = select(disk.c.vm_id, template_use.c.template_id).join(template_use, of_file).distinct()
    found: dict[VmId, TemplateId] = {}
    parts = (
        [wanted] if ids is None else [wanted.where(disk.c.vm_id.in_(it)) for it in in_parts(ids)]
    )
    for part in parts:
        rows = await tx.connection.execute(part)
        found |= {VmId(row.vm_id): TemplateId(row.template_id) for row in rows}
    return found


async def template_users(tx: Transaction, template_id: TemplateId) -> tuple[str, ...]:
    """VMs by name, sorted; of a disk that was kept when its VM went, its path."""
    rows = await tx.connection.execute(
        select(vm.c.name, template_use.c.path)
        .select_from(template_use)
        .outerjoin(
            disk,
            and_(
                disk.c.storage_domain_id == template_use.c.storage_domain_id,
                disk.c.path == template_use.c.path,
            ),
        )
        .outerjoin(vm, vm.c.id == disk.c.vm_id)
        .where(template_use.c.template_id == template_id)
    )
    return tuple(sorted({row.name or f"the file {row.path}" for row in rows}))
