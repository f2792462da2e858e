"""Live migrations of a played cluster: what both hypervisors do, phase by phase, and what their agents say of it.

The world knows what the engine doesn't: which copy ran when. It fails a test at once when two run, and when one is let
run whose memory is older than the disks.
"""

from enum import IntEnum
from typing import Any

from virtha.engine.events import (
    CopyReleased,
    EngineEvent,
    MigrateCommand,
    MigrationEnded,
    MigrationWord,
    SettleMigration,
    VmSeen,
)
from virtha.engine.move_answer import MoveAnswered
from virtha.engine.records import OrderId
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.vm import VmState


class Phase(IntEnum):
    COPYING = 0
    """The source runs it, the target takes in its memory."""
    SENT = 1
    """Both stand still; the target has all of it."""
    SWITCHED = 2
    """The target runs it, the source stands still with what it had."""
    OVER = 3


class Copy:
    """One side. ``whole``: it could run."""

    def __init__(self, host: Any, incarnation: Incarnation, *, whole: bool) -> None:
        self.host = host
        self.boot: BootId = host.boot
        self.incarnation = incarnation
        self.whole = whole
        self.gone = False

    def runs(self, vm_id: VmId) -> bool:
        return not self.gone and self.host.running.get(vm_id) == self.incarnation


class Move:
    """One migration as it really is."""

    def __init__(self, command: MigrateCommand, source: Any, target: Any) -> None:
        self.order_id: OrderId = command.order_id
        self.vm_id = command.vm_id
        self.source = Copy(source, command.source_incarnation, whole=True)
        self.target = Copy(target, command.incarnation, whole=False)
        self.phase = Phase.COPYING
        self.target_ran = False

    def side(self, host_id: HostId) -> Copy:
        return self.source if host_id == self.source.host.id else self.target


