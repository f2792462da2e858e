"""What a test of a power device is worth, who asked whatever for it: judged, kept, told."""

from virtha.control.engine_power import device_id
from virtha.control.history import record
from virtha.control.names import the_host
from virtha.engine.events import PowerTested
from virtha.model.codes import render
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.host import Host, HostState, HostStatus
from virtha.model.ids import HostId, Revision
from virtha.model.machine_identity import compare
from virtha.model.power_settings import MachineIdentity, PowerTest
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.ports.leaders import Leaders
from virtha.ports.power import PowerReading
from virtha.store.power import power_tests, save_power_test
from virtha.store.store import Store, WriteTransaction

PASSED = "power.test.passed"
FAILED = "power.test.failed"
_PASSES = (None, "power.no_identity")
_SPOKE_AGAINST = ("power.other_machine", "power.reads_off")
"""What a device says of itself: that it is another host's. All else says that nobody could ask it."""


class Tried(Value, frozen=True, kw_only=True):
    """One test of a host's device, as it ended. ``before``: how the host was when it began. ``waits_ms``: as long would
    fencing wait for a reading."""

    host: Host
    before: HostStatus
    name: str
    revision: Revision
    """Of the newer of the cluster's and the host's settings."""
    has_status: bool
    reading: PowerReading
    took_ms: int
    waits_ms: int


class PowerResults:
    def __init__(self, store: Store, clock: Clock, leaders: Leaders) -> None:
        self._store = store
        self._clock = clock
        self._leaders = leaders

    async def keep(self, tried: Tried, *, by: str) -> PowerTest:
        """Of a test that ``by`` asked for: always told. Raises NotFound: the host was removed meanwhile."""
        async with self._store.write() as tx:
            test = await self._judged(tx, tried, scheduled=False)
            await save_power_test(tx, tried.host.id, tried.name, test)
            await _tell(tx, tried, test, PASSED if test.passed else FAILED, by=by)
        self._tell_engine(tried, test)
        return test

    async def keep_scheduled(self, tried: Tried) -> PowerTest | None:
        """Told when it says otherwise than the one before. None: it says nothing of its device, for its host was not up
        throughout, or other settings were tested meanwhile. Raises NotFound: the host was removed meanwhile."""
        async with self._store.write() as tx:
            test = await self._judged(tx, tried, scheduled=True)
            if test.boot is None:
                return None
            former = (await power_tests(tx, tried.host.id)).get(tried.name)
            if former is not None and former.settings_revision > test.settings_revision:
                return None
            await save_power_test(tx, tried.host.id, tried.name, test)
            news = _news(former, test)
            if news is not None:
                await _tell(tx, tried, test, news)
        self._tell_engine(tried, test)
        return test

    async def _judged(self, tx: WriteTransaction, tried: Tried, *, scheduled: bool) -> PowerTest:
        reading, identity = tried.reading, identity_of(tried.before, tried.reading)
        now = (await the_host(tx, tried.host.id)).status
        # What it says is of that boot only if that one was up all the time.
        up = is_up(tried.before) and is_up(now) and tried.before.boot == now.boot
        code = _verdict(reading, identity, up=up, has_status=tried.has_status)
        if tried.took_ms > tried.waits_ms and code in _PASSES:
            code = "power.too_slow"
        passed = reading.state is PowerState.ON and up and code in _PASSES
        at = self._clock.wall_ms()
        former = (await power_tests(tx, tried.host.id)).get(tried.name)
        same = former is not None and former.settings_revision == tried.revision
        return PowerTest(
            at=at,
            boot=now.boot if up else None,
            passed=passed,
            state=reading.state,
            identity=identity,
            code=code,
            detail=reading.detail,
            took_ms=tried.took_ms,
            settings_revision=tried.revision,
            scheduled=scheduled,
            passed_at=at if passed else former.passed_at if same and former else None,
        )

    def _tell_engine(self, tried: Tried, test: PowerTest) -> None:
        event = engine_event(tried.host.id, tried.name, test)
        if event is not None:
            self._leaders.offer(tried.host.cluster_id, event)


def engine_event(host_id: HostId, name: str, test: PowerTest) -> PowerTested | None:
    """What the engine keeps in its own records of it (P1): of the settings that were tested. A scheduled look that could not
    ask takes nothing back: whose device it is was found out before, and no answer says nothing of that."""
    if test.boot is None:
        return None
    if test.scheduled and not test.passed and test.code not in _SPOKE_AGAINST:
        return None
    return PowerTested(
        host_id=host_id,
        boot=test.boot,
        device=device_id(name, test.settings_revision),
        passed=test.passed,
        identity=test.identity,
    )


def _news(former: PowerTest | None, test: PowerTest) -> str | None:
    """The event that tells it; None: nothing has changed."""
    if former is None or former.settings_revision != test.settings_revision:
        return PASSED if test.passed else FAILED
    if test.passed:
        return None if former.passed else "power.test.mended"
    if former.passed:
        return "power.test.broke"
    another = test.code != former.code and test.code in _SPOKE_AGAINST
    return FAILED if another else None


async def _tell(
    tx: WriteTransaction, tried: Tried, test: PowerTest, news: str, *, by: str | None = None
) -> None:
    said = test.state.value
    why = (
        None if test.passed else reason_text(test.code) or f"it says {said}, and the host is not up"
    )
    await record(tx, news, host=tried.host, by=by, device=tried.name, state=said, why=why)


def identity_of(status: HostStatus, reading: PowerReading) -> IdentityMatch:
    told = status.capabilities.machine
    host = told if isinstance(told, MachineIdentity) else MachineIdentity()
    return compare(reading.identity, host)


def _verdict(
    reading: PowerReading, identity: IdentityMatch, *, up: bool, has_status: bool
) -> str | None:
    if identity is IdentityMatch.MISMATCH:
        return "power.other_machine"
    if reading.state is PowerState.UNKNOWN:
        return reading.code or ("power.status_unreadable" if has_status else "power.no_status")
    if reading.state is PowerState.OFF and up:
        return "power.reads_off"
    return "power.no_identity" if identity is IdentityMatch.UNKNOWN else None


def is_up(status: HostStatus) -> bool:
    return status.state in (HostState.UP, HostState.AGENT_DOWN)


def reason_text(code: str | None) -> str:
    return render(code, {}) if code is not None else ""
