"""Checks of what a user wants of a VM: each error names the field, what is allowed and the fix."""

import re
import secrets
from collections.abc import Callable, Iterable

from msgspec import UNSET, UnsetType

from virtha.control.launch import Surroundings
from virtha.control.names import check_name, the_storage
from virtha.control.requests import DiskCreate, NicCreate, VmCreate, WatchdogRequest
from virtha.model.errors import Conflict, InvalidInput
from virtha.model.facts import Image
from virtha.model.host import HostCapabilities, StorageDomain
from virtha.model.ids import ClusterId, DiskId, NicId, StorageDomainId, VmId
from virtha.model.machine import MachineType
from virtha.model.policy import PermissionGrade
from virtha.model.size import format_size
from virtha.model.template import DIRECTORY as TEMPLATES
from virtha.model.value import Value
from virtha.model.vm import PRIORITY_MAX, Disk, DiskFormat, Nic, Vm
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel, models_that_fit
from virtha.store.clusters import reports_of, storage_of_cluster
from virtha.store.store import Transaction
from virtha.store.vms import disk_owner, mac_owner

MEMORY_BYTES_MIN = 16 << 20
MEMORY_BYTES_MAX = 64 << 40
VCPUS_MAX = 710
"""QEMU 7.2's limit for q35 is 288, later ones have more; the host's libvirt has the last word."""
DISK_BYTES_MIN = 1 << 10
DISK_BYTES_MAX = 1 << 50
DISK_BYTES_STEP = 512
DISKS_MAX = 24
NICS_MAX = 24
PATH_LENGTH_MAX = 512
IMAGES = "images"
"""Directory of a storage domain that VMs are created from, and never write to."""
_BUSES = ("virtio", "scsi", "sata", "ide")
_NIC_MODELS = ("virtio", "e1000", "e1000e", "rtl8139")
_ARCHITECTURES = ("x86_64", "s390x")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CARD_NAME = re.compile(r"[A-Za-z0-9._-]{1,50}")
"""oVirt's bound."""
_BRIDGE = re.compile(r"[A-Za-z0-9._:-]{1,15}")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,94}")
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ +=@-]*")

MakeId = Callable[[], str]


class PlannedDisk(Value, frozen=True, kw_only=True):
    """``create``: an order makes it; else it is there already."""

    disk: Disk
    image: str | None
    create: bool


def check_sizes(memory_bytes: int, vcpus: int, capabilities: Iterable[HostCapabilities]) -> None:
    """Against what can be, and against the largest host that has reported."""
    if not MEMORY_BYTES_MIN <= memory_bytes <= MEMORY_BYTES_MAX:
        raise InvalidInput(
            f"{format_size(memory_bytes)} is out of range",
            field="memory_bytes",
            allowed=(f"{format_size(MEMORY_BYTES_MIN)} to {format_size(MEMORY_BYTES_MAX)}",),
        )
    if not 1 <= vcpus <= VCPUS_MAX:
        raise InvalidInput(
            f"{vcpus} is out of range", field="vcpus", allowed=(f"1 to {VCPUS_MAX}",)
        )
    largest = max((able.memory_bytes for able in capabilities), default=0)
    if largest and memory_bytes > largest:
        raise InvalidInput(
            f"{format_size(memory_bytes)} is more than any host of the cluster has",
            code="problem.memory.beyond",
            field="memory_bytes",
            allowed=(f"up to {format_size(largest)}",),
            fix="ask for less, or let a larger host join",
        )


def limit_of(grade: PermissionGrade) -> PermissionGrade | UnsetType:
    """As a VM's record has it: the highest is no limit."""
    return UNSET if grade is PermissionGrade.FENCE else grade


def checked_priority(priority: int) -> int | UnsetType:
    """As a VM has it. Raises InvalidInput."""
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidInput(
            f"{priority} is out of range", field="priority", allowed=(f"0 to {PRIORITY_MAX}",)
        )
    return priority or UNSET


def check_machine(architecture: str, machine: MachineType) -> None:
    if architecture not in _ARCHITECTURES:
        raise InvalidInput(
            f"'{architecture}' is not supported", field="architecture", allowed=_ARCHITECTURES
        )
    fitting = (
        (MachineType.S390_CCW,) if architecture == "s390x" else (MachineType.Q35, MachineType.PC)
    )
    if machine not in fitting:
        raise InvalidInput(
            f"{machine.value} is no machine type of {architecture}",
            field="machine",
            allowed=fitting,
        )


