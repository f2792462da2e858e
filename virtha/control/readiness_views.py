"""What readiness shows."""

from virtha.model.codes import Severity
from virtha.model.value import Fields, Value

NOT_LOOKED_AT = ("whether a power device would really cut the power: only an off shows that",)
"""What nobody here knows, so that nothing found is not taken for nothing wrong."""
WATCHDOGS_NOT_LOOKED_AT = "whether each host's own watchdog is armed: its heartbeat on the storage tells that, and storage leases are off or nobody reads them"


class Finding(Value, frozen=True, kw_only=True):
    """One thing that would fail, or not go as well as it could. ``about``: ``host/h1``, ``vm/web1``, ``cluster/c1``,
    ``storage/ds1`` or ``installation``. ``fix``: what to do, in words; empty: nothing is to be done."""

    about: str
    code: str
    severity: Severity
    text: str
    fix: str = ""
    fields: Fields = {}


class ReadinessView(Value, frozen=True, kw_only=True):
    """``verdict``: ``not_ready`` (an error: something would fail today), ``at_risk`` (warnings) or ``ready``. ``findings``:
    the worst first."""

    about: str
    verdict: str
    findings: tuple[Finding, ...]
    hosts: int
    vms: int
    """How many of each were looked at."""
    not_looked_at: tuple[str, ...] = NOT_LOOKED_AT
