"""Attempts at other hosts' power devices, as the server asks for them (F5, ADR 18): with its own drivers, one at a time
per device, never at this host's own.

Settings and password are in memory for as long as the attempt lasts. It ends with the session that asked for it: how it
ended could not be told any more.
"""

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from virtha.agent.commands import Spawn
from virtha.model.errors import VirthaError
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import PowerDriver
from virtha.ports.clock import Clock
from virtha.ports.power import PowerDevice, PowerDevices
from virtha.wire.power_messages import (
    AttemptPower,
    EndPowerAttempt,
    PowerAsk,
    PowerAttempted,
    PowerWord,
)

ATTEMPTS_MAX = 64
"""Under way at once; more are refused."""
DEADLINE_MAX_MS = 600_000
OVERTIME_MS = 1_000
"""A driver keeps its deadline itself; one that does not is ended so much later."""
FAILED = "power.failed"
NO_ANSWER = "power.no_answer"
_log = structlog.get_logger(__name__)

Key = tuple[HostId, str]


@dataclass
class _Running:
    word: AttemptPower
    task: "asyncio.Task[None] | None" = None
    lost: bool = False
    """Its session is over: nobody is told how it ended."""
    began: bool = False
    given_up: bool = False
    """A task that is cancelled before its first step never runs, and would never free its device: so it is told this."""

    def give_up(self) -> None:
        """Once: a second cancel would interrupt the end of what its driver has begun, and that would run on."""
        if self.given_up:
            return
        self.given_up = True
        if self.began and self.task is not None:
            self.task.cancel()


class PowerAttempts:
    def __init__(
        self,
        *,
        host_id: HostId,
        boot: BootId,
        drivers: tuple[PowerDriver, ...],
        devices: PowerDevices,
        clock: Clock,
        term_seen: Callable[[], Term],
        spawn: Spawn,
        tell: Callable[[PowerAttempted], object],
    ) -> None:
        """``host_id``, ``boot``: this host. ``clock``: the one that its beats tell. ``term_seen``: the highest yet."""
        self._host_id = host_id
        self._boot = boot
        self._drivers = drivers
        self._devices = devices
        self._clock = clock
        self._term_seen = term_seen
        self._spawn = spawn
        self._tell = tell
        self._running: dict[Key, _Running] = {}
        self._described: set[str] = set()
        """Fence agents whose own description was read, which takes longer than a reading may."""

    def take(self, word: PowerWord) -> None:
        match word:
            case AttemptPower():
                self._begin(word)
            case EndPowerAttempt():
                for one in self._running.values():
                    if one.word.attempt == word.attempt:
                        one.give_up()

    def session_lost(self) -> None:
        """Nobody hears how they end: the server counts each as unknown."""
        for one in self._running.values():
            one.lost = True
            one.give_up()

    def _begin(self, word: AttemptPower) -> None:
        key = (word.subject, word.device)
        objection = self._objection(word, key)
        if objection is not None:
            code, detail = objection
            _log.warning("no attempt at a power device", code=code, **_names(word))
            self._tell(_refused(word, code, detail))
            return
        running = self._running[key] = _Running(word)
        running.task = self._spawn(
            f"power {word.device} of {word.subject}", self._run(key, running)
        )

    def _objection(self, word: AttemptPower, key: Key) -> tuple[str, str] | None:
        """Code and words. What is refused was surely not done."""
        driver = word.settings.driver
        if word.subject == self._host_id:
            return "power.own_host", "it is this host's own"
        if word.term < self._term_seen():
            return "power.not_led", f"term {word.term}, and {self._term_seen()} was seen here"
        if driver not in self._drivers:
            return "power.no_neighbour", f"power.attempts does not allow {driver} here"
        if word.boot != self._boot or self._left_ms(word) < 0:
            return TOO_LATE if word.ask.is_order else "power.not_asked", "it came too late"
        if key in self._running or len(self._running) >= ATTEMPTS_MAX:
            return "power.busy", "another attempt is under way"
        return None

    def _left_ms(self, word: AttemptPower) -> int:
        """For how long it may begin yet."""
        return word.beat_ms + word.valid_ms - self._clock.monotonic_ms()

    async def _run(self, key: Key, running: _Running) -> None:
        """Whatever breaks, the server is told; and only in the session that asked."""
        word = running.word
        running.began = True
        answer = PowerAttempted(attempt=word.attempt, result=Result.UNKNOWN, code=FAILED)
        try:
            if running.given_up:
                answer = _refused(word, "power.not_asked", "it was ended before it began")
            else:
                answer = await self._attempt(word)
        except asyncio.CancelledError:
            if running.lost:
                raise
            answer = replace(answer, code=NO_ANSWER if word.ask.is_order else "power.not_asked")
        except VirthaError as error:
            answer = _refused(word, "power.unusable_settings", str(error)[:500])
        except Exception as error:
            # Without its words: nobody knows what a driver that breaks puts into them, and it is given passwords.
            where = traceback.extract_tb(error.__traceback__)[-1]
            broke = f"{type(error).__name__} at {where.filename}:{where.lineno}"
            _log.error("an attempt at a power device broke", broke=broke, **_names(word))
        finally:
            del self._running[key]
        if running.lost:
            return
        _log.info(
            "an attempt at a power device ended",
            result=answer.result.value,
            state=answer.state.value,
            code=answer.code,
            **_names(word),
        )
        self._tell(answer)

    async def _attempt(self, word: AttemptPower) -> PowerAttempted:
        device = self._devices.device(word.settings, word.secrets)
        try:
            async with asyncio.timeout((_deadline_ms(word) + OVERTIME_MS) / 1_000):
                return await self._ask(device, word)
        except TimeoutError:
            return PowerAttempted(attempt=word.attempt, result=Result.UNKNOWN, code=NO_ANSWER)
        finally:
            await device.close()
            self._get_ready(word)

    async def _ask(self, device: PowerDevice, word: AttemptPower) -> PowerAttempted:
        deadline_ms = _deadline_ms(word)
        if word.ask.is_order:
            outcome = await device.order(
                PowerAction(word.ask.value),
                deadline_ms=deadline_ms,
                may_go=lambda: self._left_ms(word) >= 0,
            )
            return PowerAttempted(
                attempt=word.attempt,
                result=outcome.result,
                code=outcome.code,
                detail=outcome.detail,
            )
        ask = device.test if word.ask is PowerAsk.TEST else device.status
        reading = await ask(deadline_ms=deadline_ms)
        return PowerAttempted(
            attempt=word.attempt,
            result=Result.OK,
            state=reading.state,
            identity=reading.identity,
            code=reading.code,
            detail=reading.detail,
        )

    def _get_ready(self, word: AttemptPower) -> None:
        name = word.settings.agent or ""
        if word.settings.driver is PowerDriver.FENCE_AGENT and name not in self._described:
            self._described.add(name)
            self._spawn(f"description of {name[:64]}", self._describe(name))

    async def _describe(self, name: str) -> None:
        try:
            await self._devices.agent(name)
        except (VirthaError, OSError):
            self._described.discard(name)  # the attempts themselves say why


def _deadline_ms(word: AttemptPower) -> int:
    return max(1, min(word.deadline_ms, DEADLINE_MAX_MS))


def _refused(word: AttemptPower, code: str, detail: str) -> PowerAttempted:
    return PowerAttempted(attempt=word.attempt, result=Result.REFUSED, code=code, detail=detail)


def _names(word: AttemptPower) -> dict[str, str]:
    return {"host": word.subject, "device": word.device, "ask": word.ask.value}
