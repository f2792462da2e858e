"""Asks this server's reference addresses and tells the engines that it leads: one that answers shows that it is not this server that is
cut off (J4). All are asked side by side, and the first answer is the answer of all.

How often: the engine takes no answer that is older than its policy's ``detection.evidence_max_age``, counted from when it was told. So
that the last one never gets as old while the addresses answer, they are asked again a quarter of that time after an answer, and given half
of it to answer; the last quarter is for the leader, whose turns take milliseconds. The shortest of all clusters that this server leads
counts, down to the 500 ms that a policy may say, and never more than ``PAUSE_MAX_MS`` and ``DEADLINE_MAX_MS``: with the default of
5 s an answer is at most 3 s old. A lost SYN is sent again after one second, so with a short age a lost packet is a lost answer.

What is told: that one was reached, each time, for it is its age that counts; one small event in the engine's journal per answer. That none was,
once, and only to those who were told otherwise: whoever hears nothing takes nothing for reached. It is told also while every host beats: an
engine that waits for its database has its inbox read later, and the last thing that stands there must be of now. So a new leader
hears of it with the next answer, long before it may judge anybody (``detection.reconnect``).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from virtha.drivers.reference_address import (
    LookUp,
    Place,
    ReferenceAddress,
    is_of_this_machine,
    look_up,
    why_unreached,
)
from virtha.engine.events import EngineEvent, ReferenceAnswered
from virtha.model.ids import ClusterId
from virtha.model.policy import Policy
from virtha.ports.clock import Clock
from virtha.ports.references import ReferencesSeen
from virtha.server.config import split_address

PAUSE_MAX_MS = 1_000
DEADLINE_MAX_MS = 2_000

log = structlog.get_logger("virtha.server.references")


class LedCluster(Protocol):
    @property
    def policy_now(self) -> Policy: ...


class LedClusters(Protocol):
    """Whom this server leads: the engines' part."""

    @property
    def feeds(self) -> Mapping[ClusterId, LedCluster]: ...

    def offer(self, cluster_id: ClusterId, event: EngineEvent) -> bool: ...


class ReferenceWatch:
    """Implements ``ports.references.References``."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        clusters: LedClusters,
        clock: Clock,
        *,
        look_up: LookUp = look_up,
        is_own: Callable[[Place], bool] = is_of_this_machine,
    ) -> None:
        """``addresses``: of ``server.toml``. ``is_own``: whether this very machine would answer there."""
        self._clusters = clusters
        self._clock = clock
        self._is_own = is_own
        self._addresses = tuple(
            ReferenceAddress(
                text,
                *split_address(text, field="reference_addresses"),
                clock=clock,
                look_up=look_up,
            )
            for text in dict.fromkeys(addresses)
        )
        self._seen = ReferencesSeen(addresses=tuple(one.text for one in self._addresses))
        self._told = False
        """The last that the engines were told is that one was reached."""

    def seen(self) -> ReferencesSeen:
        return self._seen

    @property
    def pause_ms(self) -> int:
        return min(PAUSE_MAX_MS, self._evidence_max_age_ms // 4)

    @property
    def deadline_ms(self) -> int:
        return min(DEADLINE_MAX_MS, self._evidence_max_age_ms // 2)

    @property
    def _evidence_max_age_ms(self) -> int:
        policies = [one.policy_now for one in self._clusters.feeds.values()] or [Policy()]
        return min(one.detection.evidence_max_age_ms for one in policies)

    async def run(self, stopping: asyncio.Event) -> None:
        """Until ``stopping``, which waits for no answer."""
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(self._ask_on(), name="reference addresses")
            await stopping.wait()
            asking.cancel()

    async def _ask_on(self) -> None:
        while self._addresses:
            await self.ask()
            await asyncio.sleep(self.pause_ms / 1_000)

    async def ask(self) -> None:
        """Once, all of them; returns with the first that answers."""
        began, deadline_ms = self._clock.monotonic_ms(), self.deadline_ms
        why = await self._why_none(deadline_ms)
        if not why and self._clock.monotonic_ms() - began > deadline_ms:
            # This process slept: the answer may be of before that, and is told as one of now.
            why = "an answer was read too late"
        reached = not why
        if reached is not self._seen.reached:
            said = log.info if reached else log.warning
            said("reference addresses", reached=reached, why=why, asked=self._seen.addresses)
        self._seen = ReferencesSeen(addresses=self._seen.addresses, reached=reached, why=why)
        self._tell(reached)

    def _tell(self, reached: bool) -> None:
        if reached or self._told:
            for cluster_id in tuple(self._clusters.feeds):
                self._clusters.offer(cluster_id, ReferenceAnswered(reached=reached))
        self._told = reached

    async def _why_none(self, deadline_ms: int) -> str:
        """Of each address why not; empty: one was reached."""
        why: dict[str, str] = {}
        asked: dict[asyncio.Task[str], str] = {}
        for address in self._addresses:
            places = address.places()
            if not places:
                why[address.text] = address.why
            for place in places:
                attempt = why_unreached(place, deadline_ms=deadline_ms, is_own=self._is_own)
                asked[asyncio.create_task(attempt)] = address.text
        left = set(asked)
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.result():
                        return ""
                    why[asked[task]] = task.result()
        finally:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        return "; ".join(f"{one.text}: {why[one.text]}" for one in self._addresses)
