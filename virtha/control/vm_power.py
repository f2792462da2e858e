"""Starting, stopping and the like: each is one order to the host that holds the VM."""

from collections.abc import Callable

import msgspec

from virtha.control.copies import newest_incarnation
from virtha.control.effects import Dispatcher, Effects
from virtha.control.history import record
from virtha.control.names import the_host, the_vm
from virtha.control.operations import check_nothing_open
from virtha.control.plan import FixedOrder, Give, Launch, Plan, Step
from virtha.control.requests import VmStart
from virtha.control.runner import Runner
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput, Refused
from virtha.model.ids import HostId
from virtha.model.operation import Operation
from virtha.model.orders import PauseVm, RebootMode, RebootVm, ResumeVm, StopMode, StopVm
from virtha.model.vm import VmState, VmStatus
from virtha.store.store import Store
from virtha.store.vms import VmRow, save_vm_status

_RUNS = (VmState.RUNNING, VmState.STARTING)
MakeOrder = Callable[[VmRow, HostId], FixedOrder]


class VmPower:
    def __init__(self, store: Store, runner: Runner, dispatcher: Dispatcher) -> None:
        self._store = store
        self._runner = runner
        self._dispatcher = dispatcher

    async def start(self, caller: Caller, ref: str, request: VmStart) -> Operation:
        """One transaction: operation, next incarnation, holder, wish; the order goes out afterwards.

        Raises Refused: it runs, another host may hold it, or no host fits (says per host why not).
        """
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            await check_nothing_open(tx, row.vm.id, f"starting {row.vm.name}", starts=True)
            host_id = None
            if request.host is not None:
                host = (await the_host(tx, request.host, field="host")).host
                if host.cluster_id != row.vm.cluster_id:
                    raise InvalidInput(f"{host.name} is in another cluster", field="host")
                host_id = host.id
            step = Launch(name=f"start {row.vm.name}", vm_id=row.vm.id, host_id=host_id)
            operation = await self._runner.begin(
                tx,
                effects,
                kind="vm.start",
                subject=row.vm.id,
                by=caller.name,
                plan=Plan(steps=(step,)),
            )
        await self._dispatcher.carry_out(effects)
        return operation

    async def shutdown(self, caller: Caller, ref: str) -> Operation:
        return await self._stop(caller, ref, "vm.shutdown", StopMode.SHUTDOWN)

    async def power_off(self, caller: Caller, ref: str) -> Operation:
        """Wherever a copy may be, also of a VM that seems down: this is how a holder is got rid of."""
        return await self._stop(caller, ref, "vm.power_off", StopMode.POWER_OFF)

    async def _stop(self, caller: Caller, ref: str, kind: str, mode: StopMode) -> Operation:
        any_state = mode is StopMode.POWER_OFF
        return await self._order(
            caller,
            ref,
            kind,
            None if any_state else _RUNS,
            lambda row, host_id: StopVm(
                vm_id=row.vm.id,
                incarnation=newest_incarnation(row.status, host_id),
                mode=mode,
                by=caller.name,
            ),
            wanted_up=False,
        )

    async def reboot(self, caller: Caller, ref: str) -> Operation:
        return await self._reboot(caller, ref, "vm.reboot", RebootMode.REBOOT, _RUNS)

    async def reset(self, caller: Caller, ref: str) -> Operation:
        states = (*_RUNS, VmState.PAUSED, VmState.STOPPING, VmState.CRASHED)
        return await self._reboot(caller, ref, "vm.reset", RebootMode.RESET, states)

    async def _reboot(
        self, caller: Caller, ref: str, kind: str, mode: RebootMode, states: tuple[VmState, ...]
    ) -> Operation:
        return await self._order(
            caller,
            ref,
            kind,
            states,
            lambda row, host_id: RebootVm(
                vm_id=row.vm.id,
                incarnation=newest_incarnation(row.status, host_id),
                mode=mode,
                by=caller.name,
            ),
        )

    async def pause(self, caller: Caller, ref: str) -> Operation:
        return await self._order(
            caller,
            ref,
            "vm.pause",
            _RUNS,
            lambda row, host_id: PauseVm(
                vm_id=row.vm.id,
                incarnation=newest_incarnation(row.status, host_id),
                by=caller.name,
            ),
        )

    async def resume(self, caller: Caller, ref: str) -> Operation:
        return await self._order(
            caller,
            ref,
            "vm.resume",
            (VmState.PAUSED,),
            lambda row, host_id: ResumeVm(
                vm_id=row.vm.id,
                incarnation=newest_incarnation(row.status, host_id),
                by=caller.name,
            ),
        )

    async def _order(
        self,
        caller: Caller,
        ref: str,
        kind: str,
        states: tuple[VmState, ...] | None,
        make_order: MakeOrder,
        *,
        wanted_up: bool | None = None,
    ) -> Operation:
        """``states`` None: any, as long as a host may hold it. Judged by what its host said last: a
        host that was cut off gets the order when it is back."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            status = row.status
            if kind != "vm.power_off":
                await check_nothing_open(tx, row.vm.id, f"{kind} of {row.vm.name}")
            if not status.holders or (states is not None and status.state not in states):
                raise Refused(
                    f"{row.vm.name} is {row.shown.value}",
                    code="problem.vm.state",
                    allowed=tuple(state.value for state in states or ()),
                    fix="look at it with 'virtha vm show'",
                )
            if kind == "vm.resume" and len(status.holders) > 1:
                raise Refused(
                    f"several hosts may hold {row.vm.name}, which is being moved, or was: let run on one of them it may "
                    "run twice",
                    code="problem.vm.state",
                    fix="wait until one host is left: 'virtha vm show' says what it waits for",
                )
            if wanted_up is not None and status.wanted_up != wanted_up:
                await save_vm_status(tx, msgspec.structs.replace(status, wanted_up=wanted_up))
                effects.configure(row.vm.cluster_id)
                # Of one that runs its stop tells.
                if not wanted_up and status.state not in _RUNS:
                    await record(tx, "vm.unwanted", vm=row.vm, by=caller.name)
            asked = _asked(status, kind)
            verb = kind.removeprefix("vm.").replace("_", " ")
            steps: tuple[Step, ...] = tuple(
                Give(
                    name=f"{verb} {row.vm.name}",
                    host_id=host_id,
                    order=make_order(row, host_id),
                    # Of several, one that is not there must not keep the other from being asked.
                    optional=len(asked) > 1,
                    parallel=True,
                )
                for host_id in asked
            )
            operation = await self._runner.begin(
                tx,
                effects,
                kind=kind,
                subject=row.vm.id,
                by=caller.name,
                plan=Plan(steps=steps),
            )
        await self._dispatcher.carry_out(effects)
        return operation


def _asked(status: VmStatus, kind: str) -> tuple[HostId, ...]:
    """A stop is for every copy. All else is for the guest: of a VM that moves its source or its target has that, never
    both, and the other could but refuse."""
    stops = kind in ("vm.shutdown", "vm.power_off")
    if not stops and status.host_id in status.holders:
        return tuple(host_id for host_id in status.holders if host_id == status.host_id)
    return status.holders
