"""What an agent answers to its order of a live migration."""

from virtha.engine.records import OrderId
from virtha.model.facts import Result
from virtha.model.ids import HostId, VmId
from virtha.model.value import Value


class MoveAnswered(Value, frozen=True, kw_only=True, tag="move_answered"):
    """``OK``: that side has written its order down, and tells by itself how it ends (``MigrationEnded``), over whatever session
    and after whatever restart. Anything else says nothing of the migration: its own word on it may follow, or none."""

    order_id: OrderId
    host_id: HostId
    """Who answers: the target, or then the source."""
    vm_id: VmId
    result: Result
