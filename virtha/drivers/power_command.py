"""A power device behind any program or script, by the syntax of the source document (F5). One attempt each.

What a state is worth depends on its ``status`` string alone: exit status 0 of *stop* proves nothing (rule P1), and a state
is only believed where a whole line of the output says so, with nothing else said.
"""

from collections.abc import Mapping

from virtha.drivers.bounded_program import Ended, run_program
from virtha.drivers.power_words import PowerWords, code_of_program, said
from virtha.model.command_syntax import action_words, command_words, variables_of
from virtha.model.errors import InvalidInput
from virtha.model.evidence import PowerState
from virtha.model.power import PowerAction
from virtha.model.power_settings import SYNTAX, PowerSettings, SecretWay
from virtha.ports.power import MayGo, PowerOutcome, PowerReading

_USUAL = {
    PowerState.ON: (
        "on",
        "power:1",
        "power on",
        "power is on",
        "chassis power is on",
        "status: on",
    ),
    PowerState.OFF: (
        "off",
        "power:0",
        "power off",
        "power is off",
        "chassis power is off",
        "status: off",
    ),
}
"""Whole lines, in any mixture of cases: what ipmitool, fence agents and most scripts print."""


class CommandPower:
    """Implements ``PowerDevice``."""

    def __init__(self, settings: PowerSettings, secrets: Mapping[str, str]) -> None:
        self._settings = settings
        self._password = secrets.get("password", "")
        self._words = PowerWords(secrets, settings.user)
        self._syntax = settings.syntax or SYNTAX

    async def status(self, *, deadline_ms: int) -> PowerReading:
        if not self._settings.status:
            return self._words.unread("power.no_status")
        try:
            ended = await self._run(self._settings.status, deadline_ms, None)
        except InvalidInput as error:
            return self._words.unread("power.unusable_settings", str(error))
        return self._reading(ended)

    async def test(self, *, deadline_ms: int) -> PowerReading:
        if not self._settings.test:
            return await self.status(deadline_ms=deadline_ms)
        # Half of the time each: what the test does is its own business, and the status is what counts.
        try:
            ended = await self._run(self._settings.test, deadline_ms // 2, None)
        except InvalidInput as error:
            return self._words.unread("power.unusable_settings", str(error))
        wrong = code_of_program(ended)
        if wrong is not None:
            return self._words.unread(*wrong)
        if ended.status != 0:
            return self._words.unread(
                "power.failed", f"the test ended with {ended.status}; {said(ended)}"
            )
        return await self.status(deadline_ms=deadline_ms // 2)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        text = {
            PowerAction.OFF: self._settings.stop,
            PowerAction.ON: self._settings.start,
            PowerAction.BLINK: self._settings.blink,
        }[action]
        if not text:
            return self._words.failed("power.unsupported", f"there is no string for {action}")
        try:
            ended = await self._run(text, deadline_ms, may_go)
        except InvalidInput as error:
            return self._words.failed("power.unusable_settings", str(error))
        if not ended.began and not ended.problem:
            return self._words.too_late()
        wrong = code_of_program(ended)
        if wrong is not None:
            return self._words.failed(*wrong)
        if ended.status != 0:
            return self._words.failed(
                "power.failed", f"it ended with {ended.status}; {said(ended)}"
            )
        return self._words.accepted(said(ended))

    async def close(self) -> None:
        """Nothing is kept."""

    async def _run(self, action: str, deadline_ms: int, may_go: MayGo | None) -> Ended:
        """Raises InvalidInput."""
        settings = self._settings
        executable = settings.executable or ""
        if not executable.startswith("/"):
            raise InvalidInput("it must be an absolute path", field="executable")
        action_words(action)
        values = {
            "IPMI_EXEC": executable,
            "IPMI_USERNAME": settings.user or "",
            "IPMI_PASSWORD": self._password,
            "IPMI_ACTION": action,
            "IPMI_HOST": settings.address or "",
            "IPMI_PORT": str(settings.port or ""),
            "IPMI_PLUG": settings.plug or "",
        }
        # An argument is in the list of processes; what it holds need not be given twice.
        shown = "IPMI_PASSWORD" in variables_of(self._syntax)
        by_stdin = settings.password_by is SecretWay.STDIN
        given = {
            name: value
            for name, value in values.items()
            if name != "IPMI_EXEC" and (name != "IPMI_PASSWORD" or not (shown or by_stdin))
        }
        return await run_program(
            command_words(self._syntax, values),
            environment=given,
            stdin=f"{self._password}\n".encode() if by_stdin and not shown else b"",
            deadline_ms=deadline_ms,
            may_go=may_go,
        )

    def _reading(self, ended: Ended) -> PowerReading:
        wrong = code_of_program(ended)
        if wrong is not None:
            return self._words.unread(*wrong)
        if ended.cut:
            return self._words.unread("power.output_too_long")
        if ended.status != 0:
            return self._words.unread(
                "power.failed", f"the status ended with {ended.status}; {said(ended)}"
            )
        found = self._states(ended.output)
        if len(found) != 1:
            return self._words.unread("power.status_unreadable", said(ended))
        return self._words.read(found.pop(), detail=ended.output.strip())

    def _states(self, output: str) -> set[PowerState]:
        """All that some line says: both on and off is neither."""
        own = {
            PowerState.ON: self._settings.status_on,
            PowerState.OFF: self._settings.status_off,
        }
        lines = {" ".join(line.lower().split()) for line in output.splitlines()}
        found = set()
        for state, usual in _USUAL.items():
            wanted = own[state]
            # One's own words replace the usual ones: with an inverted contact these would be the opposite.
            said_so = (" ".join(wanted.lower().split()),) if wanted else usual
            if lines & set(said_so):
                found.add(state)
        return found
