"""What a policy adds up to, step by step, from a failure to the VM's process elsewhere (X6).

``typical`` is the median that is to be expected, ``worst`` what may happen while everything that the
way needs still works: every answer comes at its deadline. Not in it, because it has no bound: waiting
behind other VMs at the start limits, caps, brakes, quiet times, and storage that stalls.
"""

from enum import StrEnum

from virtha.model.policy.detection import DetectionPolicy
from virtha.model.policy.document import Policy
from virtha.model.policy.fencing import FencingAction, Unreachable
from virtha.model.policy.lease import LeasePolicy
from virtha.model.policy.permission import PermissionGrade
from virtha.model.value import Value

NOTICE_MS = (50, 250)
"""(typical, worst) until a broken connection is seen: the kernel's reset or unreachable message."""
RECORD_MS = (50, 250)
"""One transaction: PostgreSQL and SQLite are measured in milliseconds, a busy disk takes longer."""
READ_TYPICAL_MS = 100
"""One answer of a power interface: IPMI is measured at 10 to 40 ms, Redfish takes longer."""
POWER_OFF_TYPICAL_MS = 4_000
"""From the order until the power is read as off: emulated and real ones take 1 to 11 s."""
POISON_MS = (50, 1_000)
"""One direct write on storage that works."""
LOOK_MS = (20, 250)
"""One look of a reader at the slots of a domain, which lie in one piece."""
START_MS = (600, 1_000)
"""Order, gate, QEMU: measured at 0.4 to 0.6 s here."""


class Way(StrEnum):
    """How a host fails, and so on which road its VMs are proven dead."""

    POWER_CUT_BROKEN = "power_cut_broken"
    POWER_CUT_SILENT = "power_cut_silent"
    ALREADY_OFF = "already_off"
    HOST_HUNG = "host_hung"
    LEASE = "lease"


WAY_MEANINGS: dict[Way, str] = {
    Way.POWER_CUT_BROKEN: "The host loses power, its connection is seen to break, its BMC answers.",
    Way.POWER_CUT_SILENT: "The host loses power, it just falls silent, its BMC answers.",
    Way.ALREADY_OFF: "The host is off already when a new server begins to look; its BMC answers.",
    Way.HOST_HUNG: "The host hangs but has power; its BMC switches it off.",
    Way.LEASE: "The host and its BMC are dead; lease and watchdog prove it.",
}


class BudgetStep(Value, frozen=True, kw_only=True):
    """``settings``: the paths of the fields that decide it; none: it is measured, not chosen."""

    name: str
    typical_ms: int
    worst_ms: int
    meaning: str
    settings: tuple[str, ...] = ()


class WayBudget(Value, frozen=True, kw_only=True):
    """``blocked``: why the VMs wait for a person on this way; then there are no steps."""

    way: Way
    meaning: str
    steps: tuple[BudgetStep, ...] = ()
    blocked: str = ""
    typical_ms: int = 0
    worst_ms: int = 0
    """The sums of the steps."""


class Budget(Value, frozen=True, kw_only=True):
    ways: tuple[WayBudget, ...]

    def of(self, way: Way) -> WayBudget:
        return next(one for one in self.ways if one.way is way)


def budget(policy: Policy) -> Budget:
    """The steps and sums of every way a host may fail."""
    roads = {
        Way.POWER_CUT_BROKEN: _power_cut_broken,
        Way.POWER_CUT_SILENT: _power_cut_silent,
        Way.ALREADY_OFF: _already_off,
        Way.HOST_HUNG: _host_hung,
        Way.LEASE: _lease,
    }
    ways = []
    for way, road in roads.items():
        blocked = _blocked(policy, way)
        steps = () if blocked else tuple(road(policy))
        ways.append(
            WayBudget(
                way=way,
                meaning=WAY_MEANINGS[way],
                steps=steps,
                blocked=blocked,
                typical_ms=sum(step.typical_ms for step in steps),
                worst_ms=sum(step.worst_ms for step in steps),
            )
        )
    return Budget(ways=tuple(ways))


