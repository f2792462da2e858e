"""The leader's way to power devices: takes its questions and orders at once, and tells how each ended as an event.

One attempt at a time per device, a bounded number at once, and nobody waits for another host's device (F4). Before each
attempt it is asked anew whether this is still the lead, and whether the device is still the one that was meant; right
before it the cluster's clock (M4). What did not go out is told as that.
"""

import asyncio
import contextlib
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog
from msgspec.structs import replace

from virtha.control.device_turns import UNASKED
from virtha.control.engine_power import CHANGED, UNUSABLE, EnginePower, NoWay, PowerWay
from virtha.engine.events import OrderPower, PowerOrdered, PowerRead, ReadPower
from virtha.engine.records import OrderId
from virtha.engine.turn import is_too_late, not_carried_out
from virtha.model.errors import Failed, InvalidInput, Unavailable, VirthaError
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.ids import ClusterId, HostId
from virtha.model.machine_identity import compare
from virtha.model.power import PowerDeviceId
from virtha.model.power_settings import MachineIdentity
from virtha.model.time import Millis
from virtha.ports.attempts import cancel_once, give_up
from virtha.ports.power import MayGoFor, PowerDevice, PowerReading
from virtha.server.leader import ClusterClock
from virtha.store.installations import Lead

log = structlog.get_logger("virtha.server.power")
READINGS_AT_ONCE = 32
ORDERS_AT_ONCE = 32
"""Apart from each other: devices that hang when they are read must not keep other hosts' orders waiting."""
TESTS_AT_ONCE = 4
"""Scheduled: nobody waits for them, and a thousand devices may be on one small network."""
OVERTIME_MS = 1_000
"""A driver keeps its deadline itself; one that does not is ended so much later, and what it says then is not believed."""
DATABASE_RETRY_MS = 100
CHANGE_WAIT_S = 2.0
NO_ANSWER = "power.no_answer"
NOT_ASKED = "power.not_asked"
UNIDENTIFIED = "power.unidentified"
TEST = OrderId("test")
"""In place of an order's id, in the log."""
FAILED = "power.failed"

Key = tuple[HostId, PowerDeviceId]


@dataclass(frozen=True)
class DeviceAnswer:
    """``took_ms``: of one reading, the second where the first took longer than fencing would wait."""

    reading: PowerReading
    took_ms: int


@dataclass
class _Test:
    command: ReadPower
    waits_ms: int
    ended: "asyncio.Future[DeviceAnswer | None]"

    def end(self, tested: DeviceAnswer | None) -> None:
        if not self.ended.done():
            self.ended.set_result(tested)


@dataclass
class _Lane:
    """Of one device."""

    orders: deque[OrderPower] = field(default_factory=deque)
    readings: deque[tuple[ReadPower, Millis]] = field(default_factory=deque)
    """With the cluster time by which each must have been answered."""
    tests: deque[_Test] = field(default_factory=deque)
    """After all else, and never beside it."""
    reading: "asyncio.Task[PowerRead] | None" = None
    """Under way."""
    testing: "asyncio.Task[DeviceAnswer | None] | None" = None
    """Under way; given up for whatever else comes."""
    worker: "asyncio.Task[None] | None" = None


@dataclass
class _Reached:
    """``machine``: what its host says it is. ``by_agents``: who asks it may be another one each time."""

    device: PowerDevice
    machine: MachineIdentity
    by_agents: bool


