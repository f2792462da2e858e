"""The frozen frames of protocol version 1, and the script that wrote them.

    python tests/wire/freeze_wire.py            # says what differs from tests/wire/v1
    python tests/wire/freeze_wire.py --write    # writes the files anew

Written once per protocol version. A frame may be written anew only before a release has sent it; after
that a changed byte is a changed protocol.
"""

import json
import sys
from pathlib import Path

import msgspec
from frozen_leases import lease_messages
from frozen_power import power_messages
from frozen_witnesses import witness_messages

from virtha.model.console import (
    ChannelSubject,
    LogPosition,
    OpenScreen,
    OpenSerial,
    ReadSerialLog,
    TakeScreenshot,
)
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import (
    Awaited,
    Fact,
    FactBody,
    ForeignDomain,
    Happened,
    HostReport,
    Image,
    Inventory,
    Leaving,
    MigrationReport,
    Outcome,
    Progress,
    Released,
    Result,
    RunsWith,
    StorageReport,
    VmReport,
)
from virtha.model.host import HostCapabilities, StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    HostId,
    Incarnation,
    InstallationId,
    NicId,
    OperationId,
    Revision,
    SnapshotId,
    StorageDomainId,
    TemplateId,
    Term,
    VmId,
)
from virtha.model.machine import MachineType
from virtha.model.orders import (
    AdoptVm,
    CancelWork,
    ChangeLiveSnapshots,
    ChangeSnapshots,
    CopyDisk,
    CreateDisk,
    DefineVm,
    DeleteTemplate,
    DiskCheck,
    EndPausedVm,
    ForgetVm,
    Grant,
    GrowDisk,
    GrowLiveDisk,
    HeldVm,
    HostSettings,
    LetInHost,
    MigrateVm,
    MigrationSide,
    MigrationWord,
    Order,
    OrderBody,
    PauseVm,
    PlugDevice,
    PrepareStorage,
    RebootMode,
    RebootVm,
    ReceiveVm,
    ReleaseVm,
    ResumeVm,
    ScanForeign,
    SettleMigration,
    ShutOutHost,
    SnapshotAction,
    StartVm,
    StopMode,
    StopVm,
    UnplugDevice,
)
from virtha.model.policy import Policy, RestartPolicy
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import UtcMillis
from virtha.model.vm import Disk, DiskFormat, Hardware, Nic, PossibleCopy, Reason, Vm, VmState
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel
from virtha.wire.codec import HEADER, encode_beat_ack, encode_message
from virtha.wire.messages import (
    Attach,
    Attached,
    Beat,
    BeatAck,
    Bye,
    ChannelCredit,
    ChannelData,
    Facts,
    FactsAck,
    GiveOrder,
    Hello,
    Message,
    OpenChannel,
    Pace,
    PeerRole,
    Ping,
    Pong,
    Refuse,
    Settings,
    Welcome,
)

DIRECTORY = Path(__file__).parent / "v1"

BOOT = BootId("7f7c4a4e-54b5-4c40-8a4e-27a7e3f0a001")
VM_ID = VmId("0b2f5f0e-1111-4a7a-9d55-000000000001")
MIGRATION = OperationId("12.7")
OPERATION = OperationId("0b2f5f0e-2222-4a7a-9d55-000000000002")
DOMAIN = StorageDomainId("0b2f5f0e-3333-4a7a-9d55-000000000003")
INSTALLATION = InstallationId("0b2f5f0e-4444-4a7a-9d55-000000000004")
CLUSTER = ClusterId("0b2f5f0e-5555-4a7a-9d55-000000000005")

