"""Who is told of what: receivers, subscriptions, and what became of each message (W7, F4).

A *receiver* is a way to people or machines: a mail server, an SNMP manager, a webhook, an Alertmanager. A *subscription* says which
events go to which receiver, and how: people call it a route (ADR 21). A *delivery* is one event, or a group of them, on its
way by one subscription; it is durable.
"""

from enum import StrEnum

from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import (
    ClusterId,
    DeliveryId,
    HostId,
    ReceiverId,
    Revision,
    SubscriptionId,
    UserId,
    VmId,
)
from virtha.model.routing import GroupBy, GroupNote, QuietHours
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class MailSecurity(StrEnum):
    NONE = "none"
    STARTTLS = "starttls"
    """Required, not tried: a server that does not offer it gets no mail."""
    TLS = "tls"


class MailSettings(Value, frozen=True, kw_only=True, tag="mail"):
    """Secrets: ``password``."""

    host: str
    port: int = 587
    security: MailSecurity = MailSecurity.STARTTLS
    user: str | None = None
    sender: str
    reply_to: str | None = None
    html: bool = True
    """A second part beside the text."""
    authority_pem: str | None = None
    """Who signed the server's certificate; None: the system's authorities."""


class SnmpVersion(StrEnum):
    V2C = "2c"
    V3 = "3"


class SnmpAuthentication(StrEnum):
    NONE = "none"
    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA512 = "sha512"


class SnmpPrivacy(StrEnum):
    NONE = "none"
    AES128 = "aes128"
    AES256 = "aes256"


class SnmpSettings(Value, frozen=True, kw_only=True, tag="snmp"):
    """Secrets: ``community`` (v2c), ``authentication_password`` and ``privacy_password`` (v3)."""

    host: str
    port: int = 162
    version: SnmpVersion = SnmpVersion.V3
    inform: bool = True
    """Acknowledged, and so repeated until it came. False: a trap, of which nobody learns whether it came."""
    user: str | None = None
    authentication: SnmpAuthentication = SnmpAuthentication.SHA256
    privacy: SnmpPrivacy = SnmpPrivacy.AES128
    engine_id: str | None = None
    """Of v3 traps: ours, hexadecimal, 5 to 32 bytes; None: made from the installation's id."""


class WebhookSettings(Value, frozen=True, kw_only=True, tag="webhook"):
    """Secrets: ``secret`` (signs each body with HMAC-SHA256)."""

    url: str
    authority_pem: str | None = None
    private_addresses: bool = False
    """Whether it may go to loopback, link-local or private addresses, which are refused otherwise."""


class AlertmanagerSettings(Value, frozen=True, kw_only=True, tag="alertmanager"):
    """Secrets: ``password`` (of ``user``) or ``token``. ``url``: of the Alertmanager itself; ``/api/v2/alerts`` is added."""

    url: str
    user: str | None = None
    authority_pem: str | None = None
    private_addresses: bool = False
    """Whether it may be at a loopback, link-local or private address, which are refused otherwise."""
    resolve_after_ms: int = 7 * 86_400_000
    """How long a problem stands there of which nobody told the end."""


ReceiverSettings = MailSettings | SnmpSettings | WebhookSettings | AlertmanagerSettings

SECRET_NAMES: dict[str, tuple[str, ...]] = {
    "mail": ("password",),
    "snmp": ("community", "authentication_password", "privacy_password"),
    "webhook": ("secret",),
    "alertmanager": ("password", "token"),
}
"""By the settings' ``type``."""


class Receiver(Value, frozen=True, kw_only=True):
    """``secrets``: the names of those that are set; what they are never leaves the store."""

    id: ReceiverId
    name: str
    settings: ReceiverSettings
    secrets: tuple[str, ...] = ()
    enabled: bool = True
    revision: Revision = Revision(0)


