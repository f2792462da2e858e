"""Console logs of several hosts joined, screenshots, and what is refused before a host is asked."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from virtha.control.consoles import PICTURE, Consoles
from virtha.control.requests import ConsoleLogQuery
from virtha.model.console import (
    ChannelSubject,
    LogPosition,
    ReadSerialLog,
    SerialLog,
    TakeScreenshot,
)
from virtha.model.errors import Failed, InvalidInput, NotFound, Refused, Unavailable
from virtha.model.ids import HostId
from virtha.model.time import UtcMillis
from virtha.ports.channels import ByteStream


class Said:
    """A stream that says what it was made with."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.closed = False

    async def receive(self) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""

    async def send(self, data: bytes) -> None:
        raise AssertionError(data)

    def close(self) -> None:
        self.closed = True


class PlayedChannels:
    def __init__(self) -> None:
        self.logs: dict[HostId, SerialLog] = {}
        self.picture = PICTURE + b"pixels"
        self.asked: list[tuple[HostId, ChannelSubject]] = []
        self.away: set[HostId] = set()

    async def open(self, host_id: HostId, subject: ChannelSubject) -> ByteStream:
        self.asked.append((host_id, subject))
        if host_id in self.away:
            raise Unavailable("the agent of its host is not connected")
        if isinstance(subject, TakeScreenshot):
            return Said(self.picture[:4], self.picture[4:])
        content = msgspec.msgpack.encode(self.logs.get(host_id, SerialLog()))
        return Said(content[:7], content[7:])


def log(text: bytes, written_at: int) -> SerialLog:
    return SerialLog(
        text=text, end=LogPosition(file=7, offset=len(text)), written_at=UtcMillis(written_at)
    )


def test_parts_of_a_vm_that_moved(tell: Callable[..., None]) -> None:
    async def story(world: Any) -> None:
        hosts = [await world.join(name) for name in ("h1", "h2", "h3")]
        await world.add_storage()
        await world.add_vm()
        vm_id, _ = await world.run_vm()
        channels = PlayedChannels()
        consoles = Consoles(world.store, world.links, channels)
        here = world_host_of(await world.control.vms.get(vm_id))
        first, second = [host.id for host in hosts if host.id != here]
        channels.logs = {
            first: log(b"late\xff", 300),
            second: log(b"early", 200),
            here: log(b"x", 100),
        }
        got = await consoles.log("web1", ConsoleLogQuery())
        assert [(part.text, part.host_id) for part in got.parts] == [
            ("early", second),
            ("late\ufffd", first),
            ("x", here),
        ]
        assert got.missing == () and got.parts[-1].end == f"{here}.7.1"
        channels.away = {here}
        got = await consoles.log("web1", ConsoleLogQuery())
        assert len(got.parts) == 2
        assert [(lost.host_id, lost.code) for lost in got.missing] == [
            (here, "problem.unavailable")
        ]
        channels.asked.clear()
        await consoles.log("web1", ConsoleLogQuery(after=f"{here}.7.1", wait_ms=500, contains="a"))
        wanted = ReadSerialLog(
            vm_id=vm_id,
            lines=1_000,
            contains="a",
            after=LogPosition(file=7, offset=1),
            wait_ms=500,
        )
        assert channels.asked == [(here, wanted)]
        channels.asked.clear()
        await consoles.log("web1", ConsoleLogQuery(after=f"{first}.7.1", wait_ms=500))
        assert {(host_id, ask.wait_ms, ask.after is None) for host_id, ask in channels.asked} == {
            (first, 0, False),
            (here, 0, True),
        }

    tell(story)


def world_host_of(view: Any) -> HostId:
    assert view.status.host_id is not None
    return HostId(view.status.host_id)


def test_screenshots(tell: Callable[..., None]) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        channels = PlayedChannels()
        consoles = Consoles(world.store, world.links, channels)
        assert await consoles.screenshot("web1") == channels.picture
        channels.picture = b"GIF89a"
        with pytest.raises(Failed):
            await consoles.screenshot("web1")
        channels.away = {host.id}
        with pytest.raises(Unavailable):
            await consoles.screenshot("web1")
        with pytest.raises(NotFound):
            await consoles.screenshot("web2")
        with pytest.raises(Unavailable):
            await world.control.consoles.screenshot("web1")  # of a wiring without channels
        await host.stopped(vm_id, 1)
        with pytest.raises(Refused) as refused:
            await consoles.screenshot("web1")
        assert refused.value.code == "problem.vm.state"

    tell(story)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lines", 0),
        ("lines", 20_001),
        ("wait_ms", -1),
        ("wait_ms", 20_001),
        ("contains", ""),
        ("contains", "x" * 1_001),
        ("after", "h1"),
        ("after", "h1.x.1"),
        ("after", "h1.1.²"),
        ("after", "h1.1." + "9" * 30),
    ],
)
def test_bad_questions_name_their_field(tell: Callable[..., None], field: str, value: Any) -> None:
    async def story(world: Any) -> None:
        with pytest.raises(InvalidInput) as wrong:
            await world.control.consoles.log("web1", ConsoleLogQuery(**{field: value}))
        assert wrong.value.field == field

    tell(story)
