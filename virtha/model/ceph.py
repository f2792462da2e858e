"""What hosts and servers say of a Ceph cluster when a host is to be shut out of it (safety.md, P3)."""

from virtha.model.ids import BootId
from virtha.model.value import Value


class CephSight(Value, frozen=True, kw_only=True):
    """How a cluster sees this host, as the host itself tells while it lives."""

    boot: BootId
    fsid: str
    """Which cluster."""
    addresses: tuple[str, ...]
    """IP addresses that its clients are seen with; sorted, never empty."""
    obstacle: str = ""
    """Why it may not be shut out by these, in words: it is behind NAT, or Ceph daemons run there. Empty: nothing stands
    against it."""
    lacks: str = ""
    """Why this host could not shut another one out, nor let it in again, in words: its key has no permission. Empty: it could, or it was
    not asked, for the policy does not count on it."""


class CephEpoch(Value, frozen=True, kw_only=True):
    """A map of a cluster's OSDs in which somebody is shut out: whoever opens what that one had open has to know it first."""

    fsid: str
    epoch: int
