"""What all power devices promise alike, each against a real one: one bounded attempt, told as it ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from own_bmc import PASSWORD, UUID
from power_places import PLACES, Place
from waiting import until

from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.machine_identity import compare
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import MachineIdentity
from virtha.ports.power import PowerDevice

DEADLINE_MS = 20_000
HANG_MS = 1_500
LATE_S = 60.0
"""On a busy machine an end may be told so much later than its deadline."""

pytestmark = [
    pytest.mark.req("F5", "F9"),
    pytest.mark.parametrize("kind", sorted(PLACES)),
]


@asynccontextmanager
async def at(kind: str, directory: Path) -> AsyncIterator[tuple[Place, PowerDevice]]:
    async with PLACES[kind](directory) as place:
        device = place.device()
        try:
            yield place, device
        finally:
            await device.close()
            await device.close()


def run(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    asyncio.run(work())


def always() -> bool:
    return True


def test_a_reading_is_the_truth_and_orders_change_it(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            reading = await device.status(deadline_ms=DEADLINE_MS)
            assert reading.state is PowerState.ON, reading
            for action, state in (
                (PowerAction.OFF, PowerState.OFF),
                (PowerAction.ON, PowerState.ON),
            ):
                outcome = await device.order(action, deadline_ms=DEADLINE_MS, may_go=always)
                assert outcome.result is Result.OK, outcome
                assert place.on() is (state is PowerState.ON)
                assert (await device.status(deadline_ms=DEADLINE_MS)).state is state
            tested = await device.test(deadline_ms=DEADLINE_MS)
            assert tested.state is PowerState.ON

    run(story)


def test_off_twice_is_harmless(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            for _ in range(2):
                outcome = await device.order(
                    PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=always
                )
                assert outcome.result is Result.OK, outcome
            assert not place.on()

    run(story)


def test_an_order_that_is_too_old_never_goes_to_its_device(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            for action in PowerAction:
                if action is PowerAction.BLINK and not place.blinks:
                    continue
                outcome = await device.order(action, deadline_ms=DEADLINE_MS, may_go=lambda: False)
                assert (outcome.result, outcome.code) == (Result.REFUSED, TOO_LATE)
            assert place.on() and place.orders() == 0

    run(story)


def test_the_identify_light_changes_no_power(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            outcome = await device.order(PowerAction.BLINK, deadline_ms=DEADLINE_MS, may_go=always)
            assert place.on()
            if place.blinks:
                assert outcome.result is Result.OK, outcome
                assert place.orders() == 1
            else:
                assert (outcome.result, outcome.code) == (Result.REFUSED, "power.unsupported")

    run(story)


@pytest.mark.bad_input("power script that hangs")
def test_what_hangs_ends_at_the_deadline_and_is_not_known(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            place.hang()
            began_s = time.monotonic()
            reading = await device.status(deadline_ms=HANG_MS)
            outcome = await device.order(PowerAction.OFF, deadline_ms=HANG_MS, may_go=always)
            took_s = time.monotonic() - began_s
            assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.no_answer"), reading
            assert (outcome.result, outcome.code) == (Result.UNKNOWN, "power.no_answer"), outcome
            assert took_s < 2 * HANG_MS / 1_000 + LATE_S
            assert place.on()

    run(story)


@pytest.mark.bad_input("wrong power password")
def test_a_wrong_password_is_told_and_nothing_is_done(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            place.refuse()
            reading = await device.status(deadline_ms=DEADLINE_MS)
            outcome = await device.order(PowerAction.OFF, deadline_ms=DEADLINE_MS, may_go=always)
            assert reading.state is PowerState.UNKNOWN and reading.code is not None
            assert outcome.result is not Result.OK and outcome.code is not None
            if kind in ("ipmi", "redfish"):
                assert reading.code == outcome.code == "power.sign_in_refused"
                assert outcome.result is Result.REFUSED
            assert PASSWORD not in reading.detail + outcome.detail
            assert place.on()

    run(story)


def test_cancelled_it_ends_at_once(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            if kind == "sim":
                return  # its time is not ours
            place.hang()
            attempt = asyncio.create_task(device.status(deadline_ms=60_000))
            await until(place.waited_for)
            attempt.cancel()
            done, _ = await asyncio.wait({attempt}, timeout=LATE_S)
            assert done and attempt.cancelled()

    run(story)


def test_which_machine_it_is(kind: str, tmp_path: Path):
    async def story() -> None:
        async with at(kind, tmp_path) as (place, device):
            reading = await device.status(deadline_ms=DEADLINE_MS)
            own = compare(reading.identity, MachineIdentity(uuid=UUID))
            other = compare(reading.identity, MachineIdentity(uuid=UUID.replace("4c", "5c")))
            if place.tells_identity:
                assert (own, other) == (IdentityMatch.MATCH, IdentityMatch.MISMATCH)
            else:
                assert own is other is IdentityMatch.UNKNOWN

    run(story)
