"""The engine's records in the simulated database: written in one transaction, and only under the present term."""

from collections.abc import Callable, Iterable

from virtha.engine.events import DropHost, DropVm, Intent, SaveCluster, SaveHost, SaveVm
from virtha.engine.records import ClusterRecord, EngineRecords, HostRecord, VmRecord
from virtha.model.ids import HostId, Term, VmId


class EngineTable:
    def __init__(self) -> None:
        self.cluster: ClusterRecord | None = None
        self.hosts: dict[HostId, HostRecord] = {}
        self.vms: dict[VmId, VmRecord] = {}

    def write(self, intents: Iterable[Intent], *, on_vm: Callable[[VmRecord], None]) -> None:
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

    def records(self, term: Term) -> EngineRecords:
        """As the leader of ``term`` reads them: its orders and incidents are counted on from there."""
        cluster = (self.cluster or ClusterRecord(term=term)).led_in(term)
        return EngineRecords(
            cluster=cluster,
            hosts=tuple(self.hosts[key] for key in sorted(self.hosts)),
            vms=tuple(self.vms[key] for key in sorted(self.vms)),
        )
