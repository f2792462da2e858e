"""Where one cluster's leader writes: ``Leading`` for that cluster and lead."""

from collections.abc import Iterable, Mapping, Sequence

from virtha.control.leading import Leading
from virtha.engine.events import CopyGranted, Intent, Notice
from virtha.model.ids import ClusterId, HostId
from virtha.model.time import Millis
from virtha.server.sightings import SightingBook
from virtha.store.installations import Lead


class ClusterRecords:
    """Implements ``leader.Records``."""

    def __init__(
        self, leading: Leading, cluster_id: ClusterId, lead: Lead, book: SightingBook
    ) -> None:
        self._leading = leading
        self._cluster_id = cluster_id
        self._lead = lead
        self._book = book

    async def write(
        self,
        *,
        intents: Sequence[Intent],
        notices: Sequence[Notice],
        receipts: Mapping[HostId, int],
        told: Iterable[CopyGranted],
        clock: Millis,
    ) -> bool:
        observed = self._book.observed(intents, notices)
        held = await self._leading.write(
            self._cluster_id,
            self._lead,
            intents=intents,
            notices=notices,
            receipts=receipts,
            told=told,
            clock=clock,
            observed=observed,
        )
        self._book.written(observed)
        return held

    async def acknowledge(self, receipts: Mapping[HostId, int]) -> bool:
        return await self._leading.acknowledge(self._lead, receipts)

    async def held(self) -> bool:
        return await self._leading.holds(self._lead)