class PowerDesk:
    """Of one cluster and lead."""

    def __init__(
        self,
        cluster_id: ClusterId,
        *,
        lead: Lead,
        power: EnginePower,
        clock: ClusterClock,
        tell: Callable[[PowerRead | PowerOrdered], None],
    ) -> None:
        self._cluster_id = cluster_id
        self._lead = lead
        self._power = power
        self._clock = clock
        self._tell = tell
        self._lanes: dict[Key, _Lane] = {}
        self._kept: dict[Key, PowerDevice] = {}
        """One object per device and revision: it remembers what the device takes, and keeps its connection."""
        self._wanted: dict[HostId, frozenset[PowerDeviceId]] = {}
        self._changes = asyncio.Event()
        self._reading_slots = asyncio.Semaphore(READINGS_AT_ONCE)
        self._order_slots = asyncio.Semaphore(ORDERS_AT_ONCE)
        self._test_slots = asyncio.Semaphore(TESTS_AT_ONCE)
        self._beside: set[asyncio.Task[None]] = set()
        self._closed = False

    # What comes in; never waits, never fails

    def hand_over(self, command: ReadPower | OrderPower) -> None:
        if self._closed:
            return  # nobody leads here any more, and nobody would hear the answer
        key = (command.host_id, command.device)
        lane = self._lanes.setdefault(key, _Lane())
        if lane.testing is not None:
            cancel_once(lane.testing)
        match command:
            case OrderPower():
                lane.orders.append(command)
                if lane.reading is not None:
                    cancel_once(
                        lane.reading
                    )  # a device that hangs is not waited for with an order that grows old
            case ReadPower():
                until = Millis(self._clock.now() + command.deadline_ms)
                lane.readings.append((command, until))
        self._serve_on(key, lane)

    async def test(
        self, host_id: HostId, device: PowerDeviceId, *, deadline_ms: int, waits_ms: int
    ) -> DeviceAnswer | None:
        """A scheduled reading (F9), when nothing else is asked of the device: orders and questions of the engine go before it,
        and end it. None: it was not asked. ``deadline_ms``: of each reading. ``waits_ms``: see ``DeviceAnswer``."""
        if self._closed:
            return None
        key = (host_id, device)
        lane = self._lanes.setdefault(key, _Lane())
        command = ReadPower(order_id=TEST, host_id=host_id, device=device, deadline_ms=deadline_ms)
        test = _Test(command, waits_ms, asyncio.get_running_loop().create_future())
        lane.tests.append(test)
        self._serve_on(key, lane)
        return await test.ended

    def _serve_on(self, key: Key, lane: _Lane) -> None:
        if lane.worker is None:
            host_id, device = key
            lane.worker = asyncio.create_task(
                self._serve(key, lane), name=f"power {device} of {host_id}"
            )

    def configured(self, host_id: HostId, devices: frozenset[PowerDeviceId]) -> None:
        """All that this host has now. What others keep is let go."""
        if devices:
            self._wanted[host_id] = devices
        else:
            self._wanted.pop(host_id, None)
        self._changes.set()
        for key in [one for one in self._kept if one[0] == host_id and one[1] not in devices]:
            if key not in self._lanes:
                self._let_go(key)

    @property
    def busy(self) -> bool:
        """Whether any answer is outstanding."""
        return bool(self._lanes)

    async def close(self) -> None:
        """Nothing goes out any more; what is under way is ended. Safe to call twice."""
        self._closed = True
        workers = [lane.worker for lane in self._lanes.values() if lane.worker is not None]
        for worker in workers:
            worker.cancel()
        beside = tuple(self._beside)
        for task in beside:
            task.cancel()
        await asyncio.gather(*workers, *beside, return_exceptions=True)
        for lane in self._lanes.values():
            for test in lane.tests:
                test.end(None)  # its worker was cancelled before it began
        self._lanes.clear()
        for key in tuple(self._kept):
            self._let_go(key)
        await asyncio.gather(*self._beside, return_exceptions=True)

    # One device

    async def _serve(self, key: Key, lane: _Lane) -> None:
        try:
            while lane.orders or lane.readings or lane.tests:
                if lane.orders:
                    self._tell(await self._to_its_end(lane.orders.popleft()))
                elif lane.readings:
                    self._tell(await self._read_unless_ordered(lane, *lane.readings.popleft()))
                else:
                    await self._test_unless_asked(lane, lane.tests.popleft())
        finally:
            del self._lanes[key]
            for test in lane.tests:
                test.end(None)
            if not self._closed and key[1] not in self._wanted.get(key[0], ()):
                self._let_go(key)

    async def _read_unless_ordered(
        self, lane: _Lane, command: ReadPower, until: Millis
    ) -> PowerRead:
        lane.reading = asyncio.create_task(self._answered(command, until))
        try:
            await asyncio.wait({lane.reading})
            if lane.reading.cancelled():
                return _unread(command, NOT_ASKED)
            return lane.reading.result()
        finally:
            await give_up(lane.reading)  # cancelled ourselves: it ends with us
            lane.reading = None

    async def _test_unless_asked(self, lane: _Lane, test: _Test) -> None:
        lane.testing = asyncio.create_task(self._tested(test))
        try:
            await asyncio.wait({lane.testing})
            test.end(None if lane.testing.cancelled() else lane.testing.result())
        finally:
            test.end(None)
            await give_up(lane.testing)
            lane.testing = None

    async def _tested(self, test: _Test) -> DeviceAnswer | None:
        """A driver that breaks has given no answer."""
        try:
            async with self._test_slots:
                return await self._test(test.command, test.waits_ms)
        except Exception as error:
            # A driver's mistake, here and below: it is no answer of the device, and ends neither its lane nor this server.
            log.error("a power test broke", broke=_where(error), **_of(test.command))
            return DeviceAnswer(PowerReading(state=PowerState.UNKNOWN, code=FAILED), 0)

    async def _test(self, command: ReadPower, waits_ms: int) -> DeviceAnswer | None:
        until = Millis(self._clock.now() + command.deadline_ms)
        reached = await self._reach(command, until)
        if reached == UNUSABLE:
            return DeviceAnswer(PowerReading(state=PowerState.UNKNOWN, code=UNUSABLE), 0)
        if isinstance(reached, str):
            return None
        tested = await self._timed(reached.device, command.deadline_ms)
        if tested.reading.state is not PowerState.UNKNOWN and tested.took_ms > waits_ms:
            tested = await self._timed(reached.device, command.deadline_ms)
        return None if tested.reading.code in UNASKED else tested

    async def _timed(self, device: PowerDevice, deadline_ms: int) -> DeviceAnswer:
        began = self._clock.now()
        try:
            async with asyncio.timeout((deadline_ms + OVERTIME_MS) / 1_000):
                reading = await device.status(deadline_ms=deadline_ms)
        except TimeoutError:
            reading = PowerReading(
                state=PowerState.UNKNOWN, code=NO_ANSWER, detail="its driver did not end in time"
            )
        return DeviceAnswer(reading, int(self._clock.now() - began))

    async def _answered(self, command: ReadPower, until: Millis) -> PowerRead:
        """Whatever breaks, the engine is told: it waits for an answer to each question."""
        try:
            return await self._read(command, until)
        except Exception as error:
            log.error("a power device could not be read", broke=_where(error), **_of(command))
            return _unread(command, FAILED)

    async def _to_its_end(self, command: OrderPower) -> PowerOrdered:
        try:
            return await self._order(command)
        except Exception as error:
            log.error("a power order broke", broke=_where(error), **_of(command))
            return self._ordered(command, Result.UNKNOWN, FAILED, "it may have gone out")

    async def _read(self, command: ReadPower, until: Millis) -> PowerRead:
        if not await self._slot(self._reading_slots, until):
            return _unread(command, NOT_ASKED)
        try:
            reached = await self._reach(command, until)
            if isinstance(reached, str):
                return self._unread(command, reached, "")
            left_ms = until - self._clock.now()
            if left_ms <= 0:
                return self._unread(command, NOT_ASKED, "")
            try:
                async with asyncio.timeout((left_ms + OVERTIME_MS) / 1_000):
                    reading = await reached.device.status(deadline_ms=left_ms)
            except TimeoutError:
                return self._unread(command, NO_ANSWER, "its driver did not end in time")
            return self._as_read(command, until, reached, reading)
        finally:
            self._reading_slots.release()

    def _as_read(
        self, command: ReadPower, until: Millis, reached: _Reached, reading: PowerReading
    ) -> PowerRead:
        if self._clock.now() > until + OVERTIME_MS:
            # What it tells is how it was then: the engine would take it for now.
            return self._unread(command, NO_ANSWER, "its answer was late")
        identity = compare(reading.identity, reached.machine)
        if reading.state is PowerState.UNKNOWN:
            code = reading.code or "power.status_unreadable"
            answer = self._unread(command, code, reading.detail)
        elif (
            reached.by_agents
            and reading.state is PowerState.OFF
            and identity is IdentityMatch.UNKNOWN
        ):
            # At its own network the same address may be another machine's: no test through one host vouches for another (P1).
            answer = self._unread(command, UNIDENTIFIED, reading.detail)
        else:
            log.debug("a power device was read", state=reading.state.value, **_of(command))
            answer = _answer(command, reading.state, reading.code)
        return replace(answer, identity=identity)

    def _unread(self, command: ReadPower, code: str, detail: str) -> PowerRead:
        log.info("a power device could not be read", code=code, detail=detail, **_of(command))
        return _unread(command, code)

    async def _order(self, command: OrderPower) -> PowerOrdered:
        """Its deadline counts from its sending; till when it may be sent it says itself (J7)."""
        if not await self._slot(self._order_slots, Millis(command.not_after_ms)):
            return self._too_late(command)
        try:
            reached = await self._reach(command, Millis(command.not_after_ms))
            if isinstance(reached, str):
                if reached == NOT_ASKED:
                    return self._too_late(command)
                if reached == CHANGED:
                    await self._change_is_told(command)
                return self._ordered(command, Result.REFUSED, reached, "")
            try:
                async with asyncio.timeout((command.deadline_ms + OVERTIME_MS) / 1_000):
                    outcome = await reached.device.order(
                        command.action,
                        deadline_ms=command.deadline_ms,
                        may_go=MayGoFor(lambda: self._left_ms(command)),
                    )
            except TimeoutError:
                return self._ordered(command, Result.UNKNOWN, NO_ANSWER, "its driver did not end")
            return self._ordered(command, outcome.result, outcome.code, outcome.detail)
        finally:
            self._order_slots.release()

    async def _change_is_told(self, command: OrderPower) -> None:
        """To the engine, which then orders what is there now: told of the failure first, it would count an attempt."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHANGE_WAIT_S):
                while command.device in self._wanted.get(command.host_id, ()):
                    self._changes.clear()
                    await self._changes.wait()

    def _left_ms(self, command: OrderPower) -> int:
        """For how long it may begin yet; below 0: no more. Also called in drivers' threads."""
        now = self._clock.now()
        if self._closed or is_too_late(command, now):
            return -1
        return command.not_after_ms - now

    def _too_late(self, command: OrderPower) -> PowerOrdered:
        log.warning("a power order was too late", action=command.action.value, **_of(command))
        return not_carried_out(command)

    def _ordered(
        self, command: OrderPower, result: Result, code: str | None, detail: str
    ) -> PowerOrdered:
        log.info(
            "a power order ended",
            action=command.action.value,
            result=result.value,
            code=code,
            detail=detail,
            **_of(command),
        )
        return PowerOrdered(
            order_id=command.order_id,
            host_id=command.host_id,
            device=command.device,
            result=result,
            error=code,
        )

    # Before an attempt

    async def _slot(self, slots: asyncio.Semaphore, until: Millis) -> bool:
        """False: there was none by then."""
        left_ms = max(0, until - self._clock.now())
        if not slots.locked():
            await slots.acquire()
            return True
        try:
            async with asyncio.timeout(left_ms / 1_000):
                await slots.acquire()
        except TimeoutError:
            return False
        return True

    async def _reach(self, command: ReadPower | OrderPower, until: Millis) -> _Reached | str:
        """Or the code of why it is not asked. A database that does not answer is waited for: nothing goes out unless the
        lead is known to be ours."""
        key = (command.host_id, command.device)
        while True:
            if self._clock.now() > until:
                return NOT_ASKED
            with contextlib.suppress(Unavailable):
                way = await self._power.way(self._lead, *key)
                break
            await asyncio.sleep(DATABASE_RETRY_MS / 1_000)
        if isinstance(way, NoWay):
            log.warning(
                "a power device is not asked", code=way.code, detail=way.detail, **_of(command)
            )
            return way.code
        if key not in self._kept:
            try:
                self._kept[key] = self._power.device(way)
            except (InvalidInput, Failed) as error:
                log.warning("a power device can't be used", error=str(error), **_of(command))
                return UNUSABLE
            self._aside(self._get_ready(way, _of(command)))
        return _Reached(self._kept[key], way.machine, way.settings.from_agents)

    def _let_go(self, key: Key) -> None:
        device = self._kept.pop(key, None)
        if device is not None:
            self._aside(_close(device))

    async def _get_ready(self, way: PowerWay, names: dict[str, str]) -> None:
        try:
            await self._power.get_ready(way)
        except VirthaError as error:
            log.warning("a power device can't be got ready", error=str(error), **names)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Bounded by itself, and waited for at the end only."""
        task = asyncio.create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)


async def _close(device: PowerDevice) -> None:
    try:
        await device.close()
    except Exception as error:  # what it was asked is answered already
        log.error("a power driver broke when it was closed", broke=_where(error))


def _where(error: Exception) -> str:
    """Without its words: nobody knows what a driver that breaks puts into them, and it is given passwords."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}"


def _of(command: ReadPower | OrderPower) -> dict[str, str]:
    return {
        "host": command.host_id,
        "device": command.device,
        "order": command.order_id,
    }


def _answer(command: ReadPower, state: PowerState, code: str | None) -> PowerRead:
    return PowerRead(
        order_id=command.order_id,
        host_id=command.host_id,
        device=command.device,
        state=state,
        error=code,
    )


def _unread(command: ReadPower, code: str) -> PowerRead:
    return _answer(command, PowerState.UNKNOWN, code)
