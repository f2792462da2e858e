"""Orders: what the server tells an agent to do. Each is safe to send twice.

An agent refuses an order of an older term, for another boot of its host, or about an older
incarnation, with a coded reason (`order.refused.…`).
"""

from enum import StrEnum

from msgspec import UNSET, UnsetType

from virtha.model.host import StorageDomain
from virtha.model.ids import (
    BootId,
    DiskId,
    HostId,
    Incarnation,
    InstallationId,
    OperationId,
    SnapshotId,
    StorageDomainId,
    TemplateId,
    Term,
    VmId,
)
from virtha.model.policy import Policy
from virtha.model.proof import Proof
from virtha.model.value import Value
from virtha.model.vm import Disk, Nic, PossibleCopy, Vm


class Grant(Value, frozen=True, kw_only=True):
    """The right to start one incarnation (G2).

    It ends at ``beat_monotonic_ms + duration_ms`` on the host's own boot-time clock, where
    ``beat_monotonic_ms`` is what the last beat that the server had seen said: so the time that the
    order spends on its way counts against the grant, and no two clocks are compared.
    """

    vm_id: VmId
    incarnation: Incarnation
    boot: BootId
    beat_monotonic_ms: int
    duration_ms: int

    @property
    def ends_at_ms(self) -> int:
        return self.beat_monotonic_ms + self.duration_ms


class DiskCheck(StrEnum):
    """Whether the disk activity check (A5) applies to this start, and why not."""

    RUN = "run"
    SKIP_PROVEN = "skip_proven"


class StartVm(Value, frozen=True, kw_only=True, tag="start"):
    vm: Vm
    grant: Grant
    by: str
    """Who asked: shown in the VM's reason."""
    disk_check: DiskCheck = DiskCheck.RUN
    ceph_epochs: dict[str, int] | UnsetType = UNSET
    """Per Ceph cluster, by its fsid, the map that its client must have before anything of the VM is read: in it a former holder is
    shut out (P3). Each cluster of its disks is named, where any is."""


class StopMode(StrEnum):
    SHUTDOWN = "shutdown"
    """Asks the guest (ACPI and guest agent); it may ignore it."""
    POWER_OFF = "power_off"


class Superseded(Value, frozen=True, kw_only=True):
    """Why an old copy is to end (G4): that incarnation was started elsewhere, by that proof."""

    incarnation: Incarnation
    proof: Proof


class StopVm(Value, frozen=True, kw_only=True, tag="stop", omit_defaults=True):
    """With ``superseded``: refused, unless its incarnation is above that of the copy here, and its proof is about this
    host's present boot."""

    vm_id: VmId
    incarnation: Incarnation
    mode: StopMode
    by: str
    deadline_ms: int = 60_000
    superseded: Superseded | None = None


class RebootMode(StrEnum):
    REBOOT = "reboot"
    """Asks the guest."""
    RESET = "reset"


class RebootVm(Value, frozen=True, kw_only=True, tag="reboot"):
    vm_id: VmId
    incarnation: Incarnation
    mode: RebootMode
    by: str


class PauseVm(Value, frozen=True, kw_only=True, tag="pause"):
    vm_id: VmId
    incarnation: Incarnation
    by: str


class ResumeVm(Value, frozen=True, kw_only=True, tag="resume"):
    vm_id: VmId
    incarnation: Incarnation
    by: str


class EndPausedVm(Value, frozen=True, kw_only=True, tag="end_paused"):
    """End the QEMU of a VM that an I/O error paused, so that it can be started where its storage works (S6). Refused
    where nothing but that error keeps it paused no more, or its own ``on_io_error`` says otherwise by now.

    ``OK``: its QEMU has ended; what that means the release says. ``FAILED``, ``UNKNOWN``: it may live.
    """

    vm_id: VmId
    incarnation: Incarnation
    by: str


