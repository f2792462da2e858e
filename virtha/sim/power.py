"""Power devices of hosts: BMCs and outlets, each with its own way to lie, to be slow, or to be dead.

What the server gets is what such a device would answer; what is true is ``SimHost.powered``.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum

from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId
from virtha.model.power import PowerAction, PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.value import Value
from virtha.sim.host import SimHost
from virtha.sim.kernel import Kernel
from virtha.sim.line import SERVER
from virtha.sim.network import Network

ANSWER_MS = 100
SWITCH_MS = 1_000
"""From the acceptance of an order to the power's going."""

FOLLOWS_MS = 50
"""Before the device can be read again."""

Answered = Callable[[PowerState, IdentityMatch], None]
Ordered = Callable[[Result, str | None], None]


class Mood(StrEnum):
    """How a device behaves."""

    OK = "ok"
    DEAD = "dead"
    REFUSES = "refuses"
    """The password is wrong: no reading, no order."""
    LIES = "lies"
    """Says off, whatever is true, and takes orders without effect."""
    NOTHING = "nothing"
    """Takes orders without effect, and reads the truth."""


class Chances(Value, frozen=True, kw_only=True):
    """In beats of ``boot``: how many came, while how many of them the device could be read, and of the first ones."""

    boot: BootId | None = None
    beats: int = 0
    well: int = 0
    from_the_first: int = 0


class PowerDevice:
    """``host``: whom it is configured for. ``strikes``: whom it really switches. ``outlet``: one of several
    feeds, which has a state of its own; a BMC's state is its host's."""

    def __init__(
        self, kernel: Kernel, name: PowerDeviceId, host: SimHost, *, outlet: bool, named: bool
    ) -> None:
        self._kernel = kernel
        self.name = name
        self.host = host
        self.strikes = host
        self.outlet = outlet
        self.named = named
        """It tells which machine it belongs to."""
        self.mood = Mood.OK
        self.delay_ms = ANSWER_MS
        self.switch_ms = SWITCH_MS
        self.shares_feed = False
        """Without the host's mains it is dead itself."""
        self.on = True
        self.siblings: list[PowerDevice] = [self]
        """Outlets of the same host: off when all are."""
        self.orders = 0
        self.lied = False
        """It said *off* of a host that had power. Whoever catches it must not believe it before it is tested again (P1)."""
        self.set_up_untested = False
        self.tested = False
        """Read on while its host's beats came, as the operator's set-up did it."""
        self.chances = Chances()
        """Of the last boot of its host whose beats came."""

    @property
    def answers(self) -> bool:
        return self.mood is not Mood.DEAD and (self.strikes.fed or not self.shares_feed)

    def beat_came(self, boot: BootId, *, reached: bool) -> None:
        """To a leader, which could ask for a reading at the same time. ``reached``: by its network."""
        before = self.chances if self.chances.boot == boot else Chances(boot=boot)
        well = self.mood is Mood.OK and self.delay_ms <= ANSWER_MS and self.answers and reached
        from_the_first = before.from_the_first == before.beats and well
        self.chances = Chances(
            boot=boot,
            beats=before.beats + 1,
            well=before.well + well,
            from_the_first=before.from_the_first + from_the_first,
        )

    @property
    def identity(self) -> IdentityMatch:
        if not self.named:
            return IdentityMatch.UNKNOWN
        return IdentityMatch.MATCH if self.strikes is self.host else IdentityMatch.MISMATCH

    def state(self) -> PowerState:
        match self.mood:
            case Mood.REFUSES:
                return PowerState.UNKNOWN
            case Mood.LIES:
                self.lied = self.lied or self.host.powered
                return PowerState.OFF
            case _:
                on = self.on if self.outlet else self.strikes.powered or self.strikes.resetting
                return PowerState.ON if on else PowerState.OFF

    def order(self, action: PowerAction) -> tuple[Result, str | None]:
        self.orders += 1
        if self.mood is Mood.REFUSES:
            return Result.REFUSED, "power.failed"
        if self.mood is Mood.OK and action is not PowerAction.BLINK:
            self._kernel.after(self.switch_ms, lambda: self._switch(action))
        return Result.OK, None

    def _switch(self, action: PowerAction) -> None:
        if not self.answers:
            return
        self.on = action is PowerAction.ON
        host = self.strikes
        feeds = self.siblings if self.outlet else [self]
        has_power = host.powered or host.resetting
        if action is PowerAction.OFF and has_power and not any(one.on for one in feeds):
            host.trace(f"{self.name} switches {host.name} off")
            host.power_cut()
        elif action is PowerAction.ON and host.fed and not has_power:
            host.trace(f"{self.name} switches {host.name} on")
            host.power_on()


