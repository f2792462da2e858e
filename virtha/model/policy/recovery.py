"""Starting VMs elsewhere: how many at once, how often, where, and what is kept free."""

from enum import StrEnum
from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, choice, count, duration, percent
from virtha.model.policy.permission import PermissionGrade
from virtha.model.policy.rule import Rule, Sum, one, relation


class Failback(StrEnum):
    """What happens to VMs when the host that the engine moved them away from is healthy again."""

    NEVER = "never"
    AUTOMATIC = "automatic"


class DependencyExpired(StrEnum):
    """What a VM does whose dependency has not come up in time."""

    HOLD = "hold"
    START = "start"


ATTEMPT = Sum(parts=((1, "recovery.start_deadline_ms"), (1, "recovery.grant_margin_ms")))
"""How long a start on one host blocks the next (G2)."""

_RULES = (
    relation(
        one("recovery.starts_per_host"),
        one("recovery.starts_per_cluster"),
        strict=False,
        why="the limit of one host could never be reached",
        fix="lower recovery.starts_per_host or raise recovery.starts_per_cluster",
    ),
    relation(
        one("recovery.delay_ms"),
        one("recovery.delay_ms_max"),
        strict=False,
        why="the first delay would be longer than the longest",
        fix="lower recovery.delay or raise recovery.delay_max",
    ),
    relation(
        ATTEMPT,
        one("recovery.dependency_wait_ms"),
        strict=False,
        why="a VM would stop waiting before what it depends on could have been tried even once",
        fix="raise recovery.dependency_wait",
    ),
)


class RecoveryPolicy(Section, frozen=True, kw_only=True):
    """What happens once every copy of a VM is proven dead."""

    NAME: ClassVar[str] = "recovery"
    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    grade: Annotated[
        PermissionGrade,
        choice(
            "How far automatic action may go in this cluster; a VM may be held to a lower grade.",
            source="without fencing most failures end in waiting for an operator",
        ),
    ] = PermissionGrade.FENCE
    starts_per_host: Annotated[
        int,
        count(
            1,
            256,
            "VMs that are started on one host at the same time.",
            source="against boot storms: more at once make all of them late",
        ),
    ] = 4
    starts_per_cluster: Annotated[
        int,
        count(
            1,
            10_000,
            "VMs that are started in the cluster at the same time.",
            source="shared storage serves all boots; 16 hosts at their limit",
        ),
    ] = 64
    start_deadline_ms: Annotated[
        int,
        duration(
            3_000,
            120_000,
            "How long a target may take from the beat that the order quotes until the VM's "
            "processors run: the length of a start grant (G2).",
            source="a start is measured at 0.4 to 0.6 s; slow storage takes ten times that",
        ),
    ] = 15_000
    grant_margin_ms: Annotated[
        int,
        duration(
            200,
            60_000,
            "After a grant has run out, wait this much longer before the next target is tried.",
            source="more than two clocks can drift apart during one grant",
        ),
    ] = 1_000
    attempts_max: Annotated[
        int,
        count(
            1,
            100,
            "Failed starts of one VM before it is left down and somebody is told.",
            source="as restart.restarts_max",
        ),
    ] = 5
    delay_ms: Annotated[
        int,
        duration(
            0,
            3_600_000,
            "Wait after the second failed start; after the first, another host is tried at once.",
            source="ours",
        ),
    ] = 5_000
    delay_growth: Annotated[
        int, count(1, 10, "Each further wait is this many times the one before.", source="ours")
    ] = 3
    delay_ms_max: Annotated[
        int, duration(0, 86_400_000, "The longest wait between two starts.", source="ours")
    ] = 300_000
    reserve_hosts: Annotated[
        int,
        count(
            0,
            100,
            "Keep this many hosts' worth of memory free: starts that people order may not use it, "
            "recoveries may.",
            source="vSphere's admission control has 1; 0, for clusters of one host must start VMs",
        ),
    ] = 0
    memory_overcommit_percent: Annotated[
        int,
        percent(
            50,
            400,
            "Share of the memory that hosts report which VMs may fill.",
            source="100 %: memory that isn't there ends in the kernel killing a VM",
        ),
    ] = 100
    spread: Annotated[
        bool,
        choice(
            "Spread VMs over hosts. Off: fill one host before the next.",
            source="fewer VMs are lost with the next host",
        ),
    ] = True
    quarantine_window_ms: Annotated[
        int,
        duration(
            60_000,
            604_800_000,
            "A VM that was on two hosts which died within this time is held back until an operator "
            "frees it (M5).",
            source="safety M5: within the hour",
        ),
    ] = 3_600_000
    dependency_wait_ms: Annotated[
        int,
        duration(
            1_000,
            86_400_000,
            "How long a VM waits for those that it depends on.",
            source="a slow guest's boot",
        ),
    ] = 300_000
    dependency_expired: Annotated[
        DependencyExpired,
        choice(
            "When that time is over: hold it back, or start it all the same.",
            source="a database's client that starts without it does harm more often than good",
        ),
    ] = DependencyExpired.HOLD
    failback: Annotated[
        Failback,
        choice(
            "Move VMs back by live migration when the host that they were moved away from is "
            "healthy again.",
            source="healthy VMs are not moved unless somebody wants it",
        ),
    ] = Failback.NEVER
    failback_stable_ms: Annotated[
        int,
        duration(
            60_000,
            604_800_000,
            "How long that host must have been healthy first.",
            source="a host that flaps does so within minutes",
        ),
    ] = 600_000

    @property
    def attempt_ms(self) -> int:
        """How long a start that is never answered blocks the next one (G2)."""
        return ATTEMPT.value(self.read)

    def delay_before_ms(self, failures: int) -> int:
        """The wait before the next start after ``failures`` failed ones (0 = the first start)."""
        assert failures >= 0
        if failures <= 1:
            return 0
        # growth^40 is past any delay_ms_max; keeps the number small
        exponent = min(failures - 2, 40)
        return int(min(self.delay_ms * self.delay_growth**exponent, self.delay_ms_max))