DISK = Disk(
    id=DiskId("0b2f5f0e-6666-4a7a-9d55-000000000006"),
    name="vda",
    storage_domain_id=DOMAIN,
    path="vms/web1/vda.qcow2",
    format=DiskFormat.QCOW2,
    size_bytes=10 << 30,
    bus="virtio",
    readonly=False,
)
TEMPLATE = TemplateId("0b2f5f0e-bbbb-4a7a-9d55-00000000000b")
SEALED = msgspec.structs.replace(DISK, path=f"templates/{TEMPLATE}/vda.qcow2")
VM = Vm(
    id=VM_ID,
    name="web1",
    cluster_id=CLUSTER,
    description="frozen",
    memory_bytes=512 << 20,
    vcpus=2,
    architecture="x86_64",
    machine=MachineType.Q35,
    watchdog=Watchdog(model=WatchdogModel.I6300ESB, action=WatchdogAction.RESET),
    ha=True,
    disks=(DISK,),
    nics=(
        Nic(
            id=NicId("0b2f5f0e-7777-4a7a-9d55-000000000007"),
            bridge="br0",
            mac="52:54:00:00:00:01",
            model="virtio",
        ),
    ),
    adopted=False,
    revision=Revision(41),
)
STORAGE = StorageDomain(
    id=DOMAIN,
    name="ds1",
    cluster_id=CLUSTER,
    kind="directory",
    path="/srv/ds1",
    revision=Revision(7),
)
GRANT = Grant(
    vm_id=VM_ID,
    incarnation=Incarnation(3),
    boot=BOOT,
    beat_monotonic_ms=123_456_789,
    duration_ms=30_000,
)
SETTINGS = HostSettings(
    revision=42,
    installation_id=INSTALLATION,
    term=Term(5),
    hold="maintenance window",
    policy=Policy(restart=RestartPolicy(restarts_max=4)),
    storage_domains=(STORAGE,),
    vms=(HeldVm(vm=VM, incarnation=Incarnation(3), wanted_up=True),),
    foreign_vms=(VmId("0b2f5f0e-8888-4a7a-9d55-000000000008"),),
)

FACT_BODIES: tuple[FactBody, ...] = (
    Happened(
        code="vm.watchdog.fired",
        vm_id=VM_ID,
        incarnation=Incarnation(3),
        fields={"action": "reset", "count": 2, "seen": True, "note": None},
    ),
    VmReport(
        vm_id=VM_ID,
        incarnation=Incarnation(3),
        state=VmState.RUNNING,
        reasons=(
            Reason(code="vm.running", fields={"by": "admin"}, since=UtcMillis(1_700_000_000_000)),
        ),
        guest_agent=True,
        restart_count=1,
    ),
    Released(vm_id=VM_ID, incarnation=Incarnation(3)),
    Inventory(
        revision=9,
        domains=(
            DomainReport(
                vm_id=VM_ID,
                name="web1",
                state=DomainState.RUNNING,
                reason="booted",
                persistent=True,
                autostart=False,
                managed_save=False,
                pid=4242,
            ),
        ),
    ),
    HostReport(
        capabilities=HostCapabilities(
            architecture="x86_64",
            cpus=8,
            memory_bytes=64 << 30,
            memory_overcommit_bytes=1 << 30,
            libvirt_version=9_000_000,
            qemu_version=7_002_000,
            machine_types=("pc", "q35"),
            watchdog_models=(WatchdogModel.I6300ESB, WatchdogModel.IB700),
            domain_type="kvm",
            bridges=("br0",),
            agent_version="0.1.0",
            gate_in_force=True,
            libvirt_connected=True,
        )
    ),
    StorageReport(
        storage_domain_id=DOMAIN,
        usable=True,
        detail="",
        size_bytes=1 << 40,
        free_bytes=1 << 39,
        images=(
            Image(
                name="tiny",
                path="images/tiny.qcow2",
                format="qcow2",
                size_bytes=4 << 20,
                virtual_size_bytes=64 << 20,
            ),
        ),
    ),
    Outcome(
        operation_id=OPERATION,
        step=1,
        result=Result.OK,
        code="problem.failed",
        message="text",
        fields={"name": "web1"},
        changes=("autostart turned off",),
        foreign=(
            ForeignDomain(
                vm=VM,
                name="web1",
                state="running",
                obstacles=("its disk is a host device",),
                changes=("autostart off",),
            ),
        ),
    ),
    Progress(operation_id=OPERATION, step=1, percent=55),
    MigrationReport(
        migration_id=MIGRATION,
        vm_id=VM_ID,
        incarnation=Incarnation(3),
        result=Result.FAILED,
        code="migration.ended.late",
    ),
    Awaited(migration_id=MIGRATION, vm_id=VM_ID, incarnation=Incarnation(3)),
)

