"""What only a person may end: a VM that is kept down because hosts died with it (M5) or no start of it succeeded, and the brake on
power orders (J5)."""

from virtha.control.engine_words import say, until
from virtha.control.names import the_cluster, the_vm
from virtha.control.views import BrakeView, Caller
from virtha.engine.events import BrakeLifted, QuarantineLifted
from virtha.engine.records import VmStage
from virtha.model.errors import Refused
from virtha.model.host import Cluster
from virtha.model.ids import Revision, VmId
from virtha.ports.leaders import Leaders
from virtha.store.engine import find_cluster_record, find_vm_record
from virtha.store.events import EventFilter, events_after
from virtha.store.store import Store, Transaction

KEPT_DOWN = (VmStage.QUARANTINED, VmStage.GIVEN_UP)


class Freeing:
    def __init__(self, store: Store, leaders: Leaders) -> None:
        self._store = store
        self._leaders = leaders

    async def free_vm(self, caller: Caller, ref: str) -> None:
        """The engine brings it back as if nothing had been tried. Its deaths and failed starts count no more.

        Raises Refused: it is not kept down; Unavailable: nobody leads its cluster, or the engine did not answer in time.
        """
        async with self._store.read() as tx:
            row = await the_vm(tx, ref)
            kept = await _is_kept_down(tx, row.vm.id)
            began = await tx.revision_now()
        if not kept:
            raise Refused(
                f"{row.vm.name} is neither quarantined nor given up: there is nothing to free it from",
                code="problem.vm.state",
                fix=f"'virtha explain vm/{row.vm.name}' says what it waits for",
            )
        say(self._leaders, row.vm.cluster_id, QuarantineLifted(vm_id=row.vm.id, by=caller.name))
        look_again = f"see 'virtha explain vm/{row.vm.name}' before you repeat it"
        await until(lambda: self._was_freed(row.vm.id, began), fix=look_again)

    async def _was_freed(self, vm_id: VmId, began: Revision) -> bool | None:
        """None: not yet. It may be kept down anew at once, so what was told counts, too."""
        async with self._store.read() as tx:
            told = await events_after(tx, EventFilter(code="vm.freed", vm_id=vm_id), began, 1)
            return True if told or not await _is_kept_down(tx, vm_id) else None

    async def brake(self, ref: str) -> BrakeView:
        async with self._store.read() as tx:
            return await _brake(tx, await the_cluster(tx, ref))

    async def lift_brake(self, caller: Caller, ref: str) -> BrakeView:
        """Power orders go out again, whatever made so many hosts fall silent at once; those that have by then trip it no more.

        Raises Refused: it is not on; Unavailable: as for ``free_vm``.
        """
        async with self._store.read() as tx:
            cluster = await the_cluster(tx, ref)
            before = await _brake(tx, cluster)
            began = await tx.revision_now()
        if not before.on:
            raise Refused(
                f"the brake of cluster {cluster.name} is not on: it holds no power orders",
                fix="'virtha explain host/HOST' says what a host's fencing waits for",
            )
        say(self._leaders, cluster.id, BrakeLifted(by=caller.name))
        look_again = f"see 'virtha cluster brake {cluster.name}' before you repeat it"
        return await until(lambda: self._was_lifted(cluster, began), fix=look_again)

    async def _was_lifted(self, cluster: Cluster, began: Revision) -> BrakeView | None:
        """None: not yet. It may trip anew at once."""
        async with self._store.read() as tx:
            view = await _brake(tx, cluster)
            told = await events_after(tx, EventFilter(code="fence.brake.lifted"), began, 100)
        return view if not view.on or any(one.cluster_id == cluster.id for one in told) else None


async def _is_kept_down(tx: Transaction, vm_id: VmId) -> bool:
    record = await find_vm_record(tx, vm_id)
    return record is not None and record.stage in KEPT_DOWN


async def _brake(tx: Transaction, cluster: Cluster) -> BrakeView:
    record = await find_cluster_record(tx, cluster.id)
    brake = record.brake if record is not None else None
    return BrakeView(
        cluster=cluster.name,
        on=brake is not None,
        hosts=brake.hosts if brake is not None else 0,
    )