def _blocked(policy: Policy, way: Way) -> str:
    """What the policy itself forbids on this way. Also a host that is off already is ordered off before
    that proves anything (P1), so every way is fencing."""
    grade, action = policy.recovery.grade, policy.fencing.action
    if not grade.permits(PermissionGrade.FENCE):
        return f"recovery.grade {grade} forbids it"
    if action in (FencingAction.NOTHING, FencingAction.BLINK):
        return f"fencing.action {action} proves nothing"
    if way is Way.LEASE and not policy.leases_in_use:
        return "lease.enabled is no"
    if way is Way.LEASE and Unreachable.LEASE not in policy.fencing.unreachable:
        return "fencing.unreachable does not name lease"
    return ""


def _step(name: str, times: tuple[int, int], meaning: str, *settings: str) -> BudgetStep:
    typical, worst = times
    return BudgetStep(
        name=name, typical_ms=typical, worst_ms=worst, meaning=meaning, settings=settings
    )


def _silence(detection: DetectionPolicy, wait_ms: int, meaning: str, setting: str) -> BudgetStep:
    """Counted from the last beat, which on average came half an interval before the failure."""
    typical = wait_ms - detection.beat_interval_ms // 2
    return _step("silence", (typical, wait_ms), meaning, setting, "detection.beat_interval_ms")


def _power_cut_broken(policy: Policy) -> list[BudgetStep]:
    read_ms = policy.fencing.read_deadline_ms
    return [
        _step("notice", NOTICE_MS, "The connection breaks: the host is suspected at once."),
        _step(
            "power reading",
            (min(READ_TYPICAL_MS, read_ms), read_ms),
            "The BMC is asked, and says off.",
            "fencing.read_deadline_ms",
        ),
        *_quick_road(policy),
    ]


def _power_cut_silent(policy: Policy) -> list[BudgetStep]:
    detection, fencing = policy.detection, policy.fencing
    ahead = detection.suspect_after_ms - detection.late_after_ms
    read_ms = fencing.read_deadline_ms
    return [
        _silence(
            detection,
            detection.suspect_after_ms,
            "No beat comes, until the host is suspected.",
            "detection.suspect_after_ms",
        ),
        _step(
            "power reading",
            (max(0, min(READ_TYPICAL_MS, read_ms) - ahead), max(0, read_ms - ahead)),
            "The BMC was asked when the first beat was late; what is left until it says off.",
            "fencing.read_deadline_ms",
        ),
        *_quick_road(policy),
    ]


def _already_off(policy: Policy) -> list[BudgetStep]:
    detection = policy.detection
    return [
        _step(
            "reconnect",
            (detection.reconnect_ms, detection.reconnect_ms),
            "A new server first lets hosts come back (J1); the BMC is asked meanwhile, and says off.",
            "detection.reconnect_ms",
        ),
        _step(
            "detection window",
            (detection.dead_after_ms, detection.dead_after_ms),
            "Then it observes for one full detection window.",
            "detection.dead_after_ms",
        ),
        *_quick_road(policy),
    ]


def _quick_road(policy: Policy) -> list[BudgetStep]:
    """The BMC says off: order off all the same, read it twice, start (P1)."""
    read_ms = policy.fencing.read_deadline_ms
    typical = min(READ_TYPICAL_MS, read_ms)
    return [
        _step("record the order", RECORD_MS, "The order is written down before it is given."),
        _step(
            "order off, first reading",
            (2 * typical, 2 * read_ms),
            "Off is ordered all the same, and read (P1).",
            "fencing.read_deadline_ms",
        ),
        *_proof_and_start(policy),
    ]


def _host_hung(policy: Policy) -> list[BudgetStep]:
    detection, fencing = policy.detection, policy.fencing
    return [
        _silence(
            detection,
            detection.hung_after_ms,
            "No beat comes, but hints of life do, until the host is judged hung.",
            "detection.hung_after_ms",
        ),
        _disk_checks(detection, detection.hung_at_ms - detection.hung_after_ms),
        _step("record the order", RECORD_MS, "The order is written down before it is given."),
        _step(
            "order off, first reading",
            (
                min(POWER_OFF_TYPICAL_MS, fencing.order_deadline_ms),
                fencing.order_deadline_ms,
            ),
            "The BMC switches the host off; its state is read until it says so.",
            "fencing.order_deadline_ms",
        ),
        *_proof_and_start(policy),
    ]


