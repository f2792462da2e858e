"""Byte streams between the server and a host's agent, for consoles."""

from typing import Protocol

from virtha.model.console import ChannelSubject
from virtha.model.ids import HostId


class ByteStream(Protocol):
    """Both ways, with back-pressure: a side that does not take bytes gets no more than a window of them."""

    async def receive(self) -> bytes:
        """What came next; b"": the peer has said all.

        Raises Refused or NotFound (the peer's own words and code), Unavailable (the channel broke).
        """
        ...

    async def send(self, data: bytes) -> None:
        """Returns when all of it is on its way. Raises as ``receive``."""
        ...

    def close(self) -> None:
        """End it from this side; may be called again."""
        ...


class HostChannels(Protocol):
    async def open(self, host_id: HostId, subject: ChannelSubject) -> ByteStream:
        """Ask the host's agent for a channel about ``subject``.

        Raises Unavailable: the agent isn't connected, or did not answer in time; Refused: it is too old
        for channels, or too many are open.
        """
        ...
