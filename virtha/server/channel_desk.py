"""The server's end of channels: asks agents for them and hands out the streams. See ``virtha.ports.channels``."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from virtha.drivers.channel import CLOSED_FINISHED, ChannelStream
from virtha.drivers.link_server import ServerConnection
from virtha.model.console import ChannelSubject
from virtha.model.errors import Refused, Unavailable
from virtha.model.ids import HostId
from virtha.wire.messages import CHANNEL_FEATURE, Attach, OpenChannel

OPEN_DEADLINE_S = 10.0
PER_HOST_MAX = 16
CHANNELS_MAX = 256


@dataclass(frozen=True, kw_only=True)
class _Awaited:
    host_id: HostId
    attached: asyncio.Future[ServerConnection]


def _give_back(attached: asyncio.Future[ServerConnection]) -> None:
    """It came in the moment in which whoever wanted it gave up: left open, nobody else could use that console."""
    if attached.done() and not attached.cancelled():
        attached.result().close(CLOSED_FINISHED)


class ChannelDesk:
    """Implements ``HostChannels``, and ``ServerChannelEvents`` for the link."""

    def __init__(self, agent_session: Callable[[HostId], ServerConnection | None]) -> None:
        self._agent_session = agent_session
        self._awaited: dict[str, _Awaited] = {}
        self._open: dict[ServerConnection, HostId] = {}

    async def open(self, host_id: HostId, subject: ChannelSubject) -> ChannelStream:
        agent = self._agent_session(host_id)
        if agent is None:
            raise Unavailable(
                "the agent of its host is not connected", fix="virtha host list says why"
            )
        if agent.wire.hello is None or CHANNEL_FEATURE not in agent.wire.hello.features:
            raise Refused("the agent of its host is too old for this", fix="upgrade virtha there")
        self._check_room(host_id)
        channel = secrets.token_urlsafe(24)
        attached: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()
        self._awaited[channel] = _Awaited(host_id=host_id, attached=attached)
        try:
            agent.wire.send_open_channel(OpenChannel(channel=channel, subject=subject))
            agent.flush()
            async with asyncio.timeout(OPEN_DEADLINE_S):
                connection = await attached
        except TimeoutError:
            _give_back(attached)
            raise Unavailable("the agent of its host opened no channel in time") from None
        except BaseException:
            _give_back(attached)
            raise
        finally:
            del self._awaited[channel]
        assert connection.stream is not None
        return connection.stream

    def _check_room(self, host_id: HostId) -> None:
        for connection in [one for one in self._open if one.channel.closed is not None]:
            del self._open[connection]
        counts = Counter(self._open.values())
        counts.update(waiting.host_id for waiting in self._awaited.values())
        if counts[host_id] >= PER_HOST_MAX or counts.total() >= CHANNELS_MAX:
            raise Refused(
                "too many consoles are open",
                code="problem.console.busy",
                allowed=(f"{PER_HOST_MAX} per host, {CHANNELS_MAX} in all",),
                fix="close some, or try again in a moment",
            )

    def disconnect(self, host_id: HostId) -> None:
        """The host was removed or its certificate revoked."""
        for connection, owner in tuple(self._open.items()):
            if owner == host_id:
                connection.close("wire.refused.revoked")

    # ServerChannelEvents

    def on_attach(self, connection: ServerConnection, attach: Attach) -> None:
        waiting = self._awaited.get(attach.channel)
        # The number is secret and was told to one host only, over a session whose certificate was looked up.
        if (
            waiting is None
            or waiting.host_id != connection.host_id
            or waiting.attached.done()
            or self._agent_session(waiting.host_id) is None
        ):
            connection.channel.refuse("wire.refused.unexpected", "nobody awaits this channel")
            connection.flush()
            return
        self._open[connection] = waiting.host_id
        connection.channel.accept(connection.clock_ms())
        connection.flush()
        waiting.attached.set_result(connection)