def check_watchdog(
    request: WatchdogRequest,
    architecture: str,
    machine: MachineType,
    capabilities: Iterable[HostCapabilities],
) -> Watchdog:
    """W1, W2: both parts; our table, and what at least one host's libvirt accepts."""
    reported = [able for able in capabilities if able.libvirt_version]
    accepted = {model for able in reported for model in able.watchdog_models}
    fitting = tuple(
        model
        for model in models_that_fit(architecture, machine, libvirt_version=None)
        if model in accepted or not reported
    )
    if request.model not in tuple(WatchdogModel) or request.model not in fitting:
        told = f"'{request.model}' does not fit {architecture} machine type {machine.value}"
        if request.model in tuple(WatchdogModel) and reported:
            told += " on the cluster's hosts"
        raise InvalidInput(
            told if request.model else "is missing",
            code="problem.watchdog.model",
            field="watchdog.model",
            allowed=tuple(model.value for model in fitting),
            fix="choose one that fits" if fitting else "this machine type takes no watchdog",
        )
    if request.action not in tuple(WatchdogAction):
        raise InvalidInput(
            f"'{request.action}' is no watchdog action" if request.action else "is missing",
            code="problem.watchdog.action",
            field="watchdog.action",
            allowed=tuple(action.value for action in WatchdogAction),
            fix="say what happens when it fires, for example reset",
        )
    return Watchdog(model=WatchdogModel(request.model), action=WatchdogAction(request.action))


def check_first_watchdog(card: Watchdog | None, *, owner: str) -> None:
    """W1: a second one is refused. Raises Conflict (`problem.watchdog.second`)."""
    if card is not None:
        raise Conflict(
            f"{owner} has watchdog {card.model}:{card.action}",
            code="problem.watchdog.second",
            field="watchdog",
            fix="replace it by PUT, or remove it first",
        )


def check_disk_path(path: str, domain: StorageDomain, *, field: str) -> str:
    """A plain relative path inside the domain. Symbolic links are the agent's to refuse: only it sees them."""
    if domain.ceph is not UNSET:
        if _IMAGE_NAME.fullmatch(path) is None:
            raise InvalidInput(
                f"'{path[:PATH_LENGTH_MAX]}' is no name of an image of {domain.path}",
                code="problem.disk.outside",
                field=field,
                allowed=("letters, digits, '_', '.' and '-', at most 95",),
                fix="write for example web1-disk0",
            )
        return path
    parts = path.split("/")
    if not path or len(path) > PATH_LENGTH_MAX or not all(map(_PATH_PART.fullmatch, parts)):
        raise InvalidInput(
            f"'{path[:PATH_LENGTH_MAX]}' is not inside storage domain {domain.name}",
            code="problem.disk.outside",
            field=field,
            allowed=(f"a relative path below {domain.path}, without '..' and hidden parts",),
            fix="write for example vms/web1/disk0.qcow2",
        )
    if parts[0] == TEMPLATES:
        raise InvalidInput(
            f"'{path}' is a template's, which no VM may write to",
            code="problem.disk.outside",
            field=field,
            fix="make the VM from the template: 'virtha vm create NAME --template TEMPLATE'",
        )
    if parts[0] == IMAGES:
        raise InvalidInput(
            f"'{path}' is an image, which no VM may write to",
            code="problem.disk.outside",
            field=field,
            fix="create the disk from the image: give 'image' instead of 'path'",
        )
    return path


async def check_disk_free(tx: Transaction, domain: StorageDomain, path: str, *, field: str) -> None:
    owner = await disk_owner(tx, domain.id, path)
    if owner is not None:
        raise Conflict(
            f"{path} on {domain.name} belongs to VM {owner}",
            code="problem.disk.in_use",
            field=field,
            fix="choose another path",
        )


