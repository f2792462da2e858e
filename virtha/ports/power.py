"""Power devices of hosts: one bounded attempt each. Retries, levels, order and read-backs are not theirs.

There is no reboot: that is *off*, readings, a proof, and then *on* as an order of its own (rule P1).
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import HostId, Term
from virtha.model.power import PowerAction
from virtha.model.power_settings import MachineIdentity, PowerDriver, PowerSettings
from virtha.model.value import Value


class PowerReading(Value, frozen=True, kw_only=True):
    """``code``: why the state is unknown (``power.…``). ``detail``: the device's own words, at most 500 characters, one
    line, without any secret. ``identity``: of the machine that it switches, as far as it says."""

    state: PowerState
    identity: MachineIdentity = MachineIdentity()
    code: str | None = None
    detail: str = ""


class PowerOutcome(Value, frozen=True, kw_only=True):
    """How an order ended. ``OK``: accepted, which is not *off*. ``REFUSED``: surely nothing was done. ``FAILED``: the
    device said no, or its program did. ``UNKNOWN``: it may have been carried out."""

    result: Result
    code: str | None = None
    detail: str = ""


MayGo = Callable[[], bool]
"""Whether an order is still young enough to be carried out; looked at right before the device is asked, each time that
it is. It may be called in another thread."""


class MayGoFor:
    """As ``MayGo``, of an order that goes a longer way: ``left_ms`` says for how long yet."""

    def __init__(self, left_ms: Callable[[], int]) -> None:
        self.left_ms = left_ms

    def __call__(self) -> bool:
        return self.left_ms() >= 0


class PowerDevice(Protocol):
    """One device. Not for two tasks at once. Nothing of an attempt goes on once it has ended, at its deadline at the
    latest (J7); raises nothing but CancelledError, which ends the attempt, too."""

    async def status(self, *, deadline_ms: int) -> PowerReading: ...

    async def test(self, *, deadline_ms: int) -> PowerReading:
        """As ``status``, after what else this device needs to be tested. Changes nothing."""
        ...

    async def order(
        self, action: PowerAction, *, deadline_ms: int, may_go: MayGo
    ) -> PowerOutcome: ...

    async def close(self) -> None:
        """Safe to call twice."""
        ...


class NeighbourPower(Protocol):
    """Attempts by agents of other hosts (ADR 18): implemented by the server."""

    def device(
        self,
        subject: HostId,
        name: str,
        settings: PowerSettings,
        secrets: Mapping[str, str],
        *,
        among: Callable[[], Awaitable[tuple[HostId, ...]]],
        term: Term | None,
    ) -> PowerDevice:
        """Of complete settings. ``among``: who may be asked now; raises Unavailable. ``term``: of whose lead; None: of
        this server's."""
        ...

    def able(self, among: Iterable[HostId], driver: PowerDriver) -> tuple[HostId, ...]:
        """Those that could be asked at this moment: connected, beating, and with that driver."""
        ...


class AgentParameter(Value, frozen=True, kw_only=True):
    """What a fence agent can be told. ``kind``: string, boolean, integer, second or select."""

    name: str
    kind: str
    help: str = ""
    required: bool = False
    default: str | None = None
    options: tuple[str, ...] = ()
    secret: bool = False


class AgentForm(Value, frozen=True, kw_only=True):
    """A fence agent, from its own metadata. ``actions``: those it can do, such as on, off, status."""

    name: str
    title: str = ""
    help: str = ""
    parameters: tuple[AgentParameter, ...] = ()
    actions: tuple[str, ...] = ()
    unfit: str = ""
    """Why what it calls *off* can't prove that a machine has no power (P1); such an agent is refused."""

    @property
    def address_name(self) -> str:
        """What this agent calls the device's address; '' where it has no such thing. So the others."""
        return self._first("ip", "ipaddr", "devices")

    @property
    def user_name(self) -> str:
        return self._first("username", "login")

    @property
    def password_name(self) -> str:
        return self._first("password", "passwd")

    @property
    def plug_name(self) -> str:
        return self._first("plug", "port")

    @property
    def port_name(self) -> str:
        return self._first("ipport")

    def _first(self, *names: str) -> str:
        known = {one.name for one in self.parameters}
        return next((name for name in names if name in known), "")


class PowerDevices(Protocol):
    def device(self, settings: PowerSettings, secrets: Mapping[str, str]) -> PowerDevice:
        """Of complete settings. Nothing is connected or run yet."""
        ...

    async def agents(self) -> tuple[str, ...]:
        """The fence agents that are installed here, sorted."""
        ...

    async def agent(self, name: str) -> AgentForm:
        """Raises NotFound, Failed."""
        ...