class PlayedMoves:
    """All of them. ``play``: a ``Play``."""

    def __init__(self, play: Any) -> None:
        self.play = play
        self.moves: dict[OrderId, Move] = {}
        self.stops_at: Phase | None = None
        """Moves come to a stand in that phase."""
        self.fails_to: set[str] = set()
        """Targets that no move reaches: the source says so."""
        self.lost_orders = False
        """The command itself never arrives."""
        self.unanswered: set[str] = set()
        """Hosts that take their order and are not heard to say so."""
        self.dumb: set[str] = set()
        """Hosts whose agents neither hear nor say anything."""
        self._refused: set[OrderId] = set()
        self._outbox: dict[HostId, list[EngineEvent]] = {}

    # Orders

    def begin(self, command: MigrateCommand) -> None:
        source, target = self.play.hosts[command.source], self.play.hosts[command.target]
        unheard = self.lost_orders or not source.alive or source.id in self.dumb
        if unheard or command.order_id in self._refused or command.order_id in self.moves:
            return
        running = source.running.get(command.vm_id)
        assert running == command.source_incarnation, f"{command.vm_id} does not run there"
        assert command.incarnation > running
        self.moves[command.order_id] = Move(command, source, target)
        for host in (target, source):
            if host.id in self.unanswered | self.dumb or not host.alive:
                break  # who does not hear its target orders nothing of its source
            # Not durable: a later leader knows nothing of the orders that it was an answer to.
            self.play.inbox.append(answer(command, host.id))

    def settle(self, command: SettleMigration) -> None:
        host = self.play.hosts[command.host_id]
        if not host.alive or host.id in self.dumb or host.boot != command.boot:
            return
        move = self.moves.get(command.order_id)
        if move is None:
            self._refused.add(command.order_id)
            self._say(host, command.order_id, command.vm_id, Result.REFUSED)
        elif move.source.host is host:
            self._settle_source(move, command.word)
        else:
            self._settle_target(move, command.word)

    def _settle_source(self, move: Move, word: MigrationWord) -> None:
        copy = move.source
        if copy.gone:
            self._release(move, copy)
        elif copy.runs(move.vm_id):
            if word is not MigrationWord.TELL:
                self._abort(move)
            if move.phase is Phase.OVER:
                self._say(copy.host, move.order_id, move.vm_id, Result.FAILED)
        elif word is MigrationWord.END:
            self._end(move, copy)
            self._release(move, copy)
        elif word is MigrationWord.RUN:
            assert not move.target_ran, f"{move.vm_id}: old memory on newer disks"
            self._run(move, copy)
            self._say_state(move, copy, VmState.RUNNING)
            move.phase = Phase.OVER
            self._say(copy.host, move.order_id, move.vm_id, Result.FAILED)
        else:
            self._say(copy.host, move.order_id, move.vm_id, Result.UNKNOWN)

    def _settle_target(self, move: Move, word: MigrationWord) -> None:
        copy = move.target
        if copy.runs(move.vm_id):
            self._say_runs(move)
        elif copy.gone or word is MigrationWord.CANCEL:
            self._end(move, copy)
        elif word is MigrationWord.RUN and copy.whole:
            self._run_target(move)
        elif word is MigrationWord.RUN:
            self._end(move, copy)
        elif copy.whole:
            self._say(copy.host, move.order_id, move.vm_id, Result.UNKNOWN)

    # What hypervisors do

    def tick(self) -> None:
        for move in self.moves.values():
            for copy in (move.source, move.target):
                if not copy.host.powered or copy.host.boot != copy.boot:
                    copy.gone = True
            if move.source.gone and (move.target.gone or move.target.runs(move.vm_id)):
                move.phase = Phase.OVER
            if move.phase is not Phase.OVER and move.phase is not self.stops_at:
                self._advance(move)
        for host_id, events in self._outbox.items():
            host = self.play.hosts[host_id]
            if host.alive and host_id not in self.dumb:
                self.play.inbox += events
                events.clear()

    def _advance(self, move: Move) -> None:
        source, target = move.source, move.target
        frozen = any(not copy.gone and _hangs(copy.host) for copy in (source, target))
        if frozen:
            return
        if move.phase is Phase.COPYING:
            if source.gone or not source.runs(move.vm_id):
                self._end(move, target)
                move.phase = Phase.OVER
            elif target.gone or target.host.id in self.fails_to:
                self._abort(move)
            else:
                move.phase, target.whole = Phase.SENT, True
                del source.host.running[move.vm_id]
                self._say_state(move, source, VmState.PAUSED)
                self._say_state(move, target, VmState.PAUSED)
        elif move.phase is Phase.SENT:
            if source.gone or target.gone:
                return  # whoever is left stands still until it is told (G6)
            self._run_target(move)
            move.phase = Phase.SWITCHED
        elif not source.gone:
            self._end(move, source)
            self._say(source.host, move.order_id, move.vm_id, Result.OK)
            self._release(move, source)
            move.phase = Phase.OVER

    def _abort(self, move: Move) -> None:
        """The source goes on."""
        if move.phase is Phase.COPYING:
            move.phase = Phase.OVER
            self._say(move.source.host, move.order_id, move.vm_id, Result.FAILED)
            self._end(move, move.target)

    def _run_target(self, move: Move) -> None:
        self._run(move, move.target)
        move.target_ran = True
        self._say_runs(move)

    def _run(self, move: Move, copy: Copy) -> None:
        others = [one.id for one in self.play.hosts.values() if move.vm_id in one.running]
        assert not others, f"{move.vm_id} is let run on {copy.host.id} while {others} run it"
        copy.host.running[move.vm_id] = copy.incarnation

    def _end(self, move: Move, copy: Copy) -> None:
        """A copy that doesn't run is ended; where that is the target's, it says so."""
        assert not copy.runs(move.vm_id)
        whole_host = copy.host.powered and copy.host.boot == copy.boot
        copy.gone = True
        if copy is move.target and whole_host and not move.target_ran:
            self._say(copy.host, move.order_id, move.vm_id, Result.FAILED)
            self._release(move, copy)

    # What agents say

    def _say(self, host: Any, order_id: OrderId, vm_id: VmId, result: Result) -> None:
        self._tell(
            host, MigrationEnded(order_id=order_id, host_id=host.id, vm_id=vm_id, result=result)
        )

    def _say_runs(self, move: Move) -> None:
        self._say(move.target.host, move.order_id, move.vm_id, Result.OK)
        self._say_state(move, move.target, VmState.RUNNING)

    def _say_state(self, move: Move, copy: Copy, state: VmState) -> None:
        self._tell(
            copy.host,
            VmSeen(
                host_id=copy.host.id,
                boot=copy.boot,
                vm_id=move.vm_id,
                incarnation=copy.incarnation,
                state=state,
            ),
        )

    def _release(self, move: Move, copy: Copy) -> None:
        self._tell(
            copy.host,
            CopyReleased(
                host_id=copy.host.id,
                boot=copy.boot,
                vm_id=move.vm_id,
                incarnation=copy.incarnation,
            ),
        )

    def _tell(self, host: Any, event: EngineEvent) -> None:
        """Durable: said as soon as somebody can hear it."""
        self._outbox.setdefault(host.id, []).append(event)

    # Looking

    def standing(self, vm_id: VmId) -> list[HostId]:
        """Where a copy of it stands still that could be let run."""
        return [
            copy.host.id
            for move in self.moves.values()
            if move.vm_id == vm_id and move.phase is not Phase.OVER
            for copy in (move.source, move.target)
            if copy.whole and not copy.gone and not copy.runs(vm_id)
        ]


def answer(command: MigrateCommand, host_id: HostId, result: Result = Result.OK) -> MoveAnswered:
    return MoveAnswered(
        order_id=command.order_id, host_id=host_id, vm_id=command.vm_id, result=result
    )


def _hangs(host: Any) -> bool:
    return not host.beating and not host.answers_neighbours
