"""What an agent does when it is asked about another host's power device: one attempt, told as it ended, or nothing at all."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace
from played_power import Machine, PlayedPower
from structlog.testing import capture_logs

from virtha.agent.power_attempts import PowerAttempts
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.power import TOO_LATE
from virtha.model.power_settings import PowerDriver, PowerHelp, PowerSettings
from virtha.model.time import Millis, UtcMillis
from virtha.wire.power_messages import AttemptPower, EndPowerAttempt, PowerAsk, PowerAttempted

pytestmark = pytest.mark.req("F5", "F6")
OURS, THEIRS = HostId("h2"), HostId("h1")
BOOT = BootId("boot-2")
SECRET = "hunter2"


class Clock:
    now = 10_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now)


class Bench:
    def __init__(self) -> None:
        self.power = PlayedPower()
        self.machine: Machine = self.power.add("bmc")
        self.clock = Clock()
        self.told: list[PowerAttempted] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.attempts = PowerAttempts(
            host_id=OURS,
            boot=BOOT,
            drivers=PowerHelp.NETWORK.drivers,
            devices=self.power,
            clock=self.clock,
            term_seen=lambda: Term(3),
            spawn=self._spawn,
            tell=self.told.append,
        )

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self.tasks.append(task)
        return task

    async def ask(self, word: AttemptPower) -> PowerAttempted:
        self.attempts.take(word)
        return await self.answer(word.attempt)

    async def answer(self, attempt: str) -> PowerAttempted:
        await until(lambda: any(one.attempt == attempt for one in self.told))
        return next(one for one in self.told if one.attempt == attempt)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if check():
                return
            await asyncio.sleep(0.001)


def word(attempt: str = "a1", ask: PowerAsk = PowerAsk.OFF, **more: Any) -> AttemptPower:
    given = {
        "term": Term(3),
        "boot": BOOT,
        "beat_ms": 9_000,
        "valid_ms": 2_000,
        "deadline_ms": 60_000,
        "subject": THEIRS,
        "device": "bmc",
        "settings": PowerSettings(driver=PowerDriver.IPMI, address="bmc"),
        "secrets": {"password": SECRET},
        **more,
    }
    return AttemptPower(attempt=attempt, ask=ask, **given)


def play(story: Callable[[Bench], Coroutine[Any, Any, None]]) -> list[Any]:
    """Returns what was logged."""

    async def main() -> None:
        bench = Bench()
        await story(bench)
        for task in bench.tasks:
            task.cancel()
        await asyncio.gather(*bench.tasks, return_exceptions=True)

    with capture_logs() as logged:
        asyncio.run(main())
    return list(logged)


def test_readings_and_orders_are_told_as_they_ended_and_no_secret_is_logged() -> None:
    async def story(bench: Bench) -> None:
        assert (await bench.ask(word("a1", PowerAsk.STATUS))).state is PowerState.ON
        assert (await bench.ask(word("a2"))).result is Result.OK
        assert (await bench.ask(word("a3", PowerAsk.TEST))).state is PowerState.OFF
        assert (await bench.ask(word("a4", PowerAsk.ON))).result is Result.OK
        assert (await bench.ask(word("a5", PowerAsk.BLINK))).result is Result.OK
        assert bench.machine.asked == ["status", "off", "status", "on", "blink"]
        assert len(bench.power.closed) == len(bench.power.made) == 5
        bench.machine.breaks = True
        broken = await bench.ask(word("a6"))
        assert (broken.result, broken.code) == (Result.UNKNOWN, "power.failed")
        assert SECRET not in repr(bench.told) + repr(word())

    logged = play(story)
    assert len(logged) == 7 and SECRET not in repr(logged)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"subject": OURS}, "power.own_host"),
        ({"term": Term(2)}, "power.not_led"),
        ({"valid_ms": 999}, TOO_LATE),
        ({"boot": BootId("boot-1")}, TOO_LATE),
        (
            {"settings": PowerSettings(driver=PowerDriver.COMMAND, address="bmc")},
            "power.no_neighbour",
        ),
        ({"settings": PowerSettings(driver=PowerDriver.IPMI)}, "power.unusable_settings"),
    ],
    ids=["its own", "an old term", "late", "another boot", "a program", "no address"],
)
def test_what_it_does_not_do_is_refused_and_nothing_was_done(
    change: dict[str, Any], code: str
) -> None:
    async def story(bench: Bench) -> None:
        answer = await bench.ask(word(**change))
        assert (answer.result, answer.code) == (Result.REFUSED, code)
        assert bench.machine.asked == []
        looked = await bench.ask(word("a2", PowerAsk.STATUS, **change))
        assert looked.state is PowerState.UNKNOWN and looked.code
        assert bench.machine.asked == []

    play(story)


def test_an_order_that_grew_old_before_its_device_was_asked_does_not_go() -> None:
    async def story(bench: Bench) -> None:
        bench.attempts.take(word())
        bench.clock.now += 1_001
        answer = await bench.answer("a1")
        assert (answer.result, answer.code) == (Result.REFUSED, TOO_LATE)
        assert bench.machine.orders == []

    play(story)


def test_one_attempt_at_a_time_which_the_server_can_end() -> None:
    async def story(bench: Bench) -> None:
        bench.machine.stuck = True
        bench.attempts.take(word("a1"))
        await until(lambda: bench.machine.attempts == 1)
        busy = await bench.ask(word("a2"))
        assert (busy.result, busy.code) == (Result.REFUSED, "power.busy")
        bench.attempts.take(EndPowerAttempt(attempt="a2"))  # is over
        bench.attempts.take(EndPowerAttempt(attempt="a1"))
        ended = await bench.answer("a1")
        assert (ended.result, ended.code) == (Result.UNKNOWN, "power.no_answer")
        assert bench.machine.attempts == 0, "nothing of it goes on"
        bench.machine.stuck = False
        assert (await bench.ask(word("a3"))).result is Result.OK
        assert bench.machine.most_attempts == 1

    play(story)


def test_it_ends_with_the_session_that_asked_and_tells_no_other_one() -> None:
    async def story(bench: Bench) -> None:
        bench.machine.stuck = True
        bench.attempts.take(word("a1"))
        await until(lambda: bench.machine.attempts == 1)
        bench.attempts.session_lost()
        assert (await bench.ask(word("a2"))).code == "power.busy", "until it has ended"
        await until(lambda: bench.machine.attempts == 0)
        bench.machine.stuck = False
        await asyncio.wait(bench.tasks)
        assert (await bench.ask(replace(word(), attempt="a3"))).result is Result.OK
        assert [one.attempt for one in bench.told] == ["a2", "a3"]

    play(story)


@pytest.mark.parametrize("ask", [PowerAsk.STATUS, PowerAsk.OFF])
def test_one_that_is_ended_before_it_began_leaves_its_device_free(ask: PowerAsk) -> None:
    async def story(bench: Bench) -> None:
        bench.attempts.take(word("a1", ask))
        bench.attempts.take(EndPowerAttempt(attempt="a1"))
        ended = await bench.answer("a1")
        assert (ended.result, ended.code) == (Result.REFUSED, "power.not_asked")
        assert (bench.machine.asked, bench.power.made) == ([], [])
        assert (await bench.ask(word("a2"))).result is Result.OK

        bench.attempts.take(word("a3", ask, device="other"))
        bench.attempts.session_lost()
        await asyncio.wait(bench.tasks)
        assert (await bench.ask(word("a4"))).result is Result.OK
        bench.attempts.take(word("a5", ask, device="other"))
        assert "power.busy" not in {one.code for one in bench.told}
        assert "a3" not in {one.attempt for one in bench.told}

    play(story)


def test_a_session_lost_while_an_attempt_is_being_ended_does_not_break_off_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its driver may have a program to end, which else ran on, and switched some time later (J7)."""
    ended: list[str] = []

    async def story(bench: Bench) -> None:
        hangs = asyncio.Event()

        async def attempt(_word: AttemptPower) -> PowerAttempted:
            try:
                hangs.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                ended.append("its program")
            raise AssertionError

        monkeypatch.setattr(bench.attempts, "_attempt", attempt)
        bench.attempts.take(word("a1"))
        await hangs.wait()
        bench.attempts.take(EndPowerAttempt(attempt="a1"))
        await asyncio.sleep(0)
        bench.attempts.session_lost()
        await asyncio.wait(bench.tasks)

    play(story)
    assert ended == ["its program"]
