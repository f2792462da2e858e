"""The sentinel."""

from collections.abc import Sequence

from virtha.model.ids import BootId
from virtha.model.time import Millis
from virtha.model.watchdog import Watchdog
from virtha.sentinel.events import Decision, SentinelEvent, SentinelRecords, VmRecord


class Sentinel:
    def __init__(
        self,
        *,
        boot: BootId,
        records: SentinelRecords,
        now: Millis,
        default_watchdog: Watchdog | None = None,
    ) -> None:
        """``default_watchdog``: the host's (W10), for VMs that name none."""

    def step(self, now: Millis, events: Sequence[SentinelEvent]) -> Decision:
        raise NotImplementedError

    def view(self) -> tuple[VmRecord, ...]:
        raise NotImplementedError
