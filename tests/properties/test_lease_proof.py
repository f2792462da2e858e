"""Whenever a lease is taken for a proof, no write of that boot lands afterwards: the worst cases one by one,
each as late as the argument allows (docs/adr/0008-storage-lease.md), then whatever a random adversary does."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from lease_blocks import DOMAIN, POLICY, US, WRITER
from lease_world import World, end_waiver, waive

from virtha.engine.lease import expiry_ms
from virtha.model.slot import Declaration
from virtha.sentinel.lease import LeaseState

SLOW, EVEN, FAST = 990, 1_000, 1_010
SETTLED_MS = 30_000
LONG_MS = 230_000
FENCE_MS, KILL_MS, WATCHDOG_MS = POLICY.self_fence_after_ms, POLICY.kill_ms, POLICY.watchdog_ms
SUM_MS = expiry_ms(
    Declaration(self_fence_after_ms=FENCE_MS, kill_ms=KILL_MS, watchdog_ms=WATCHDOG_MS),
    POLICY,
)


def world(**levers: int | bool) -> World:
    made = World(**levers)
    made.run_ms(SETTLED_MS)
    return made


def held(made: World) -> bool:
    return made.writer.core.states()[DOMAIN] is LeaseState.HELD


def poison_as_late_as_it_counts(made: World, *, report_delay_us: int = 0) -> int:
    """The poison lands just after the oldest view that the writer's next renewal may read its mailbox in; the
    reader sees that renewal at once. Real time of that renewal."""
    writer = made.writer
    writer.read_lag_us = POLICY.read_period_ms * US - US
    cycle_us = writer.clock.when(POLICY.renew_ms) - writer.clock.when(0)
    renewal = writer.renewed_at[-1] + cycle_us
    if renewal - made.now < 1_100 * US:
        made.run_until(renewal + 2 * US)
        renewal = writer.renewed_at[-1] + cycle_us
    made.run_until(renewal + 6 * US - POLICY.read_period_ms * US)
    made.reader.poison()
    writer.report_delay_us = report_delay_us
    made.run_until(renewal + 5 * US)
    made.reader.read_now()
    made.run_until(renewal + 10 * US)
    writer.report_delay_us = 0
    assert abs(writer.renewed_at[-1] - renewal) < 3 * US
    return writer.renewed_at[-1]


def run_out(made: World, *, ms: int = LONG_MS) -> None:
    """Until the proof, if there is one; then the storage is back, for what is left to write."""
    until = made.now + ms * US
    while made.now < until and made.proof is None:
        made.run_until(min(made.now + 500 * US, until))
    made.writer.land_vm_writes()
    made.run_ms(10)
    made.writer.heal()
    made.run_ms(5_000)


def frozen_at_the_last_call(made: World) -> None:
    """Each feeding late, the last one frozen until just before the watchdog bites, then frozen for good: to
    just before the bite that can't be put off any more."""
    host, clock = made.writer, made.writer.clock
    submitted = poison_as_late_as_it_counts(made)
    host.cut()
    gate_ms = clock.read(submitted) + FENCE_MS + KILL_MS - WATCHDOG_MS
    nearly = clock.when(gate_ms) - 3 * US

    def delay() -> int:
        if made.now >= nearly:
            return WATCHDOG_MS * 2 * US
        return nearly - made.now if nearly - made.now < 12_000 * US else 0

    host.feed_delay = delay
    made.run_until(clock.when(gate_ms) + US)
    assert host.up
    host.frozen_until = 1 << 60
    while True:
        bites = host.bites_at
        assert bites is not None
        made.run_until(bites - 3 * US)
        if host.bites_at == bites and host.feeder_free_at < made.now:
            return
        made.run_until(bites + US)
        assert host.up


@pytest.mark.req("F9")
@pytest.mark.parametrize("reader", [SLOW, EVEN, FAST])
@pytest.mark.parametrize("writer", [SLOW, EVEN, FAST])
@pytest.mark.parametrize("watchdog", [SLOW, FAST])
def test_frozen_between_check_and_feeding_at_the_last_call(
    writer: int, watchdog: int, reader: int
) -> None:
    """The worst: a mailbox from an old view, and the storage back just before the reset."""
    made = world(writer_rate=writer, watchdog_rate=watchdog, reader_rate=reader)
    assert held(made)
    frozen_at_the_last_call(made)
    made.writer.land_vm_writes()
    made.run_ms(5)
    assert not made.writer.up and made.last_landing is not None
    run_out(made, ms=30_000)
    assert made.proof_at is not None
    if (writer, watchdog, reader) == (SLOW, SLOW, FAST):
        # The adversary reaches the bound: what is left are the two read periods, which pay for views that
        # old and for what 2 % lacks between two clocks that are 1 % off either way.
        assert made.proof_at - made.last_landing < 2 * POLICY.read_period_ms * US