class ShutOutHost(Value, frozen=True, kw_only=True, tag="shut_out_host"):
    """Shut another host out of the Ceph cluster of that domain, by all these addresses, until it is let in (P3). Refused where one
    of them is this host's own, or the domain is in another cluster than ``fsid``.

    ``OK``: read back; its fields are a ``ShutOut``. ``FAILED``, ``UNKNOWN``: some of it may be done. Again: the same.
    """

    host_id: HostId
    boot: BootId
    domain_id: StorageDomainId
    fsid: str
    addresses: tuple[str, ...]
    by: str


class LetInHost(Value, frozen=True, kw_only=True, tag="let_in_host"):
    """What ``ShutOutHost`` did is undone: that host was shut out in ``boot`` and is known to run in ``runs``. Refused where these are
    the same. ``OK``: nothing of ours is left on the cluster's list; its field ``left`` has the addresses that somebody else has put
    there, joined by commas. Again: the same."""

    host_id: HostId
    boot: BootId
    runs: BootId
    domain_id: StorageDomainId
    fsid: str
    addresses: tuple[str, ...]
    until_s: int
    """UTC seconds, as it was read back; 0: it was not."""
    by: str


class ShutOut(Value, frozen=True, kw_only=True):
    """In the fields of an answer, so lists are joined by commas."""

    fsid: str
    addresses: str
    """Those that were read back."""
    epoch: int
    until_s: int


class DefineVm(Value, frozen=True, kw_only=True, tag="define"):
    """Keep this configuration; it applies to a running VM at its next start."""

    vm: Vm


class ForgetVm(Value, frozen=True, kw_only=True, tag="forget", omit_defaults=True):
    """Undefine the (stopped) domain and delete ``disks``; absent is done already.

    With ``incarnation``: refused, before any disk goes, where their storage names a later start of the VM.
    """

    vm_id: VmId
    disks: tuple[Disk, ...] = ()
    incarnation: Incarnation | None = None


class PrepareStorage(Value, frozen=True, kw_only=True, tag="prepare_storage"):
    """Make or check the domain's header and directories; refuse a foreign one (G7)."""

    domain: StorageDomain
    installation_id: InstallationId


class CreateDisk(Value, frozen=True, kw_only=True, tag="create_disk"):
    """Make a disk; ``image`` is an image's name of the same domain, None makes it empty.

    The image is copied in full. A disk that is there already is a refusal, never overwritten.
    """

    disk: Disk
    image: str | None = None


class CopyDisk(Value, frozen=True, kw_only=True, tag="copy_disk", omit_defaults=True):
    """Make ``target`` out of ``source``: of a VM that is down, or of a template. Never overwrites.

    With ``vm_id`` the source is that VM's: refused, or failed when it is seen at the end only, if it runs here or
    its storage names a later start than ``incarnation``.
    """

    source: Disk
    target: Disk
    thin: bool = False
    """``target`` (qcow2, same storage domain) keeps what differs from ``source``, which it needs from then on."""
    sealed: bool = False
    """``target`` is a template's: its file is read-only."""
    vm_id: VmId | None = None
    incarnation: Incarnation = Incarnation(0)


class DeleteTemplate(Value, frozen=True, kw_only=True, tag="delete_template"):
    """Delete a template's sealed disks and what is left of half copies of them; absent is done already."""

    template_id: TemplateId
    disks: tuple[Disk, ...]


class SnapshotAction(StrEnum):
    CREATE = "create"
    REVERT = "revert"
    DELETE = "delete"


class ChangeSnapshots(Value, frozen=True, kw_only=True, tag="snapshots"):
    """Make, go back to or delete a snapshot inside the disks of a VM that is down.

    It writes to the disks, so it is a start as far as G1, G2 and G4 go: an incarnation of its own, a grant, the claim on
    the storage; the host is a holder until it has released that incarnation. Nothing is started.
    """

    vm: Vm
    grant: Grant
    snapshot_id: SnapshotId
    action: SnapshotAction
    by: str


