"""Power devices that are played: each by its address, with its own way to fail. They pass the drivers' contract suite."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from virtha.model.errors import Failed, InvalidInput
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import MachineIdentity, PowerSettings
from virtha.ports.power import AgentForm, MayGo, PowerDevice, PowerOutcome, PowerReading

NO_ANSWER = "power.no_answer"


@dataclass
class Machine:
    """``on``: the truth. ``asked``: what reached its device, in order."""

    on: bool = True
    asked: list[str] = field(default_factory=list)
    identity: MachineIdentity = field(default_factory=MachineIdentity)
    hangs: bool = False
    refuses: bool = False
    why: str = "power.sign_in_refused"
    idle: bool = False
    """Takes orders, and does nothing."""
    stuck: bool = False
    """Its driver forgets its deadline."""
    answers: asyncio.Event | None = None
    """It is not heard of before that."""
    meanwhile: Callable[[], None] = lambda: None
    """Happens while it is asked."""
    ending: asyncio.Event | None = None
    """One that is stuck takes so long to end when it is given up."""
    cut_short: int = 0
    """Times that such an end was interrupted: what it had begun runs on."""
    breaks: bool = False
    """Its driver has a bug."""
    struck: int = 0
    """Times that an off found it on."""
    attempts: int = 0
    """Under way, or let go: more than one at a time is a breach of the driver's contract."""
    most_attempts: int = 0

    @property
    def orders(self) -> list[str]:
        return [one for one in self.asked if one in tuple(PowerAction)]


@dataclass
class PlayedPower:
    """Implements ``ports.power.PowerDevices``."""

    machines: dict[str, Machine] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    """Addresses."""
    described: list[str] = field(default_factory=list)
    """Fence agents."""

    def add(self, address: str) -> Machine:
        machine = self.machines[address] = Machine()
        return machine

    def device(self, settings: PowerSettings, secrets: Mapping[str, str]) -> PowerDevice:
        if settings.address is None:
            raise InvalidInput("it has none", field="address")
        self.made.append(settings.address)
        return _PlayedDevice(self, settings.address, self.machines[settings.address])

    async def agents(self) -> tuple[str, ...]:
        return ()

    async def agent(self, name: str) -> AgentForm:
        self.described.append(name)
        raise Failed("there are none")


class _PlayedDevice:
    """Implements ``ports.power.PowerDevice``."""

    def __init__(self, power: PlayedPower, address: str, machine: Machine) -> None:
        self._power = power
        self._address = address
        self._machine = machine

    async def status(self, *, deadline_ms: int) -> PowerReading:
        machine = self._machine
        if await self._fails("status", deadline_ms):
            return PowerReading(state=PowerState.UNKNOWN, code=NO_ANSWER)
        if machine.refuses:
            return PowerReading(state=PowerState.UNKNOWN, code=machine.why)
        return PowerReading(
            state=PowerState.ON if machine.on else PowerState.OFF, identity=machine.identity
        )

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self.status(deadline_ms=deadline_ms)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        machine = self._machine
        if not may_go():
            return PowerOutcome(result=Result.REFUSED, code=TOO_LATE)
        if await self._fails(action.value, deadline_ms):
            return PowerOutcome(result=Result.UNKNOWN, code=NO_ANSWER)
        if machine.refuses:
            return PowerOutcome(result=Result.REFUSED, code="power.sign_in_refused")
        if action is not PowerAction.BLINK and not machine.idle:
            machine.struck += machine.on and action is PowerAction.OFF
            machine.on = action is PowerAction.ON
        return PowerOutcome(result=Result.OK)

    async def _fails(self, what: str, deadline_ms: int) -> bool:
        """It hangs until the deadline. Raises for one with a bug."""
        machine = self._machine
        machine.attempts += 1
        machine.most_attempts = max(machine.most_attempts, machine.attempts)
        try:
            machine.asked.append(what)
            if machine.breaks:
                raise RuntimeError("a driver with a bug, and its password hunter2")
            if machine.hangs:
                await asyncio.sleep(deadline_ms / 1_000)
            if machine.stuck:
                await self._stuck()
            machine.meanwhile()
            if machine.answers is not None:
                await machine.answers.wait()
            return machine.hangs
        finally:
            machine.attempts -= 1

    async def _stuck(self) -> None:
        machine = self._machine
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                if machine.ending is not None:
                    await machine.ending.wait()
            except asyncio.CancelledError:
                machine.cut_short += 1
            raise

    async def close(self) -> None:
        self._power.closed.append(self._address)
