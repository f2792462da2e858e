"""Probes of a silent neighbour, as the server asks for them: one attempt per network, all at once (F1)."""

import asyncio
from collections.abc import Callable

import structlog

from virtha.agent.properties import AgentProperties
from virtha.drivers.link import HostCredentials
from virtha.drivers.neighbour_probe import probe
from virtha.model.evidence import MANAGEMENT_NETWORK, STORAGE_NETWORK, ProbeAddress
from virtha.model.ids import HostId
from virtha.wire.witness_messages import HostProbed, ProbeHost, ProbeTarget

PROBES_MAX = 256
"""Under way at once: more are not made, and say nothing."""
DEADLINE_MAX_MS = 10_000
_log = structlog.get_logger(__name__)


def own_addresses(
    properties: AgentProperties, local_address: str | None
) -> tuple[ProbeAddress, ...]:
    """Where this host's guardian answers. ``local_address``: of its session with the server; None: there is none yet."""
    if properties.probe_port == 0:
        return ()
    found = {
        MANAGEMENT_NETWORK: properties.probe_address or local_address,
        STORAGE_NETWORK: properties.probe_storage_address,
    }
    return tuple(
        ProbeAddress(network=network, address=address, port=properties.probe_port)
        for network, address in found.items()
        if address
    )


class NeighbourProbes:
    """On the event loop of a guardian or an agent; nothing here waits for a disk."""

    def __init__(self, credentials: HostCredentials, tell: Callable[[HostProbed], object]) -> None:
        self._credentials = credentials
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()

    def use(self, credentials: HostCredentials) -> None:
        self._credentials = credentials

    def ask(self, order: ProbeHost) -> None:
        for target in order.targets:
            if len(self._tasks) >= PROBES_MAX:
                _log.warning("too many probes at once", subject=order.subject)
                return
            task = asyncio.create_task(self._ask(order, target), name=f"probe {order.subject}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, order: ProbeHost, target: ProbeTarget) -> None:
        answer, boot = await probe(
            target,
            HostId(order.subject),
            self._credentials,
            deadline_ms=min(order.deadline_ms, DEADLINE_MAX_MS),
        )
        self._tell(
            HostProbed(question=order.question, network=target.network, answer=answer, boot=boot)
        )

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
