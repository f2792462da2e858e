"""Facts: what an agent tells the server. Durable on the host until the server has acknowledged them.

Ordered by (host, sequence), never by a host's wall clock. ``monotonic_ms`` counts on the host's
boot-time clock and compares only within one ``boot``.
"""

from enum import StrEnum

from virtha.model.domain import DomainReport
from virtha.model.host import HostCapabilities
from virtha.model.ids import BootId, Incarnation, OperationId, StorageDomainId, VmId
from virtha.model.value import Fields, Value
from virtha.model.vm import Reason, Vm, VmState


class Happened(Value, frozen=True, kw_only=True, tag="happened"):
    """An event of the registry, about a VM or about the host itself."""

    code: str
    vm_id: VmId | None = None
    incarnation: Incarnation | None = None
    fields: Fields = {}


class VmReport(Value, frozen=True, kw_only=True, tag="vm"):
    """The present state of one managed VM on this host, as the sentinel knows it."""

    vm_id: VmId
    incarnation: Incarnation
    state: VmState
    reasons: tuple[Reason, ...] = ()
    guest_agent: bool | None = None
    restart_count: int = 0


class Released(Value, frozen=True, kw_only=True, tag="released"):
    """This host no longer holds that incarnation, and won't start it (G1, P5)."""

    vm_id: VmId
    incarnation: Incarnation


class Inventory(Value, frozen=True, kw_only=True, tag="inventory"):
    """All domains of the host, managed or not; sent when ``revision`` (the host's count) moved on."""

    revision: int
    domains: tuple[DomainReport, ...]


class HostReport(Value, frozen=True, kw_only=True, tag="host"):
    capabilities: HostCapabilities


class Image(Value, frozen=True, kw_only=True):
    """A file below a storage domain's ``images/``; ``name`` is without its suffix."""

    name: str
    path: str
    format: str
    size_bytes: int
    virtual_size_bytes: int


class StorageReport(Value, frozen=True, kw_only=True, tag="storage"):
    storage_domain_id: StorageDomainId
    usable: bool
    detail: str = ""
    size_bytes: int = 0
    free_bytes: int = 0
    images: tuple[Image, ...] = ()


class Result(StrEnum):
    """``REFUSED``: nothing was done, by rule. ``UNKNOWN``: it may or may not have happened."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"


class ForeignDomain(Value, frozen=True, kw_only=True):
    """A libvirt domain that virtha does not manage, as far as it could be read."""

    vm: Vm | None
    """None when it can't be adopted; ``obstacles`` says why."""
    name: str
    state: str
    obstacles: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    """What adopting would change in its XML, in words."""


class Outcome(Value, frozen=True, kw_only=True, tag="outcome"):
    """How one order ended. Sent once per order and again if the order comes again."""

    operation_id: OperationId
    step: int
    result: Result
    code: str | None = None
    message: str = ""
    fields: Fields = {}
    changes: tuple[str, ...] = ()
    foreign: tuple[ForeignDomain, ...] = ()


class Progress(Value, frozen=True, kw_only=True, tag="progress"):
    """How far a long order (a disk copy) is; a later one makes an earlier one void."""

    operation_id: OperationId
    step: int
    percent: int


FactBody = (
    Happened | VmReport | Released | Inventory | HostReport | StorageReport | Outcome | Progress
)


class Fact(Value, frozen=True, kw_only=True):
    """``sequence`` counts up by 1 per host for ever, over boots and agents."""

    sequence: int
    boot: BootId
    monotonic_ms: int
    wall_ms: int
    body: FactBody
