"""Storage domains."""

from uuid import uuid4

from msgspec import UNSET, UnsetType

from virtha.control.ceph_settings import check_ceph
from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import changes_between, record
from virtha.control.names import (
    check_limit,
    check_name,
    check_revision,
    page_of,
    taken,
    the_cluster,
    the_storage,
)
from virtha.control.plan import Give, Plan
from virtha.control.requests import SearchQuery, StorageCreate
from virtha.control.runner import Runner
from virtha.control.searching import page_of_search
from virtha.control.views import Caller, Page, StorageView
from virtha.model.errors import Conflict, InvalidInput, Refused
from virtha.model.facts import Image, StorageReport
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import HostId, Revision, StorageDomainId
from virtha.model.orders import PrepareStorage
from virtha.store.body import bodies_with_ids
from virtha.store.clusters import (
    disk_count,
    drop_storage,
    find_cluster,
    find_storage,
    reports_of,
    save_storage,
    storage_after,
    storage_of_cluster,
)
from virtha.store.hosts import HostRow, hosts_of_cluster
from virtha.store.installations import the_installation
from virtha.store.schema import storage_domain
from virtha.store.search_fields import STORAGE
from virtha.store.store import Store, Transaction
from virtha.store.templates import template_disk_count

DIRECTORY, CEPH = "directory", "ceph-rbd"
KINDS = (DIRECTORY, CEPH)
PATH_LENGTH_MAX = 512


def check_directory(path: str) -> str:
    """An absolute, plain path. Raises InvalidInput."""
    parts = path.split("/")
    plain = all(part and part not in (".", "..") and part.isprintable() for part in parts[1:])
    if not path.startswith("/") or not plain or len(path) > PATH_LENGTH_MAX:
        raise InvalidInput(
            f"'{path[:PATH_LENGTH_MAX]}' is no absolute path of a directory",
            field="path",
            allowed=("an absolute path without '.', '..', '//' or a trailing '/'",),
            fix="write for example /srv/virtha",
        )
    return path


def overlaps(path: str, other: str) -> bool:
    """Whether one lies in the other: then one file would be two disks."""
    return path == other or path.startswith(other + "/") or other.startswith(path + "/")


def _place(request: StorageCreate) -> tuple[str, CephPool | UnsetType]:
    """What is shown as its path, and where its pool is. Raises InvalidInput."""
    if request.kind not in KINDS:
        raise InvalidInput(f"'{request.kind[:64]}' is no kind", field="kind", allowed=KINDS)
    given = {"path": request.path, "ceph": request.ceph}
    wanted, other = ("path", "ceph") if request.kind == DIRECTORY else ("ceph", "path")
    if given[other] is not None:
        raise InvalidInput(
            f"does not belong to kind {request.kind}", field=other, fix="leave it out"
        )
    if request.path is not None:
        return check_directory(request.path), UNSET
    if request.ceph is not None:
        ceph = check_ceph(request.ceph)
        return ceph.shown, ceph
    raise InvalidInput("is missing", field=wanted, fix=f"kind {request.kind} needs it")


def _check_apart(path: str, ceph: CephPool | UnsetType, other: StorageDomain) -> None:
    """Raises Conflict. That one cluster is known by different monitors' addresses only its hosts can see: its pool has a
    header, which names one domain."""
    if ceph is UNSET and other.ceph is UNSET:
        if overlaps(path, other.path):
            raise Conflict(
                f"it overlaps {other.path} of storage domain {other.name}",
                field="path",
                fix="choose a directory apart from it",
            )
        return
    if ceph is UNSET or other.ceph is UNSET:
        return
    same = ceph.image_prefix == other.ceph.image_prefix
    if same and set(ceph.monitors) & set(other.ceph.monitors):
        raise Conflict(
            f"{ceph.image_prefix} is storage domain {other.name}",
            field="ceph.pool",
            fix="choose another pool, or a namespace of its own",
        )


