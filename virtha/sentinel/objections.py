"""What may come between a decision about a copy and its being carried out. Asked by whoever carries it out, under the VM's
lock, right before: whether the host is held or going down it asks itself. Pure."""

from virtha.model.ids import Incarnation
from virtha.sentinel.events import VmRecord


def late_objection(record: VmRecord | None, incarnation: Incarnation) -> str | None:
    """Why nothing is done any more to that incarnation of its host's own accord, in words; None: nothing came."""
    if record is None or record.incarnation != incarnation:
        return "the VM is no longer this host's"
    if record.stop is not None or record.released or not record.wanted_up:
        return "it was stopped on purpose meanwhile"
    if record.superseded_by is not None:
        return f"incarnation {record.superseded_by} was started elsewhere meanwhile"
    if record.migrating:
        return "it is marked as migrating"
    return None
