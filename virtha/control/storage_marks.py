"""Whether all hosts see one and the same storage: by the marks that they read there, whatever leases do.

One mark counts, and a host that sees another one can't use the domain: a VM would start there from an older copy of its disk, or from none.
Which storage is the right one nobody knows here; so what was seen first counts, for VMs may have their disks there already, until no host
has it any more. Hosts that are away have what they told last.
"""

from collections import Counter
from collections.abc import Sequence

from virtha.control.history import record
from virtha.model.host import StorageDomain
from virtha.store.clusters import other_storage
from virtha.store.hosts import find_host
from virtha.store.storage_marks import save_mark, save_other_than, told_marks
from virtha.store.store import WriteTransaction


def mark_that_counts(before: str | None, told: Sequence[str]) -> str | None:
    """Of several that could take its place the one that most hosts see."""
    if not told or before in told:
        return before
    seen_by = Counter(told)
    return max(seen_by, key=lambda mark: (seen_by[mark], mark))


async def compare_marks(tx: WriteTransaction, domain: StorageDomain) -> None:
    """After one was told, or a host that told one is no more."""
    before, told = await told_marks(tx, domain.id)
    counts = mark_that_counts(before, [one.mark for one in told if one.mark is not None])
    if counts is not None and counts != before:
        await save_mark(tx, domain.id, counts)
    witness = next((one.host_name for one in told if one.mark == counts), None)
    for one in told:
        other_than = witness if one.mark not in (None, counts) else None
        if other_than == one.other_than:
            continue
        await save_other_than(tx, one.host_id, domain.id, other_than)
        if other_than is not None and one.other_than is None:
            row = await find_host(tx, one.host_id)
            assert row is not None, "a foreign key holds it"
            detail = other_storage(other_than)
            await record(tx, "storage.unusable", host=row.host, name=domain.name, detail=detail)
