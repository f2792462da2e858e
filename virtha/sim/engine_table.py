"""The engine's records in the simulated database: written in one transaction, and only under the present term.

Beside them the copies that people's orders made possible and that no turn of the engine has written yet (G1). Such a
copy is entered by the transaction that makes its order, and goes with the write of the turn that was told of it. So it
is known before the order goes out, without waiting for a turn: a leader that dies or sleeps in between leaves it to
the next, which is told of it before it decides anything. A server does the same in its one store.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from virtha.engine.events import (
    CopyGranted,
    DropHost,
    DropVm,
    Intent,
    SaveCluster,
    SaveHost,
    SaveVm,
)
from virtha.engine.records import ClusterRecord, EngineRecords, HostRecord, VmRecord
from virtha.model.ids import HostId, Term, VmId


class Lead(NamedTuple):
    """What lets a leader write. Of an earlier timeline it is over, whatever its term: a restored database counts from
    its backup's again, and may come to a number that another leader still goes by (M1, M2)."""

    timeline: int
    term: Term


class EngineTable:
    def __init__(self) -> None:
        self.cluster: ClusterRecord | None = None
        self.hosts: dict[HostId, HostRecord] = {}
        self.vms: dict[VmId, VmRecord] = {}
        self.granted: list[CopyGranted] = []
        """Not in a turn's write yet, in their order."""

    def write(
        self,
        intents: Iterable[Intent],
        *,
        told: Iterable[CopyGranted],
        on_vm: Callable[[VmRecord], None],
    ) -> None:
        """``told``: what this turn, or one that had nothing to write, was told of; ``intents`` are made in the
        knowledge of it."""
        known = list(told)
        self.granted = [one for one in self.granted if one not in known]
        for intent in intents:
            match intent:
                case SaveCluster(record=record):
                    self.cluster = record
                case SaveHost(record=record):
                    self.hosts[record.host_id] = record
                case SaveVm(record=record):
                    self.vms[record.vm_id] = record
                    on_vm(record)
                case DropHost(host_id=host_id):
                    self.hosts.pop(host_id, None)
                case DropVm(vm_id=vm_id):
                    self.vms.pop(vm_id, None)

    def granted_of(self, vm_id: VmId) -> list[CopyGranted]:
        return [one for one in self.granted if one.vm_id == vm_id]

    def records(self, term: Term) -> EngineRecords:
        """As the leader of ``term`` reads them: its orders and incidents are counted on from there."""
        cluster = (self.cluster or ClusterRecord(term=term)).led_in(term)
        return EngineRecords(
            cluster=cluster,
            hosts=tuple(self.hosts[key] for key in sorted(self.hosts)),
            vms=tuple(self.vms[key] for key in sorted(self.vms)),
        )
