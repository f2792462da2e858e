"""The host's watchdog: when it is armed, and when it is fed. Pure.

It is armed only when leases are in use and the host is healthy, declared only once it is armed, and fed so
that it can't hold a host up longer than readers count on: a feeding is *ordered* only while now + timeout
lies within the time in which the VMs have to be dead anyway (``over_at``). So a guardian that goes on orders
its last feeding one timeout before that moment, and the watchdog itself is the reset at the end of the kill
time. A feeding that was ordered in time and done late, by a frozen process, was still done within
one timeout of the feeding before it (else the host is down already); so the host ends within one
timeout of ``over_at``, and that timeout is the *watchdog* in P2's sum. It takes that only one feeding
is ever under way: a queue of them would add up.
"""

from enum import StrEnum

from virtha.model.policy import LeasePolicy
from virtha.model.policy.lease import LAST_CALL_MS
from virtha.model.time import Millis
from virtha.sentinel.guardian import Report
from virtha.sentinel.lease_events import (
    ArmWatchdog,
    DisarmWatchdog,
    FeedWatchdog,
    HostNature,
    LeaseCommand,
    WatchdogArmed,
)

FEEDS_PER_TIMEOUT = 5
RETRY_MS = 30_000


class WatchdogState(StrEnum):
    OFF = "off"
    ARMING = "arming"
    ARMED = "armed"
    DISARMING = "disarming"


class HostWatchdog:
    """Invariant: at most one feeding is under way."""

    def __init__(self, nature: HostNature) -> None:
        self._nature = nature
        self.state = WatchdogState.OFF
        self.timeout_ms = 0
        self.no_way_out = False
        self._broken = False
        self._feeding = False
        self._ordered_at: Millis | None = None
        self._tried_at: Millis | None = None
        self._told = ""

    @property
    def declared(self) -> bool:
        """Whether slots may say that it is armed."""
        return self.state is WatchdogState.ARMED and not self._broken

    def armed(self, event: WatchdogArmed, now: Millis) -> list[LeaseCommand]:
        self.state = WatchdogState.ARMED
        self.timeout_ms, self.no_way_out = event.timeout_ms, event.no_way_out
        self._broken = self._feeding = False
        self._ordered_at = now
        self._told = ""
        return [
            Report(
                code="host.watchdog.armed",
                fields={"timeout_ms": event.timeout_ms, "no_way_out": event.no_way_out},
            )
        ]

    def failed(self, detail: str) -> list[LeaseCommand]:
        self._feeding = False
        if self.state is WatchdogState.ARMED:
            # It may bite all the same, so it is fed on; but no slot says any more that it will.
            told, self._broken = self._broken, True
            return [] if told else [Report(code="host.watchdog.broken", fields={"detail": detail})]
        self.state = WatchdogState.OFF
        return self._tell("host.watchdog.unarmed.absent")

    def fed(self) -> None:
        self._feeding, self._broken = False, False

    def disarmed(self) -> None:
        self.state = WatchdogState.OFF

    # Arming

    def arm(self, now: Millis, policy: LeasePolicy) -> list[LeaseCommand]:
        """For the first time in this boot. The caller has seen that the host is healthy."""
        why_not = self._why_not(policy) if self.state is WatchdogState.OFF else None
        if why_not is not None:
            return self._tell(why_not)
        return self._order_arming(now, policy.watchdog_ms)

    def take_over(self, now: Millis, timeout_ms: int, over_at: Millis | None) -> list[LeaseCommand]:
        """From an earlier guardian of this boot, which declared ``timeout_ms``. Opening it feeds it, so it has to
        be in time for that; else it runs out."""
        if over_at is not None and now + timeout_ms > over_at:
            return []
        return self._order_arming(now, timeout_ms)

    def _order_arming(self, now: Millis, timeout_ms: int) -> list[LeaseCommand]:
        waits = self._tried_at is not None and now < self._tried_at + RETRY_MS
        if self.state is not WatchdogState.OFF or waits:
            return []
        self.state, self._tried_at = WatchdogState.ARMING, now
        return [ArmWatchdog(timeout_ms=timeout_ms)]

    def _why_not(self, policy: LeasePolicy) -> str | None:
        if self._nature.is_virtual is None:
            return "host.watchdog.unarmed.unknown"
        if self._nature.is_virtual and not self._nature.watchdog_is_real_because:
            return "host.watchdog.unarmed.virtual"
        if not self._nature.suspend_blocked:
            return "host.watchdog.unarmed.suspend"
        if not fits(policy, policy.watchdog_ms):
            return "host.watchdog.unarmed.too_slow"
        return None

    def disarm(self) -> list[LeaseCommand]:
        """The caller has made sure that no lease can prove anything."""
        if self.state is not WatchdogState.ARMED or self.no_way_out or self._feeding:
            return []
        self.state = WatchdogState.DISARMING
        return [DisarmWatchdog()]

    # Feeding

    def feed(self, now: Millis, over_at: Millis | None) -> list[LeaseCommand]:
        """``over_at``: by when the VMs of the tightest lease have to be dead; None: nothing was promised."""
        due = self.feed_at(now, over_at)
        if due is None or now < due:
            return []
        self._feeding, self._ordered_at = True, now
        return [FeedWatchdog()]

    def feed_at(self, now: Millis, over_at: Millis | None) -> Millis | None:
        """When the next feeding is due: each fifth of the timeout, and once more before it is too late.
        None: never, as things stand."""
        if self.state is not WatchdogState.ARMED or self._feeding or self._ordered_at is None:
            return None
        due = self._ordered_at + self.timeout_ms // FEEDS_PER_TIMEOUT
        if over_at is not None:
            latest = over_at - self.timeout_ms
            last_call = latest - LAST_CALL_MS
            if self._ordered_at < last_call < due:
                due = last_call
            if due > latest or now > latest:
                return None
        return due  # type: ignore[return-value]  # sums of times; asked too often to be wrapped

    def _tell(self, code: str) -> list[LeaseCommand]:
        if code == self._told:
            return []
        self._told = code
        return [Report(code="host.watchdog.unarmed", fields={"reason": code})]


def fits(policy: LeasePolicy, timeout_ms: int) -> bool:
    """Whether a healthy host can go on feeding a watchdog of that timeout: between two good renewals there
    must be room for one that comes late."""
    room_ms = policy.self_fence_after_ms + policy.kill_ms - timeout_ms
    return 0 < timeout_ms <= policy.watchdog_ms and room_ms >= 2 * policy.renew_ms + LAST_CALL_MS
