"""A power device behind a program of the fence-agents project: options on its standard input, so that we put no secret on a
command line. What the agent runs itself is its own matter: those for IPMI call ``ipmitool -P`` (``ready.power.secret_shown``).
Its *off* reads back by itself; the engine does so all the same (rule P1). Never its *reboot*."""

import time
from collections.abc import Mapping
from pathlib import Path

from virtha.drivers.bounded_program import Ended, find_program, run_program
from virtha.drivers.power_agent_form import METADATA_BYTES_MAX, agent_form, stdin_of
from virtha.drivers.power_words import NO_ANSWER, PowerWords, code_of_program, said
from virtha.model.errors import Failed, NotFound
from virtha.model.evidence import PowerState
from virtha.model.power import PowerAction
from virtha.model.power_settings import OUR_PARAMETERS, PowerSettings
from virtha.ports.power import AgentForm, MayGo, PowerOutcome, PowerReading

METADATA_DEADLINE_MS = 10_000
_ON, _OFF = 0, 2
"""Exit statuses of *status*; 1 is a failure (fence agents' API)."""
_MEANINGS = (
    ("unable to connect/login", "power.no_answer"),
    ("login failed", "power.sign_in_refused"),
    ("hmac is invalid", "power.sign_in_refused"),
    ("connection timed out", "power.no_answer"),
    ("connection lost", "power.connection_lost"),
    ("unsupported action", "power.unsupported"),
    ("unrecognised action", "power.unsupported"),
    ("failed: you have to", "power.unusable_settings"),
    ("parse error", "power.unusable_settings"),
)


class AgentForms:
    """Each agent's metadata is read once, and again when its program was replaced: a run of it takes as long as a reading of
    a device."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, AgentForm]] = {}

    async def form(self, name: str, *, deadline_ms: int = METADATA_DEADLINE_MS) -> AgentForm:
        """Raises NotFound, Failed (``NO_ANSWER``: not within the deadline)."""
        program = find_program(name)
        if program is None:
            raise NotFound(
                f"there is no fence agent {name} on this server",
                fix="install it: apt install fence-agents",
            )
        stamp = _stamp(program)
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            known = self._known[name] = stamp, await _read_form(name, program, deadline_ms)
        return known[1]


def _stamp(program: str) -> object:
    """Another one where it was installed anew."""
    status = Path(program).stat()
    return program, status.st_mtime_ns, status.st_size


async def _read_form(name: str, program: str, deadline_ms: int) -> AgentForm:
    ended = await run_program(
        [program],
        environment={"PYTHONWARNINGS": "ignore"},
        stdin=b"action=metadata\n",
        deadline_ms=deadline_ms,
        output_bytes=METADATA_BYTES_MAX,
    )
    if ended.status != 0 or ended.cut:
        code, why = code_of_program(ended) or ("power.failed", said(ended))
        raise Failed(
            f"{name} gave no metadata: {why[:300]}", code=code, fix=f"run {name} -o metadata"
        )
    return agent_form(name, ended.output)


class FenceAgentPower:
    """Implements ``PowerDevice``."""

    def __init__(
        self, settings: PowerSettings, secrets: Mapping[str, str], forms: AgentForms
    ) -> None:
        self._settings = settings
        self._secrets = secrets
        self._words = PowerWords(secrets, settings.user)
        self._forms = forms

    async def status(self, *, deadline_ms: int) -> PowerReading:
        ended, problem = await self._run("status", deadline_ms, None)
        if problem is not None:
            return self._words.unread(*problem)
        wrong = code_of_program(ended)
        if wrong is not None:
            return self._words.unread(*wrong)
        words = said(ended)
        # Both must say it: an agent that crashed may end with any status.
        if ended.status == _ON and "status: on" in ended.output.lower():
            return self._words.read(PowerState.ON, detail=words)
        if ended.status == _OFF and "status: off" in ended.output.lower():
            return self._words.read(PowerState.OFF, detail=words)
        code = "power.status_unreadable" if ended.status in (_ON, _OFF) else _meaning(words)
        return self._words.unread(code, words)

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self.status(deadline_ms=deadline_ms)

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        if action is PowerAction.BLINK:
            return self._words.failed("power.unsupported", "fence agents have no such action")
        ended, problem = await self._run(action.value, deadline_ms, may_go)
        if problem is not None:
            return self._words.failed(*problem)
        if not ended.began and not ended.problem:
            return self._words.too_late()
        wrong = code_of_program(ended)
        if wrong is not None:
            return self._words.failed(*wrong)
        if ended.status != 0:
            return self._words.failed(_meaning(said(ended)), said(ended))
        return self._words.accepted(said(ended))

    async def close(self) -> None:
        """Nothing is kept."""

    async def _run(
        self, action: str, deadline_ms: int, may_go: MayGo | None
    ) -> tuple[Ended, tuple[str, str] | None]:
        """Or why nothing was asked: code and words."""
        name = self._settings.agent or ""
        until_s = time.monotonic() + deadline_ms / 1_000
        try:
            form = await self._forms.form(name, deadline_ms=deadline_ms)
        except NotFound as error:
            return Ended(began=False), ("power.program_missing", error.message)
        except (Failed, OSError) as error:
            code = error.code if isinstance(error, Failed) else ""
            code = code if code == NO_ANSWER else "power.program_missing"
            return Ended(began=False), (code, str(error))
        objection = self._objection(form)
        if objection:
            return Ended(began=False), ("power.unusable_settings", objection)
        program = find_program(name)
        if program is None:
            return Ended(began=False), ("power.program_missing", f"{name} is gone")
        given = self._options(form) | {"action": action}
        ended = await run_program(
            [program],
            environment={"PYTHONWARNINGS": "ignore"},
            stdin=stdin_of(given),
            deadline_ms=max(1, int((until_s - time.monotonic()) * 1_000)),
            may_go=may_go,
        )
        return ended, None

    def _objection(self, form: AgentForm) -> str:
        """Settings were checked when they were set; but a cluster's may have changed since, and agents know old names that
        their metadata don't offer (P1)."""
        if form.unfit:
            return f"agent: {form.name}: {form.unfit}"
        offered = {one.name for one in form.parameters} - OUR_PARAMETERS
        offered -= {form.address_name, form.plug_name, form.port_name}
        for name in [*(self._settings.parameters or {}), *self._secrets]:
            if name not in offered and name != "password":
                return f"parameters.{name}: {form.name} is not to be told that"
        return ""

    def _options(self, form: AgentForm) -> dict[str, str]:
        settings = self._settings
        own = {
            form.address_name: settings.address,
            form.user_name: settings.user,
            form.plug_name: settings.plug,
            form.password_name: self._secrets.get("password"),
            form.port_name: str(settings.port) if settings.port else None,
        }
        others = {name: value for name, value in self._secrets.items() if name != "password"}
        made = {**(settings.parameters or {}), **others}
        return made | {name: value for name, value in own.items() if name and value}


def _meaning(words: str) -> str:
    lower = words.lower()
    return next((code for text, code in _MEANINGS if text in lower), "power.failed")
