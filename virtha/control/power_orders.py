"""What people ask of power devices: a reading, a test, on, off, blink. The engine's own orders don't come this way."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from virtha.control.history import record
from virtha.control.power import Power, Reached
from virtha.control.power_results import PowerResults, Tried, identity_of, reason_text
from virtha.control.power_views import (
    PowerOrderRequest,
    PowerOrderView,
    PowerStatusView,
    PowerTestView,
)
from virtha.control.views import Caller
from virtha.model.errors import Failed, Refused
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.host import Cluster
from virtha.model.power import PowerAction
from virtha.ports.clock import Clock
from virtha.ports.leaders import Leaders, NobodyLeads
from virtha.ports.power import PowerDevice, PowerOutcome, PowerReading
from virtha.store.clusters import find_cluster
from virtha.store.store import Store
from virtha.store.vms import vms_held_by

T = TypeVar("T")
LOOK_DEADLINE_MS = 15_000
"""Of one reading that somebody waits for. The engine's own deadline is its policy's, and shorter."""
FRESH_MS = 5_000
"""An order of a person's that could not go out for so long after its first look does not go out any more."""
HUNG_S = 600
"""No driver takes so long; one that does has lost its own deadline."""
GAP_S = 1.0


class PowerOrders:
    def __init__(
        self, store: Store, power: Power, clock: Clock, leaders: Leaders | None = None
    ) -> None:
        """``leaders``: of whom the engine of each host's cluster is told of tests."""
        self._store = store
        self._power = power
        self._clock = clock
        self._results = PowerResults(store, clock, leaders or NobodyLeads())

    async def status(self, ref: str, name: str | None) -> PowerStatusView:
        reached = await self._power.reach(ref, name)
        began_ms = self._clock.monotonic_ms()
        reading = await self._with(
            reached, lambda one: _bounded(one.status(deadline_ms=LOOK_DEADLINE_MS))
        )
        return PowerStatusView(
            name=reached.name,
            host=reached.row.host.name,
            state=reading.state,
            identity=_match(reached, reading),
            code=reading.code,
            reason=reason_text(reading.code),
            detail=reading.detail,
            took_ms=int(self._clock.monotonic_ms() - began_ms),
        )

    async def test(self, caller: Caller, ref: str, name: str | None) -> PowerTestView:
        """On demand (F6). Changes no power; its result is kept, and told."""
        reached = await self._power.reach(ref, name)
        before, host = reached.row.status, reached.row.host
        async with self._store.read() as tx:
            cluster = await find_cluster(tx, host.cluster_id)
        assert isinstance(cluster, Cluster)
        waits_ms = cluster.policy.fencing.read_deadline_ms
        reading, took_ms = await self._with(reached, lambda one: self._test(one, waits_ms))
        tried = Tried(
            host=host,
            before=before,
            name=reached.name,
            revision=reached.revision,
            has_status=reached.settings.has_status,
            reading=reading,
            took_ms=took_ms,
            waits_ms=waits_ms,
        )
        test = await self._results.keep(tried, by=caller.name)
        return PowerTestView(
            name=reached.name, host=host.name, test=test, reason=reason_text(test.code)
        )

    async def _test(self, device: PowerDevice, waits_ms: int) -> tuple[PowerReading, int]:
        """And how long fencing would wait for it, in milliseconds: a reading after the first one, which has more to do."""
        began_ms = self._clock.monotonic_ms()
        reading = await _bounded(device.test(deadline_ms=LOOK_DEADLINE_MS))
        took_ms = int(self._clock.monotonic_ms() - began_ms)
        if reading.state is PowerState.UNKNOWN or took_ms <= waits_ms:
            return reading, took_ms
        began_ms = self._clock.monotonic_ms()
        reading = await _bounded(device.status(deadline_ms=LOOK_DEADLINE_MS))
        return reading, int(self._clock.monotonic_ms() - began_ms)

    async def order(
        self, caller: Caller, ref: str, name: str | None, request: PowerOrderRequest
    ) -> PowerOrderView:
        """Raises Refused: VMs run there and ``force`` was not given; or the device is another machine's."""
        reached = await self._power.reach(ref, name)
        host, action = reached.row.host, request.action
        async with self._store.read() as tx:
            held = await vms_held_by(tx, host.id)
            cluster = await find_cluster(tx, host.cluster_id)
        assert isinstance(cluster, Cluster)
        if action is PowerAction.OFF and held and not request.force:
            names = ", ".join(sorted(one.vm.name for one in held)[:10])
            raise Refused(
                f"{len(held)} VMs may run on {host.name}: {names}",
                field="force",
                fix="move them first; or force it, and they are cut off with the host",
            )
        deadline_ms = cluster.policy.fencing.order_deadline_ms
        began_ms = self._clock.monotonic_ms()

        went: list[bool] = []

        def may_go() -> bool:
            fresh = self._clock.monotonic_ms() - began_ms <= LOOK_DEADLINE_MS + FRESH_MS
            went.append(fresh)
            return fresh

        async def work(device: PowerDevice) -> tuple[PowerOutcome, PowerReading]:
            await _refuse_another_machine(reached, device)
            outcome = await _bounded(device.order(action, deadline_ms=deadline_ms, may_go=may_go))
            until_ms = began_ms + deadline_ms + LOOK_DEADLINE_MS
            return outcome, await self._read_back(device, action, outcome, until_ms)

        async def told(result: str) -> None:
            async with self._store.write() as tx:
                await record(
                    tx,
                    "power.ordered",
                    host=host,
                    by=caller.name,
                    action=action.value,
                    device=reached.name,
                    result=result,
                )

        try:
            outcome, reading = await self._with(reached, work)
        except BaseException:
            if any(went):
                await told("its end is not known")  # whoever asked is gone, or the server stops
            raise
        await told(f"{outcome.result.value}, now {reading.state.value}")
        code = outcome.code or _not_done(action, reading) or reading.code
        return PowerOrderView(
            name=reached.name,
            host=host.name,
            action=action,
            result=outcome.result,
            state=reading.state,
            code=code,
            reason=reason_text(code),
            detail=outcome.detail or reading.detail,
            took_ms=int(self._clock.monotonic_ms() - began_ms),
        )

    async def _read_back(
        self, device: PowerDevice, action: PowerAction, outcome: PowerOutcome, until_ms: int
    ) -> PowerReading:
        """Accepted is not off: read until it is so, or until the deadline."""
        wanted = {PowerAction.OFF: PowerState.OFF, PowerAction.ON: PowerState.ON}.get(action)
        while True:
            reading = await _bounded(device.status(deadline_ms=LOOK_DEADLINE_MS))
            waits = wanted is not None and outcome.result in (Result.OK, Result.UNKNOWN)
            known = reading.code not in ("power.no_status", "power.sign_in_refused")
            if reading.state is wanted or not waits or not known:
                return reading
            if self._clock.monotonic_ms() >= until_ms:
                return reading
            await asyncio.sleep(GAP_S)

    async def _with(
        self, reached: Reached, work: Callable[[PowerDevice], Coroutine[Any, Any, T]]
    ) -> T:
        device = self._power.devices.device(reached.settings, reached.secrets)
        try:
            return await work(device)
        finally:
            await device.close()


async def _refuse_another_machine(reached: Reached, device: PowerDevice) -> None:
    """Swapped addresses strike the wrong host (P1)."""
    reading = await _bounded(device.status(deadline_ms=LOOK_DEADLINE_MS))
    if _match(reached, reading) is IdentityMatch.MISMATCH:
        raise Refused(
            f"device {reached.name} of {reached.row.host.name} names another machine",
            code="power.other_machine",
            fix="correct its address: virtha host power set",
        )


async def _bounded(work: Coroutine[Any, Any, T]) -> T:
    """A driver keeps its deadline itself; one that does not is told as failed."""
    try:
        async with asyncio.timeout(HUNG_S):
            return await work
    except TimeoutError:
        raise Failed("the driver of the power device hangs", fix="restart the server") from None


def _match(reached: Reached, reading: PowerReading) -> IdentityMatch:
    return identity_of(reached.row.status, reading)


def _not_done(action: PowerAction, reading: PowerReading) -> str | None:
    if action is PowerAction.OFF and reading.state is PowerState.ON:
        return "power.still_on"
    return None
