"""What users send. Unknown fields are errors; UNSET means "leave it as it is"."""

from typing import Literal

from msgspec import UNSET, UnsetType

from virtha.model.codes import Severity
from virtha.model.console import ConsoleKind
from virtha.model.machine import MachineType
from virtha.model.notification import DeliveryState, ReceiverSettings
from virtha.model.policy import PermissionGrade
from virtha.model.routing import GroupBy, QuietHours, Same
from virtha.model.user import Role
from virtha.model.value import Request
from virtha.model.vm import DiskFormat, OnIoError, VmState

LIST_LIMIT = 100
LIST_LIMIT_MAX = 1_000


class PageQuery(Request, frozen=True, kw_only=True):
    limit: int = LIST_LIMIT
    after: str | None = None


class SearchQuery(Request, frozen=True, kw_only=True):
    """``search``: in the language of docs/guide/search.md. ``case_sensitive``: whether text in it is, as in oVirt."""

    search: str | None = None
    case_sensitive: bool = True
    limit: int = LIST_LIMIT
    after: str | None = None


class VmQuery(SearchQuery, frozen=True, kw_only=True):
    cluster: str | None = None
    host: str | None = None
    state: VmState | None = None
    ha: bool | None = None


class ConsoleLogQuery(Request, frozen=True, kw_only=True):
    """``contains``: only lines with this text; ``after``: the ``end`` of a part that is known already, and then
    ``wait_ms``: how long to wait for something new."""

    lines: int = 1_000
    contains: str | None = None
    after: str | None = None
    wait_ms: int = 0


class ConsoleTicketCreate(Request, frozen=True, kw_only=True):
    kind: ConsoleKind


class OperationQuery(Request, frozen=True, kw_only=True):
    """Newest first. ``subject`` is an id."""

    subject: str | None = None
    kind: str | None = None
    open: bool | None = None
    limit: int = LIST_LIMIT
    after: str | None = None


class IncidentQuery(Request, frozen=True, kw_only=True):
    """Newest first. ``cluster``, ``host``, ``vm``: ids or names; those that were deleted by their id."""

    cluster: str | None = None
    host: str | None = None
    vm: str | None = None
    open: bool | None = None
    limit: int = LIST_LIMIT
    after: str | None = None


class EventQuery(Request, frozen=True, kw_only=True):
    """``after`` is a revision, exclusive: ``asc`` continues above it, ``desc`` below it.

    ``code`` may end in ``*`` (`vm.watchdog.*`); ``severity`` is the least one. With ``search`` a page may hold fewer than
    ``limit`` and still not be the last: only one without ``next`` is.
    """

    vm: str | None = None
    host: str | None = None
    code: str | None = None
    severity: Severity | None = None
    search: str | None = None
    case_sensitive: bool = True
    after: int | None = None
    limit: int = LIST_LIMIT
    order: Literal["asc", "desc"] = "desc"


class WatchdogRequest(Request, frozen=True, kw_only=True):
    """Plain text on purpose: the use case lists what fits the machine, not all that exist."""

    model: str = ""
    action: str = ""


class DiskCreate(Request, frozen=True, kw_only=True):
    """A disk from ``image``, an empty one of ``size_bytes``, or neither with a ``path`` that is there.

    ``path`` is relative to the storage domain; default ``vms/<vm id>/<name>.<format>``.
    """

    name: str | None = None
    path: str | None = None
    size_bytes: int | None = None
    format: DiskFormat = DiskFormat.QCOW2
    image: str | None = None
    storage_domain: str | None = None
    bus: str = "virtio"


class DiskResize(Request, frozen=True, kw_only=True):
    """What the disk is to have; never less than it has."""

    size_bytes: int


class NicCreate(Request, frozen=True, kw_only=True):
    """``name``: none keeps that of the VM's own card with this address, if it has one."""

    bridge: str
    mac: str | None = None
    model: str = "virtio"
    name: str | None = None


class VmCreate(Request, frozen=True, kw_only=True):
    """``image`` and ``storage_domain`` are the short way to one boot disk."""

    name: str
    cluster: str | None = None
    image: str | None = None
    storage_domain: str | None = None
    memory_bytes: int
    vcpus: int = 1
    architecture: str = "x86_64"
    machine: MachineType = MachineType.Q35
    watchdog: WatchdogRequest | None = None
    ha: bool = False
    priority: int = 0
    """0 to 100: of VMs that come back after a failure, the higher is started first."""
    grade: PermissionGrade = PermissionGrade.FENCE
    """How far automatic action may go with it at most; never further than in its cluster."""
    on_io_error: OnIoError = OnIoError.AUTO_RESUME
    disks: tuple[DiskCreate, ...] = ()
    nics: tuple[NicCreate, ...] = ()
    description: str = ""
    start: bool = False


