"""What people ask of power devices: a reading, a test. What they order is ``host_power``'s."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from virtha.control.device_turns import UNASKED
from virtha.control.power import Power, Reached
from virtha.control.power_results import PowerResults, Tried, identity_of, reason_text
from virtha.control.power_views import (
    PowerStatusView,
    PowerTestView,
)
from virtha.control.views import Caller
from virtha.model.errors import Failed, Unavailable
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.host import Cluster
from virtha.ports.clock import Clock
from virtha.ports.leaders import Leaders, NobodyLeads
from virtha.ports.power import PowerDevice, PowerReading
from virtha.store.clusters import find_cluster
from virtha.store.store import Store

T = TypeVar("T")
LOOK_DEADLINE_MS = 15_000
"""Of one reading that somebody waits for. The engine's own deadline is its policy's, and shorter."""
FRESH_MS = 5_000
"""A person's order that could not go out for so long after its first look does not go out any more."""
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
            reached, lambda one: bounded(one.status(deadline_ms=LOOK_DEADLINE_MS))
        )
        return PowerStatusView(
            name=reached.name,
            host=reached.row.host.name,
            state=reading.state,
            identity=match_of(reached, reading),
            code=reading.code,
            reason=reason_text(reading.code),
            detail=reading.detail,
            took_ms=int(self._clock.monotonic_ms() - began_ms),
        )

    async def test(self, caller: Caller, ref: str, name: str | None) -> PowerTestView:
        """On demand (F6). Changes no power; its result is kept, and told. Raises Unavailable: it was not asked."""
        reached = await self._power.reach(ref, name)
        before, host = reached.row.status, reached.row.host
        async with self._store.read() as tx:
            cluster = await find_cluster(tx, host.cluster_id)
        assert isinstance(cluster, Cluster)
        waits_ms = cluster.policy.fencing.read_deadline_ms
        reading, took_ms = await self._with(reached, lambda one: self._test(one, waits_ms))
        if reading.code in UNASKED:
            # Kept as a failure it would take back what was proven of the device, in the middle of a fence.
            raise Unavailable(
                f"{reached.name} was not asked: {reason_text(reading.code)}", fix="test it again"
            )
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
        reading = await bounded(device.test(deadline_ms=LOOK_DEADLINE_MS))
        took_ms = int(self._clock.monotonic_ms() - began_ms)
        if reading.state is PowerState.UNKNOWN or took_ms <= waits_ms:
            return reading, took_ms
        began_ms = self._clock.monotonic_ms()
        reading = await bounded(device.status(deadline_ms=LOOK_DEADLINE_MS))
        return reading, int(self._clock.monotonic_ms() - began_ms)

    async def _with(
        self, reached: Reached, work: Callable[[PowerDevice], Coroutine[Any, Any, T]]
    ) -> T:
        device = self._power.open(reached)
        try:
            return await work(device)
        finally:
            await device.close()


async def bounded(work: Coroutine[Any, Any, T]) -> T:
    """A driver keeps its deadline itself; one that does not is told as failed."""
    try:
        async with asyncio.timeout(HUNG_S):
            return await work
    except TimeoutError:
        raise Failed("the driver of the power device hangs", fix="restart the server") from None


def match_of(reached: Reached, reading: PowerReading) -> IdentityMatch:
    return identity_of(reached.row.status, reading)
