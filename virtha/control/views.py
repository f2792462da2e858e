"""What the use cases answer: views joined from several records, ready to be shown."""

from typing import Generic, Literal, TypeVar

from virtha.control.routing_views import RouteWeight
from virtha.model.access import Permission, Rights, rights_of
from virtha.model.event import Event
from virtha.model.facts import ForeignDomain, Image
from virtha.model.host import Host, HostState, HostStatus, StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    HostId,
    InstallationId,
    Revision,
    Term,
    TokenId,
    UserId,
    VmId,
)
from virtha.model.notification import Delivery, Receiver, ReceiverStatus, Subscription
from virtha.model.orders import HostSettings, Order
from virtha.model.policy import DetectionPolicy
from virtha.model.power_settings import PowerTest
from virtha.model.sign_in import SignInProvider
from virtha.model.template import Template
from virtha.model.time import UtcMillis
from virtha.model.user import Role, SettingScope, Token
from virtha.model.value import Value
from virtha.model.vm import Reason, Vm, VmState, VmStatus
from virtha.model.watchdog import WatchdogAction, WatchdogModel

T = TypeVar("T")


class Caller(Value, frozen=True, kw_only=True):
    """Who asks. ``user_id`` is None for root on the Unix socket and for nobody."""

    name: str
    role: Role
    """The fixed role that they have in all clusters."""
    user_id: UserId | None = None
    more: Rights | None = None
    """What they may, where a role doesn't say it: grants, or a token that is for less."""
    is_narrow: bool = False
    """They come with such a token."""
    token_id: TokenId | None = None
    """With which they come; None: root, and the server itself."""
    signed_in: bool = True
    """They come with a sign-in, and not with a token that was made for a program."""

    @property
    def rights(self) -> Rights:
        return self.more if self.more is not None else rights_of(self.role)


SYSTEM = Caller(name="virtha", role=Role.ADMINISTRATOR)
"""The server itself: what it does without being asked."""


class Page(Value, Generic[T], frozen=True, kw_only=True):
    """A part of a list. ``next`` is the ``after`` of the following part; None: this was the last."""

    items: tuple[T, ...]
    revision: Revision
    next: str | None = None


class PowerSummary(Value, frozen=True, kw_only=True):
    """One power device of a host and its last test. ``tested``: that passed, and nothing was changed since."""

    name: str
    level: int
    tested: bool
    test: PowerTest | None = None
    reason: str = ""
    """Why it is not tested, or what is to be said although it is."""


class HostView(Value, frozen=True, kw_only=True):
    host: Host
    status: HostStatus
    cluster_name: str
    vms: tuple[str, ...] = ()
    """Names of the VMs that it may hold, sorted."""
    free_memory_bytes: int = 0
    agent_connected: bool = False
    """At this moment, with this server; ``status.state`` stands for some seconds after a server's start (J1)."""
    beating: bool = False
    """Its guardian was heard just now in its present boot: without that no start is granted (G2)."""
    verdict: str | None = None
    """The engine's judgement: `unknown`, `alive`, `agent_down`, `suspect`, `isolated`, `dead_unproven`, `dead_proven`; None:
    no engine knows of it yet."""
    engine: tuple[Reason, ...] = ()
    """Why the engine judges so, and what it waits for."""
    engine_text: tuple[str, ...] = ()
    """``engine`` rendered, in the same order."""
    power: tuple[PowerSummary, ...] = ()
    """Its power devices, by level and name."""


class MaintenanceView(Value, frozen=True, kw_only=True):
    host: str
    on: bool
    by: str | None = None
    drain: bool = False
    """Its VMs are to leave it; False: they stay, and the host is not fenced."""
    vms: tuple[str, ...] = ()
    """Names of the VMs that it may still hold, sorted."""


class BrakeView(Value, frozen=True, kw_only=True):
    """Whether a cluster's power orders wait, for too many of its hosts fell silent at once (J5)."""

    cluster: str
    on: bool
    hosts: int = 0
    """That had fallen silent; 0: it is not on."""


class DeathTicket(Value, frozen=True, kw_only=True):
    """What confirming a host's death is about. If it is wrong, the VMs named run twice and their disks are lost."""

    ticket: str
    host_id: HostId
    host: str
    boot: BootId
    incident: int
    vms: tuple[str, ...] = ()
    """Names of the VMs that may be started elsewhere by it, sorted."""
    valid_ms: int


class DeathView(Value, frozen=True, kw_only=True):
    """The engine has taken the operator's word: these are proven dead."""

    host_id: HostId
    host: str
    boot: BootId
    incident: int


