"""Which neighbour is asked about a power device, for how long it may begin, and what is known when nothing comes back."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from virtha.model.errors import Unavailable
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Term
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import AskedFrom, PowerDriver, PowerSettings
from virtha.model.time import Millis, UtcMillis
from virtha.ports.hosts import LastBeat
from virtha.ports.power import MayGoFor, PowerDevice
from virtha.server.neighbour_power import NeighbourPowerDesk
from virtha.wire.codec import decode_payload
from virtha.wire.power_messages import AttemptPower, EndPowerAttempt, PowerAttempted, PowerWord

pytestmark = pytest.mark.req("F5", "F6")
H1, H2, H3, H4 = (HostId(f"h{number}") for number in (1, 2, 3, 4))
SETTINGS = PowerSettings(driver=PowerDriver.IPMI, address="192.0.2.1", asked_from=AskedFrom.AGENTS)


class Clock:
    now = 50_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now)


class Lines:
    """Implements ``PowerLines``: a session for each host, numbered as it is."""

    term = Term(7)

    def __init__(self, desk: "Bench") -> None:
        self.up = {H2: 2, H3: 3}
        self.sent: list[tuple[HostId, PowerWord]] = []
        self.answers: Callable[[AttemptPower], PowerAttempted | None] = lambda word: PowerAttempted(
            attempt=word.attempt, state=PowerState.OFF, result=Result.OK
        )
        self._bench = desk

    def power_beat(self, host_id: HostId, driver: PowerDriver) -> LastBeat | None:
        if host_id not in self.up:
            return None
        return LastBeat(
            boot=BootId(f"boot of {host_id}"),
            sequence=1,
            monotonic_ms=900_000,
            received_at=Millis(self._bench.clock.now - 400),
            agent_alive=True,
        )

    def tell_power(self, host_id: HostId, word: PowerWord) -> int | None:
        self.sent.append((host_id, word))
        if isinstance(word, AttemptPower) and (answer := self.answers(word)) is not None:
            asyncio.get_running_loop().call_soon(self._bench.desk.heard, self.up[host_id], answer)
        return self.up.get(host_id)

    @property
    def attempts(self) -> list[tuple[HostId, AttemptPower]]:
        return [(to, word) for to, word in self.sent if isinstance(word, AttemptPower)]

    @property
    def ended(self) -> list[str]:
        return [word.attempt for _, word in self.sent if isinstance(word, EndPowerAttempt)]


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.lines = Lines(self)
        self.desk = NeighbourPowerDesk(self.lines, self.clock)
        self.hosts: tuple[HostId, ...] = (H2, H3, H4)
        self.away = False

    def device(self, term: Term | None = None) -> PowerDevice:
        async def among() -> tuple[HostId, ...]:
            if self.away:
                raise Unavailable("the database is away")
            return self.hosts

        return self.desk.device(H1, "bmc", SETTINGS, {"password": "x"}, among=among, term=term)

    def silent(self) -> None:
        self.lines.answers = lambda _word: None


def play(story: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await story(Bench())

    asyncio.run(main())


def test_two_readings_are_of_two_neighbours_and_one_that_failed_comes_last() -> None:
    async def story(bench: Bench) -> None:
        device = bench.device()
        for _ in range(2):
            assert (await device.status(deadline_ms=1_000)).state is PowerState.OFF
        assert [to for to, _ in bench.lines.attempts] == [H2, H3]
        bench.lines.answers = lambda word: PowerAttempted(
            attempt=word.attempt, code="power.unreachable"
        )
        assert (await device.status(deadline_ms=1_000)).code == "power.unreachable"
        del bench.lines.sent[:]
        bench.lines.answers = lambda word: PowerAttempted(
            attempt=word.attempt, state=PowerState.OFF
        )
        for _ in range(3):
            await device.status(deadline_ms=1_000)
        assert [to for to, _ in bench.lines.attempts] == [H3, H3, H3], "H2 can't reach it"

    play(story)


@pytest.mark.bad_input
def test_an_answer_without_a_result_proves_nothing_of_an_order() -> None:
    """As it came over the wire: no field of it is made up."""

    async def story(bench: Bench) -> None:
        def bare(word: AttemptPower) -> PowerAttempted:
            payload = msgspec.msgpack.encode({"type": "power_attempted", "attempt": word.attempt})
            told = decode_payload(payload)
            assert isinstance(told, PowerAttempted)
            return told

        bench.lines.answers = bare
        order = bench.device().order(
            PowerAction.OFF, deadline_ms=5_000, may_go=MayGoFor(lambda: 1_600)
        )
        assert (await order).result is Result.UNKNOWN
        assert (await bench.device().status(deadline_ms=1_000)).state is PowerState.UNKNOWN
        del bench.lines.sent[:]
        await bench.device().order(PowerAction.OFF, deadline_ms=5_000, may_go=lambda: True)
        assert bench.lines.attempts[0][0] == H2, "both have failed, and H2 longer ago"

    play(story)


def test_an_order_says_how_long_it_may_begin_by_the_clock_of_whom_it_goes_to() -> None:
    async def story(bench: Bench) -> None:
        order = bench.device(Term(6)).order(
            PowerAction.OFF, deadline_ms=5_000, may_go=MayGoFor(lambda: 1_600)
        )
        assert (await order).result is Result.OK
        ((_, word),) = bench.lines.attempts
        assert (word.beat_ms, word.boot) == (900_000, f"boot of {H2}")
        # From the beat's arrival, 400 ms ago, to 1.6 s from now; less what clocks may run apart (J7).
        assert word.valid_ms == 1_960 and word.deadline_ms == 5_000
        assert word.term == 6 and word.subject == H1
        await bench.device().status(deadline_ms=500)
        assert bench.lines.attempts[-1][1].term == 7

    play(story)


def test_a_server_that_freezes_after_it_looked_at_the_clock_makes_no_orders_life_longer() -> None:
    async def story(bench: Bench) -> None:
        not_after = bench.clock.now + 1_600

        def left_ms() -> int:
            left = not_after - bench.clock.now
            bench.clock.now += 1_000  # frozen
            return left

        order = bench.device().order(PowerAction.OFF, deadline_ms=5_000, may_go=MayGoFor(left_ms))
        await order
        ((_, word),) = bench.lines.attempts
        assert word.valid_ms <= not_after - (bench.clock.now - 400), "from the beat's arrival"

    play(story)


@pytest.mark.bad_input
def test_the_host_itself_and_those_that_are_away_are_not_asked() -> None:
    async def story(bench: Bench) -> None:
        bench.lines.up[H1] = 1
        bench.hosts = (H1, H4)
        device = bench.device()
        assert (await device.status(deadline_ms=500)).code == "power.no_neighbour"
        outcome = await device.order(PowerAction.OFF, deadline_ms=500, may_go=lambda: True)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "power.no_neighbour")
        bench.hosts = (H2,)
        outcome = await device.order(PowerAction.OFF, deadline_ms=500, may_go=lambda: False)
        assert (outcome.result, outcome.code) == (Result.REFUSED, TOO_LATE)
        bench.away = True
        assert (await device.status(deadline_ms=500)).code == "power.not_asked"
        assert bench.lines.sent == []
        assert bench.desk.able((H1, H2, H4), PowerDriver.IPMI) == (H1, H2)

    play(story)


def test_a_session_that_is_lost_leaves_it_unknown_and_the_device_alone_until_it_must_be_over() -> (
    None
):
    async def story(bench: Bench) -> None:
        bench.silent()
        device = bench.device()
        order = asyncio.create_task(
            device.order(PowerAction.OFF, deadline_ms=5_000, may_go=MayGoFor(lambda: 1_000))
        )
        await asyncio.sleep(0)
        ((_, word),) = bench.lines.attempts
        bench.desk.session_ended(9)  # another's
        bench.desk.session_ended(2)
        outcome = await order
        assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.neighbour_lost")
        assert (await device.status(deadline_ms=1)).code == "power.not_asked"
        late = await device.order(PowerAction.OFF, deadline_ms=1, may_go=lambda: True)
        assert (late.result, late.code) == (Result.REFUSED, TOO_LATE)
        assert len(bench.lines.attempts) == 1
        said = PowerAttempted(attempt=word.attempt, result=Result.OK)
        bench.desk.heard(3, said)  # of a session that was not asked
        assert (await device.status(deadline_ms=1)).code == "power.not_asked"
        bench.clock.now += 1_000 + 5_000 + 1_001
        bench.lines.answers = lambda word: PowerAttempted(
            attempt=word.attempt, state=PowerState.OFF
        )
        assert (await device.status(deadline_ms=1_000)).state is PowerState.OFF
        assert bench.lines.attempts[-1][0] == H3, "not the one that was lost"

    play(story)


def test_a_reading_that_is_given_up_is_ended_there_and_then_the_order_goes() -> None:
    async def story(bench: Bench) -> None:
        bench.silent()
        device = bench.device()
        reading = asyncio.create_task(device.status(deadline_ms=30_000))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait({reading})
        ((_, word),) = bench.lines.attempts
        assert bench.lines.ended == [word.attempt]
        order = asyncio.create_task(
            device.order(PowerAction.OFF, deadline_ms=30_000, may_go=MayGoFor(lambda: 30_000))
        )
        await asyncio.sleep(0)
        assert len(bench.lines.attempts) == 1, "one at a time"
        bench.lines.answers = lambda word: PowerAttempted(attempt=word.attempt, result=Result.OK)
        bench.desk.heard(2, PowerAttempted(attempt=word.attempt, code="power.not_asked"))
        assert (await order).result is Result.OK
        assert [to for to, _ in bench.lines.attempts] == [H2, H3]

    play(story)
