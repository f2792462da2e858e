"""Which incarnations each holder may hold, start by start (G1). Pure.

A start whose outcome nobody knows stays possible when the same host is ordered to start the VM again:
the second start's refusal (and its release) says nothing of the first, whose QEMU may run. So a host
leaves the holders only when every one of its starts has ended.
"""

import msgspec

from virtha.model.ids import BootId, HostId, Incarnation
from virtha.model.orders import Grant
from virtha.model.vm import PossibleCopy, VmState, VmStatus

LIST_MARGIN_MS = 10_000
"""How much older than its fact an inventory's list may be: libvirt answered, then it was written."""
NEVER_MS = 1 << 62
"""The end of a grant that is not known."""
_RUNS = (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING)


def copies_on(status: VmStatus, host_id: HostId) -> tuple[PossibleCopy, ...]:
    return tuple(copy for copy in status.copies if copy.host_id == host_id)


def held_incarnation(status: VmStatus, host_id: HostId) -> Incarnation:
    """What this host's settings name: the start that is on its way, else the oldest that it may hold.

    Named a later one, that nobody knows it has taken, its sentinel would call what runs there superseded
    and restart it no more. One host's copies are one libvirt domain: they can't both run.
    """
    if status.state is VmState.STARTING or host_id in status.superseded:
        return status.incarnation
    oldest = min((copy.incarnation for copy in copies_on(status, host_id)), default=None)
    return status.incarnation if oldest is None else oldest


def newest_incarnation(status: VmStatus, host_id: HostId) -> Incarnation:
    """What an order to stop names there: while it moves, the target has a later one than its source (G4).

    Named an earlier one, a host would refuse it: it could not tell it from an order of before its copy.
    """
    mine = (copy.incarnation for copy in copies_on(status, host_id))
    return max((status.incarnation, *mine))


def counts(status: VmStatus, host_id: HostId, incarnation: Incarnation) -> bool:
    """Whether a host's report of ``incarnation`` says how the VM is."""
    if incarnation >= status.incarnation:
        return True
    if status.state is VmState.STARTING:
        return False  # a later start is on its way there, and ends otherwise
    if host_id in status.superseded:
        return False  # it is to end, or nobody knows which is right (G4)
    if _runs_newer_elsewhere(status, host_id):
        return False  # what a move has left behind says how that copy is, not the VM
    # A host tells the release of what ended, then its state: its last word, while nobody else has one.
    known = {copy.incarnation for copy in copies_on(status, host_id)}
    return incarnation in known or not status.holders


def _runs_newer_elsewhere(status: VmStatus, host_id: HostId) -> bool:
    """Its host said so last, and has given back nothing since."""
    return (
        status.host_id not in (None, host_id)
        and status.state in _RUNS
        and any(
            (copy.host_id, copy.incarnation) == (status.host_id, status.incarnation)
            for copy in status.copies
        )
    )


def unknown_hosts(status: VmStatus) -> tuple[PossibleCopy, ...]:
    """Copies of hosts that this installation has no record of."""
    return tuple(copy for copy in status.copies if copy.host_id not in status.holders)


def ordered(status: VmStatus, host_id: HostId, grant: Grant) -> VmStatus:
    """Before the order goes out. What was possible on that host in this boot still is.

    Also the last start of a former boot: its order may have been sent again, with a grant of this one.
    """
    mine = [
        copy
        for copy in copies_on(status, host_id)
        if copy.boot in (None, grant.boot) or copy.incarnation == status.incarnation
    ]
    if host_id in status.holders and not copies_on(status, host_id) and status.incarnation:
        # Adopted there, or held since before starts were kept one by one.
        mine.append(PossibleCopy(host_id=host_id, incarnation=status.incarnation, boot=grant.boot))
    # Grants given before end before this one: they quoted an older beat.
    mine = [
        msgspec.structs.replace(copy, boot=grant.boot, grant_ends_at_ms=grant.ends_at_ms)
        for copy in mine
    ]
    mine.append(
        PossibleCopy(
            host_id=host_id,
            incarnation=grant.incarnation,
            boot=grant.boot,
            grant_ends_at_ms=grant.ends_at_ms,
        )
    )
    holders = (*(one for one in status.holders if one != host_id), host_id)
    return msgspec.structs.replace(_with(status, host_id, mine), holders=holders)


def released(
    status: VmStatus, host_id: HostId, incarnation: Incarnation, boot: BootId | None
) -> VmStatus:
    """The host's durable word that it no longer holds ``incarnation``. ``boot``: its present one."""
    if host_id not in status.holders:
        return status
    mine = copies_on(status, host_id)
    if not mine:
        # A later start was ordered in the meantime: that copy is not released by this.
        return status if incarnation < status.incarnation else without(status, host_id)
    left = [
        copy
        for copy in mine
        if copy.incarnation != incarnation and not _died_with_its_boot(status, copy, boot)
    ]
    return _settled(status, host_id, left)