class StorageView(Value, frozen=True, kw_only=True):
    domain: StorageDomain
    cluster_name: str
    usable_by: dict[str, bool | None]
    """By host name; None: that host has not said yet."""
    detail: dict[str, str]
    """By host name: why not."""
    size_bytes: int = 0
    free_bytes: int = 0
    images: tuple[Image, ...] = ()


class PendingChange(Value, frozen=True, kw_only=True):
    """A field whose wanted value applies at the VM's next start. None: it has none, or is to have none.

    Devices have a field each: `disks.NAME`, `nics.MAC`.
    """

    field: str
    running: str | int | None
    wanted: str | int | None


class VmView(Value, frozen=True, kw_only=True):
    vm: Vm
    status: VmStatus
    host_name: str | None
    cluster_name: str
    holder_names: tuple[str, ...] = ()
    protection: tuple[Reason, ...] = ()
    reason_text: tuple[str, ...] = ()
    """``status.reasons`` rendered, in the same order."""
    pending: tuple[PendingChange, ...] = ()
    """What differs between ``vm`` and what runs; as the VM's host told last."""
    protection_text: tuple[str, ...] = ()
    engine: tuple[Reason, ...] = ()
    """Why the engine has not brought it back, or what it does with it; empty when nothing is wrong."""
    engine_text: tuple[str, ...] = ()
    """``engine`` rendered, in the same order."""
    last_events: tuple[Event, ...] = ()
    """Newest first; only where one VM is asked for."""


class TemplateView(Value, frozen=True, kw_only=True):
    template: Template
    cluster_name: str
    used_by: tuple[str, ...] = ()
    """Names of the VMs whose disks need it, sorted; of a disk that was kept without its VM, the file."""


class ForeignDomains(Value, frozen=True, kw_only=True):
    """What a scan of a host found, or what adopting did (``changes``)."""

    items: tuple[ForeignDomain, ...]
    changes: tuple[str, ...] = ()


class StatusHost(Value, frozen=True, kw_only=True):
    id: HostId
    name: str
    cluster_name: str
    state: HostState
    gate_in_force: bool
    libvirt_connected: bool
    vms: int
    memory_bytes: int
    free_memory_bytes: int
    reasons: tuple[Reason, ...] = ()
    reason_text: tuple[str, ...] = ()


class StatusVm(Value, frozen=True, kw_only=True):
    id: VmId
    name: str
    host_name: str | None
    state: VmState
    ha: bool
    protected: bool
    protection: tuple[Reason, ...]
    """What stands against it, or `protection.ok`."""
    protection_text: tuple[str, ...]


class StatusTotals(Value, frozen=True, kw_only=True):
    hosts: int = 0
    hosts_up: int = 0
    vms: int = 0
    vms_running: int = 0
    vms_ha: int = 0
    vms_protected: int = 0


class StatusView(Value, frozen=True, kw_only=True):
    """Am I protected? ``verdict``: ``protected``, ``degraded`` (warnings only), ``unprotected``
    (something is wrong now) or ``empty`` (no HA VM that should run)."""

    installation_name: str
    hold: str | None
    verdict: str
    verdict_text: str
    totals: StatusTotals
    hosts: tuple[StatusHost, ...]
    vms: tuple[StatusVm, ...]
    revision: Revision


class SessionView(Value, frozen=True, kw_only=True):
    """A fresh sign-in; ``token`` is shown this once."""

    token: str
    expires: UtcMillis
    user: str
    role: Role


class BegunSignInView(Value, frozen=True, kw_only=True):
    """``url``: for the person's browser. ``sign_in``: to be kept, and given back with what the browser brings; it is
    sealed, and good until ``expires``."""

    url: str
    sign_in: str
    expires: UtcMillis


class SignInProviderView(Value, frozen=True, kw_only=True):
    """``has_secret``: the secret itself is never shown."""

    provider: SignInProvider
    has_secret: bool


class CurrentSession(Value, frozen=True, kw_only=True):
    """Who asks. ``by``: the access token that a sign-in gave, or the server's Unix socket, where the
    kernel says that it is root: then there is no token and nothing that expires."""

    user: str
    role: Role
    by: Literal["token", "socket"]
    token_id: TokenId | None = None
    created: UtcMillis | None = None
    expires: UtcMillis | None = None
    permissions: tuple[Permission, ...] = ()
    """What they may in all clusters; ``view``: they see everything."""
    clusters: dict[str, tuple[Permission, ...]] = {}
    """What they may beyond that, by the cluster's name."""


