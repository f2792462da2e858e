"""Bodies follow."""

from virtha.ports.clock import Clock


class Store:
    async def close(self) -> None:
        raise NotImplementedError


async def open_store(url: str, *, clock: Clock) -> Store:
    raise NotImplementedError