def test_a_guardian_that_restarts_too_late_leaves_the_watchdog_alone() -> None:
    made = world(writer_rate=SLOW, watchdog_rate=SLOW, reader_rate=FAST)
    host = made.writer
    host.reset_works = False
    frozen_at_the_last_call(made)
    # It can read its slot; then the path hangs again.
    host.frozen_until = 0
    host.path_up = True
    host.restart_guardian()
    made.run_until(made.now + 1_500)
    host.path_up = False
    assert host.core.states()[DOMAIN] is LeaseState.LOST
    run_out(made)
    assert not host.up and made.proof is not None


@pytest.mark.parametrize("reader", [SLOW, FAST])
def test_kills_and_resets_that_do_nothing_leave_it_to_the_watchdog(reader: int) -> None:
    made = world(writer_rate=SLOW, watchdog_rate=SLOW, reader_rate=reader)
    host = made.writer
    host.reset_works = False
    submitted = poison_as_late_as_it_counts(made)
    host.cut()
    over = host.clock.when(host.clock.read(submitted) + FENCE_MS + KILL_MS)
    made.run_until(over + 500 * US)
    assert host.reset_at is not None and over - host.reset_at < 500 * US
    run_out(made)
    assert made.proof_at is not None


def test_a_renewal_whose_result_comes_late_counts_from_its_submission() -> None:
    made = world(writer_rate=SLOW, reader_rate=FAST)
    host = made.writer
    submitted = poison_as_late_as_it_counts(made, report_delay_us=(FENCE_MS - 1_000) * US)
    host.cut()
    made.run_until(host.clock.when(host.clock.read(submitted) + FENCE_MS + KILL_MS - 2_000))
    assert host.up
    run_out(made)
    assert not host.up
    assert made.proof_at is not None


@pytest.mark.parametrize("no_way_out", [True, False])
def test_without_a_watchdog_that_nothing_stops_there_is_no_proof(no_way_out: bool) -> None:
    made = world(has_watchdog=not no_way_out, no_way_out=no_way_out)
    assert held(made)
    made.reader.poison()
    made.run_ms(3)
    made.writer.kill_guardian()
    run_out(made)
    assert made.proof is None
    expected = "lease.not_proof.no_watchdog" if no_way_out else "lease.not_proof.way_out"
    assert made.reader.reason == expected


@pytest.mark.parametrize("first_cut", [False, True])
def test_a_waiver_ends_the_proof_whether_the_slot_could_say_so_or_not(first_cut: bool) -> None:
    made = world()
    if first_cut:
        made.writer.cut()
    waive(made)
    made.run_ms(3_000)
    made.writer.cut()
    made.reader.poison()
    run_out(made)
    assert made.proof is None
    assert made.writer.up


def test_the_slot_alone_tells_of_the_waiver_to_a_leader_without_records() -> None:
    made = world()
    waive(made)
    made.run_ms(3_000)
    made.reader.judge.set_waiver(WRITER, DOMAIN, stands=False)
    made.writer.cut()
    made.reader.poison()
    made.run_ms(LONG_MS)
    assert made.reader.reason == "lease.not_proof.waived"
    run_out(made)
    assert made.proof is None


def test_after_a_waiver_the_lease_is_kept_and_proves_again() -> None:
    made = world()
    waive(made)
    made.run_ms(3_000)
    made.writer.cut()
    made.run_ms(LONG_MS)
    end_waiver(made)
    made.run_ms(LONG_MS)
    assert made.writer.up and not made.writer.waiver_over, "ended into an outage"
    made.writer.heal()
    made.run_ms(5_000)
    assert made.writer.waiver_over and held(made)
    made.writer.cut()
    made.reader.poison()
    run_out(made)
    assert made.proof is not None and not made.writer.up


def test_a_reader_with_a_cache_proves_nothing() -> None:
    made = world()
    made.reader.cache(True)
    made.reader.poison()
    run_out(made)
    assert made.proof is None
    assert made.reader.reason == "lease.not_proof.no_control"


def test_slots_of_all_hosts_stand_still_and_nothing_is_proved() -> None:
    made = world()
    made.control_stopped = True
    made.reader.poison()
    made.run_ms(3)
    made.writer.cut()
    run_out(made)
    assert made.proof is None
    assert made.reader.reason == "lease.not_proof.no_control"


def test_a_living_host_obeys_the_poison_and_never_starts_in_this_boot_again() -> None:
    made = world()
    made.reader.poison()
    made.run_ms(3_000)
    assert made.writer.core.states()[DOMAIN] is LeaseState.CLEARED
    for _ in range(90):
        made.writer.start_vm(freeze_us=500 * US)
        made.run_ms(3_000)
    assert made.proof is not None and made.writer.up