class TokenSecret(Value, frozen=True, kw_only=True):
    """A fresh join token; ``secret`` is shown this once."""

    token: Token
    secret: str


class JoinAnswer(Value, frozen=True, kw_only=True):
    host_id: HostId
    number: int
    name: str
    installation_id: InstallationId
    cluster: str
    cluster_id: ClusterId
    certificate_pem: str
    authority_pem: str
    servers: tuple[str, ...]


class HostCertificate(Value, frozen=True, kw_only=True):
    certificate_pem: str
    not_after: UtcMillis


class MigrationCertificate(Value, frozen=True, kw_only=True):
    certificate_pem: str
    authority_pem: str
    name: str
    """In the certificate: how other hosts know it."""


class SettingView(Value, frozen=True, kw_only=True):
    """One known setting at one scope. ``value`` None: not set there, ``default`` or a wider one holds."""

    key: str
    scope: SettingScope
    subject: str
    value: str | None
    default: str
    help: str
    allowed: str
    revision: Revision = Revision(0)


class HoldView(Value, frozen=True, kw_only=True):
    reason: str | None


class WatchdogOffer(Value, frozen=True, kw_only=True):
    """What one machine type may use: by our table, and by what hosts said they accept."""

    architecture: str
    machine: str
    models: tuple[WatchdogModel, ...]
    accepted: tuple[WatchdogModel, ...]
    """Those of ``models`` that at least one host accepts; all of them while no host has said."""


class CapabilitiesView(Value, frozen=True, kw_only=True):
    watchdogs: tuple[WatchdogOffer, ...]
    actions: tuple[WatchdogAction, ...]
    hosts: dict[str, tuple[WatchdogModel, ...]]
    """By host name: what its libvirt accepts."""


class HelloAnswer(Value, frozen=True, kw_only=True):
    """What a host's fresh session is told, in this order: welcome, settings, orders."""

    installation_id: InstallationId
    term: int
    fact_sequence_acknowledged: int
    settings: HostSettings
    orders: tuple[Order, ...]


class GuardianAnswer(Value, frozen=True, kw_only=True):
    """What a guardian's fresh session is told."""

    term: Term
    revision: Revision
    """Of the database that ``detection`` was read from."""
    detection: DetectionPolicy


class ReceiverView(Value, frozen=True, kw_only=True):
    receiver: Receiver
    kind: str
    status: ReceiverStatus
    reason_text: str = ""
    """``status.code`` rendered."""
    deliveries: dict[str, int] = {}
    """By state: how many there are that are still kept."""
    oldest_pending: UtcMillis | None = None
    """Since when the one has waited that has waited longest."""
    subscriptions: tuple[str, ...] = ()
    """Their names."""


class SubscriptionView(Value, frozen=True, kw_only=True):
    """Names of what its ids stand for; None where nothing is named, or it is gone."""

    subscription: Subscription
    receiver_name: str
    user_name: str | None = None
    cluster_name: str | None = None
    host_name: str | None = None
    vm_name: str | None = None
    weight: RouteWeight | None = None
    """Not in lists."""


class DeliveryView(Value, frozen=True, kw_only=True):
    """``event`` None: it is no longer kept."""

    delivery: Delivery
    receiver_name: str | None
    subscription_name: str | None
    event: Event | None = None
    reason_text: str = ""
    """``delivery.code`` rendered."""


class ReceiverTestView(Value, frozen=True, kw_only=True):
    """How a test message fared, at once: ``outcome`` as in ``ports/receivers.py``."""

    delivery: Delivery
    outcome: str
    code: str
    detail: str
    reason_text: str
    duration_ms: int


class ConsoleLogPart(Value, frozen=True, kw_only=True):
    """What one host has of a VM's serial log, or the end of it. ``end``: to be given as ``after`` to go on."""

    host_id: HostId
    host: str
    text: str
    """As the guest wrote it, control characters and all."""
    written_at: UtcMillis | None
    cut: bool
    """There is older text that was not sent."""
    end: str | None


class MissingPart(Value, frozen=True, kw_only=True):
    """A host that may have a part of the log and could not be asked."""

    host_id: HostId
    host: str
    code: str
    reason: str


class ConsoleLog(Value, frozen=True, kw_only=True):
    """A serial log knows no times: parts are in the order of their newest bytes, the present host's last."""

    parts: tuple[ConsoleLogPart, ...]
    missing: tuple[MissingPart, ...]


class ConsoleTicket(Value, frozen=True, kw_only=True):
    """For one WebSocket to ``path`` within 60 s."""

    ticket: str
    path: str