def _disk_checks(detection: DetectionPolicy, rest_ms: int) -> BudgetStep:
    assert rest_ms >= 0
    return _step(
        "disk checks",
        (rest_ms, rest_ms),
        "The neighbours' looks at its VMs' disks, as far as they last longer than the silence (F2).",
        "detection.check_interval_ms",
        "detection.additional_checks",
    )


def _proof_and_start(policy: Policy) -> list[BudgetStep]:
    fencing = policy.fencing
    return [
        _step(
            "gap",
            (fencing.read_back_gap_ms, fencing.read_back_gap_ms),
            "One reading of off may be wrong: a pause before the second.",
            "fencing.read_back_gap_ms",
        ),
        _step(
            "second reading",
            (min(READ_TYPICAL_MS, fencing.read_deadline_ms), fencing.read_deadline_ms),
            "Off again: every copy of that boot is proven dead.",
            "fencing.read_deadline_ms",
        ),
        *_start(),
    ]


def _start() -> list[BudgetStep]:
    return [
        _step("record the proof", RECORD_MS, "Proof and start are written down before the order."),
        _step("start", START_MS, "The target's gate checks the grant, QEMU runs."),
    ]


def _lease(policy: Policy) -> list[BudgetStep]:
    detection, fencing, lease = policy.detection, policy.fencing, policy.lease
    known_at = detection.late_after_ms + fencing.attempts_per_device * fencing.read_deadline_ms
    unreachable_ms = max(0, known_at - detection.dead_at_ms)
    period_ms = lease.read_period_ms
    return [
        _silence(
            detection,
            detection.dead_after_ms,
            "No beat and no other sign comes, until the host is judged dead.",
            "detection.dead_after_ms",
        ),
        _disk_checks(detection, detection.dead_at_ms - detection.dead_after_ms),
        _step(
            "power given up",
            (unreachable_ms, unreachable_ms),
            "All attempts at the BMC have failed; what they last longer than the silence.",
            "fencing.attempts_per_device",
            "fencing.read_deadline_ms",
        ),
        _step("record the poison", RECORD_MS, "The intent is written down first."),
        _step("poison", POISON_MS, "The slot's mailbox is poisoned, and storage acknowledges it."),
        _step(
            "poison seen",
            (period_ms // 2, period_ms),
            "Until the next look reads the poison: from then on it is waited.",
            "lease.read_period_ms",
        ),
        *(
            _step(name, (wait_ms, wait_ms), meaning, setting)
            for name, wait_ms, meaning, setting in _lease_waits(lease)
        ),
        _step(
            "last look",
            (period_ms // 2 + LOOK_MS[0], period_ms + LOOK_MS[1]),
            "The look that ends it begins after all that, and still finds nothing new.",
            "lease.read_period_ms",
        ),
        *_start(),
    ]


def _lease_waits(lease: LeasePolicy) -> tuple[tuple[str, int, str, str], ...]:
    """What ``lease.expiry_ms`` is made of, in the order in which it passes on the host."""
    two_looks_ms = 2 * lease.read_period_ms
    return (
        (
            "self-fencing",
            lease.self_fence_after_ms,
            "Its guardian, if it lives, gives its VMs up by then (P2).",
            "lease.self_fence_after_ms",
        ),
        ("kill", lease.kill_ms, "And has killed them by then.", "lease.kill_ms"),
        (
            "watchdog",
            lease.watchdog_ms,
            "A guardian that is frozen feeds no watchdog: it has reset the host by then.",
            "lease.watchdog_ms",
        ),
        (
            "two looks",
            two_looks_ms,
            "What its guardian read may be one look's time old, and so may what a reader reads.",
            "lease.read_period_ms",
        ),
        (
            "clock drift",
            lease.expiry_ms - lease.host_side_ms - two_looks_ms,
            "The host's clock may be that much slower than ours.",
            "lease.drift_percent",
        ),
    )
