"""The storage fence's orders to helpers, and their answers (P3)."""

from virtha.engine.records import OrderId
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.time import Millis
from virtha.model.value import Value


class Asking(Value, frozen=True, kw_only=True):
    """What this process has asked helpers for, about one host."""

    sent: dict[OrderId, Millis] = {}
    """Orders without an answer."""
    asked: dict[HostId, Millis] = {}
    """When each helper was last asked."""
    alive: Millis | None = None
    """When the host itself, shut out, last gave a sign; and when it was last told to end old copies."""
    ends: Millis | None = None


class CutRemoved(Value, frozen=True, kw_only=True):
    """What is remembered of a host that is configured no more, while it is being shut out beside the operator's word (P6). ``due_ms``: when it is looked at again."""

    asking: Asking
    due_ms: Millis


class StorageFence(Value, frozen=True, kw_only=True, tag="storage_fence"):
    """To a helper: shut that boot of ``host_id`` out of a Ceph cluster by its addresses. Its record says so already.
    Outcome: ``StorageFenced``. May be sent again. Without an order it is of a journal from before anybody carried it out."""

    host_id: HostId
    boot: BootId
    order_id: OrderId = OrderId("")
    fsid: str = ""
    helper: HostId = HostId("")
    helper_boot: BootId = BootId("")
    domain_id: StorageDomainId = StorageDomainId("")
    """Of that cluster, in whose worker the helper does it: what it was asked before there is over by then."""
    addresses: tuple[str, ...] = ()


class StorageLetIn(Value, frozen=True, kw_only=True, tag="storage_let_in"):
    """To a helper: ``host_id`` was shut out in ``boot`` and is known to run in ``runs``. Outcome: ``StorageOpened``. May be sent
    again."""

    host_id: HostId
    boot: BootId
    runs: BootId
    order_id: OrderId
    fsid: str
    helper: HostId
    helper_boot: BootId
    domain_id: StorageDomainId
    addresses: tuple[str, ...]
    until_s: int
    """UTC seconds: the earliest end of what was read back; 0: that was never read back."""


class StorageFenced(Value, frozen=True, kw_only=True, tag="storage_fenced"):
    """A helper's answer. ``OK``: ``addresses`` are what was read back, ``epoch`` of the map that has them all. ``REFUSED``: nothing
    was done, by rule. ``FAILED``, ``UNKNOWN``: some of it may have been done."""

    order_id: OrderId
    host_id: HostId
    helper: HostId
    result: Result
    fsid: str = ""
    addresses: tuple[str, ...] = ()
    epoch: int = 0
    until_s: int = 0
    error: str = ""
    """In words."""


class StorageOpened(Value, frozen=True, kw_only=True, tag="storage_opened"):
    """A helper's answer. ``OK``: nothing of ours is on the cluster's list any more; ``left``: addresses that somebody else has
    put there."""

    order_id: OrderId
    host_id: HostId
    helper: HostId
    result: Result
    left: tuple[str, ...] = ()
    error: str = ""
