"""An entry of the audit log and of the event stream. Its ``revision`` is its id."""

from virtha.model.codes.entry import Severity
from virtha.model.ids import BootId, ClusterId, HostId, OperationId, Revision, VmId
from virtha.model.time import UtcMillis
from virtha.model.value import Fields, Value

PAST = "past"
"""A field, true: of a boot that was over, or of a copy that was superseded, when it was told. It says nothing of now: it ends no
trouble, and is none of which an end will come."""


class Event(Value, frozen=True, kw_only=True):
    """One event. ``revision`` orders all events; of one host's, ``host_sequence`` does too.

    ``at`` is the server's time of recording, ``host_at`` the host's own wall clock (display only:
    it may be hours off).
    """

    revision: Revision = Revision(0)
    code: str
    severity: Severity
    message: str
    fields: Fields = {}
    cluster_id: ClusterId | None = None
    host_id: HostId | None = None
    vm_id: VmId | None = None
    operation_id: OperationId | None = None
    user: str | None = None
    at: UtcMillis = UtcMillis(0)
    host_at: UtcMillis | None = None
    host_boot: BootId | None = None
    host_sequence: int | None = None