def check_growth(disk: Disk, size_bytes: int) -> None:
    """Raises InvalidInput. As large as it is on record already is no error: its file may be behind."""
    if disk.readonly:
        raise InvalidInput(f"{disk.name} is read-only", field="disk", fix="choose another disk")
    if size_bytes < disk.size_bytes:
        raise InvalidInput(
            f"{disk.name} has {format_size(disk.size_bytes)}, and a disk can't be made smaller: what its guest keeps at "
            "the end would be cut off",
            code="problem.disk.shrink",
            field="size_bytes",
            allowed=(f"{format_size(disk.size_bytes)} or more",),
            fix="add a smaller disk, copy the data in the guest, then remove this one",
        )
    if not DISK_BYTES_MIN <= size_bytes <= DISK_BYTES_MAX or size_bytes % DISK_BYTES_STEP:
        raise InvalidInput(
            f"{size_bytes} bytes can't be a disk's size",
            field="size_bytes",
            allowed=(
                f"{format_size(DISK_BYTES_MIN)} to {format_size(DISK_BYTES_MAX)}, in steps of {DISK_BYTES_STEP} bytes",
            ),
        )


def wanted_disks(request: VmCreate) -> tuple[DiskCreate, ...]:
    """With ``image``, the short way to a boot disk, as the first one."""
    if request.image is None:
        return request.disks
    boot = DiskCreate(image=request.image, storage_domain=request.storage_domain)
    return (boot, *request.disks)


def _disk_field(request: VmCreate, index: int) -> str:
    """Where the request itself says it; '': the short way's boot disk has no place in its list."""
    if request.image is None:
        return f"disks[{index}]"
    return f"disks[{index - 1}]" if index else ""


