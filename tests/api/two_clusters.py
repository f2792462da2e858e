"""Two clusters with one thing of each kind in each, and users who may see one of them. Whatever is in sueden says so in its name."""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.host import Cluster, Host, HostState, HostStatus, StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    HostId,
    IncidentId,
    NicId,
    OperationId,
    StorageDomainId,
    TemplateId,
    VmId,
)
from virtha.model.incident import HostIncident, IncidentCause, VmPath
from virtha.model.machine import MachineType
from virtha.model.operation import Operation
from virtha.model.template import Template, TemplateState
from virtha.model.time import UtcMillis
from virtha.model.vm import Disk, Nic, Vm, VmState, VmStatus
from virtha.store.clusters import save_cluster, save_storage
from virtha.store.events import add_event
from virtha.store.hosts import add_host, save_host_status
from virtha.store.incidents import save_incidents, save_paths
from virtha.store.operations import save_operation
from virtha.store.store import WriteTransaction
from virtha.store.templates import save_template
from virtha.store.vms import save_vm, save_vm_status

SIDES = ("norden", "sueden")
MACS = {"norden": "52:54:00:00:00:01", "sueden": "52:54:00:00:00:02"}
GIB = 1 << 30
PASSWORD = "sees one of two clusters"


def id_of(kind: str, side: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"{kind}-{side}"))


def path_of(template: str, side: str) -> str:
    """A route's path with what it names in that cluster."""
    word = template.split("/")[2]
    kinds = {
        "clusters": "cluster",
        "hosts": "host",
        "vms": "vm",
        "storage-domains": "storage",
        "templates": "template",
        "operations": "operation",
        "incidents": "incident",
    }
    named = id_of(kinds[word], side) if word in kinds else "nothing"
    path = template.replace("{ref}", named)
    if "{ref}" not in template:
        path = path.replace("{id}", named)
    for part in ("id", "key", "disk", "nic"):
        path = path.replace(f"{{{part}}}", "nothing")
    return path


async def fill(world: Any) -> None:
    async with world.store.write() as tx:
        for number, side in enumerate(SIDES, 100):
            await _side(tx, side, number)
    for side in SIDES:
        await world.ok("POST", "/v1/tokens", {"cluster": side, "description": f"for {side}"})
        power = {"driver": "ipmi", "address": f"{side}.example", "user": side}
        await world.ok("PUT", f"/v1/hosts/host-{side}/power/default", {"settings": power})
        await world.ok("POST", "/v1/receivers", RECEIVER | {"name": f"mail-{side}"})


RECEIVER = {
    "settings": {"type": "webhook", "url": "https://127.0.0.1:1/", "private_addresses": True},
    "secrets": {"secret": "0123456789abcdef0123456789abcdef"},
}


async def _side(tx: WriteTransaction, side: str, number: int) -> None:
    cluster_id = ClusterId(id_of("cluster", side))
    await save_cluster(tx, Cluster(id=cluster_id, name=side))
    host = Host(
        id=HostId(id_of("host", side)), name=f"host-{side}", number=number, cluster_id=cluster_id
    )
    await add_host(tx, host, libvirt_uuid=None, timeline="t1")
    await save_host_status(tx, HostStatus(host_id=host.id, state=HostState.UP))
    storage = StorageDomain(
        id=StorageDomainId(id_of("storage", side)),
        name=f"storage-{side}",
        cluster_id=cluster_id,
        kind="directory",
        path=f"/srv/{side}",
    )
    await save_storage(tx, storage)
    disk = Disk(
        id=DiskId(id_of("disk", side)),
        name="disk",
        storage_domain_id=storage.id,
        path=f"vms/{side}",
        size_bytes=1,
    )
    vm = Vm(
        id=VmId(id_of("vm", side)),
        name=f"vm-{side}",
        cluster_id=cluster_id,
        memory_bytes=GIB,
        vcpus=1,
        ha=True,
        machine=MachineType.Q35,
        disks=(disk,),
        nics=(Nic(id=NicId(id_of("nic", side)), bridge="br0", mac=MACS[side]),),
    )
    await save_vm(tx, vm)
    running = VmStatus(
        vm_id=vm.id, state=VmState.RUNNING, host_id=host.id, holders=(host.id,), wanted_up=True
    )
    await save_vm_status(tx, running)
    template = Template(
        id=TemplateId(id_of("template", side)),
        name=f"template-{side}",
        cluster_id=cluster_id,
        description="",
        source_vm=vm.name,
        state=TemplateState.READY,
        memory_bytes=GIB,
        vcpus=1,
        architecture="x86_64",
        machine=MachineType.Q35,
        watchdog=None,
        ha=False,
        priority=0,
        disks=(),
        created=UtcMillis(1),
    )
    await save_template(tx, template)
    operation = Operation(
        id=OperationId(id_of("operation", side)), kind="vm.start", subject=vm.id, message=side
    )
    await save_operation(tx, operation, "{}")
    incident = HostIncident(
        id=IncidentId(id_of("incident", side)),
        cluster_id=cluster_id,
        host_id=host.id,
        host=host.name,
        boot=BootId("b"),
        number=1,
        cause=IncidentCause.JUDGED,
        opened=UtcMillis(1),
        opened_ms=1,
        silent_since_ms=1,
    )
    await save_incidents(tx, [incident], new={incident.id})
    path = VmPath(incident_id=incident.id, vm_id=vm.id, vm=vm.name)
    await save_paths(tx, [path], new={(path.incident_id, path.vm_id)})
    await tell(tx, side)


async def tell(tx: WriteTransaction, side: str) -> None:
    """One more event there."""
    await add_event(
        tx,
        Event(
            code="vm.watchdog.fired",
            severity=Severity.WARNING,
            message=f"in {side}",
            cluster_id=ClusterId(id_of("cluster", side)),
            host_id=HostId(id_of("host", side)),
            vm_id=VmId(id_of("vm", side)),
        ),
    )


async def add_user(
    world: Any, name: str, *grants: tuple[str, str | None], role: str = "none"
) -> None:
    """Signed in; ``world.tokens`` has its token. A grant is a role and a cluster."""
    await world.ok("POST", "/v1/users", {"name": name, "password": PASSWORD, "role": role})
    for granted, cluster in grants:
        wanted = {"role": granted, "cluster": cluster}
        await world.ok("POST", f"/v1/users/{name}/grants", wanted)
    session = await world.ok(
        "POST", "/v1/sessions", {"user": name, "password": PASSWORD}, role=None
    )
    world.tokens[name] = session["token"]
