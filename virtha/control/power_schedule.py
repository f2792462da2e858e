"""When the server tests power devices by itself (F9), and what it keeps of it. By whom they are asked is the leader's.

Spread by what each is called, so that many devices are never due at once, whoever led before.
"""

import zlib

from virtha.control.engine_power import led_devices
from virtha.control.known_settings import POWER_TEST_INTERVAL, setting_values
from virtha.control.power_results import PowerResults, Tried, is_up
from virtha.model.ids import ClusterId, HostId, Revision
from virtha.model.power import PowerDeviceId
from virtha.model.power_settings import PowerTest
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.ports.leaders import Leaders
from virtha.ports.power import PowerReading
from virtha.store.clusters import find_cluster
from virtha.store.hosts import HostRow, hosts_of_cluster
from virtha.store.power import power_tests_of
from virtha.store.store import Store

GRACE_MS = 120_000
"""After a leader's beginning: hosts connect first, and what waits for a person's look is not in the way of it."""
FIRST_WITHIN_MS = 900_000
"""So long after it all that were due before have been asked."""
AGAIN_MS = 900_000
"""A test that failed is repeated that soon, where it is only a matter of reaching the device. A wrong password is not:
many devices lock its user out."""
_SETTLED = ("power.sign_in_refused", "power.not_permitted", "power.unusable_settings")
ALIVE = "alive"


class DueTest(Value, frozen=True, kw_only=True):
    """``device``: as the engine knows it, of these settings. ``waits_ms``: as long would fencing wait for a reading."""

    row: HostRow
    name: str
    device: PowerDeviceId
    revision: Revision
    waits_ms: int


def spread(host_id: HostId, name: str) -> float:
    """From 0 up to 1, the same for ever."""
    return zlib.crc32(f"{host_id}/{name}".encode()) / 2**32


def due_at(
    test: PowerTest | None, revision: Revision, *, began: UtcMillis, interval_ms: int, share: float
) -> UtcMillis:
    """``revision``: of its settings now. ``began``: when this server began to lead. ``share``: see ``spread``. By the wall
    clock, which may jump: a test of the future is none, and no jump makes all due at one moment but after a beginning.

    A device that was disproved since is due no sooner: the engine waits for no test, it looks anew when one comes, and one
    that lied of a living host is not to be cleared in a hurry by a single reading."""
    earliest = began + GRACE_MS + int(share * min(interval_ms, FIRST_WITHIN_MS))
    if test is None or test.settings_revision < revision:
        return UtcMillis(earliest)
    pause_ms = interval_ms - int(share * interval_ms / 10)
    if not test.passed and test.code not in _SETTLED:
        pause_ms = min(pause_ms, AGAIN_MS)
    return UtcMillis(max(earliest, test.at + pause_ms))


class PowerSchedule:
    def __init__(self, store: Store, leaders: Leaders, results: PowerResults) -> None:
        self._store = store
        self._leaders = leaders
        self._results = results

    async def due(self, cluster_id: ClusterId, *, began: UtcMillis) -> tuple[DueTest, ...]:
        """Of hosts that are up and that nothing is held against, those whose time has come, the longest overdue first."""
        now = self._store.clock.wall_ms()
        found: list[tuple[int, DueTest]] = []
        async with self._store.read() as tx:
            cluster = await find_cluster(tx, cluster_id)
            interval_ms = (await setting_values(tx)).get(POWER_TEST_INTERVAL, cluster_id=cluster_id)
            if cluster is None or interval_ms == 0:
                return ()
            rows = {
                row.host.id: row
                for row in await hosts_of_cluster(tx, cluster_id)
                if is_up(row.status) and self._leaders.verdict(row.host.id) == ALIVE
            }
            devices = await led_devices(tx, dict.fromkeys(rows, cluster_id))
            tests = await power_tests_of(tx, rows.keys())
        for host_id, there in devices.items():
            for one in there:
                test = tests.get((host_id, one.name))
                at = due_at(
                    test if test is None or test.at <= now else None,
                    one.revision,
                    began=began,
                    interval_ms=interval_ms,
                    share=spread(host_id, one.name),
                )
                if at <= now and one.settings.has_status:
                    due = DueTest(
                        row=rows[host_id],
                        name=one.name,
                        device=one.id,
                        revision=one.revision,
                        waits_ms=cluster.policy.fencing.read_deadline_ms,
                    )
                    found.append((at, due))
        return tuple(due for _, due in sorted(found, key=lambda one: one[0]))

    async def keep(self, due: DueTest, reading: PowerReading, took_ms: int) -> PowerTest | None:
        """See ``PowerResults.keep_scheduled``."""
        tried = Tried(
            host=due.row.host,
            before=due.row.status,
            name=due.name,
            revision=due.revision,
            has_status=True,
            reading=reading,
            took_ms=took_ms,
            waits_ms=due.waits_ms,
        )
        return await self._results.keep_scheduled(tried)