class PowerDevices:
    """All of a world, and the server's way to them over the BMC network. No answer comes of what is lost:
    at the deadline the driver gives up."""

    def __init__(self, kernel: Kernel, network: Network) -> None:
        self._kernel = kernel
        self._network = network
        self.by_name: dict[PowerDeviceId, PowerDevice] = {}
        self.levels: dict[str, tuple[PowerLevel, ...]] = {}
        self.drivers_that_stop = 0
        """So many of the next orders' drivers stop between their look at the clock and the packet. They are processes
        of the server's: it ends them at the deadline, and then nothing of them goes out any more (J7)."""
        self.on_off: Callable[[PowerDevice], None] = lambda _device: None
        """Whenever an *off* reaches a device."""
        self.after_off: dict[str, Callable[[], None]] = {}
        """What follows the next *off* that reaches a device of that host, moments later."""

    def add(self, host: SimHost, kinds: Sequence[str], *, named: bool) -> list[PowerDevice]:
        """``kinds``: one word per level: bmc, outlets (two feeds), blind (tells no state)."""
        made: list[PowerDevice] = []
        levels = []
        for number, kind in enumerate(kinds, 1):
            count = 2 if kind == "outlets" else 1
            level = [
                PowerDevice(
                    self._kernel,
                    PowerDeviceId(
                        f"{host.name}-{kind}{number}" + (f".{feed}" if count > 1 else "")
                    ),
                    host,
                    outlet=count > 1,
                    named=named,
                )
                for feed in range(1, count + 1)
            ]
            for device in level:
                device.siblings = level
                self.by_name[device.name] = device
            feeds = tuple(
                PowerFeed(device=device.name, reads_state=kind != "blind") for device in level
            )
            levels.append(PowerLevel(feeds=feeds))
            made += level
        self.levels[host.name] = tuple(levels)
        return made

    def of(self, host: str) -> list[PowerDevice]:
        return [device for device in self.by_name.values() if device.host.name == host]

    def beat_came(self, host: HostId, boot: BootId) -> None:
        links = self._network.link(SERVER, host), self._network.link(host, SERVER)
        for device in self.of(host):
            device.beat_came(boot, reached=all(link.carries for link in links))

    def restored(self) -> None:
        """The records that there are now know nothing of what was read."""
        for device in self.by_name.values():
            device.chances = Chances()

    def read(self, name: PowerDeviceId, deadline_ms: int, answered: Answered) -> None:
        def ask(device: PowerDevice, answer: Callable[[Callable[[], None]], None]) -> None:
            state, identity = device.state(), device.identity
            answer(lambda: answered(state, identity))

        self._call(
            name,
            deadline_ms,
            ask,
            given_up=lambda: answered(PowerState.UNKNOWN, IdentityMatch.UNKNOWN),
        )

    def order(
        self, name: PowerDeviceId, action: PowerAction, deadline_ms: int, ended: Ordered
    ) -> None:
        def give(device: PowerDevice, answer: Callable[[Callable[[], None]], None]) -> None:
            if action is PowerAction.OFF:
                self.on_off(device)
                follows = self.after_off.pop(device.host.name, None)
                if follows is not None:
                    self._kernel.after(FOLLOWS_MS, follows)
            result, code = device.order(action)
            answer(lambda: ended(result, code))

        stops = self.drivers_that_stop > 0
        self.drivers_that_stop -= stops
        self._call(
            name,
            deadline_ms,
            give,
            leaves=not stops,
            given_up=lambda: ended(Result.UNKNOWN, "power.no_answer"),
        )

    def _call(
        self,
        name: PowerDeviceId,
        deadline_ms: int,
        there: Callable[[PowerDevice, Callable[[Callable[[], None]], None]], None],
        *,
        given_up: Callable[[], None],
        leaves: bool = True,
    ) -> None:
        """One request and its answer: packets that a cut network loses."""
        device = self.by_name[name]
        out = self._network.link(SERVER, device.host.name)
        back = self._network.link(device.host.name, SERVER)
        over = False

        def end(action: Callable[[], None]) -> None:
            nonlocal over
            if not over:
                over = True
                action()

        def answer(action: Callable[[], None]) -> None:
            def leave() -> None:
                if back.carries and device.answers:
                    self._kernel.after(back.delay_ms, lambda: end(action))

            self._kernel.after(device.delay_ms, leave)

        def arrive() -> None:
            if device.answers:
                there(device, answer)

        if leaves and out.carries:
            self._kernel.after(out.delay_ms, arrive)
        self._kernel.after(deadline_ms, lambda: end(given_up))