class ChangeLiveSnapshots(Value, frozen=True, kw_only=True, tag="live_snapshots"):
    """Make or delete a snapshot inside the disks of the running copy of that incarnation, by its own QEMU. All disks
    or none; nothing else writes, so no holder is added (ADR 0013). There already, or absent already, is done.

    With ``freeze`` the guest's file systems are frozen for it by the guest agent, and thawed however it ends; a guest
    that can't be frozen is a refusal. The outcome's field ``frozen`` says whether they were.
    """

    vm: Vm
    incarnation: Incarnation
    snapshot_id: SnapshotId
    action: SnapshotAction
    """Not ``REVERT``: that takes a VM that is down."""
    freeze: bool = False


class GrowDisk(Value, frozen=True, kw_only=True, tag="grow_disk"):
    """Make a disk of a VM that is down larger: under a grant and an incarnation, as ``ChangeSnapshots``. Never
    smaller; that large already is done."""

    vm: Vm
    grant: Grant
    disk_id: DiskId
    size_bytes: int
    by: str


class GrowLiveDisk(Value, frozen=True, kw_only=True, tag="grow_live_disk"):
    """As ``GrowDisk``, by the QEMU of the running copy of that incarnation; its guest sees it at once."""

    vm: Vm
    incarnation: Incarnation
    disk_id: DiskId
    size_bytes: int


class CancelWork(Value, frozen=True, kw_only=True, tag="cancel_work"):
    """End the making or copying of a disk (``CreateDisk``, ``CopyDisk``) of that operation's step; nothing of it is
    left. Its own outcome says so (`order.failed.cancelled`), or that it was done already. What is no such work goes on."""

    operation_id: OperationId
    step: int


class PlugDevice(Value, frozen=True, kw_only=True, tag="plug"):
    """Give the running copy of that incarnation one disk or network card; it is in ``vm``. There already is done.

    A disk only if no other copy can have it open: the incarnation is claimed on its storage domain first (G4).
    """

    vm: Vm
    incarnation: Incarnation
    disk: Disk | None = None
    nic: Nic | None = None


class UnplugDevice(Value, frozen=True, kw_only=True, tag="unplug"):
    """Take one disk or network card from the running copy of that incarnation. The guest may refuse: it is waited
    for until ``deadline_ms``. Absent is done already; the definition stays as it is."""

    vm_id: VmId
    incarnation: Incarnation
    disk: Disk | None = None
    nic: Nic | None = None
    deadline_ms: int = 20_000


class ScanForeign(Value, frozen=True, kw_only=True, tag="scan_foreign"):
    """List the domains that virtha does not manage (outcome's ``foreign``)."""


class AdoptVm(Value, frozen=True, kw_only=True, tag="adopt"):
    """Take over an existing domain: patch it, turn its autostart off, keep the original XML."""

    vm: Vm
    incarnation: Incarnation
    dry_run: bool = False


class ReleaseVm(Value, frozen=True, kw_only=True, tag="release"):
    """Give an adopted VM back: original XML elements and autostart are restored, nothing stops."""

    vm_id: VmId


class ReceiveVm(Value, frozen=True, kw_only=True, tag="receive", omit_defaults=True):
    """Let one incoming migration in (G1, G3): ``grant`` is of the copy that comes, and lets nothing else be started.

    Done when the gate knows it; the source is ordered only then. How it went is told as ``MigrationReport``.
    """

    vm: Vm
    migration_id: OperationId
    grant: Grant
    by: str
    source: PossibleCopy | None = None
    """The copy that is to come: a restored server is told of it (M2)."""


class MoveDestination(Value, frozen=True, kw_only=True, omit_defaults=True):
    """Where a target lets a migration in: told by its agent when it has taken the order to receive it."""

    address: str = ""
    """Of its libvirt and its QEMU, as other hosts reach it."""
    port: int = 16_514
    """Of its libvirt, TLS."""
    name: str = ""
    """In its certificate."""
    serial_directory: str = ""
    """Where its VMs' serial logs lie."""
    socket: str = ""
    """Of a libvirt on the same machine (tests): no TLS then."""
    data_uri: str = ""
    """Where its QEMU listens; libvirt there picks the port."""
    bandwidth_mib_s: int = 0
    """At most so much a second; 0: as fast as it goes."""


