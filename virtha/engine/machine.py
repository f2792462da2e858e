"""The stages of a VM's recovery and of a host's judgement, and what leads from one to the next.

The diagrams in the docs are drawn from these tables.
"""

from enum import StrEnum

from virtha.engine.records import VmStage


class Verdict(StrEnum):
    """What is known of a host. Only ``DEAD_PROVEN`` lets its VMs start elsewhere."""

    UNKNOWN = "unknown"
    """Not heard in this term yet, and the time in which it may still connect is not over (J1)."""
    ALIVE = "alive"
    AGENT_DOWN = "agent_down"
    """Its guardian beats, its agent does not answer."""
    SUSPECT = "suspect"
    """Silent, or its connection broke: witnesses are being asked."""
    ISOLATED = "isolated"
    """Silent towards us, but somebody else sees it alive (J2)."""
    DEAD_UNPROVEN = "dead_unproven"
    DEAD_PROVEN = "dead_proven"


class VmTrigger(StrEnum):
    HOLDER_LOST = "a holder's host was judged dead"
    HOLDER_BACK = "the holder turned out to live"
    START_GOES_ON = "the target of its start turned out to live"
    START_FOUND = "the target of a start, proven dead meanwhile, turned out to live"
    ALL_PROVEN = "every copy is proven dead or released"
    ORDERED = "a start is ordered"
    RUNS = "it runs"
    REFUSED = "the start was refused or failed"
    OVERDUE = "the start took too long"
    EXHAUSTED = "no attempts left"
    TWO_DEATHS = "two hosts died with it"
    UNWANTED = "nobody wants it up any more"
    FREED = "an operator freed it"
    GIVEN_BACK = "its host went down in order and gave it back"
    FOUND = "a host runs it already"
    MOVE_ORDERED = "a live migration is ordered"
    MOVE_ENDED = "one side of the migration runs it, the other has given its copy back"
    HALF_FOUND = "a host awaits its copy by a migration that is not on record"
    MOVE_FOUND = "a migration that was not on record is settled"
    MOVE_LOST = "no side of the migration that is left can go on"
    MOVE_GOES_ON = "the last side of the migration turned out to live"


_SETTLED, _LOST, _READY, _STARTING = (
    VmStage.SETTLED,
    VmStage.LOST,
    VmStage.READY,
    VmStage.STARTING,
)
_CANCELLING, _QUARANTINED, _GIVEN_UP, _MIGRATING = (
    VmStage.CANCELLING,
    VmStage.QUARANTINED,
    VmStage.GIVEN_UP,
    VmStage.MIGRATING,
)

VM_TRANSITIONS: dict[VmTrigger, dict[VmStage, VmStage]] = {
    VmTrigger.HOLDER_LOST: {
        _SETTLED: _LOST,
        # The target of its start died: it may have started there, or not.
        _STARTING: _LOST,
        _CANCELLING: _LOST,
        _LOST: _LOST,
    },
    VmTrigger.HOLDER_BACK: {_LOST: _SETTLED},
    VmTrigger.START_GOES_ON: {_LOST: _STARTING},
    # Nothing else says whether it has heard of it: it is taken back, or runs.
    VmTrigger.START_FOUND: dict.fromkeys((_READY, _GIVEN_UP, _QUARANTINED, _SETTLED), _CANCELLING),
    VmTrigger.ALL_PROVEN: {_LOST: _READY, _CANCELLING: _READY},
    VmTrigger.GIVEN_BACK: {_SETTLED: _READY},
    VmTrigger.ORDERED: {_READY: _STARTING},
    # CANCELLING: the start won the race against its cancellation.
    VmTrigger.RUNS: {_STARTING: _SETTLED, _CANCELLING: _SETTLED, _LOST: _SETTLED},
    VmTrigger.REFUSED: {_STARTING: _READY, _CANCELLING: _READY},
    VmTrigger.OVERDUE: {_STARTING: _CANCELLING},
    VmTrigger.EXHAUSTED: {_READY: _GIVEN_UP},
    VmTrigger.TWO_DEATHS: {_READY: _QUARANTINED},
    VmTrigger.UNWANTED: {
        _READY: _SETTLED,
        _LOST: _SETTLED,
        _GIVEN_UP: _SETTLED,
        _QUARANTINED: _SETTLED,
    },
    VmTrigger.FREED: {_QUARANTINED: _READY, _GIVEN_UP: _READY},
    # Not QUARANTINED: who started it by hand may not know; but it is held by somebody, so nothing starts it.
    VmTrigger.FOUND: {
        _READY: _SETTLED,
        _GIVEN_UP: _SETTLED,
        _QUARANTINED: _SETTLED,
        _STARTING: _SETTLED,
        _CANCELLING: _SETTLED,
    },
    # A migrating VM is not lost with one of its hosts: the other side may run it.
    VmTrigger.MOVE_ORDERED: {_SETTLED: _MIGRATING},
    # The host awaits a copy of the very incarnation that a start was given: that start can't come to be there.
    VmTrigger.HALF_FOUND: dict.fromkeys(
        (_READY, _GIVEN_UP, _QUARANTINED, _STARTING, _CANCELLING), _LOST
    ),
    # MIGRATING: what is on record is over since the backup, or the other could not have been ordered.
    VmTrigger.MOVE_FOUND: dict.fromkeys((_SETTLED, _LOST, _MIGRATING), _MIGRATING),
    VmTrigger.MOVE_ENDED: {_MIGRATING: _SETTLED},
    VmTrigger.MOVE_LOST: {_MIGRATING: _LOST},
    VmTrigger.MOVE_GOES_ON: {_LOST: _MIGRATING},
}


def next_stage(stage: VmStage, trigger: VmTrigger) -> VmStage | None:
    """None: that trigger is not expected in that stage."""
    return VM_TRANSITIONS[trigger].get(stage)