HARDWARE = RunsWith(
    vm_id=VM_ID,
    incarnation=Incarnation(3),
    hardware=Hardware(
        memory_bytes=VM.memory_bytes,
        vcpus=VM.vcpus,
        machine=VM.machine,
        watchdog=VM.watchdog,
        default_watchdog=VM.watchdog,
        disks=VM.disks,
        nics=VM.nics,
    ),
)

CHECKING_HOST = HostReport(capabilities=HostCapabilities(disk_check_ms=120_000))
"""A field that is left out where it says nothing: hosts without it send what they always sent."""

COPY = PossibleCopy(
    host_id=HostId("0b2f5f0e-9999-4a7a-9d55-000000000008"), incarnation=Incarnation(4), boot=BOOT
)
MOVE_FACTS: tuple[FactBody, ...] = (
    Awaited(migration_id=MIGRATION, vm_id=VM_ID, incarnation=Incarnation(5), source=COPY),
    VmReport(
        vm_id=VM_ID,
        incarnation=Incarnation(3),
        state=VmState.PAUSED,
        leaves=Leaving(migration_id=MIGRATION, target=COPY),
    ),
)
"""With the other side's copy, which earlier versions did not name."""
MOVE_ORDERS: tuple[OrderBody, ...] = (
    ReceiveVm(vm=VM, migration_id=MIGRATION, grant=GRANT, by="engine", source=COPY),
    MigrateVm(
        vm_id=VM_ID,
        migration_id=MIGRATION,
        incarnation=Incarnation(3),
        target=HostId("0b2f5f0e-9999-4a7a-9d55-000000000008"),
        target_incarnation=Incarnation(4),
        deadline_ms=600_000,
        by="engine",
        target_boot=BOOT,
    ),
)

