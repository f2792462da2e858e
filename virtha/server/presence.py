"""How a host answers, judged from sessions and beats: pure, no clock of its own.

Nothing here is about VMs and nothing here proves anything: ``UNREACHABLE`` only says that neither agent
nor guardian was heard for ``silence_ms`` by an observer who was itself awake all that time.
"""

from virtha.model.host import HostState
from virtha.model.ids import BootId, HostId
from virtha.model.time import Millis
from virtha.model.value import Value


class PresenceTimes(Value, frozen=True, kw_only=True):
    """``agent_grace_ms``: how long a guardian may beat without an agent session before the agent is
    called down; an agent that restarts is back within a second. ``reconnect_ms``: the longest pause
    between two attempts of a host to connect, so that a server just started condemns nobody (J1).
    ``stall_ms``: a loop that wakes this late was itself asleep and must not judge."""

    agent_grace_ms: int = 2_000
    silence_ms: int = 5_000
    reconnect_ms: int = 10_000
    stall_ms: int = 1_500

    def __post_init__(self) -> None:
        assert 0 < self.agent_grace_ms < self.silence_ms, "grace must end before silence does"
        assert 0 < self.stall_ms < self.silence_ms, "a stall must be noticed before it condemns"


class Sighting(Value, frozen=True, kw_only=True):
    """What the gateway has of one host. Times on this server's monotonic clock; None: never in this
    term."""

    agent_connected: bool
    agent_seen: Millis | None = None
    """When the agent's session was last there."""
    beat_received: Millis | None = None


class HostPresence(Value, frozen=True, kw_only=True):
    """What this server hears of one host at this moment."""

    host_id: HostId
    agent_connected: bool
    guardian_connected: bool
    boot: BootId | None
    """Of the newest session or beat."""
    clock_offset_ms: int | None
    """The host's wall clock less ours, by its newest beat; it is off by the beat's time on the line."""
    facts_waiting: int


class Observer(Value, frozen=True, kw_only=True):
    """Since when this server watches without having been asleep."""

    began: Millis
    """Start of the watch: of the term, or of the time after an own stall."""
    stepped: Millis


def observe(observer: Observer, now: Millis, times: PresenceTimes, *, interval_ms: int) -> Observer:
    """The observer after a further step at ``now``; it starts anew if it slept through one."""
    late_ms = now - observer.stepped - interval_ms
    if late_ms < times.stall_ms:
        return Observer(began=observer.began, stepped=now)
    # The beats of the time asleep may sit unread in socket buffers, and sessions may have been given
    # up by the hosts: judged now, healthy hosts would be condemned for our own stall.
    return Observer(began=now, stepped=now)


def judge(
    before: HostState, seen: Sighting, observer: Observer, now: Millis, times: PresenceTimes
) -> HostState:
    """The state of one host at ``now``. ``before`` stands where nothing may be concluded yet."""
    if seen.agent_connected:
        return HostState.UP
    beat_age_ms = _age_ms(seen.beat_received, observer, now, times)
    agent_age_ms = _age_ms(seen.agent_seen, observer, now, times)
    beats = seen.beat_received is not None and seen.beat_received >= observer.began
    if beats and beat_age_ms < times.silence_ms:
        return HostState.AGENT_DOWN if agent_age_ms >= times.agent_grace_ms else before
    if before is HostState.NEVER_SEEN and seen.agent_seen is None and seen.beat_received is None:
        return HostState.NEVER_SEEN
    return before if min(beat_age_ms, agent_age_ms) < times.silence_ms else HostState.UNREACHABLE


def _age_ms(last: Millis | None, observer: Observer, now: Millis, times: PresenceTimes) -> int:
    """How long a sign has been missing under our own watch; negative while it must not count yet."""
    if last is None or last < observer.began:
        # The host may still be between two attempts to connect to us (J1).
        return now - observer.began - times.reconnect_ms
    return now - last
