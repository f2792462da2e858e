"""Where orders come in: checked, carried out once, answered (also when they come again)."""

import asyncio
from collections.abc import Coroutine
from typing import Any, assert_never

import msgspec
import structlog

from virtha.agent.answers import OK, Answer, of_error, outcome_of, refused
from virtha.agent.host_context import HostContext
from virtha.agent.order_ceph import CephOrders
from virtha.agent.order_devices import DeviceOrders
from virtha.agent.order_idle_disks import IdleDiskOrders
from virtha.agent.order_inventory import InventoryOrders
from virtha.agent.order_io_error import IoErrorOrders
from virtha.agent.order_live_disks import LiveDiskOrders
from virtha.agent.order_moves import MoveOrders
from virtha.agent.order_power import PowerOrders
from virtha.agent.order_storage import StorageOrders
from virtha.agent.order_template import TemplateOrders
from virtha.model.errors import VirthaError
from virtha.model.facts import Outcome, Result
from virtha.model.ids import Term
from virtha.model.orders import (
    AdoptVm,
    CancelWork,
    ChangeLiveSnapshots,
    ChangeSnapshots,
    CopyDisk,
    CreateDisk,
    DefineVm,
    DeleteTemplate,
    EndPausedVm,
    ForgetVm,
    GrantedBody,
    GrowDisk,
    GrowLiveDisk,
    LetInHost,
    MigrateVm,
    Order,
    PauseVm,
    PlugDevice,
    PrepareStorage,
    RebootVm,
    ReceiveVm,
    ReleaseVm,
    ResumeVm,
    ScanForeign,
    SettleMigration,
    ShutOutHost,
    StartVm,
    StopVm,
    UnplugDevice,
)
from virtha.sentinel.events import ReportAgain

AT_ONCE_MAX = 1_024
"""Orders that are carried out at once; those beyond wait in the order in which they came."""
IN_HAND_MAX = 16_384
"""With those that wait. One beyond is refused: unanswered, it would come again only after a new hello."""

CANCELLED = "it was taken back; nothing of it is left"

_log = structlog.get_logger(__name__)