class VmChange(Request, frozen=True, kw_only=True):
    """Applies to a running VM at its next start, but for ``name``, ``description``, ``ha``, ``priority``, ``grade``
    and ``on_io_error``."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    memory_bytes: int | UnsetType = UNSET
    vcpus: int | UnsetType = UNSET
    machine: MachineType | UnsetType = UNSET
    watchdog: WatchdogRequest | UnsetType | None = UNSET
    ha: bool | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    grade: PermissionGrade | UnsetType = UNSET
    on_io_error: OnIoError | UnsetType = UNSET
    nics: tuple[NicCreate, ...] | UnsetType = UNSET


class TemplateCreate(Request, frozen=True, kw_only=True):
    """``vm``: name or id of the VM that it is made from, which must be down. ``watchdog``: in place of that VM's; None: no card."""

    name: str
    vm: str
    description: str = ""
    watchdog: WatchdogRequest | UnsetType | None = UNSET


class VmFromTemplate(Request, frozen=True, kw_only=True):
    """What is left out is as in the template; cards get new addresses. ``storage_domain``: of full copies; default:
    each beside the template's disk. ``watchdog`` None: no card of its own."""

    name: str
    thin: bool = False
    storage_domain: str | None = None
    memory_bytes: int | UnsetType = UNSET
    vcpus: int | UnsetType = UNSET
    watchdog: WatchdogRequest | UnsetType | None = UNSET
    ha: bool | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    grade: PermissionGrade | UnsetType = UNSET
    on_io_error: OnIoError | UnsetType = UNSET
    nics: tuple[NicCreate, ...] | UnsetType = UNSET
    description: str | UnsetType = UNSET
    start: bool = False


class SnapshotCreate(Request, frozen=True, kw_only=True):
    """``crash_consistent``: a VM that runs is not frozen for it, its disks are as after a power failure."""

    name: str
    description: str = ""
    crash_consistent: bool = False


class VmStart(Request, frozen=True, kw_only=True):
    host: str | None = None


class VmMigrate(Request, frozen=True, kw_only=True):
    host: str | None = None
    """None: the best that fits."""
    bandwidth_mib_s: int | None = None
    """At most so much a second; None: as fast as it goes."""


class ClusterCreate(Request, frozen=True, kw_only=True):
    name: str
    description: str = ""


class ClusterChange(Request, frozen=True, kw_only=True):
    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET


class CephCreate(Request, frozen=True, kw_only=True):
    """Where the pool is. ``user`` without "client."; left out: a cluster without keys. ``keyring``: a file on each host, default
    ``/etc/ceph/ceph.client.USER.keyring``; no key is ever given to the server."""

    monitors: tuple[str, ...]
    pool: str
    user: str | None = None
    keyring: str = ""


class StorageCreate(Request, frozen=True, kw_only=True):
    """``path`` belongs to kind ``directory``, ``ceph`` to kind ``ceph-rbd``."""

    name: str
    path: str | None = None
    cluster: str | None = None
    kind: str = "directory"
    ceph: CephCreate | None = None


class AdoptRequest(Request, frozen=True, kw_only=True):
    names: tuple[str, ...] = ()
    all: bool = False
    ha: bool = False
    dry_run: bool = False


class UserCreate(Request, frozen=True, kw_only=True):
    name: str
    password: str
    role: Role = Role.VIEWER
    email: str | None = None


class UserChange(Request, frozen=True, kw_only=True):
    """``email`` None: no address any more."""

    password: str | UnsetType = UNSET
    role: Role | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET
    email: str | UnsetType | None = UNSET


class SessionCreate(Request, frozen=True, kw_only=True):
    user: str
    password: str


class SignInBegin(Request, frozen=True, kw_only=True):
    """``redirect_uri``: where the provider sends the browser back to: one of its settings', or a port of the user's own
    machine (`http://127.0.0.1:PORT/…`)."""

    redirect_uri: str


class SignInFinish(Request, frozen=True, kw_only=True):
    """``sign_in``: what the beginning answered; the others: what came back with the browser. ``iss``: if that had one."""

    sign_in: str
    code: str
    state: str
    iss: str | None = None


class SignInProviderPut(Request, frozen=True, kw_only=True):
    """All of it, but for ``client_secret``: left out, the present one stays; None: there is none."""

    issuer: str
    client_id: str
    client_secret: str | UnsetType | None = UNSET
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    name_claim: str = "preferred_username"
    roles_claim: str = "groups"
    roles: dict[str, Role]
    redirect_uris: tuple[str, ...] = ()
    authority_pem: str | None = None


class TokenCreate(Request, frozen=True, kw_only=True):
    """``expires_ms`` is a duration from now."""

    cluster: str | None = None
    uses_max: int | None = 1
    expires_ms: int = 3_600_000
    description: str = ""


