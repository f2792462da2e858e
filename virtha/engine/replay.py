"""Runs a journal's segment through this version of the engine and tells where it decides differently (X2)."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.engine import Engine
from virtha.engine.events import (
    Command,
    Decision,
    EngineEvent,
    HostConfigured,
    Intent,
    Notice,
    VmConfigured,
)
from virtha.engine.journal import RecordedTurn, SegmentReader, digest_of
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.ids import HostId, VmId
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason


class Difference(Value, frozen=True, kw_only=True):
    """One step that this version decides differently: what only one of the two has."""

    intents_recorded: tuple[Intent, ...] = ()
    intents_replayed: tuple[Intent, ...] = ()
    commands_recorded: tuple[Command, ...] = ()
    commands_replayed: tuple[Command, ...] = ()
    notices_recorded: tuple[Notice, ...] = ()
    notices_replayed: tuple[Notice, ...] = ()
    wake_at: tuple[Millis | None, Millis | None] | None = None
    """Recorded and replayed, where they differ."""
    reordered: bool = False
    """The same things, in another order."""


class ReplayedTurn(Value, frozen=True, kw_only=True):
    """``number`` counts the steps of ``segment`` from 1."""

    segment: int
    number: int
    offset: int
    now: Millis
    events: int
    decision: Decision | None
    """This version's; None: it broke off, and ``failure`` says with what."""
    difference: Difference | None = None
    unfinished: bool = False
    """No decision was recorded: the leader ended in this step."""
    failure: str = ""


class Replay:
    """One segment's replay: the engine, and the names of what it decides about."""

    def __init__(self, segment: SegmentReader) -> None:
        """``segment`` has a snapshot."""
        assert segment.header is not None and segment.snapshot is not None, "no snapshot"
        self._number = segment.header.number
        self.engine = Engine.resumed(segment.snapshot)
        self.names = Names(segment.snapshot)
        self._segment = segment

    def turns(self) -> Iterator[ReplayedTurn]:
        """Ends with the segment, or with the step in which this version's engine breaks off."""
        for number, turn in enumerate(self._segment.turns(), 1):
            self.names.learn(turn.events)
            done = self._step(number, turn)
            yield done
            if done.failure:
                return

    def _step(self, number: int, turn: RecordedTurn) -> ReplayedTurn:
        decision: Decision | None = None
        difference: Difference | None = None
        failure = ""
        try:
            decision = self.engine.step(turn.now, turn.events)
        except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Whatever ended the leader then, or ends this version now, is what the replay is to show.
            failure = f"{type(error).__name__}: {error}"
        if decision is not None and turn.decision is not None and turn.digest is not None:
            difference = difference_of(turn.digest, turn.decision, decision)
        return ReplayedTurn(
            segment=self._number,
            number=number,
            offset=turn.offset,
            now=turn.now,
            events=len(turn.events),
            decision=decision,
            difference=difference,
            unfinished=turn.decision is None,
            failure=failure,
        )


def difference_of(digest: bytes, recorded: Decision, replayed: Decision) -> Difference | None:
    """None: the same decision. Another version may have written fields that this one has not: what counts is
    whether the decisions are equal as this version reads them, the digest only saves the comparison."""
    if digest_of(replayed) == digest or recorded == replayed:
        return None
    intents = _only(recorded.intents, replayed.intents)
    commands = _only(recorded.commands, replayed.commands)
    notices = _only(recorded.notices, replayed.notices)
    wakes_differ = recorded.wake_at != replayed.wake_at
    return Difference(
        intents_recorded=intents[0],
        intents_replayed=intents[1],
        commands_recorded=commands[0],
        commands_replayed=commands[1],
        notices_recorded=notices[0],
        notices_replayed=notices[1],
        wake_at=(recorded.wake_at, replayed.wake_at) if wakes_differ else None,
        reordered=not wakes_differ and not any((*intents, *commands, *notices)),
    )


_T = TypeVar("_T")


def _only(recorded: Sequence[_T], replayed: Sequence[_T]) -> tuple[tuple[_T, ...], tuple[_T, ...]]:
    """What the first has and the second has not, and the other way round; twice is not once."""
    return _without(recorded, replayed), _without(replayed, recorded)


def _without(these: Sequence[_T], those: Sequence[_T]) -> tuple[_T, ...]:
    left = list(those)
    found: list[_T] = []
    for one in these:
        if one in left:
            left.remove(one)
        else:
            found.append(one)
    return tuple(found)


class Names:
    """Names and ids of what is configured, as the journal goes on. A name that changed stands for the same still."""

    def __init__(self, snapshot: EngineSnapshot) -> None:
        self.hosts: dict[HostId, str] = {}
        self.vms: dict[VmId, str] = {}
        self._host_of: dict[str, HostId] = {}
        self._vm_of: dict[str, VmId] = {}
        for host in snapshot.hosts:
            self._add_host(host.config)
        for vm in snapshot.vms:
            self._add_vm(vm.config)

    def learn(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            if isinstance(event, HostConfigured):
                self._add_host(event.host)
            elif isinstance(event, VmConfigured):
                self._add_vm(event.vm)

    def _add_host(self, config: EngineHost) -> None:
        self.hosts[config.host_id] = config.name
        self._host_of[config.name] = config.host_id

    def _add_vm(self, config: EngineVm) -> None:
        self.vms[config.vm_id] = config.name
        self._vm_of[config.name] = config.vm_id

    def host(self, key: HostId | None) -> str:
        return "" if key is None else self.hosts.get(key, key)

    def vm(self, key: VmId | None) -> str:
        return "" if key is None else self.vms.get(key, key)

    def host_called(self, word: str) -> HostId | None:
        """By name or id."""
        found = self._host_of.get(word)
        return HostId(word) if found is None and word in self.hosts else found

    def vm_called(self, word: str) -> VmId | None:
        """By name or id."""
        found = self._vm_of.get(word)
        return VmId(word) if found is None and word in self.vms else found


def explain(
    engine: Engine, *, host: HostId | None, vm: VmId | None
) -> tuple[str, tuple[Reason, ...]]:
    """State and reasons of the one that is given, as this engine sees it; "" for one that is not there."""
    if host is not None:
        return str(engine.verdict(host) or ""), engine.explain_host(host)
    if vm is not None:
        return str(engine.stage(vm) or ""), engine.explain_vm(vm)
    return "", ()
