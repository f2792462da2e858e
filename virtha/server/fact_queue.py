"""Brings what hosts tell into the store: per host one batch at a time and in order, and again while the store is away."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from virtha.drivers.link_server import ServerConnection
from virtha.model.errors import Unavailable
from virtha.model.facts import Fact
from virtha.server.gateway_use_cases import FactUseCases
from virtha.server.host_line import HostLine
from virtha.wire.messages import Facts

STORE_RETRY_FIRST_S = 0.1
STORE_RETRY_MAX_S = 2.0
CLOSE_DEADLINE_S = 5.0

Recorded = Callable[[HostLine, ServerConnection, list[Fact], int], Awaitable[None]]
"""Takes the batch that was recorded and the sequence that the store has now."""

_log = structlog.get_logger(__name__)


class FactQueue:
    """One task per host that has facts waiting; they wait in its ``HostLine``."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._use_cases: FactUseCases | None = None
        self._closing = False
        self.facts = 0
        """Recorded since the start."""
        self.store_retries = 0

    def start(self, use_cases: FactUseCases) -> None:
        """Before it no facts may be taken."""
        self._use_cases = use_cases

    def stop(self) -> None:
        """What is not being recorded yet stays on its host's disk."""
        self._closing = True

    async def finish(self, lines: Iterable[HostLine]) -> None:
        """After ``stop``: waits for the commits under way."""
        recorders = [line.recorder for line in lines if line.recorder is not None]
        if recorders:
            _, late = await asyncio.wait(recorders, timeout=CLOSE_DEADLINE_S)
            for task in late:
                task.cancel()
        await asyncio.gather(*recorders, return_exceptions=True)

    def take(self, line: HostLine, connection: ServerConnection, facts: Facts) -> None:
        if facts.gap:
            _log.warning(
                "facts were lost on the host", host_id=line.host_id, next=facts.facts[0].sequence
            )
        line.queue.append((connection, facts.facts))
        if line.recorder is None and not self._closing:
            line.recorder = asyncio.create_task(self._record(line), name=f"recorder {line.host_id}")

    async def _record(self, line: HostLine) -> None:
        """Commit what waits until nothing does."""
        try:
            while line.queue and not self._closing:
                connection, batch, frames = line.next_batch()
                if connection is not line.agent:
                    # Its session is over: the host sends them again in the next one.
                    line.drop(frames)
                    continue
                sequence = await self._commit(line, connection, batch)
                if sequence is None:
                    line.drop_of(connection)
                    continue
                line.drop(frames)
                self.facts += len(batch)
                await self._recorded(line, connection, batch, sequence)
        finally:
            line.recorder = None

    async def _commit(
        self, line: HostLine, connection: ServerConnection, batch: list[Fact]
    ) -> int | None:
        """The sequence that the store has now; None: these facts can't be recorded in this session."""
        assert self._use_cases is not None
        delay_s = STORE_RETRY_FIRST_S
        while connection is line.agent and not self._closing:
            try:
                return await self._use_cases.record_facts(line.host_id, batch)
            except Unavailable as error:
                self.store_retries += 1
                _log.warning("facts wait for the store", host_id=line.host_id, error=str(error))
            except Exception as error:
                # Not to be acknowledged and not to be lost: the session ends, and they come again.
                _log.exception("facts can't be recorded", host_id=line.host_id)
                connection.wire.refuse("wire.refused.unavailable", f"facts not recorded: {error}")
                connection.flush()
                return None
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, STORE_RETRY_MAX_S)
        return None