class MigrateVm(Value, frozen=True, kw_only=True, tag="migrate", omit_defaults=True):
    """Move a running VM to ``target``, memory first (G6: no post-copy). Sent once, never again: a host that was
    asked about ``target_incarnation`` before refuses it. Past ``deadline_ms`` the source ends the attempt."""

    vm_id: VmId
    migration_id: OperationId
    incarnation: Incarnation
    """Of the copy that runs here."""
    target: HostId
    target_incarnation: Incarnation
    deadline_ms: int
    by: str
    target_boot: BootId | None = None
    """What another boot of the target says of this migration is worth nothing: a restored server is told of it (M2)."""
    destination: MoveDestination | None = None
    """As the target told it; None: by an earlier version, and nothing is begun."""
    progress_of: OperationId | None = None
    """What its progress is told of, as of its first step."""


class MigrationSide(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class MigrationWord(StrEnum):
    """What one side of a migration is told. Whichever it is, a host that doesn't know the migration refuses it from
    then on, and says so: so an order that was under way too long begins nothing any more."""

    TELL = "tell"
    """Say how it stands; what is under way goes on."""
    CANCEL = "cancel"
    """Source: end the attempt, unless all of it was sent. Target: end the copy, unless it runs. Then tell."""
    END = "end"
    """Source: end what is left of a VM that was handed over and release it; if it was not, the VM goes on: tell."""
    RUN = "run"
    """The other side's copy is over (G6): let this one run if it is complete, else end and release it. Then tell."""


class SettleMigration(Value, frozen=True, kw_only=True, tag="settle_migration"):
    """To one side of a migration; may be sent again. ``proofs``: about the other side's copy, where it didn't say so
    itself. Answered by a ``MigrationReport``, a release, or both."""

    vm: Vm
    migration_id: OperationId
    side: MigrationSide
    incarnation: Incarnation
    """Of the copy of the side that is asked."""
    target_incarnation: Incarnation
    word: MigrationWord
    proofs: tuple[Proof, ...] = ()


OrderBody = (
    StartVm
    | StopVm
    | RebootVm
    | PauseVm
    | ResumeVm
    | EndPausedVm
    | ShutOutHost
    | LetInHost
    | DefineVm
    | ForgetVm
    | PrepareStorage
    | CreateDisk
    | CopyDisk
    | DeleteTemplate
    | ChangeSnapshots
    | ChangeLiveSnapshots
    | GrowDisk
    | GrowLiveDisk
    | CancelWork
    | ScanForeign
    | AdoptVm
    | ReleaseVm
    | ReceiveVm
    | MigrateVm
    | SettleMigration
    | PlugDevice
    | UnplugDevice
)

GrantedBody = StartVm | ChangeSnapshots | GrowDisk
"""Orders under a grant, by which their host becomes a holder (G1, G2)."""


class Order(Value, frozen=True, kw_only=True):
    """One step of one operation for one host."""

    operation_id: OperationId
    step: int
    term: Term
    host_boot: BootId
    body: OrderBody


class HeldVm(Value, frozen=True, kw_only=True):
    """A VM that the host may hold, with what the sentinel needs to protect it alone."""

    vm: Vm
    incarnation: Incarnation
    wanted_up: bool


class HostSettings(Value, frozen=True, kw_only=True):
    """All that concerns a host: sent after hello and at every change, kept on the host's disk.

    ``revision`` is the installation's; an agent ignores settings that are older than what it has, by
    (term, revision): after a restore from a backup revisions begin again, terms don't (M1).
    """

    revision: int
    installation_id: InstallationId
    term: Term
    hold: str | None = None
    policy: Policy = Policy()
    storage_domains: tuple[StorageDomain, ...] = ()
    vms: tuple[HeldVm, ...] = ()
    foreign_vms: tuple[VmId, ...] = ()
    """Ids of all other managed VMs of the cluster: the gate refuses them here."""