class JoinRequest(Request, frozen=True, kw_only=True):
    token: str
    csr_pem: str
    name: str
    libvirt_uuid: str | None = None


class HostCertificateRequest(Request, frozen=True, kw_only=True):
    """Of a host that has joined. It proves itself by the key that it joined with: no token is needed."""

    certificate_pem: str
    """The host's present one."""
    csr_pem: str
    signature: str
    """Of ``csr_pem``, by the host's key, base64."""


class SettingPut(Request, frozen=True, kw_only=True):
    value: str


class MaintenanceChange(Request, frozen=True, kw_only=True):
    """``drain``: its VMs leave it by live migration; without, they stay, and the host is never fenced meanwhile."""

    on: bool
    drain: bool = True


class DeathConfirmation(Request, frozen=True, kw_only=True):
    """The operator's word that a host is dead (P6). ``name``: the host's, as typed; ``force_reason``: how it is known, where
    something speaks against it."""

    ticket: str
    name: str
    force_reason: str | None = None


class HoldPut(Request, frozen=True, kw_only=True):
    reason: str


class ReceiverCreate(Request, frozen=True, kw_only=True):
    """``secrets``: by name; they are never shown again."""

    name: str
    settings: ReceiverSettings
    secrets: dict[str, str] = {}
    enabled: bool = True


class ReceiverChange(Request, frozen=True, kw_only=True):
    """``settings`` replaces all of them. ``secrets``: those that change; None takes one away."""

    name: str | UnsetType = UNSET
    settings: ReceiverSettings | UnsetType = UNSET
    secrets: dict[str, str | None] = {}
    enabled: bool | UnsetType = UNSET


class ReceiverTest(Request, frozen=True, kw_only=True):
    """``address``: for mail; none: the caller's own."""

    address: str | None = None


class SubscriptionCreate(Request, frozen=True, kw_only=True):
    """Cluster, host, VM, user and receiver by id or name. For mail: ``address`` or ``user``, not both.
    ``severity``, the least one: if left out, info where codes are given, else warning."""

    receiver: str
    name: str | None = None
    user: str | None = None
    address: str | None = None
    codes: tuple[str, ...] = ()
    severity: Severity | None = None
    cluster: str | None = None
    host: str | None = None
    vm: str | None = None
    labels: dict[str, str] = {}
    solved: bool | None = None
    """If left out: where events are grouped."""
    group_by: GroupBy = GroupBy.NONE
    group_wait_ms: int | None = None
    group_interval_ms: int | None = None
    repeat_ms: int | None = None
    same_again_ms: int = 0
    quiet: tuple[QuietHours, ...] = ()
    enabled: bool = True


class SubscriptionChange(Request, frozen=True, kw_only=True):
    """None takes a limit away."""

    name: str | UnsetType = UNSET
    user: str | UnsetType | None = UNSET
    address: str | UnsetType | None = UNSET
    codes: tuple[str, ...] | UnsetType = UNSET
    severity: Severity | UnsetType = UNSET
    cluster: str | UnsetType | None = UNSET
    host: str | UnsetType | None = UNSET
    vm: str | UnsetType | None = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    solved: bool | UnsetType = UNSET
    group_by: GroupBy | UnsetType = UNSET
    group_wait_ms: int | UnsetType = UNSET
    group_interval_ms: int | UnsetType = UNSET
    repeat_ms: int | UnsetType | None = UNSET
    same_again_ms: int | UnsetType = UNSET
    quiet: tuple[QuietHours, ...] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class MatcherRequest(Request, frozen=True, kw_only=True):
    """Events that fit all of it; cluster, host and VM by id or name. ``labels``: fields of the event."""

    codes: tuple[str, ...] = ()
    severity: Severity = Severity.INFO
    cluster: str | None = None
    host: str | None = None
    vm: str | None = None
    labels: dict[str, str] = {}


class SilenceCreate(Request, frozen=True, kw_only=True):
    """``begins``, ``ends``: RFC 3339; left out, it begins now. ``ends`` or ``duration_ms``, not both."""

    reason: str
    matcher: MatcherRequest
    begins: str | None = None
    ends: str | None = None
    duration_ms: int | None = None


class SilenceQuery(PageQuery, frozen=True, kw_only=True):
    """``ended``: those too that are over, as far as they are kept."""

    ended: bool = False


class InhibitionCreate(Request, frozen=True, kw_only=True):
    name: str
    source: MatcherRequest
    target: MatcherRequest
    same: Same = Same.HOST


class DeliveryQuery(Request, frozen=True, kw_only=True):
    """Newest first. ``event``: its revision."""

    receiver: str | None = None
    subscription: str | None = None
    state: DeliveryState | None = None
    event: int | None = None
    limit: int = LIST_LIMIT
    after: str | None = None
