"""A BMC by IPMI 2.0 (RMCP+), through ``ipmitool``: a process can be ended at the deadline, with all that it would still do
(rule J7); a session inside this process could not. ADR 0016 has the figures.

The cipher suite is always named: without one ipmitool looks for one for ten seconds. ``-N 1 -R 1``: two packets, two
seconds; retries belong to the engine.
"""

import time
from collections.abc import Mapping

from virtha.drivers.bounded_program import Ended, find_program, run_program
from virtha.drivers.power_words import PowerWords, code_of_program, said
from virtha.model.evidence import PowerState
from virtha.model.machine_identity import uuid_digits
from virtha.model.power import PowerAction
from virtha.model.power_settings import IpmiPrivilege, MachineIdentity, PowerSettings
from virtha.ports.power import MayGo, PowerOutcome, PowerReading

PORT = 623
CIPHERS = (3, 17)
"""Tried in this order where none is set: 3 is the quickest that all know, 17 what newer ones insist on."""
BLINK_S = 60
_ORDERS = {
    PowerAction.OFF: "chassis power off",
    PowerAction.ON: "chassis power on",
    PowerAction.BLINK: f"chassis identify {BLINK_S}",
}
_TAKEN = {
    PowerAction.OFF: "Chassis Power Control: Down/Off",
    PowerAction.ON: "Chassis Power Control: Up/On",
    PowerAction.BLINK: "Chassis identify interval:",
}
_STATES = {"Chassis Power is on": PowerState.ON, "Chassis Power is off": PowerState.OFF}
_STATUS = "chassis power status\nraw 0x06 0x37\n"
"""The state first, then the system's GUID (Get System GUID), in one session: not all devices know the second."""
_MEANINGS = (
    ("invalid authentication algorithm", "power.cipher_refused"),
    ("invalid integrity algorithm", "power.cipher_refused"),
    ("invalid confidentiality algorithm", "power.cipher_refused"),
    ("no cipher suite match", "power.cipher_refused"),
    ("unsupported cipher suite", "power.cipher_refused"),
    ("hmac is invalid", "power.sign_in_refused"),
    ("unauthorized name", "power.sign_in_refused"),
    ("invalid role", "power.not_permitted"),
    ("unauthorized role", "power.not_permitted"),
    ("insufficient privilege", "power.not_permitted"),
    ("address lookup for", "power.unresolved"),
    ("get auth capabilities error", "power.no_answer"),
    ("could not open socket", "power.unreachable"),
    # The order went out, and its answer was lost or late: it may have been carried out.
    ("request match not found", "power.no_answer"),
    ("unable to set chassis", "power.no_answer"),
    ("unable to get chassis", "power.no_answer"),
    ("invalid command", "power.unsupported"),
)
"""Of ipmitool 1.8.19's words with ``-v``, in lower case; the first that fits."""


class IpmiPower:
    """Implements ``PowerDevice``. Remembers which cipher suite the device took."""

    def __init__(self, settings: PowerSettings, secrets: Mapping[str, str]) -> None:
        self._settings = settings
        self._password = secrets.get("password", "")
        self._words = PowerWords(secrets, settings.user)
        self._ciphers = list(CIPHERS if settings.cipher is None else (settings.cipher,))

    async def status(self, *, deadline_ms: int) -> PowerReading:
        ended = await self._run(_STATUS, deadline_ms, None)
        lines = [line.strip() for line in ended.output.splitlines()]
        found = {_STATES[line] for line in lines if line in _STATES}
        if len(found) == 1 and ended.began and not ended.cut:
            # ipmitool prints it of a good answer only, whatever became of the second question.
            return self._words.read(
                found.pop(), MachineIdentity(uuid=_guid(lines)), self._told(lines)
            )
        code, detail = self._wrong(ended)
        return self._words.unread(
            "power.status_unreadable" if code is None else code, detail or said(ended)
        )

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self.status(deadline_ms=deadline_ms)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        ended = await self._run(_ORDERS[action] + "\n", deadline_ms, may_go)
        if not ended.began and not ended.problem:
            return self._words.too_late()
        code, detail = self._wrong(ended)
        if code is not None:
            return self._words.failed(code, detail)
        if _TAKEN[action] not in ended.output:
            return self._words.failed("power.failed", said(ended))
        return self._words.accepted(ended.output.strip())

    async def close(self) -> None:
        """Nothing is kept."""

    def _told(self, lines: list[str]) -> str:
        state = next(line for line in lines if line in _STATES)
        if len(self._ciphers) == 1 and self._settings.cipher is None:
            return f"{state}; it takes cipher suite {self._ciphers[0]}: set it, and nothing is tried first"
        return state

    async def _run(self, commands: str, deadline_ms: int, may_go: MayGo | None) -> Ended:
        """With each cipher suite until the device takes one; a refusal comes before anything is done."""
        until_s = time.monotonic() + deadline_ms / 1_000
        ended = Ended(began=False)
        for cipher in tuple(self._ciphers):
            left_ms = int((until_s - time.monotonic()) * 1_000)
            ended = await self._once(cipher, commands, max(left_ms, 1), may_go)
            if _meaning(ended) == "power.cipher_refused":
                # Last from now on: a deadline that ends in the next attempt must not end each one there.
                self._ciphers = [*(one for one in self._ciphers if one != cipher), cipher]
                continue
            if ended.status == 0 and self._settings.cipher is None:
                self._ciphers = [cipher]
            return ended
        if self._settings.cipher is None:
            self._ciphers = list(CIPHERS)  # it may have been set up anew
        return ended

    async def _once(
        self, cipher: int, commands: str, deadline_ms: int, may_go: MayGo | None
    ) -> Ended:
        program = find_program("ipmitool")
        if program is None:
            return Ended(began=False, problem="ipmitool is not installed here")
        settings = self._settings
        words = [program, "-v", "-I", "lanplus", "-N", "1", "-R", "1", "-E"]
        words += ["-C", str(cipher), "-H", settings.address or "", "-p", str(settings.port or PORT)]
        words += ["-L", (settings.privilege or IpmiPrivilege.OPERATOR).value.upper()]
        if settings.user:
            words += ["-U", settings.user]
        return await run_program(
            [*words, "exec", "/dev/stdin"],
            environment={"IPMI_PASSWORD": self._password},
            stdin=commands.encode(),
            deadline_ms=deadline_ms,
            may_go=may_go,
        )

    def _wrong(self, ended: Ended) -> tuple[str | None, str]:
        wrong = code_of_program(ended)
        if wrong is not None:
            return wrong
        meaning = _meaning(ended)
        if meaning is not None:
            return meaning, _complaint(ended)
        if ended.status != 0:
            return "power.failed", _complaint(ended)
        return None, ""


def _meaning(ended: Ended) -> str | None:
    if ended.status in (0, None):
        return None
    # Without what ipmitool asks on its own account: an answer to that is none to us.
    complaint = _complaint(ended).lower()
    return next((code for words, code in _MEANINGS if words in complaint), None)


def _complaint(ended: Ended) -> str:
    """Without what ``-v`` adds."""
    noise = (
        *("loading iana", "running get", "discovered ipmb", "raw re", "invalid completion code"),
        "get hpm.x",
    )
    lines = [line.strip() for line in ended.errors.splitlines()]
    return "; ".join(one for one in lines if one and not one.lower().startswith(noise))


def _guid(lines: list[str]) -> str:
    """The answer to the raw question, if there was one: 16 bytes."""
    for line in lines:
        if len(line.split()) == 16:
            return uuid_digits(line)
    return ""
