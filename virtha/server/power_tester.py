"""The scheduled tests of power devices (F9): asked by the leader of each host's cluster, through its desk, so that no test
is beside an order or a question of the engine."""

import asyncio
import contextlib

import structlog

from virtha.control.power_schedule import DueTest, PowerSchedule
from virtha.model.errors import NotFound, VirthaError
from virtha.model.evidence import PowerState
from virtha.model.ids import ClusterId
from virtha.model.time import UtcMillis
from virtha.ports.clock import Clock
from virtha.server.cluster_feed import ClusterFeed
from virtha.server.engines import Engines
from virtha.server.power_desk import DeviceAnswer
from virtha.store.installations import Lead

log = structlog.get_logger("virtha.server.power")
LOOK_EVERY_S = 60.0
DEADLINE_MS = 15_000
"""As of a person's test. What takes longer than fencing waits fails all the same (``power.too_slow``)."""
_NOT_TWICE = ("power.sign_in_refused", "power.not_permitted", "power.unusable_settings")
"""Many devices lock a user out after a few wrong passwords."""


class PowerTester:
    def __init__(self, schedule: PowerSchedule, engines: Engines, clock: Clock) -> None:
        self._schedule = schedule
        self._engines = engines
        self._clock = clock
        self._began: dict[ClusterId, tuple[Lead, UtcMillis]] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Each cluster by itself: slow devices of one hold up no other's."""
        under_way: dict[ClusterId, asyncio.Task[int]] = {}
        async with asyncio.TaskGroup() as group:
            while not stopping.is_set():
                for cluster_id, feed in tuple(self._engines.feeds.items()):
                    former = under_way.get(cluster_id)
                    if former is None or former.done():
                        name = f"power tests of {cluster_id}"
                        under_way[cluster_id] = group.create_task(self._of(feed), name=name)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await stopping.wait()
            for task in under_way.values():
                task.cancel()

    async def round(self) -> int:
        """All that is due by now. Returns how many devices were tested."""
        feeds = tuple(self._engines.feeds.values())
        return sum(await asyncio.gather(*(self._of(feed) for feed in feeds)))

    async def _of(self, feed: ClusterFeed) -> int:
        try:
            due = await self._schedule.due(feed.cluster_id, began=self._beginning(feed))
        except VirthaError as error:
            log.warning("power devices can't be tested now", error=str(error))
            return 0
        return sum(await asyncio.gather(*(self._test(feed, one) for one in due)))

    def _beginning(self, feed: ClusterFeed) -> UtcMillis:
        lead, began = self._began.get(feed.cluster_id, (None, UtcMillis(0)))
        if lead != feed.lead:
            began = self._clock.wall_ms()
            self._began[feed.cluster_id] = (feed.lead, began)
        return began

    async def _test(self, feed: ClusterFeed, due: DueTest) -> bool:
        tested = await self._read(feed, due)
        again = tested is not None and tested.reading.state is PowerState.UNKNOWN
        if tested is not None and again and tested.reading.code not in _NOT_TWICE:
            tested = await self._read(feed, due)  # one lost packet is no failure
        if tested is None:
            return False
        try:
            kept = await self._schedule.keep(due, tested.reading, tested.took_ms)
        except NotFound:
            return False  # removed meanwhile
        except VirthaError as error:
            log.warning("a power test can't be kept now", device=due.device, error=str(error))
            return False
        return kept is not None

    async def _read(self, feed: ClusterFeed, due: DueTest) -> DeviceAnswer | None:
        desk = feed.power_desk
        if desk is None:
            return None
        return await desk.test(
            due.row.host.id, due.device, deadline_ms=DEADLINE_MS, waits_ms=due.waits_ms
        )