class StorageDomains:
    def __init__(self, store: Store, runner: Runner, dispatcher: Dispatcher) -> None:
        self._store = store
        self._runner = runner
        self._dispatcher = dispatcher

    async def list(self, query: SearchQuery) -> Page[StorageView]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            if query.search is not None:
                now = self._store.clock.wall_ms()
                ids, after = await page_of_search(tx, STORAGE, query.search, query, now=now)
                rows = await bodies_with_ids(tx, storage_domain, StorageDomain, ids)
            else:
                rows, more = page_of(await storage_after(tx, query.after or "", limit + 1), limit)
                after = rows[-1].name if more else None
            return Page(items=await _views(tx, rows), revision=await tx.revision_now(), next=after)

    async def get(self, ref: str) -> StorageView:
        async with self._store.read() as tx:
            (view,) = await _views(tx, (await the_storage(tx, ref),))
            return view

    async def images(self, ref: str) -> tuple[Image, ...]:
        return (await self.get(ref)).images

    async def create(self, caller: Caller, request: StorageCreate) -> StorageView:
        """Every host of the cluster is told to prepare it: one that is away when it is back."""
        check_name(request.name)
        path, ceph = _place(request)
        effects = Effects()
        async with self._store.write() as tx:
            cluster = await the_cluster(tx, request.cluster, field="cluster")
            if await find_storage(tx, request.name) is not None:
                raise taken("storage domain", request.name)
            for other in await storage_of_cluster(tx, cluster.id):
                _check_apart(path, ceph, other)
            saved = await save_storage(
                tx,
                StorageDomain(
                    id=StorageDomainId(str(uuid4())),
                    name=request.name,
                    cluster_id=cluster.id,
                    kind=request.kind,
                    path=path,
                    ceph=ceph,
                ),
            )
            told = changes_between(None, saved)
            await record(
                tx, "storage.added", cluster_id=cluster.id, by=caller.name, name=saved.name, **told
            )
            hosts = await hosts_of_cluster(tx, cluster.id)
            # First, for the hosts learn its path from there.
            effects.configure(cluster.id)
            order = PrepareStorage(
                domain=saved, installation_id=(await the_installation(tx)).installation.id
            )
            steps = tuple(
                Give(
                    name=f"prepare on {row.host.name}",
                    host_id=row.host.id,
                    order=order,
                    optional=True,
                    parallel=True,
                )
                for row in hosts
                if row.status.boot is not None
            )
            if steps:
                await self._runner.begin(
                    tx,
                    effects,
                    kind="storage.prepare",
                    subject=saved.id,
                    by=caller.name,
                    plan=Plan(steps=steps),
                )
        await self._dispatcher.carry_out(effects)
        return await self.get(saved.id)

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        """Forgets it; not a byte in it is touched."""
        effects = Effects()
        async with self._store.write() as tx:
            domain = await the_storage(tx, ref)
            check_revision(if_match, domain.revision)
            disks = await disk_count(tx, domain.id)
            if disks:
                raise Refused(
                    f"{disks} disks of VMs are on storage domain {domain.name}",
                    fix="delete these VMs first",
                )
            sealed = await template_disk_count(tx, domain.id)
            if sealed:
                raise Refused(
                    f"{sealed} disks of templates are on storage domain {domain.name}",
                    fix="delete these templates first: 'virtha template list'",
                )
            await drop_storage(tx, domain.id)
            await record(
                tx,
                "storage.removed",
                cluster_id=domain.cluster_id,
                by=caller.name,
                name=domain.name,
                domain=domain.id,  # as its troubles name it, which are over
                **changes_between(domain, None),
            )
            effects.configure(domain.cluster_id)
        await self._dispatcher.carry_out(effects)


async def _views(tx: Transaction, domains: tuple[StorageDomain, ...]) -> tuple[StorageView, ...]:
    reports = await reports_of(tx, tuple(domain.id for domain in domains))
    known: dict[str, tuple[str, tuple[HostRow, ...]]] = {}
    for cluster_id in {domain.cluster_id for domain in domains}:
        cluster = await find_cluster(tx, cluster_id)
        assert cluster is not None, "a foreign key holds it"
        known[cluster_id] = cluster.name, await hosts_of_cluster(tx, cluster_id)
    return tuple(_view(domain, *known[domain.cluster_id], reports) for domain in domains)


def _view(
    domain: StorageDomain,
    cluster_name: str,
    hosts: tuple[HostRow, ...],
    reports: dict[tuple[HostId, StorageDomainId], StorageReport],
) -> StorageView:
    usable: dict[str, bool | None] = {}
    detail: dict[str, str] = {}
    images: dict[str, Image] = {}
    newest = None
    for row in hosts:
        report = reports.get((row.host.id, domain.id))
        usable[row.host.name] = report.usable if report is not None else None
        if report is None:
            continue
        if report.detail:
            detail[row.host.name] = report.detail
        if report.usable:
            newest = report
            images.update({image.path: image for image in report.images})
    return StorageView(
        domain=domain,
        cluster_name=cluster_name,
        usable_by=usable,
        detail=detail,
        size_bytes=newest.size_bytes if newest is not None else 0,
        free_bytes=newest.free_bytes if newest is not None else 0,
        images=tuple(sorted(images.values(), key=lambda image: (image.name, image.path))),
    )
