"""What a guest tells of its last reset is asked for until it is told: nobody else asks again (W7)."""

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

import pytest

from virtha.agent import commands
from virtha.agent.commands import CommandRunner, VmLocks
from virtha.model.ids import VmId
from virtha.model.time import Millis, UtcMillis
from virtha.ports.hypervisor import HypervisorUnavailable
from virtha.sentinel.events import BootStatusRead, ReadBootStatus, SentinelEvent

WEB = VmId("web")


class Hands:
    """A clock that moves only when a read takes its time."""

    def __init__(self) -> None:
        self.now_ms = 1_000

    def advance(self, duration_ms: int) -> None:
        self.now_ms += duration_ms

    def monotonic_ms(self) -> Millis:
        return Millis(self.now_ms)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now_ms)


class SlowGuest:
    """Its agent answers; ``failures`` reads are in vain before it can be read."""

    def __init__(self, failures: int, clock: Hands, error: Exception | None = None) -> None:
        self.failures = failures
        self.clock = clock
        self.error = error
        self.reads = 0

    async def ping(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        return True

    async def read_file(self, vm_id: VmId, path: str, *, deadline_ms: int) -> bytes | None:
        self.reads += 1
        self.clock.advance(deadline_ms)
        if self.reads <= self.failures:
            if self.error is not None:
                raise self.error
            return None
        return b"32\n" if path == commands.BOOTSTATUS_PATH else b"12.5 3.0\n"


def asked(guest: SlowGuest, monkeypatch: pytest.MonkeyPatch) -> list[SentinelEvent]:
    monkeypatch.setattr(commands, "BOOTSTATUS_POLL_MS", 0)
    told: list[SentinelEvent] = []
    tasks: list[asyncio.Task[None]] = []

    def spawn(_name: str, work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.ensure_future(work))

    nothing = cast(Any, None)

    async def story() -> None:
        runner = CommandRunner(
            control=nothing,
            catalog=nothing,
            guest=cast(Any, guest),
            gate=nothing,
            evidence=nothing,
            dumps=nothing,
            facts=nothing,
            clock=guest.clock,
            locks=VmLocks(),
            processes=nothing,
            spawn=cast(Any, spawn),
        )
        runner.connect(
            told.append, lambda _vm_id: cast(Any, object()), lambda: None, lambda _id: None
        )
        runner.execute(ReadBootStatus(vm_id=WEB))
        await asyncio.gather(*tasks)

    asyncio.run(story())
    return told


@pytest.mark.req("W7")
@pytest.mark.parametrize("failures", [0, 2, 6])
def test_a_guest_that_is_read_in_vain_is_read_again(failures: int, monkeypatch: pytest.MonkeyPatch):
    guest = SlowGuest(failures, Hands())
    assert asked(guest, monkeypatch) == [
        BootStatusRead(vm_id=WEB, bootstatus=32, guest_uptime_ms=12_500)
    ]


@pytest.mark.req("W7")
def test_what_can_t_be_read_at_all_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch):
    """As of a guest that forbids it, or has no such files."""
    guest = SlowGuest(1_000, Hands())
    began_ms = guest.clock.monotonic_ms()
    assert asked(guest, monkeypatch) == [
        BootStatusRead(vm_id=WEB, bootstatus=None, guest_uptime_ms=None)
    ]
    waited_ms = guest.clock.monotonic_ms() - began_ms
    assert waited_ms == commands.BOOTSTATUS_DEADLINE_MS


def test_one_file_is_enough(monkeypatch: pytest.MonkeyPatch):
    guest = SlowGuest(1, Hands())
    (told,) = asked(guest, monkeypatch)
    assert told == BootStatusRead(vm_id=WEB, bootstatus=None, guest_uptime_ms=12_500)
    assert guest.reads == 2


def test_without_libvirt_nobody_is_asked_on(monkeypatch: pytest.MonkeyPatch):
    guest = SlowGuest(1, Hands(), HypervisorUnavailable("libvirt is gone"))
    (told,) = asked(guest, monkeypatch)
    assert told == BootStatusRead(vm_id=WEB, bootstatus=None, guest_uptime_ms=None)
    assert guest.reads == 1