def reported(status: VmStatus, host_id: HostId, incarnation: Incarnation) -> VmStatus:
    """The host has a record of ``incarnation``: it takes one only when no earlier copy is there."""
    mine = copies_on(status, host_id)
    left = [copy for copy in mine if copy.incarnation >= incarnation]
    if incarnation > status.incarnation and mine:
        # A restored database is behind its hosts.
        left.append(PossibleCopy(host_id=host_id, incarnation=incarnation))
    # None left: the newest was released before, and waited for this.
    return _settled(status, host_id, left) if mine else status


def seen_off(
    status: VmStatus, host_id: HostId, boot: BootId, at_ms: int, present: BootId | None
) -> VmStatus:
    """Its domain was not active in a full list of the host, in ``boot``, at ``at_ms`` of its clock.

    That ends earlier starts whose grants had run out by then; the newest ends by its release only, for
    its agent may be about to start it again.
    """
    mine = copies_on(status, host_id)
    left = [
        copy
        for copy in mine
        if copy.incarnation >= status.incarnation
        or not (
            _died_with_its_boot(status, copy, present)
            or (copy.boot == boot and at_ms >= copy.grant_ends_at_ms + LIST_MARGIN_MS)
        )
    ]
    return _settled(status, host_id, left) if len(left) != len(mine) else status


def refused_for(
    status: VmStatus, host_id: HostId, asked: Incarnation, current: Incarnation
) -> VmStatus:
    """The host refused ``asked`` because it has ``current``: counted back, or up after a restore.

    Nothing of ``asked`` was made, so it is not held, and the host's reports of ``current`` count.
    """
    if status.incarnation != asked:
        return status  # a later start, or a report, has settled it
    mine = [copy for copy in copies_on(status, host_id) if copy.incarnation not in (asked, current)]
    if host_id in status.holders:
        known = next(
            (copy for copy in copies_on(status, host_id) if copy.incarnation == current),
            PossibleCopy(host_id=host_id, incarnation=current),
        )
        mine.append(known)
    return msgspec.structs.replace(_with(status, host_id, mine), incarnation=current)


def claimed_by(
    status: VmStatus, host_id: HostId, incarnation: Incarnation, *, known: bool
) -> VmStatus:
    """A storage domain names ``host_id`` as the last that started this VM, above what we know (G4).

    A ``known`` host becomes a holder: it can be asked. An unknown one blocks every start.
    """
    mine = [copy for copy in copies_on(status, host_id) if copy.incarnation != incarnation]
    mine.append(PossibleCopy(host_id=host_id, incarnation=incarnation))
    changed = _with(status, host_id, mine)
    if known and host_id not in status.holders:
        changed = msgspec.structs.replace(changed, holders=(*status.holders, host_id))
    return msgspec.structs.replace(changed, incarnation=max(status.incarnation, incarnation))


def without(status: VmStatus, host_id: HostId) -> VmStatus:
    holders = tuple(one for one in status.holders if one != host_id)
    return msgspec.structs.replace(_with(status, host_id, []), holders=holders)


def without_copy(status: VmStatus, gone: PossibleCopy) -> VmStatus:
    """The engine has a proof that this one is over (P1 to P6). Its host stays a holder while it may have another."""
    if gone.host_id not in status.holders:
        return status
    left = [
        copy
        for copy in copies_on(status, gone.host_id)
        if copy.incarnation != gone.incarnation
        or (copy.boot != gone.boot and copy.boot is not None and gone.boot is not None)
    ]
    return _settled(status, gone.host_id, left)


def with_copy(status: VmStatus, copy: PossibleCopy) -> VmStatus:
    """The engine made it possible, or found it. Its grant's end is not known, so no list ends it."""
    mine = list(copies_on(status, copy.host_id))
    if all(known.incarnation != copy.incarnation for known in mine):
        mine.append(msgspec.structs.replace(copy, grant_ends_at_ms=NEVER_MS))
    holders = (*(one for one in status.holders if one != copy.host_id), copy.host_id)
    return msgspec.structs.replace(_with(status, copy.host_id, mine), holders=holders)


def granted_until(
    status: VmStatus, host_id: HostId, incarnation: Incarnation, ends_at_ms: int
) -> VmStatus:
    """The order for a copy that the engine made possible goes out, with a grant that ends then."""
    mine = [
        msgspec.structs.replace(copy, grant_ends_at_ms=ends_at_ms)
        if copy.incarnation == incarnation
        else copy
        for copy in copies_on(status, host_id)
    ]
    return _with(status, host_id, mine)


def _settled(status: VmStatus, host_id: HostId, left: list[PossibleCopy]) -> VmStatus:
    return _with(status, host_id, left) if left else without(status, host_id)


def _with(status: VmStatus, host_id: HostId, mine: list[PossibleCopy]) -> VmStatus:
    others = [copy for copy in status.copies if copy.host_id != host_id]
    copies = sorted([*others, *mine], key=lambda copy: (copy.host_id, copy.incarnation))
    return msgspec.structs.replace(status, copies=tuple(copies))


def _died_with_its_boot(status: VmStatus, copy: PossibleCopy, present: BootId | None) -> bool:
    """P4, for earlier starts: the newest one's end is its host's to say."""
    return (
        copy.incarnation < status.incarnation
        and copy.boot is not None
        and present is not None
        and copy.boot != present
    )