def test_a_slot_write_that_lands_late_only_prolongs_the_wait() -> None:
    made = world()
    made.writer.write_errors = True
    made.writer.cut()
    made.reader.poison()
    made.run_ms(25_000)
    made.writer.heal()
    healed = made.now
    made.writer.cut()
    run_out(made)
    assert made.proof_at is not None and made.proof_at >= healed + SUM_MS * US


def test_a_lost_lease_without_poison_comes_back_once_nothing_is_left() -> None:
    made = world()
    made.writer.cut()
    made.run_ms(FENCE_MS + 2_000)
    made.writer.heal()
    made.run_ms(5_000)
    assert held(made) and made.writer.up
    assert all(qemu.gone for qemu in made.writer.qemus)
    made.writer.start_vm()
    made.run_ms(5_000)
    assert made.writer.vm_can_write()


def test_a_guardian_that_restarts_goes_on_from_its_slot() -> None:
    made = world(writer_rate=SLOW, watchdog_rate=SLOW, reader_rate=FAST)
    submitted = poison_as_late_as_it_counts(made)
    made.writer.restart_guardian()
    made.run_ms(1_000)
    assert made.writer.core.poisoned and not made.writer.vm_can_write()
    assert made.now - submitted < 2_000 * US


# Random adversary

STEP_MS = (1, 40, 300, 1_000, 5_000, 29_000, 61_000, 149_500, 202_000)


class Adversary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @precondition(lambda self: self.world is None)
    @rule(
        rates=st.tuples(*[st.sampled_from((SLOW, EVEN, FAST))] * 3),
        watchdog=st.sampled_from((True, True, True, False)),
        no_way_out=st.sampled_from((True, True, False)),
    )
    def begin(self, rates: tuple[int, int, int], watchdog: bool, no_way_out: bool) -> None:
        self.world = World(
            writer_rate=rates[0],
            watchdog_rate=rates[1],
            reader_rate=rates[2],
            has_watchdog=watchdog,
            no_way_out=no_way_out,
        )
        self.world.run_ms(10_000)

    @precondition(lambda self: self.world is not None)
    @rule(ms=st.sampled_from(STEP_MS))
    def time_passes(self, ms: int) -> None:
        assert self.world
        self.world.run_ms(ms)

    @precondition(lambda self: self.world is not None)
    @rule(
        what=st.sampled_from(
            (
                "cut",
                "heal",
                "vm_writes",
                "poison",
                "waive",
                "end_waiver",
                "restart",
                "die",
                "start_vm",
            )
        )
    )
    def happens(self, what: str) -> None:
        assert self.world
        host = self.world.writer
        match what:
            case "cut":
                host.cut()
            case "heal":
                host.heal()
            case "vm_writes":
                host.land_vm_writes()
            case "poison":
                self.world.reader.poison()
            case "waive":
                waive(self.world)
            case "end_waiver":
                end_waiver(self.world)
            case "restart":
                host.restart_guardian()
            case "die":
                host.kill_guardian()
            case "start_vm":
                host.start_vm(freeze_us=700 * US)
        self.world.check()

    @precondition(lambda self: self.world is not None)
    @rule(
        lever=st.sampled_from(
            (
                "freeze",
                "act",
                "report",
                "feed",
                "lag",
                "errors",
                "reset",
                "tear",
                "cache",
                "control",
            )
        ),
        ms=st.sampled_from((0, 0, 900, 3_900, 29_000, 60_000, 149_000)),
    )
    def lever(self, lever: str, ms: int) -> None:
        assert self.world
        host, reader = self.world.writer, self.world.reader
        match lever:
            case "freeze":
                host.frozen_until = self.world.now + ms * US
            case "act":
                host.act_delay_us = min(ms, 3_900) * US
            case "report":
                host.report_delay_us = ms * US
            case "feed":
                host.feed_delay = lambda: ms * US
            case "lag":
                host.read_lag_us = reader.lag_us = min(ms, 999) * US
            case "errors":
                host.write_errors = ms > 0
            case "reset":
                host.reset_works = ms == 0
            case "tear":
                host.tear_next = True
            case "cache":
                reader.cache(ms > 0)
            case "control":
                self.world.control_stopped = ms > 0

    def teardown(self) -> None:
        if self.world is not None:
            self.world.run_ms(LONG_MS)
            self.world.writer.land_vm_writes()
            self.world.run_ms(10)
            self.world.writer.heal()
            self.world.run_ms(3_000)


@pytest.mark.req("F9")
def test_no_write_lands_after_a_proof_whatever_happens() -> None:
    run_state_machine_as_test(
        Adversary,
        settings=settings(
            max_examples=100,
            stateful_step_count=14,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
