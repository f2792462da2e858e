"""Which managed QEMUs there are and were, what they may write to, and which have ended for certain. In the looker's
thread; asks the kernel only."""

from collections.abc import Callable, Collection, Mapping

from virtha.agent.process_table import OpenFiles, has_ended, open_files
from virtha.model.ids import StorageDomainId, VmId
from virtha.model.value import Value
from virtha.sentinel.guardian import QemuProcess
from virtha.sentinel.lease_events import LeasedQemu


class EndedQemu(Value, frozen=True, kw_only=True):
    """Reaped. ``buffered``: what it wrote through the page cache may land yet. ``domain_ids``: where; None: anywhere."""

    process: QemuProcess
    buffered: bool
    domain_ids: frozenset[StorageDomainId] | None


class LedgerLook(Value, frozen=True, kw_only=True):
    qemus: tuple[LeasedQemu, ...]
    ended: tuple[EndedQemu, ...]


class _Seen:
    """Of one QEMU over all looks: what it once had open may have been written to."""

    def __init__(self) -> None:
        self.roots: set[str] = set()
        self.buffered: bool | None = None
        self.domain_ids: frozenset[StorageDomainId] | None = None


class QemuLedger:
    def __init__(
        self,
        files: Callable[[QemuProcess, Collection[str]], OpenFiles | None] = open_files,
        ended: Callable[[QemuProcess], bool] = has_ended,
    ) -> None:
        self._files = files
        self._ended = ended
        self._seen: dict[QemuProcess, _Seen] = {}

    def look(
        self,
        managed: Collection[QemuProcess],
        disks: Mapping[VmId, frozenset[StorageDomainId]],
        roots: Mapping[str, StorageDomainId],
    ) -> LedgerLook:
        """``disks``: where those of each VM lie; a VM that is not in it may write anywhere. ``roots``: directories of
        domains. Raises OSError."""
        for process in managed:
            self._note(process, disks, roots)
        ended = []
        for process in [each for each in self._seen if each not in managed]:
            if self._ended(process):
                seen = self._seen.pop(process)
                ended.append(
                    EndedQemu(
                        process=process,
                        buffered=seen.buffered is not False,
                        domain_ids=seen.domain_ids,
                    )
                )
        qemus = tuple(
            LeasedQemu(process=process, domain_ids=self._seen[process].domain_ids)
            for process in managed
        )
        return LedgerLook(qemus=qemus, ended=tuple(ended))

    def _note(
        self,
        process: QemuProcess,
        disks: Mapping[VmId, frozenset[StorageDomainId]],
        roots: Mapping[str, StorageDomainId],
    ) -> None:
        seen = self._seen.setdefault(process, _Seen())
        files = self._files(process, roots.keys())
        if files is not None:
            seen.roots |= files.roots
            seen.buffered = files.buffered or bool(seen.buffered)
        told = disks.get(process.vm_id)
        if told is not None:
            # What was unplugged stays: its last writes may be under way.
            opened = {roots[root] for root in seen.roots if root in roots}
            seen.domain_ids = told | opened | (seen.domain_ids or frozenset())