class OrderDesk:
    def __init__(self, host: HostContext, *, term_seen: Term) -> None:
        self._host = host
        self._in_hand: set[tuple[str, int]] = set()
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)
        self._turned_away: list[Outcome] = []
        self.term_seen = term_seen
        self._power = PowerOrders(host)
        self._inventory = InventoryOrders(host, self._power)
        self._io_errors = IoErrorOrders(host, self._power)
        self._storage = StorageOrders(host)
        self._templates = TemplateOrders(host)
        self._idle_disks = IdleDiskOrders(host, self._power)
        self._ceph = CephOrders(host)
        self._devices = DeviceOrders(host, self._power)
        self._live_disks = LiveDiskOrders(host, self._devices, host.freezer)
        self._stoppable: dict[tuple[str, int], asyncio.Task[Answer]] = {}
        self._to_stop: set[tuple[str, int]] = set()
        self.moves = MoveOrders(host, self._power)

    def accept(self, order: Order) -> None:
        """Never waits. The answer is an ``Outcome`` fact."""
        key = (order.operation_id, order.step)
        if key in self._in_hand:
            return  # it came again while it is carried out: one answer is enough
        if len(self._in_hand) >= IN_HAND_MAX:
            self._turn_away(order)
            return
        self._in_hand.add(key)
        self._host.spawn(f"order {order.operation_id}/{order.step}", self._handle(order))

    def _turn_away(self, order: Order) -> None:
        """Not kept as its outcome: the same order may be carried out later."""
        _log.error("too many orders at once; one is refused", operation=order.operation_id)
        self._turned_away.append(
            outcome_of(order, refused("problem.unavailable", "too many orders at once"))
        )
        if len(self._turned_away) == 1:
            self._host.spawn("orders turned away", self._tell_turned_away())

    async def _tell_turned_away(self) -> None:
        while self._turned_away:
            outcomes = tuple(self._turned_away)
            await self._host.facts.emit(outcomes)
            del self._turned_away[: len(outcomes)]

    async def _handle(self, order: Order) -> None:
        async with self._at_once:
            await self._handle_now(order)

    async def _handle_now(self, order: Order) -> None:
        try:
            # The settings that came before this order may name the storage that it needs.
            await self._host.settled.wait()
            outcome = await self._outcome(order)
            # A server that takes sessions but can record nothing sends its orders after each hello.
            if not self._host.facts.on_its_way(outcome):
                await self._host.facts.emit([outcome])
            if isinstance(order.body, StartVm) and outcome.code == "order.refused.running":
                # After the answer: the server drops a report of what it holds for superseded, and
                # learns by the answer that this one is not.
                self._host.loop.tell(ReportAgain(vm_id=order.body.vm.id))
        finally:
            self._in_hand.discard((order.operation_id, order.step))
            self._to_stop.discard((order.operation_id, order.step))

    async def _outcome(self, order: Order) -> Outcome:
        host = self._host
        try:
            known = host.outcomes.find(order.operation_id, order.step)
        except ValueError as error:
            return outcome_of(order, refused("problem.invalid", str(error)))
        if known is not None:
            return known
        begun = host.outcomes.begun(order.operation_id, order.step)
        answer = self._objection(order)
        if answer is None:
            try:
                answer = await self._carry_out(order)
            except (VirthaError, OSError) as error:
                answer = of_error(error)
        elif answer.code == "order.refused.boot" and isinstance(order.body, GrantedBody):
            # The boot that it was for is over, and so is whatever it might have started.
            await self._power.decline(order.body, answer.message)
        if begun and isinstance(order.body, ChangeSnapshots) and answer.result is Result.REFUSED:
            # Refused this time: an agent before us may have put back some of the disks.
            answer = msgspec.structs.replace(answer, result=Result.FAILED)
        outcome = outcome_of(order, answer)
        try:
            await host.disk(host.outcomes.save, outcome)
        except OSError as error:
            # Carried out again it would be answered by what is found: every order looks first.
            _log.error("an outcome can't be kept", operation=order.operation_id, error=str(error))
        return outcome

    def _objection(self, order: Order) -> Answer | None:
        if order.term < self.term_seen:
            return refused(
                "order.refused.term",
                f"term {order.term} is older than {self.term_seen}",
                term=order.term,
                current=self.term_seen,
            )
        self.term_seen = order.term
        if order.host_boot != self._host.boot:
            return refused(
                "order.refused.boot",
                "the order was for another boot of this host",
                boot=order.host_boot,
                current=self._host.boot,
            )
        return None

    async def _carry_out(self, order: Order) -> Answer:
        body = order.body
        match body:
            case StartVm():
                return await self._power.start(body)
            case StopVm():
                return await self._power.stop(body)
            case RebootVm():
                return await self._reboot(order, body)
            case PauseVm():
                return await self._power.pause(body)
            case ResumeVm():
                return await self._power.resume(body)
            case EndPausedVm():
                return await self._io_errors.end(body)
            case ShutOutHost():
                return await self._ceph.shut_out(body)
            case LetInHost():
                return await self._ceph.let_in(body)
            case DefineVm():
                return await self._inventory.define(body)
            case ForgetVm():
                return await self._inventory.forget(body)
            case PrepareStorage():
                return await self._storage.prepare(body)
            case CreateDisk():
                return await self._unless_stopped(order, self._storage.create_disk(order, body))
            case CopyDisk():
                return await self._unless_stopped(order, self._templates.copy_disk(order, body))
            case CancelWork():
                return self._stop_work(body)
            case DeleteTemplate():
                return await self._templates.delete(body)
            case ChangeSnapshots() | GrowDisk():
                return await self._idle_disks.change(order, body)
            case ChangeLiveSnapshots():
                return await self._live_disks.change(order, body)
            case GrowLiveDisk():
                return await self._live_disks.grow(body)
            case PlugDevice():
                return await self._devices.plug(body)
            case UnplugDevice():
                return await self._devices.unplug(order, body)
            case ScanForeign():
                return await self._inventory.scan()
            case AdoptVm():
                return await self._inventory.adopt(body)
            case ReleaseVm():
                return await self._inventory.release(body)
            case ReceiveVm():
                return await self.moves.receive(body)
            case MigrateVm():
                return await self.moves.migrate(body)
            case SettleMigration():
                return await self.moves.settle(body)
            case _:
                assert_never(body)

    async def _unless_stopped(self, order: Order, work: Coroutine[Any, Any, Answer]) -> Answer:
        key = (order.operation_id, order.step)
        task = self._stoppable[key] = asyncio.ensure_future(work)
        if key in self._to_stop:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if key not in self._to_stop:
                raise
            return Answer(result=Result.FAILED, code="order.failed.cancelled", message=CANCELLED)
        finally:
            self._stoppable.pop(key, None)

    def _stop_work(self, body: CancelWork) -> Answer:
        """Of work that is over, or that never comes, nothing is to be done."""
        key = (body.operation_id, body.step)
        if key in self._in_hand:
            self._to_stop.add(key)
        if key in self._stoppable:
            self._stoppable[key].cancel()
        return OK

    async def _reboot(self, order: Order, body: RebootVm) -> Answer:
        """The one order whose repetition does harm, and of which no trace tells whether it was done."""
        outcomes = self._host.outcomes
        if outcomes.begun(order.operation_id, order.step):
            return Answer(
                result=Result.UNKNOWN,
                code="order.unknown.interrupted",
                message="the agent was restarted while it carried this out",
            )
        await self._host.disk(outcomes.begin, order.operation_id, order.step)
        return await self._power.reboot(body)
