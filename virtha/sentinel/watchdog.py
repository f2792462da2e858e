"""The guest's watchdog card: every firing is counted and told, loops are noticed, a dump ends paused."""

from msgspec.structs import replace

from virtha.model.domain import DomainReport, DomainState
from virtha.model.time import Millis, format_duration_ms
from virtha.model.vm import VmState
from virtha.model.watchdog import WatchdogAction
from virtha.sentinel.events import Cause, ExitCause, HintKind, PauseDomain, VmRecord
from virtha.sentinel.state import Guarded, HostState
from virtha.sentinel.stops import ATTRIBUTION_MS, add_hint

REBOOT_ATTRIBUTION_MS = 10_000
"""The guest's reset follows its WATCHDOG event in the same millisecond; a loaded host needs more."""
PAUSE_RETRY_MS = 10_000
PAUSE_ATTEMPTS_MAX = 5
_FIRINGS_KEPT = 1_000


def effective_action(host: HostState, record: VmRecord, told: str) -> str:
    """libvirt tells a `dump` as `pause`; only the configuration knows better."""
    card = record.vm.watchdog or host.default_watchdog
    if told == "pause" and card is not None and card.action is WatchdogAction.DUMP:
        return WatchdogAction.DUMP.value
    return told


def fired(host: HostState, guarded: Guarded, told: str) -> None:
    """One WATCHDOG event is one firing: two within a second are two (W7)."""
    record = guarded.record
    action = effective_action(host, record, told)
    card = record.vm.watchdog or host.default_watchdog
    host.tell(
        guarded,
        "vm.watchdog.fired",
        action=action,
        model=card.model.value if card else "unknown",
        count=record.firing_count + 1,
    )
    count_firing(host, guarded)
    guarded.evidence = "watchdog"
    match action:
        case WatchdogAction.POWEROFF.value:
            _announce_poweroff(host, guarded)
        case WatchdogAction.SHUTDOWN.value:
            add_hint(host, guarded, HintKind.WATCHDOG_SHUTDOWN)
        case WatchdogAction.DUMP.value if guarded.up:
            guarded.set(dump_pending=True, pause_attempts=0)


def count_firing(host: HostState, guarded: Guarded) -> None:
    """Count, and tell a reset loop once; a window without a firing re-arms that."""
    policy = host.policy.restart
    record = guarded.record
    since = host.now - policy.reset_loop_window_ms
    recent = tuple(at for at in record.firings_ms if at > since)[-_FIRINGS_KEPT:]
    told = record.loop_told and bool(recent)
    firings = (*recent, int(host.now))
    looping = len(firings) >= policy.reset_loop_count
    guarded.set(firings_ms=firings, firing_count=record.firing_count + 1, loop_told=told or looping)
    if looping and not told:
        host.tell(
            guarded,
            "vm.watchdog.reset_loop",
            count=len(firings),
            window=format_duration_ms(policy.reset_loop_window_ms),
        )


def _announce_poweroff(host: HostState, guarded: Guarded) -> None:
    exit = guarded.record.exit
    late = (
        not guarded.up
        and exit is not None
        and exit.cause is ExitCause.CRASH
        and host.now - exit.at_ms <= ATTRIBUTION_MS
    )
    if not late or exit is None:
        add_hint(host, guarded, HintKind.WATCHDOG_POWEROFF)
        return
    # The stop overtook its cause: what looked like a crash was this.
    guarded.set(exit=replace(exit, cause=ExitCause.WATCHDOG_POWEROFF))
    if guarded.record.pending is not None:
        guarded.set(pending=Cause.WATCHDOG_POWEROFF)


def reset_just_now(record: VmRecord, now: Millis) -> bool:
    return bool(record.firings_ms) and now - record.firings_ms[-1] <= REBOOT_ATTRIBUTION_MS


# Dump, then pause (W6)


def pause_after_dump(host: HostState, guarded: Guarded) -> None:
    """libvirt lets the guest run on after its dump."""
    guarded.pause_sent_ms = host.now
    guarded.set(pause_attempts=guarded.record.pause_attempts + 1)
    host.order(PauseDomain(vm_id=guarded.record.vm.id))


def retry_pause(host: HostState, guarded: Guarded) -> None:
    due_ms = pause_retry_at(guarded)
    if due_ms is None or host.now < due_ms or not host.connected:
        return
    if guarded.record.pause_attempts < PAUSE_ATTEMPTS_MAX:
        pause_after_dump(host, guarded)
        return
    guarded.pause_sent_ms = None
    guarded.set(dump_pending=False)
    host.tell(guarded, "vm.pause_failed", attempts=PAUSE_ATTEMPTS_MAX)


def pause_retry_at(guarded: Guarded) -> Millis | None:
    """When the pause that was ordered counts as failed."""
    waits = guarded.record.dump_pending and guarded.pause_sent_ms is not None
    if not waits or guarded.pause_sent_ms is None or guarded.record.state is not VmState.RUNNING:
        return None
    return Millis(guarded.pause_sent_ms + PAUSE_RETRY_MS)


def paused_by_watchdog(report: DomainReport) -> bool:
    return report.state is DomainState.PAUSED and report.reason == "watchdog"
