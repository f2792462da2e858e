"""Replayed decisions as rows for people and as data for programs."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from virtha.engine.cutting import StorageLetIn
from virtha.engine.ending import EndCopy, EndPaused
from virtha.engine.events import (
    CancelStart,
    Command,
    DropHost,
    DropVm,
    EndWaiver,
    GiveWaiver,
    Intent,
    Investigate,
    MigrateCommand,
    Notice,
    OrderPower,
    Poison,
    ReadPower,
    SaveCluster,
    SaveHost,
    SaveVm,
    SettleMigration,
    StartCommand,
    StorageFence,
)
from virtha.engine.journal import Fault, Header
from virtha.engine.replay import Difference, Names, ReplayedTurn
from virtha.model.codes import render
from virtha.model.ids import HostId, VmId
from virtha.model.time import Millis, format_utc
from virtha.model.vm import Reason

TITLES = ("", "time", "turn", "kind", "what", "about", "detail")
EXPLAIN_TITLES = ("time", "turn", "state", "reasons")
RECORDED, REPLAYED = "-", "+"
"""Marks of what only the journal has, and of what only this version has."""


class Row(NamedTuple):
    mark: str
    time: str
    turn: str
    kind: str
    what: str
    about: str
    detail: str


class Line(NamedTuple):
    """One thing of a decision, without its time."""

    kind: str
    what: str
    about: str
    detail: str


def rows_of(turn: ReplayedTurn, names: Names) -> list[Row]:
    """What this version decides, without what it agrees on silently (records, when it looks again); then, marked,
    what only one of the two decides."""
    difference = turn.difference or Difference()
    extra = [*difference.notices_replayed, *difference.commands_replayed]
    rows: list[Row] = []
    if turn.decision is not None:
        for one in (*turn.decision.notices, *turn.decision.commands):
            mark = ""
            if one in extra:
                extra.remove(one)
                mark = REPLAYED
            rows.append(_row(mark, turn, _line(one, names)))
    for mark, line in _differences(difference, names):
        rows.append(_row(mark, turn, line))
    if turn.failure:
        line = Line("failure", "breaks off", "", turn.failure)
        rows.append(_row("" if turn.unfinished else REPLAYED, turn, line))
    elif turn.unfinished:
        line = Line("end", "no decision recorded", "", "the leader ended in this step")
        rows.append(_row("", turn, line))
    return rows


def _row(mark: str, turn: ReplayedTurn, line: Line) -> Row:
    return Row(mark, format_utc(turn.now), _turn(turn), *line)


def _turn(turn: ReplayedTurn) -> str:
    """Of which segment, for the times of two may overlap."""
    return f"{turn.segment}/{turn.number}"


def _differences(difference: Difference, names: Names) -> Iterator[tuple[str, Line]]:
    for one in (*difference.notices_recorded, *difference.commands_recorded):
        yield RECORDED, _line(one, names)
    recorded, replayed = difference.intents_recorded, difference.intents_replayed
    for intent in recorded:
        yield RECORDED, _record_line(intent, replayed, names)
    for intent in replayed:
        yield REPLAYED, _record_line(intent, recorded, names)
    if difference.wake_at is not None:
        for mark, at in zip((RECORDED, REPLAYED), difference.wake_at, strict=True):
            yield mark, Line("wake", "looks again", "", _moment(at))
    if difference.reordered:
        yield REPLAYED, Line("order", "the same in another order", "", "")


def _moment(at: Millis | None) -> str:
    return "never by itself" if at is None else format_utc(at)


def _line(one: Notice | Command, names: Names) -> Line:
    if isinstance(one, Notice):
        return Line("notice", one.code, _about(one, names), render(one.code, one.fields))
    return Line("command", _tag(one), _about_command(one, names), _command_text(one, names))


def _tag(value: msgspec.Struct) -> str:
    return str(value.__struct_config__.tag)


def _about(one: Notice, names: Names) -> str:
    parts = (names.vm(one.vm_id), names.host(one.host_id))
    return " on ".join(part for part in parts if part)


def _about_command(command: Command, names: Names) -> str:
    vm_id: VmId | None = getattr(command, "vm_id", None)
    if vm_id is not None:
        return names.vm(vm_id)
    host_id: HostId | None = getattr(command, "host_id", getattr(command, "subject", None))
    return names.host(host_id)


def _command_text(command: Command, names: Names) -> str:
    match command:
        case Investigate():
            asked = ", ".join(names.host(one) for one in command.witnesses) or "nobody"
            reader = command.disk_reader
            disks = "" if reader is None else f"; disks compared by {names.host(reader)}"
            return f"round {command.round}: asks {asked}{disks}"
        case ReadPower():
            return f"reads {command.device}"
        case OrderPower():
            return f"{command.action} by {command.device}, order {command.order_id}"
        case StorageFence():
            helper, addresses = names.host(command.helper), ", ".join(command.addresses)
            return f"{helper} is to shut it out of Ceph: {addresses}, order {command.order_id}"
        case StorageLetIn():
            return f"{names.host(command.helper)} is to let it in again, order {command.order_id}"
        case Poison():
            return "its slots are poisoned"
        case GiveWaiver(domain_id=domain_id):
            return f"its lease on {domain_id} is waived"
        case EndWaiver(domain_id=domain_id):
            return f"its lease on {domain_id} is to be kept again"
        case StartCommand():
            proofs = ", ".join(proof.kind for proof in command.proofs) or "none needed"
            return f"on {names.host(command.host_id)}, incarnation {command.incarnation}, proofs: {proofs}"
        case CancelStart() | EndPaused():
            return f"on {names.host(command.host_id)}, incarnation {command.incarnation}"
        case EndCopy():
            return f"on {names.host(command.host_id)}, incarnation {command.incarnation}, newer: {command.newer}"
        case MigrateCommand():
            return f"from {names.host(command.source)} to {names.host(command.target)}"
        case SettleMigration():
            return f"to {names.host(command.host_id)}: {command.word}"


def _record_line(intent: Intent, others: Sequence[Intent], names: Names) -> Line:
    """Only the fields in which the two records differ."""
    other = next((one for one in others if _key(one) == _key(intent)), None)
    kind, key = _key(intent)
    about = names.vm(VmId(key)) if "vm" in kind else names.host(HostId(key)) if key else ""
    return Line(
        "record", kind, about, _compact(intent) if other is None else _changed(intent, other)
    )


def _key(intent: Intent) -> tuple[str, str]:
    match intent:
        case SaveHost():
            return _tag(intent), intent.record.host_id
        case SaveVm():
            return _tag(intent), intent.record.vm_id
        case SaveCluster():
            return _tag(intent), ""
        case DropHost():
            return _tag(intent), intent.host_id
        case DropVm():
            return _tag(intent), intent.vm_id


def _changed(intent: Intent, other: Intent) -> str:
    here = getattr(intent, "record", intent)
    there = getattr(other, "record", other)
    fields = [
        name for name in here.__struct_fields__ if getattr(here, name) != getattr(there, name)
    ]
    return " ".join(f"{name}={_compact(getattr(here, name))}" for name in fields)


def _compact(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def explain_row(
    turn: ReplayedTurn, state: str, reasons: Sequence[Reason]
) -> tuple[str, str, str, str]:
    texts = [f"{render(one.code, one.fields)} ({one.code})" for one in reasons]
    return format_utc(turn.now), _turn(turn), state, "; ".join(texts) or "nothing is wrong"


# For programs


def header_data(header: Header) -> dict[str, Any]:
    return {
        "number": header.number,
        "format": header.format,
        "program": header.program,
        "installation_id": header.installation_id,
        "cluster_id": header.cluster_id,
        "term": header.term,
        "created": format_utc(header.created_at_ms),
        "follows": header.follows,
    }


def fault_data(fault: Fault | None) -> dict[str, Any] | None:
    return None if fault is None else plain(fault)


def turn_data(turn: ReplayedTurn) -> dict[str, Any]:
    decision, difference = turn.decision, turn.difference
    return {
        "turn": turn.number,
        "time": format_utc(turn.now),
        "now_ms": turn.now,
        "offset": turn.offset,
        "events": turn.events,
        "notices": [] if decision is None else plain(decision.notices),
        "commands": [] if decision is None else plain(decision.commands),
        "difference": None if difference is None else plain(difference),
        "unfinished": turn.unfinished,
        "failure": turn.failure,
    }


def explain_data(turn: ReplayedTurn, state: str, reasons: Sequence[Reason]) -> dict[str, Any]:
    return {
        "turn": turn.number,
        "time": format_utc(turn.now),
        "state": state,
        "reasons": [
            {"code": one.code, "fields": one.fields, "text": render(one.code, one.fields)}
            for one in reasons
        ],
    }


def plain(value: Any) -> Any:
    """Structs as lists and maps, in an order that doesn't change."""
    return msgspec.to_builtins(value, order="deterministic")