def _below(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


async def plan_disks(
    tx: Transaction,
    request: VmCreate,
    *,
    vm_id: VmId,
    cluster_id: ClusterId,
    make_id: MakeId,
) -> tuple[PlannedDisk, ...]:
    wanted = wanted_disks(request)
    if len(wanted) > DISKS_MAX:
        raise InvalidInput(f"{len(wanted)} are too many", field="disks", allowed=(f"{DISKS_MAX}",))
    domains = await storage_of_cluster(tx, cluster_id)
    images = await _images(tx, domains)
    planned: list[PlannedDisk] = []
    for index, one in enumerate(wanted):
        field = _disk_field(request, index)
        domain = await _domain_for(
            tx, one.storage_domain or request.storage_domain, domains, cluster_id, field
        )
        disk = _plan_disk(one, domain, images[domain.id], vm_id, index, field, make_id)
        path_field = _below(field, "path")
        await check_disk_free(tx, domain, disk.disk.path, field=path_field)
        for earlier in planned:
            if earlier.disk.name == disk.disk.name:
                raise InvalidInput(
                    f"'{disk.disk.name}' is there twice",
                    field=_below(field, "name"),
                    fix="choose another name",
                )
            if (earlier.disk.storage_domain_id, earlier.disk.path) == (domain.id, disk.disk.path):
                raise InvalidInput(
                    f"'{disk.disk.path}' is there twice",
                    field=path_field,
                    fix="choose another path",
                )
        planned.append(disk)
    return tuple(planned)


async def plan_disk(tx: Transaction, one: DiskCreate, vm: Vm, *, make_id: MakeId) -> PlannedDisk:
    """A further disk of a VM that is there."""
    if len(vm.disks) >= DISKS_MAX:
        raise InvalidInput(
            f"{vm.name} has {len(vm.disks)} already", field="disks", allowed=(f"{DISKS_MAX}",)
        )
    names = {disk.name for disk in vm.disks}
    index = next(index for index in range(DISKS_MAX + 1) if f"disk{index}" not in names)
    domains = await storage_of_cluster(tx, vm.cluster_id)
    images = await _images(tx, domains)
    domain = await _domain_for(tx, one.storage_domain, domains, vm.cluster_id, "")
    planned = _plan_disk(one, domain, images[domain.id], vm.id, index, "", make_id)
    if planned.disk.name in names:
        raise Conflict(
            f"{vm.name} has a disk '{planned.disk.name}' already",
            code="problem.name_taken",
            field="name",
            fix="choose another name",
        )
    await check_disk_free(tx, domain, planned.disk.path, field="path")
    return planned


async def _images(
    tx: Transaction, domains: tuple[StorageDomain, ...]
) -> dict[StorageDomainId, dict[str, Image]]:
    """What any host that can use the domain has seen there, by path."""
    found: dict[StorageDomainId, dict[str, Image]] = {domain.id: {} for domain in domains}
    reports = await reports_of(tx, tuple(found))
    for (_, domain_id), report in sorted(reports.items()):
        if report.usable:
            found[domain_id].update({image.path: image for image in report.images})
    return found


async def _domain_for(
    tx: Transaction,
    ref: str | None,
    domains: tuple[StorageDomain, ...],
    cluster_id: ClusterId,
    field: str,
) -> StorageDomain:
    names = tuple(domain.name for domain in domains)
    if ref is None:
        if len(domains) == 1:
            return domains[0]
        raise InvalidInput(
            "is missing, and there are several" if domains else "the cluster has none yet",
            field="storage_domain",
            allowed=names,
            fix="name one" if domains else "add one: 'virtha storage add'",
        )
    domain = await the_storage(tx, ref, field="storage_domain")
    if domain.cluster_id != cluster_id:
        raise InvalidInput(
            f"{domain.name} belongs to another cluster",
            field=_below(field, "storage_domain"),
            allowed=names,
        )
    return domain


def _plan_disk(
    one: DiskCreate,
    domain: StorageDomain,
    images: dict[str, Image],
    vm_id: VmId,
    index: int,
    field: str,
    make_id: MakeId,
) -> PlannedDisk:
    if one.bus not in _BUSES:
        raise InvalidInput(f"'{one.bus}' is no bus", field=_below(field, "bus"), allowed=_BUSES)
    name = one.name if one.name is not None else f"disk{index}"
    check_name(name, field=_below(field, "name"))
    on_ceph = domain.ceph is not UNSET
    disk_format = DiskFormat.RAW if on_ceph else one.format
    if on_ceph and one.image is not None:
        raise InvalidInput(
            f"{domain.name} is a Ceph pool: a disk is made empty there",
            field=_below(field, "image"),
            fix="put its content there with 'rbd import', and give its name as 'path'",
        )
    size_bytes, image = one.size_bytes, None
    if one.image is not None:
        image = _the_image(one.image, domain, tuple(images.values()), _below(field, "image"))
        if image.format in tuple(DiskFormat):
            disk_format = DiskFormat(image.format)
        size_bytes = max(image.virtual_size_bytes, size_bytes or 0)
        if one.size_bytes is not None and one.size_bytes < image.virtual_size_bytes:
            raise InvalidInput(
                f"{format_size(one.size_bytes)} is less than the image has",
                field=_below(field, "size_bytes"),
                allowed=(f"{format_size(image.virtual_size_bytes)} or more",),
            )
    if size_bytes is None and one.path is None:
        raise InvalidInput(
            "neither image, size_bytes nor the path of a disk that is there",
            field=field,
            allowed=("image", "size_bytes", "path"),
            fix="say what the disk is made of",
        )
    if size_bytes is not None and not DISK_BYTES_MIN <= size_bytes <= DISK_BYTES_MAX:
        raise InvalidInput(
            f"{size_bytes} bytes are out of range",
            field=_below(field, "size_bytes"),
            allowed=(f"{format_size(DISK_BYTES_MIN)} to {format_size(DISK_BYTES_MAX)}",),
        )
    default = f"{vm_id}.{name}" if on_ceph else f"vms/{vm_id}/{name}.{disk_format.value}"
    path = one.path if one.path is not None else default
    return PlannedDisk(
        disk=Disk(
            id=DiskId(make_id()),
            name=name,
            storage_domain_id=domain.id,
            path=check_disk_path(path, domain, field=_below(field, "path")),
            format=disk_format,
            size_bytes=size_bytes or 0,
            bus=one.bus,
        ),
        image=image.file_name if image is not None else None,
        create=one.image is not None or one.size_bytes is not None,
    )


def _the_image(wanted: str, domain: StorageDomain, images: tuple[Image, ...], field: str) -> Image:
    """The one of that file name, else of that name without a suffix. Raises InvalidInput: there is none, or there are two."""
    exact = [image for image in images if image.file_name == wanted]
    fitting = exact or [image for image in images if image.name == wanted]
    if len(fitting) > 1:
        raise InvalidInput(
            f"storage domain {domain.name} has {len(fitting)} images '{wanted[:100]}'",
            field=field,
            allowed=tuple(sorted(image.file_name for image in fitting)),
            fix="say which, with its suffix",
        )
    if not fitting:
        raise InvalidInput(
            f"storage domain {domain.name} has no image '{wanted[:100]}'",
            field=field,
            allowed=tuple(sorted({image.name for image in images})[:20]),
            fix="put the image file into its images directory" if not images else "",
        )
    return fitting[0]


async def plan_nics(
    tx: Transaction,
    wanted: tuple[NicCreate, ...],
    *,
    make_id: MakeId,
    present: tuple[Nic, ...] = (),
    beside: tuple[Nic, ...] = (),
) -> tuple[Nic, ...]:
    """``present``: NICs of the VM itself, whose addresses and names it may keep. ``beside``: those that it has besides."""
    if len(wanted) > NICS_MAX:
        raise InvalidInput(f"{len(wanted)} are too many", field="nics", allowed=(f"{NICS_MAX}",))
    own = {nic.mac for nic in present}
    nics: list[Nic] = []
    for index, one in enumerate(wanted):
        field = f"nics[{index}]"
        if not _BRIDGE.fullmatch(one.bridge):
            raise InvalidInput(
                f"'{one.bridge[:64]}' is no bridge name",
                field=f"{field}.bridge",
                allowed=("1 to 15 letters, digits, '.', '_', ':' and '-'",),
            )
        if one.model not in _NIC_MODELS:
            raise InvalidInput(
                f"'{one.model[:64]}' is no model", field=f"{field}.model", allowed=_NIC_MODELS
            )
        mac = one.mac.lower() if one.mac is not None else await _free_mac(tx, nics)
        # The lowest bit of the first byte marks groups (IEEE 802): no card may send from one.
        if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
            raise InvalidInput(
                f"'{mac[:64]}' is no card's address",
                field=f"{field}.mac",
                allowed=("six pairs of hexadecimal digits, the first one even",),
                fix="write for example 52:54:00:12:34:56, or leave it out",
            )
        owner = await mac_owner(tx, mac) if mac not in own else None
        if owner is not None or mac in {nic.mac for nic in nics}:
            raise Conflict(
                f"{mac} belongs to VM {owner}" if owner else f"{mac} is there twice",
                code="problem.mac.in_use",
                field=f"{field}.mac",
                fix="leave it out, and one is chosen",
            )
        name = _checked_card_name(one.name, f"{field}.name")
        if name is UNSET:
            name = next((nic.name for nic in present if nic.mac == mac), UNSET)
        nic = Nic(id=NicId(make_id()), bridge=one.bridge, mac=mac, model=one.model, name=name)
        _check_called(nic, (*nics, *beside), f"{field}.name")
        nics.append(nic)
    return tuple(nics)


def _checked_card_name(name: str | None, field: str) -> str | UnsetType:
    if name is None:
        return UNSET
    if not _CARD_NAME.fullmatch(name):
        raise InvalidInput(
            f"'{name[:64]}' is no name of a card",
            field=field,
            allowed=("1 to 50 letters, digits, '.', '_' and '-'",),
        )
    return name


def _check_called(nic: Nic, others: tuple[Nic, ...], field: str) -> None:
    """Who removes a card by its name must not take another one."""
    for one in others:
        if one.called == nic.called:
            raise Conflict(
                f"{one.mac} is called {one.called} already", field=field, fix="choose another name"
            )


async def check_mac_free(tx: Transaction, nic: Nic, vm: Vm) -> None:
    """Raises Conflict: another VM has it by now. ``vm`` itself may."""
    owner = await mac_owner(tx, nic.mac)
    if owner is not None and owner != vm.name:
        raise Conflict(
            f"{nic.mac} belongs to VM {owner}",
            code="problem.mac.in_use",
            field="nics",
            fix=f"take it from {owner} first",
        )


async def _free_mac(tx: Transaction, chosen: list[Nic]) -> str:
    """In QEMU's range, 52:54:00; unused by any VM of the installation."""
    for _ in range(1_000):
        mac = "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        if mac not in {nic.mac for nic in chosen} and await mac_owner(tx, mac) is None:
            return mac
    raise Conflict("no free MAC address was found", code="problem.mac.in_use", field="nics")


def capabilities_of(surroundings: Surroundings) -> tuple[HostCapabilities, ...]:
    return tuple(row.status.capabilities for row in surroundings.hosts)