ORDER_BODIES: tuple[OrderBody, ...] = (
    StartVm(vm=VM, grant=GRANT, by="admin", disk_check=DiskCheck.SKIP_PROVEN),
    StopVm(
        vm_id=VM_ID,
        incarnation=Incarnation(3),
        mode=StopMode.SHUTDOWN,
        by="admin",
        deadline_ms=60_000,
    ),
    RebootVm(vm_id=VM_ID, incarnation=Incarnation(3), mode=RebootMode.RESET, by="admin"),
    PauseVm(vm_id=VM_ID, incarnation=Incarnation(3), by="admin"),
    ResumeVm(vm_id=VM_ID, incarnation=Incarnation(3), by="admin"),
    DefineVm(vm=VM),
    ForgetVm(vm_id=VM_ID, disks=(DISK,)),
    PrepareStorage(domain=STORAGE, installation_id=INSTALLATION),
    CreateDisk(disk=DISK, image="tiny"),
    ScanForeign(),
    AdoptVm(vm=VM, incarnation=Incarnation(1), dry_run=True),
    ReleaseVm(vm_id=VM_ID),
    ReceiveVm(vm=VM, migration_id=MIGRATION, grant=GRANT, by="engine"),
    MigrateVm(
        vm_id=VM_ID,
        migration_id=MIGRATION,
        incarnation=Incarnation(3),
        target=HostId("0b2f5f0e-9999-4a7a-9d55-000000000008"),
        target_incarnation=Incarnation(4),
        deadline_ms=600_000,
        by="engine",
    ),
    SettleMigration(
        vm=VM,
        migration_id=MIGRATION,
        side=MigrationSide.SOURCE,
        incarnation=Incarnation(3),
        target_incarnation=Incarnation(4),
        word=MigrationWord.RUN,
        proofs=(
            Proof(
                kind=ProofKind.POWER_OFF,
                host_id=HostId("0b2f5f0e-9999-4a7a-9d55-000000000008"),
                boot=BOOT,
                at_ms=1_700_000_000_000,
                detail="level 1",
            ),
        ),
    ),
    CopyDisk(
        source=DISK,
        target=SEALED,
        thin=True,
        sealed=True,
        vm_id=VM_ID,
        incarnation=Incarnation(3),
    ),
    DeleteTemplate(template_id=TEMPLATE, disks=(SEALED,)),
    ChangeSnapshots(
        vm=VM,
        grant=GRANT,
        snapshot_id=SnapshotId("0b2f5f0e-cccc-4a7a-9d55-00000000000c"),
        action=SnapshotAction.REVERT,
        by="admin",
    ),
    PlugDevice(vm=VM, incarnation=Incarnation(3), disk=DISK, nic=VM.nics[0]),
    UnplugDevice(
        vm_id=VM_ID, incarnation=Incarnation(3), disk=DISK, nic=VM.nics[0], deadline_ms=20_000
    ),
    ChangeLiveSnapshots(
        vm=VM,
        incarnation=Incarnation(3),
        snapshot_id=SnapshotId("0b2f5f0e-cccc-4a7a-9d55-00000000000c"),
        action=SnapshotAction.CREATE,
        freeze=True,
    ),
    GrowDisk(vm=VM, grant=GRANT, disk_id=DISK.id, size_bytes=2 << 30, by="admin"),
    GrowLiveDisk(vm=VM, incarnation=Incarnation(3), disk_id=DISK.id, size_bytes=2 << 30),
    CancelWork(operation_id=OperationId("0b2f5f0e-dddd-4a7a-9d55-00000000000d"), step=1),
    EndPausedVm(vm_id=VM_ID, incarnation=Incarnation(7), by="engine"),
    ShutOutHost(
        host_id=HostId("0b2f5f0e-9999-4a7a-9d55-000000000008"),
        boot=BOOT,
        domain_id=DOMAIN,
        fsid="0b2f5f0e-eeee-4a7a-9d55-00000000000e",
        addresses=("10.0.0.5", "fd00::5"),
        by="engine",
    ),
    LetInHost(
        host_id=HostId("0b2f5f0e-9999-4a7a-9d55-000000000008"),
        boot=BOOT,
        runs=BootId("0b2f5f0e-ffff-4a7a-9d55-00000000000f"),
        domain_id=DOMAIN,
        fsid="0b2f5f0e-eeee-4a7a-9d55-00000000000e",
        addresses=("10.0.0.5",),
        until_s=2_000_000_000,
        by="engine",
    ),
)


CHANNEL_SUBJECTS: tuple[ChannelSubject, ...] = (
    ReadSerialLog(
        vm_id=VM_ID,
        lines=1_000,
        contains="panic",
        after=LogPosition(file=131_074, offset=4_096),
        wait_ms=10_000,
    ),
    TakeScreenshot(vm_id=VM_ID),
    OpenSerial(vm_id=VM_ID),
    OpenScreen(vm_id=VM_ID),
)


def _fact(index: int, body: FactBody) -> Fact:
    return Fact(
        sequence=991 + index,
        boot=BOOT,
        monotonic_ms=123_456_000 + index,
        wall_ms=1_700_000_000_000 + index,
        body=body,
    )


