"""The storage lease: slots, self-fencing and the host's watchdog (safety P2 and section 3)."""

from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, choice, duration, percent
from virtha.model.policy.rule import Rule, Sum, one, relation

EXPIRY = Sum(
    parts=(
        (1, "lease.self_fence_after_ms"),
        (1, "lease.kill_ms"),
        (1, "lease.watchdog_ms"),
        (2, "lease.read_period_ms"),
    ),
    plus_percent="lease.drift_percent",
)
"""P2's sum: from the acknowledged poison until no VM of that boot can write any more."""

LAST_CALL_MS = 100
"""The watchdog's last feeding is ordered that much before it would be too late, so that a timer's delay doesn't cost a
fifth of its timeout."""

_RULES = (
    relation(
        one("lease.renew_ms", 2),
        one("lease.self_fence_after_ms"),
        why="one late renewal would make a host kill its VMs",
        fix="lower lease.renew or raise lease.self_fence_after",
    ),
    relation(
        one("lease.renew_ms", 2),
        one("lease.watchdog_ms"),
        strict=False,
        why="the guardian feeds the watchdog as it renews; one late feed would reset the host",
        fix="lower lease.renew or raise lease.watchdog",
    ),
    relation(
        one("lease.renew_ms"),
        one("lease.read_period_ms"),
        strict=False,
        why="readers would look more often than slots change, and take standing slots for dead",
        fix="lower lease.renew or raise lease.read_period",
    ),
    relation(
        one("lease.read_period_ms"),
        one("lease.self_fence_after_ms"),
        why="a lease would end between two looks at it",
        fix="lower lease.read_period or raise lease.self_fence_after",
    ),
    relation(
        Sum(
            parts=((1, "lease.watchdog_ms"), (2, "lease.renew_ms")),
            constant_ms=LAST_CALL_MS,
            constant_name="the last feeding's head start",
        ),
        Sum(parts=((1, "lease.self_fence_after_ms"), (1, "lease.kill_ms"))),
        strict=False,
        why="between two good renewals there would be no room for one that comes late, so the watchdog would never be "
        "armed, and no lease could prove anything",
        fix="lower lease.watchdog or raise lease.self_fence_after",
        when=("lease.enabled", True),
    ),
)


class LeasePolicy(Section, frozen=True, kw_only=True):
    """Each guardian renews a slot on each storage domain. One that can't for ``self_fence_after_ms``
    kills its VMs, whoever else may be affected: the price of a proof that needs no power interface.
    An expired slot is proof only where the slot itself declares an armed watchdog (P2)."""

    NAME: ClassVar[str] = "lease"
    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    enabled: Annotated[
        bool,
        choice(
            "Guardians renew slots, and fence themselves when they can't. Off: a host whose power "
            "interface is dead waits for an operator.",
            source="safety section 3",
        ),
    ] = True
    renew_ms: Annotated[
        int,
        duration(
            200,
            30_000,
            "Time between two renewals of a slot; each reads the mailbox first.",
            source="two per look of the readers",
        ),
    ] = 1_000
    self_fence_after_ms: Annotated[
        int,
        duration(
            1_000,
            300_000,
            "A guardian that could not renew for this long, counted from sending the last renewal "
            "that succeeded, kills the VMs with disks there. A storage outage shorter than this "
            "only makes VMs wait.",
            source="what is left of 45 s (design section 9) beside verdict, watchdog and looks",
        ),
    ] = 15_000
    kill_ms: Annotated[
        int,
        duration(
            500,
            60_000,
            "Within this the killed VMs must be gone with no write outstanding; else the guardian "
            "lets the watchdog reset the host.",
            source="SIGKILL is answered within milliseconds unless a write hangs in the kernel",
        ),
    ] = 3_000
    watchdog_ms: Annotated[
        int,
        duration(
            2_000,
            600_000,
            "Timeout of the host's watchdog: a guardian that is itself frozen is ended by it.",
            source="watchdog devices count whole seconds; SBD's default is 5 s, ours is twice that",
            step=1_000,
        ),
    ] = 10_000
    read_period_ms: Annotated[
        int,
        duration(
            200,
            60_000,
            "Time between two looks of a reader at the slots of a storage domain.",
            source="P2 waits two of them; twice renew_ms, so that each look sees a change",
        ),
    ] = 2_000
    drift_percent: Annotated[
        int,
        percent(
            2,
            20,
            "How much faster the clock of one host may run than another's. Also covers start "
            "grants.",
            source="P2; Linux slews a clock by at most 0.05 %",
        ),
    ] = 2

    @property
    def expiry_ms(self) -> int:
        """How long an engine waits, from the acknowledged poison, before the lease is proof (P2)."""
        return EXPIRY.value(self.read)

    @property
    def host_side_ms(self) -> int:
        """The longest that a VM can still write on a host whose clock is right, from its last good
        renewal: what ``expiry_ms`` must exceed."""
        return self.self_fence_after_ms + self.kill_ms + self.watchdog_ms