class Subscription(Value, frozen=True, kw_only=True):
    """Events that match *all* of codes, severity and subject. An empty ``codes`` means every code; one may end in
    ``*``. ``severity``: the least one. ``address``: for mail; None: the user's own."""

    id: SubscriptionId
    name: str
    receiver_id: ReceiverId
    user_id: UserId | None = None
    address: str | None = None
    codes: tuple[str, ...] = ()
    severity: Severity = Severity.WARNING
    cluster_id: ClusterId | None = None
    host_id: HostId | None = None
    vm_id: VmId | None = None
    labels: dict[str, str] = {}
    """Fields of the event that must have these values; a value may end in ``*``."""
    solved: bool = False
    """Whether the end of each problem that was told is told too, whatever its severity."""
    group_by: GroupBy = GroupBy.NONE
    group_wait_ms: int = 10_000
    """How long the first message of a group waits for what belongs to it."""
    group_interval_ms: int = 300_000
    """The least time between two messages of a group."""
    repeat_ms: int | None = None
    """How often problems that go on are told again; None: never."""
    same_again_ms: int = 0
    """The same event of the same object within this time is not told again."""
    quiet: tuple[QuietHours, ...] = ()
    """In them only alerts are told, and the rest after them."""
    enabled: bool = True
    since: Revision = Revision(0)
    """Events up to this one are older than the subscription."""
    revision: Revision = Revision(0)


class DeliveryState(StrEnum):
    PENDING = "pending"
    SENT = "sent"
    """The receiver accepted it (a trap: it was sent)."""
    REFUSED = "refused"
    """The receiver said that it never will accept it."""
    EXPIRED = "expired"
    """It could not be delivered for so long that nobody wants it any more."""
    DROPPED = "dropped"
    """Its subscription or receiver was removed or switched off first."""


class Delivery(Value, frozen=True, kw_only=True):
    """``number`` counts up: the order of sending and of lists. ``code``: of the last attempt's outcome
    (``Receipt.code``); ``detail``: the receiver's own words."""

    id: DeliveryId
    number: int
    subscription_id: SubscriptionId | None = None
    """None: a test, which no subscription asked for."""
    receiver_id: ReceiverId
    event_revision: Revision
    """Of a group: the event that matters most."""
    about: GroupNote | None = None
    address: str | None = None
    """Mail: to whom it went, or is to go as things stand."""
    test: bool = False
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    """Those that told something of this message: while its receiver is away none is counted."""
    created: UtcMillis
    next_at: UtcMillis
    """Not before; in the past: as soon as the receiver takes it."""
    expires: UtcMillis
    done_at: UtcMillis | None = None
    code: str | None = None
    detail: str | None = None


class ReceiverStatus(Value, frozen=True, kw_only=True):
    """What its deliveries showed. ``away_since`` None: it took the last message, or none was sent yet."""

    away_since: UtcMillis | None = None
    away_told: bool = False
    """As an event: then its return is one too."""
    code: str | None = None
    """Why it is away (``Receipt.code``)."""
    detail: str | None = None
    accepted_at: UtcMillis | None = None
    """When it last took a message."""


class VmLine(Value, frozen=True, kw_only=True):
    """How far a VM is on its way back when the message is made; ``state`` as in ``PathState``."""

    vm: str
    state: str
    host: str | None = None
    why: str = ""


class MessageGroup(Value, frozen=True, kw_only=True):
    """What goes with a message's event. ``others``: its group's other events, oldest first; ``more``: events that are only
    counted; ``cause``: the host that failed; ``vms``: those that went down with it."""

    note: GroupNote
    others: tuple[Event, ...] = ()
    more: int = 0
    cause: str | None = None
    vms: tuple[VmLine, ...] = ()
    vms_left_out: int = 0
    names: dict[str, str] = {}
    """By id, of what ``others`` are about."""


class Message(Value, frozen=True, kw_only=True):
    """All that a receiver is told of one event, or of a group of them. ``delivery_id`` is the same at each attempt, and so is whatever is
    made from it (Message-ID, SNMP's notice id, the webhook's id): who gets it twice can tell."""

    delivery_id: DeliveryId
    address: str | None = None
    event: Event
    installation_id: str
    installation: str
    """Its name."""
    cluster: str | None = None
    host: str | None = None
    vm: str | None = None
    created: UtcMillis | None = None
    """When it was put into the queue: of a problem that is told again, or after quiet hours, long after its event."""
    test: bool = False
    """Asked for by ``virtha notify test``: nothing happened."""
    group: MessageGroup | None = None
    over: dict[Revision, tuple[Event, ...]] = {}
    """By an event that names no part of its object: the problems of parts that are over with it. For Alertmanagers."""
    had: dict[Revision, tuple[str, ...]] = {}
    """By an event that ends problems: the codes of those that its object had at all. Where it is missing, it may have had any. For
    Alertmanagers: where one groups, it tells its people of each end, though it knew no problem of it."""
