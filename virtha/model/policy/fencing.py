"""Switching off hosts: with what, how often at most, and when not (safety P1, J4 to J7; F4, F7)."""

from enum import StrEnum
from typing import Annotated, ClassVar

from virtha.model.policy.field import Section, choice, count, duration, percent
from virtha.model.policy.quiet import WEEK_MS, QuietTime, merged
from virtha.model.policy.rule import Read, Rule, one, relation


class FencingAction(StrEnum):
    """What is done to a host that was judged dead. ``nothing`` and ``blink`` prove nothing: its VMs
    wait, with that reason."""

    NOTHING = "nothing"
    POWER_OFF = "power_off"
    REBOOT = "reboot"
    BLINK = "blink"


class Unreachable(StrEnum):
    """What is tried, in order, when a host's power interface can't be reached."""

    NEXT_LEVEL = "next_level"
    STORAGE_FENCE = "storage_fence"
    LEASE = "lease"
    WAIT = "wait"
    OPERATOR = "operator"


class UntestedDevices(StrEnum):
    """What becomes of a power device that has passed no test since it was set up."""

    REFUSE = "refuse"
    ORDER = "order"


_LAST = (Unreachable.WAIT, Unreachable.OPERATOR)


def _unreachable_wrong(read: Read) -> str | None:
    ways: tuple[Unreachable, ...] = read("fencing.unreachable")
    if not ways:
        return "fencing.unreachable is empty"
    if len(set(ways)) < len(ways):
        twice = next(way for way in ways if ways.count(way) > 1)
        return f"fencing.unreachable names {twice} twice"
    for way in ways[:-1]:
        if way in _LAST:
            return f"fencing.unreachable goes on after {way}"
    if ways[-1] not in _LAST:
        return f"fencing.unreachable ends with {ways[-1]}"
    return None


def _always_quiet(read: Read) -> str | None:
    times: tuple[QuietTime, ...] = read("fencing.quiet_times")
    if merged(times) == [(0, WEEK_MS)]:
        return "fencing.quiet_times cover the whole week"
    return None


def _too_many_quiet(read: Read) -> str | None:
    number = len(read("fencing.quiet_times"))
    return f"fencing.quiet_times has {number} entries, more than 50" if number > 50 else None


_RULES = (
    relation(
        one("fencing.read_deadline_ms"),
        one("fencing.order_deadline_ms"),
        why="an order reads the power state back until it says off: no reading would fit in",
        fix="lower fencing.read_deadline or raise fencing.order_deadline",
    ),
    relation(
        one("fencing.order_deadline_ms", "fencing.attempts_per_device"),
        one("fencing.cap_window_ms"),
        why="the cap would forget an order that is still under way",
        fix="raise fencing.cap_window, or lower fencing.order_deadline or "
        "fencing.attempts_per_device",
    ),
    Rule(
        fields=("fencing.unreachable",),
        says="fencing.unreachable names each way once and ends with wait or operator",
        why="after wait and operator nothing further is tried, and without them nobody would be told",
        fix="write for example [next_level, lease, operator]",
        broken=_unreachable_wrong,
    ),
    Rule(
        fields=("fencing.quiet_times",),
        says="fencing.quiet_times leave some hour of the week",
        why="no host would ever be fenced",
        fix="set fencing.action to nothing if that is meant",
        broken=_always_quiet,
    ),
    Rule(
        fields=("fencing.quiet_times",),
        says="fencing.quiet_times has at most 50 entries",
        why="every list has a bound",
        fix="join some of them",
        broken=_too_many_quiet,
    ),
)


class FencingPolicy(Section, frozen=True, kw_only=True):
    """Power orders have a lane of their own, and bounds of their own."""

    NAME: ClassVar[str] = "fencing"
    RULES: ClassVar[tuple[Rule, ...]] = _RULES

    action: Annotated[
        FencingAction,
        choice(
            "What is done to a host that was judged dead. reboot is off, read back, then on.",
            source="requirement F4; off, for a host that failed is looked at before it is trusted",
        ),
    ] = FencingAction.POWER_OFF
    cap_count: Annotated[
        int,
        count(
            1,
            1_000,
            "At most so many hosts are powered down by us inside the window (F7); then somebody is "
            "told. Hosts that were already off don't count.",
            source="requirement F7: 3 in 60 minutes",
        ),
    ] = 3
    cap_window_ms: Annotated[
        int,
        duration(
            60_000,
            604_800_000,
            "The window that slides for the cap.",
            source="requirement F7: 3 in 60 minutes",
        ),
    ] = 3_600_000
    brake_hosts: Annotated[
        int,
        count(
            2,
            100,
            "So many hosts lost at once hold all power orders, or brake_percent of the cluster if "
            "that is more (J5).",
            source="safety J5",
        ),
    ] = 3
    brake_percent: Annotated[
        int,
        percent(
            1,
            50,
            "See brake_hosts; the larger of both counts.",
            source="safety J5; who loses more than half is more likely cut off itself (J4)",
        ),
    ] = 30
    brake_window_ms: Annotated[
        int,
        duration(
            1_000,
            3_600_000,
            "Hosts lost within this time are lost at once.",
            source="a rack's switch or feed takes its hosts within seconds; verdicts spread longer",
        ),
    ] = 120_000
    brake_lift_ms: Annotated[
        int,
        duration(
            1_000,
            3_600_000,
            "The brake lifts when a majority of the other hosts has seen the storage for this long.",
            source="safety J5: 60 s",
        ),
    ] = 60_000
    order_deadline_ms: Annotated[
        int,
        duration(
            1_000,
            300_000,
            "How long one power order may take until the power is read as off.",
            source="fence-agents' power_timeout; slow ones were seen to need 46 s",
        ),
    ] = 20_000
    read_deadline_ms: Annotated[
        int,
        duration(
            100,
            60_000,
            "How long one reading of the power state may take; a slower interface counts as "
            "unreachable.",
            source="design section 9: 10 s worst; IPMI is measured at 10 to 40 ms a reading",
        ),
    ] = 1_400
    read_back_gap_ms: Annotated[
        int,
        duration(
            1_000,
            60_000,
            "Time between the two readings that prove a power-off (P1).",
            source="safety P1: a second apart",
        ),
    ] = 1_000
    attempts_per_device: Annotated[
        int,
        count(
            1,
            20,
            "Attempts at one power device before it counts as unreachable.",
            source="one lost UDP packet is no outage",
        ),
    ] = 2
    untested_devices: Annotated[
        UntestedDevices,
        choice(
            "Whether a power device that has passed no test as it is set up now gets orders. It proves nothing either way "
            "(P1). One that can't tell its state can pass no test, and gets them.",
            source="a mistyped address switches off somebody else's machine",
        ),
    ] = UntestedDevices.REFUSE
    unreachable: Annotated[
        tuple[Unreachable, ...],
        choice(
            "What is tried, in order, when the power interface can't be reached.",
            source="requirement F9; storage_fence is left out, for the old guest may still answer",
        ),
    ] = (Unreachable.NEXT_LEVEL, Unreachable.LEASE, Unreachable.OPERATOR)
    witnesses_percent: Annotated[
        int,
        percent(
            51,
            100,
            "The observer must reach this share of the other hosts, or a reference address, before "
            "it fences (J4).",
            source="safety J4: most",
        ),
    ] = 51
    quiet_times: Annotated[
        tuple[QuietTime, ...],
        choice(
            "Hours (UTC) in which no power order goes out; VMs without another proof wait for their "
            "end.",
            source="none: failures keep no office hours",
        ),
    ] = ()
