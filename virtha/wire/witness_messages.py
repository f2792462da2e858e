"""What a server asks of the neighbours of a host that fell silent, and what they answer (F1, F2).

    server -> guardian or agent   ProbeHost        -> HostProbed, one per network
    server -> agent               LookAtDisks      -> DisksLooked

A server sends them only to a process whose hello has the feature. A question that is lost is not sent again: the engine
asks others at its next round. An answer that did not come says nothing.
"""

from virtha.model.evidence import Answer, WatchedDisk
from virtha.model.ids import BootId, HostId
from virtha.model.value import Value

PROBE_FEATURE = "probes"
LOOK_FEATURE = "looks"
DISKS_MAX = 2_000
"""In one look."""


class ProbeTarget(Value, frozen=True, kw_only=True):
    """``source``: the asked host's own address on that network: from no other may it ask."""

    network: str
    address: str
    port: int
    source: str


class ProbeHost(Value, frozen=True, kw_only=True, tag="probe_host"):
    question: int
    subject: HostId
    targets: tuple[ProbeTarget, ...]
    deadline_ms: int


class HostProbed(Value, frozen=True, kw_only=True, tag="host_probed"):
    """``boot``: as the subject's guardian signed it, of an answer that is ``ALIVE``."""

    question: int
    network: str
    answer: Answer
    boot: BootId | None = None


class LookAtDisks(Value, frozen=True, kw_only=True, tag="look_at_disks"):
    """Two looks, ``gap_ms`` apart. ``silence``: names the time since the subject's last sign; what was seen in another
    one is compared with nothing (J3)."""

    question: int
    subject: HostId
    silence: str
    disks: tuple[WatchedDisk, ...]
    gap_ms: int
    deadline_ms: int
    """Of each look."""


class DisksLooked(Value, frozen=True, kw_only=True, tag="disks_looked"):
    """``changed``: None: it can't be told of all of them, and none of the others changed. ``disks``: how many were
    compared."""

    question: int
    changed: bool | None
    disks: int = 0


WitnessOrder = ProbeHost | LookAtDisks
WitnessAnswer = HostProbed | DisksLooked
