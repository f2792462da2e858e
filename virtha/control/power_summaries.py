"""What is shown of power with a host: its devices' last tests, and why the last try to fence it failed."""

from collections.abc import Iterable, Mapping

from virtha.control.engine_power import LedDevice, led_devices
from virtha.control.power_results import reason_text
from virtha.control.views import PowerSummary
from virtha.model.codes import render
from virtha.model.ids import HostId
from virtha.model.power_settings import PowerTest
from virtha.model.value import Fields
from virtha.model.vm import Reason
from virtha.store.engine import find_host_record
from virtha.store.hosts import HostRow
from virtha.store.power import power_tests_of
from virtha.store.store import Transaction


async def power_summaries(
    tx: Transaction, rows: Iterable[HostRow]
) -> Mapping[HostId, tuple[PowerSummary, ...]]:
    """Of those hosts that have devices, by level and name."""
    clusters = {row.host.id: row.host.cluster_id for row in rows}
    devices = await led_devices(tx, clusters)
    tests = await power_tests_of(tx, devices.keys())
    return {
        host_id: tuple(
            _summary(one, tests.get((host_id, one.name)))
            for one in sorted(there, key=lambda one: (one.level, one.name))
        )
        for host_id, there in devices.items()
    }


def _summary(device: LedDevice, test: PowerTest | None) -> PowerSummary:
    tested = test is not None and test.passed and test.settings_revision >= device.revision
    return PowerSummary(
        name=device.name,
        level=device.level,
        tested=tested,
        test=test,
        reason=reason_text(test.code) if test is not None else "",
    )


async def last_failure(tx: Transaction, host_id: HostId) -> tuple[Reason, ...]:
    """Of a fence that is tried again: the engine's own reason says only when."""
    found = await find_host_record(tx, host_id)
    incident = found.record.incident if found is not None else None
    fence = incident.fence if incident is not None else None
    if fence is None or not fence.failed:
        return ()
    devices = ", ".join(feed.device for feed in fence.feeds)  # of the level that failed last
    cause = reason_text(fence.unread) if fence.unread else "nothing said why"
    fields: Fields = {"device": devices, "other": "another host", "cause": cause}
    told: Fields = {"device": devices, "why": render(fence.failed, fields), "code": fence.failed}
    return (Reason(code="fence.last_failure", fields=told),)