def _messages() -> dict[str, Message]:
    messages: dict[str, Message] = {
        "hello": Hello(
            version_major=1,
            version_minor=0,
            features=("later",),
            role=PeerRole.AGENT,
            host_id=HostId("0b2f5f0e-9999-4a7a-9d55-000000000009"),
            boot=BOOT,
            term_seen=Term(4),
            fact_sequence_last=1_000,
            settings_revision=41,
            program_version="0.1.0",
        ),
        "welcome": Welcome(
            version_major=1,
            version_minor=0,
            features=("later",),
            installation_id=INSTALLATION,
            server_instance="0b2f5f0e-aaaa-4a7a-9d55-00000000000a",
            term=Term(5),
            fact_sequence_acknowledged=990,
            beat_interval_ms=1_000,
            silence_ms=5_000,
            server_wall_ms=1_700_000_000_000,
        ),
        "pace": Pace(beat_interval_ms=500, silence_ms=3_000),
        "refuse": Refuse(code="wire.refused.version", message="text", field="version_major"),
        "beat": Beat(
            sequence=70_000,
            boot=BOOT,
            monotonic_ms=123_456_789,
            inventory_revision=9,
            agent_alive=True,
            wall_ms=1_700_000_000_000,
        ),
        "beat_ack": BeatAck(sequence=70_000),
        "facts_ack": FactsAck(sequence=1_000),
        "settings": Settings(settings=SETTINGS),
        "ping": Ping(nonce=7),
        "pong": Pong(nonce=7),
        "bye": Bye(code="wire.closed.shutdown"),
        "attach": Attach(channel="Zm9vYmFy"),
        "attached": Attached(silence_ms=10_000),
        "channel_data": ChannelData(data=b"tiny login: "),
        "channel_credit": ChannelCredit(size=65_536),
        **lease_messages(BOOT),
        **witness_messages(BOOT),
        **power_messages(BOOT),
        **{
            f"open_channel_{subject.__struct_config__.tag}": OpenChannel(
                channel="Zm9vYmFy", subject=subject
            )
            for subject in CHANNEL_SUBJECTS
        },
    }
    facts = tuple(_fact(index, body) for index, body in enumerate(FACT_BODIES))
    messages["facts"] = Facts(facts=facts, gap=True)
    messages["facts_disk_check"] = Facts(facts=(_fact(0, CHECKING_HOST),))
    moves = tuple(_fact(index, body) for index, body in enumerate(MOVE_FACTS))
    messages["facts_hardware"] = Facts(facts=(_fact(0, HARDWARE),))
    messages["facts_moves"] = Facts(facts=moves)
    for body in MOVE_ORDERS:
        order = Order(operation_id=OPERATION, step=1, term=Term(5), host_boot=BOOT, body=body)
        messages[f"order_{body.__struct_config__.tag}_named"] = GiveOrder(order=order)
    for index, body in enumerate(ORDER_BODIES):
        order = Order(operation_id=OPERATION, step=index, term=Term(5), host_boot=BOOT, body=body)
        messages[f"order_{body.__struct_config__.tag}"] = GiveOrder(order=order)
    return messages


MESSAGES: dict[str, Message] = _messages()

UNKNOWN_FIELDS: dict[str, dict[str, object]] = {
    "unknown_field_beat": {
        "later": {"deep": [1, {"x": None}]},
        **msgspec.to_builtins(MESSAGES["beat"]),
        "another": 1.5,
    },
    "unknown_field_settings": {
        **msgspec.to_builtins(MESSAGES["settings"]),
        "later": [],
        "settings": {**msgspec.to_builtins(SETTINGS), "later": {"a": 1}},
    },
}
"""What a later minor version may send: it must be read as the message of the same name's end."""


def frames() -> dict[str, bytes]:
    """Each frame by its file's name."""
    made = {name: encode_message(message) for name, message in MESSAGES.items()}
    for name, fields in UNKNOWN_FIELDS.items():
        payload = msgspec.msgpack.encode(fields)
        made[name] = HEADER.pack(len(payload)) + payload
    made["beat_ack_as_sent"] = encode_beat_ack(70_000)
    return made


def description(name: str) -> str:
    """The frame's content for people, and for readers of other languages."""
    if name == "beat_ack_as_sent":
        content: object = msgspec.to_builtins(MESSAGES["beat_ack"])
    elif name in UNKNOWN_FIELDS:
        content = UNKNOWN_FIELDS[name]
    else:
        content = msgspec.to_builtins(MESSAGES[name])
    return json.dumps({"frame": name, "content": content}, indent=1, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    different = 0
    for name, frame in frames().items():
        binary, text = DIRECTORY / f"{name}.bin", DIRECTORY / f"{name}.json"
        if "--write" in arguments:
            binary.write_bytes(frame)
            text.write_text(description(name), encoding="utf-8")
        elif not binary.exists() or binary.read_bytes() != frame:
            different += 1
            print(f"differs: {name}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
