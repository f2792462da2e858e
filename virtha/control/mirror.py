"""What the engine wrote of a VM, in its status: who may hold it, and as what. Pure.

The engine's record is the one that decides. The status also has what only the use cases know (what a storage domain
claims, a start that the engine was not told of yet), so only what the engine *changed* is carried over.
"""

from collections.abc import Collection

import msgspec

from virtha.control.copies import with_copy, without_copy
from virtha.engine.records import VmRecord, VmStage
from virtha.engine.superseded import frozen_holders
from virtha.model.ids import HostId, Incarnation
from virtha.model.time import UtcMillis
from virtha.model.vm import PossibleCopy, VmState, VmStatus

_OVER = (VmState.DOWN, VmState.CRASHED)


def mirrored(
    status: VmStatus,
    before: VmRecord | None,
    after: VmRecord,
    *,
    ordered: Collection[HostId],
    now: UtcMillis,
) -> VmStatus:
    """``ordered``: hosts that a person's order gave a grant of which the engine did not know when it made ``after``:
    they keep theirs, and that start says how the VM is."""
    had = before.copies if before is not None else ()
    superseded = frozen_holders(after)
    same_copies = _known(had) == _known(after.copies) and superseded == status.superseded
    if same_copies and (before is None or before.start == after.start):
        return status
    changed = msgspec.structs.replace(status, superseded=superseded)
    for copy in had:
        if _key(copy) not in _known(after.copies) and copy.host_id not in ordered:
            changed = without_copy(changed, copy)
    for copy in after.copies:
        if _key(copy) not in _known(had):
            changed = with_copy(changed, copy)
    if after.copies and not ordered:
        changed = msgspec.structs.replace(changed, incarnation=_incarnation(after))
    if not ordered:
        changed = _shown(changed, before, after)
    if changed.state is not status.state:
        changed = msgspec.structs.replace(changed, since=now, guest_agent=None)
    return changed


def _key(copy: PossibleCopy) -> tuple[HostId, Incarnation]:
    return copy.host_id, copy.incarnation


def _known(copies: Collection[PossibleCopy]) -> set[tuple[HostId, Incarnation]]:
    return {_key(copy) for copy in copies}


def _incarnation(record: VmRecord) -> Incarnation:
    """A migration that failed has counted on, and its source still holds what it held."""
    if record.superseded:
        return record.incarnation  # also when the newer copy is over: it may have written
    held = [copy.incarnation for copy in record.copies]
    return max(held) if record.migration is None else min(held)


def _shown(status: VmStatus, before: VmRecord | None, after: VmRecord) -> VmStatus:
    """How it is, as far as the engine knows it better than who spoke last."""
    start = after.start
    if start is not None and after.stage is VmStage.STARTING:
        if before is not None and before.start == start:
            return status
        return msgspec.structs.replace(
            status, host_id=start.host_id, state=VmState.STARTING, reasons=()
        )
    if not status.holders:
        over = status.state if status.state in _OVER else VmState.DOWN
        return msgspec.structs.replace(status, state=over)
    moved = before is not None and before.migration is not None and after.migration is None
    if moved and status.host_id not in status.holders and len(status.holders) == 1:
        # Its former host spoke last: it gave its copy back, so the other one runs it.
        return msgspec.structs.replace(
            status, host_id=status.holders[0], state=VmState.RUNNING, reasons=()
        )
    return status
