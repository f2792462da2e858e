"""What the gateway counted since its start."""

from collections.abc import Mapping

from virtha.model.value import Value


class GatewayMetrics(Value, frozen=True, kw_only=True):
    """Counters since the start; ``ended`` by code of the registry."""

    agents: int
    guardians: int
    connections: int
    beats: int
    facts: int
    facts_waiting: int
    store_retries: int
    ended: Mapping[str, int]
