"""The one registry of events, reasons and problems.

Every code is stable and dotted, with a number that is never reused, a severity, a message template
and the names of its fields. The audit log, the event stream, the CLI, `docs/reference/codes.md`
and the problem details of the API all render from here; tests assert codes, never prose.
"""

from virtha.model.codes.entry import Code, Kind, Severity
from virtha.model.codes.events import EVENTS as _EVENTS
from virtha.model.codes.failover import FAILOVER_EVENTS
from virtha.model.codes.failover_reasons import FAILOVER_REASONS
from virtha.model.codes.incident import INCIDENT_REASONS
from virtha.model.codes.io_error import IO_ERROR_EVENTS, IO_ERROR_REASONS
from virtha.model.codes.lease import LEASE_EVENTS, LEASE_REASONS
from virtha.model.codes.move_reasons import MOVE_REASONS
from virtha.model.codes.notification import NOTIFICATION_REASONS
from virtha.model.codes.notification_events import NOTIFICATION_EVENTS, QUEUE_REASONS
from virtha.model.codes.pairs import (
    ENDS_ALL_OF,
    MAY_RUN_TWICE,
    RECOVERY_ENDED,
    REPLACES,
    SOLVED_BY,
    SOLVES,
)
from virtha.model.codes.power import POWER_EVENTS, POWER_REASONS
from virtha.model.codes.problems import PROBLEMS
from virtha.model.codes.protection import PROTECTION_REASONS
from virtha.model.codes.readiness import READINESS_REASONS
from virtha.model.codes.reasons import REASONS as _REASONS
from virtha.model.codes.routing import ROUTING_REASONS
from virtha.model.codes.storage_fence import STORAGE_FENCE_EVENTS, STORAGE_FENCE_REASONS
from virtha.model.codes.superseded import SUPERSEDED_EVENTS, SUPERSEDED_REASONS

EVENTS = (
    *_EVENTS,
    *IO_ERROR_EVENTS,
    *FAILOVER_EVENTS,
    *STORAGE_FENCE_EVENTS,
    *SUPERSEDED_EVENTS,
    *LEASE_EVENTS,
    *NOTIFICATION_EVENTS,
    *POWER_EVENTS,
)
REASONS = (
    *_REASONS,
    *PROTECTION_REASONS,
    *IO_ERROR_REASONS,
    *READINESS_REASONS,
    *FAILOVER_REASONS,
    *MOVE_REASONS,
    *STORAGE_FENCE_REASONS,
    *SUPERSEDED_REASONS,
    *LEASE_REASONS,
    *NOTIFICATION_REASONS,
    *QUEUE_REASONS,
    *ROUTING_REASONS,
    *POWER_REASONS,
    *INCIDENT_REASONS,
)
REGISTRY: dict[str, Code] = {code.name: code for code in (*EVENTS, *REASONS, *PROBLEMS)}

__all__ = [
    "ENDS_ALL_OF",
    "EVENTS",
    "MAY_RUN_TWICE",
    "PROBLEMS",
    "REASONS",
    "RECOVERY_ENDED",
    "REGISTRY",
    "REPLACES",
    "SOLVED_BY",
    "SOLVES",
    "Code",
    "Kind",
    "Severity",
    "render",
]


def render(name: str, fields: dict[str, str | int | bool | None]) -> str:
    """Fill a code's template; a missing field shows as ``?``, an unknown code as its name."""
    code = REGISTRY.get(name)
    if code is None:
        return name
    return code.template.format_map(_Missing(fields))


class _Missing(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "?"
