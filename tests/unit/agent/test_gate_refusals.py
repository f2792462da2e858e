"""What the gate refuses is told: the hook's notes, their bounds, and the agent that tells them."""

import asyncio
import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest
from agent_bench import WEB1, WEB2, Bench

from virtha.agent import gate_hook
from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.gate import PROOF_VM_ID, hook_path
from virtha.agent.gate_refusals import (
    MERGE_AT,
    QUIET_MS,
    QUIET_MS_MAX,
    TOLD_PER_MINUTE_MAX,
    Note,
    RefusalSpool,
    RefusalTeller,
)
from virtha.model.facts import FactBody, Happened
from virtha.model.ids import VmId
from virtha.model.time import Millis, UtcMillis

STRANGER = "99999999-9999-4999-8999-999999999999"


def xml(vm_id: str, inside: str = "", name: str = "web1") -> str:
    return f"<domain type='kvm'><name>{name}</name><uuid>{vm_id}</uuid>{inside}</domain>"


def disk(path: str) -> str:
    return f"<devices><disk type='file'><source file='{path}'/></disk></devices>"


def try_start(bench: Bench, text: str, name: str = "web1") -> tuple[int, str]:
    """As libvirt runs the hook."""
    done = subprocess.run(
        [str(hook_path(bench.paths)), name, "prepare", "begin", "-"],
        input=text.encode(),
        capture_output=True,
        check=False,
        timeout=200,
        env={"PATH": "/usr/bin:/bin"},
    )
    return done.returncode, done.stderr.decode()


def notes(bench: Bench) -> list[dict[str, object]]:
    found = []
    for path in sorted(bench.paths.refusals.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # the agent has read it meanwhile
            found.append(json.loads(path.read_bytes()))
    return found


def refusals(bench: Bench) -> list[Happened]:
    return [
        fact.body
        for fact in bench.facts()
        if isinstance(fact.body, Happened) and fact.body.code == "vm.start_refused"
    ]


@pytest.fixture
def managing(bench: Bench) -> Bench:
    """The gate knows WEB1 as this host's VM, WEB2 as another host's, and ds1."""

    async def story() -> None:
        await bench.configured(bench.vm(), foreign_vms=(WEB2,))

    bench.run(story)
    return bench


# The hook


def test_a_refusal_leaves_a_note_after_its_answer(managing: Bench) -> None:
    before_ms = time.time_ns() // 1_000_000
    code, message = try_start(managing, xml(WEB1))
    assert (code, "gate.refused.no_grant" in message) == (1, True)
    (note,) = notes(managing)
    at_ms = note.pop("at_ms")
    assert isinstance(at_ms, int)
    assert before_ms <= at_ms <= time.time_ns() // 1_000_000
    assert note == {
        "code": "gate.refused.no_grant",
        "uuid": WEB1,
        "name": "web1",
        "text": "web1 is managed; start it with 'virtha vm start web1'",
    }


def test_the_proof_and_a_granted_start_leave_none(managing: Bench) -> None:
    assert try_start(managing, xml(PROOF_VM_ID))[0] == 1
    assert try_start(managing, xml(STRANGER))[0] == 0
    assert notes(managing) == []


def test_what_can_not_be_read_is_noted_by_the_name_that_libvirt_gave(managing: Bench) -> None:
    assert try_start(managing, "<nonsense", name="odd")[0] == 1
    assert [(n["code"], n["name"], n["uuid"]) for n in notes(managing)] == [
        ("gate.refused.unreadable", "odd", "")
    ]


@pytest.mark.parametrize("obstacle", ["a file", "a link", "full"])
def test_a_spool_that_can_not_be_written_changes_no_answer(
    managing: Bench, tmp_path: Path, obstacle: str
) -> None:
    spool = managing.paths.refusals
    if spool.is_dir():
        spool.rmdir()
    if obstacle == "a file":
        spool.write_bytes(b"")
    elif obstacle == "a link":
        spool.symlink_to(tmp_path / "nowhere" / "deep")
    else:
        spool.symlink_to("/dev/full")
    code, message = try_start(managing, xml(WEB1))
    assert code == 1
    assert message.startswith("virtha: web1 is managed"), "libvirt's error is what it always was"
    assert message.count("\n") == 1


def test_names_and_texts_are_bounded(managing: Bench) -> None:
    long = "x" * 100_000
    assert try_start(managing, xml(WEB1, name=long))[0] == 1
    assert try_start(managing, xml(STRANGER, disk(f"{managing.storage.path}/{long}")))[0] == 1
    for note in notes(managing):
        assert len(str(note["name"])) <= gate_hook.NAME_CHARACTERS_MAX
        assert len(str(note["text"])) <= gate_hook.TEXT_CHARACTERS_MAX


def test_the_spool_is_bounded_and_the_rest_counted(tmp_path: Path) -> None:
    spool = tmp_path / "refusals"
    refusal = gate_hook.Refusal("gate.refused.no_grant", "no")
    for number in range(gate_hook.REFUSALS_MAX + 50):
        gate_hook.leave_note(refusal, f"v{number}", str(spool), 1_000 + number)
    # The file that counts takes the place of none.
    assert len(list(spool.glob("*.json"))) == gate_hook.REFUSALS_MAX
    assert RefusalSpool(spool).uncounted() == 50
    (spool / gate_hook.UNCOUNTED).write_bytes(b"." * gate_hook.UNCOUNTED_BYTES_MAX)
    gate_hook.leave_note(refusal, "one more", str(spool), 1)
    assert RefusalSpool(spool).uncounted() == gate_hook.UNCOUNTED_BYTES_MAX


# The agent


@pytest.mark.req("X1")
def test_refusals_are_told_also_those_of_a_time_without_agent(managing: Bench) -> None:
    bench = managing
    try_start(bench, xml(WEB1))
    try_start(bench, xml(WEB2, name="web2"))
    try_start(bench, xml(STRANGER, disk(f"{bench.storage.path}/a.qcow2"), name="stranger"))

    async def story() -> None:
        await bench.until(lambda: len(refusals(bench)) == 3)
        mine, elsewhere, stranger = refusals(bench)
        assert (mine.vm_id, mine.fields["code"]) == (WEB1, "gate.refused.no_grant")
        assert (mine.fields["count"], mine.fields["host"]) == (1, "h1")
        assert mine.fields["reason"] == "web1 is managed; start it with 'virtha vm start web1'"
        assert mine.fields["first_at"] == mine.fields["last_at"]
        assert elsewhere.vm_id == WEB2
        assert (stranger.vm_id, stranger.fields["vm"]) == (None, "stranger")
        assert stranger.fields["code"] == "gate.refused.disk"
        await bench.until(lambda: notes(bench) == [])

    bench.run(story)


def test_a_loop_of_tries_is_counted_not_told_each_time(managing: Bench) -> None:
    bench = managing
    tries = 30

    async def story() -> None:
        for _ in range(tries):
            try_start(bench, xml(WEB1))
        await bench.until(lambda: bool(refusals(bench)))
        # What came after the first entry waits as one note.
        told = refusals(bench)[0].fields["count"]
        assert isinstance(told, int)
        await bench.until(lambda: len(notes(bench)) < MERGE_AT)

    bench.run(story)
    told_once = refusals(bench)
    assert len(told_once) == 1

    async def later() -> None:
        """An agent that begins anew tells what is left at once: nothing of the count is lost."""
        await bench.until(lambda: len(refusals(bench)) == 2 or told_once[0].fields["count"] == 30)
        assert sum(int(str(one.fields["count"])) for one in refusals(bench)) == tries
        await bench.until(lambda: notes(bench) == [])  # they go once the entry is durable

    bench.run(later)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now)


class Sink:
    """A ``FactSink`` that keeps; ``room`` False: the disk is full."""

    def __init__(self) -> None:
        self.facts: list[Happened] = []
        self.room = True

    async def emit(self, bodies: list[FactBody]) -> bool:
        self.facts += [body for body in bodies if isinstance(body, Happened)]
        return self.room

    @property
    def settled(self) -> bool:
        return self.room


async def at_once(call: object, *arguments: object) -> object:
    assert callable(call)
    return call(*arguments)


class Desk:
    """A teller on a clock of the test's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.sink = Sink()
        self.spool = RefusalSpool(directory)
        self.number = 0
        self.teller = RefusalTeller(
            self.spool,
            facts=cast(FactSink, self.sink),
            disk=cast(DiskThread, at_once),
            clock=self.clock,
            is_managed=lambda vm_id: vm_id == WEB1,
        )

    def refuse(self, uuid: str = WEB1) -> None:
        self.number += 1
        refusal = gate_hook.Refusal("gate.refused.no_grant", "it is managed")
        refusal.uuid, refusal.name = uuid, "web1"
        now = self.clock.now * 1_000 + self.number  # each has a name of its own
        gate_hook.leave_note(refusal, "", str(self.directory), now)

    def counts(self) -> list[object]:
        return [fact.fields["count"] for fact in self.sink.facts]

    def files(self) -> int:
        return len(list(self.directory.iterdir()))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "refusals")


def play(desk: Desk, *, rounds: int = 1) -> None:
    for _ in range(rounds):
        asyncio.run(desk.teller.look())


def test_entries_grow_rarer_while_somebody_goes_on(desk: Desk) -> None:
    hours = 6

    async def try_every_twenty_seconds() -> None:
        for _ in range(hours * 60 * 3):
            desk.refuse()
            await desk.teller.look()
            assert desk.files() <= MERGE_AT
            desk.clock.now += 20_000

    asyncio.run(try_every_twenty_seconds())
    # At 0, 1, 3, 7, 15, 31, 63 and 123 minutes, then hourly.
    assert len(desk.counts()) <= 8 + hours
    desk.clock.now += QUIET_MS_MAX
    play(desk)
    assert sum(int(str(count)) for count in desk.counts()) == desk.number, "none is forgotten"


def test_after_a_quiet_time_the_next_is_told_at_once(desk: Desk) -> None:
    desk.refuse()
    play(desk)
    desk.clock.now += 3 * QUIET_MS
    play(desk)
    desk.refuse()
    play(desk)
    assert desk.counts() == [1, 1]


def test_a_new_uuid_each_time_can_not_fill_the_outbox(desk: Desk) -> None:
    for number in range(gate_hook.REFUSALS_MAX + 100):
        desk.refuse(f"{number:08d}-0000-4000-8000-000000000000")
    play(desk, rounds=3)
    assert len(desk.sink.facts) == TOLD_PER_MINUTE_MAX
    for _ in range(20):
        desk.clock.now += QUIET_MS
        play(desk)
    told = [fact for fact in desk.sink.facts if fact.code == "host.gate.refusals_uncounted"]
    assert [fact.fields["count"] for fact in told] == [100]
    assert len(desk.sink.facts) == gate_hook.REFUSALS_MAX + 1
    assert desk.files() == 0


def test_notes_stay_until_what_was_told_is_on_disk(desk: Desk) -> None:
    desk.refuse()
    desk.sink.room = False
    play(desk, rounds=3)
    assert (desk.counts(), desk.files()) == ([1], 1)
    desk.sink.room = True
    play(desk)
    assert (desk.counts(), desk.files()) == ([1], 0)


@pytest.mark.parametrize("content", [b"", b"{", b'{"code": 3}', b"x" * 100_000])
def test_a_damaged_note_is_removed_and_hides_no_other(desk: Desk, content: bytes) -> None:
    desk.refuse()
    (desk.directory / "0000000000000000-1.json").write_bytes(content)
    play(desk)
    assert (desk.counts(), desk.files()) == ([1], 0)


def test_what_was_half_written_is_swept(desk: Desk) -> None:
    desk.refuse()
    for name in (".0000000000000000-1.new", ".0000000000000000-1.merged"):
        (desk.directory / name).write_bytes(b"{")
        os.utime(desk.directory / name, (0, 0))
    (desk.directory / ".0000000000000000-2.new").write_bytes(b"{")  # its hook still runs
    desk.spool.sweep()
    assert desk.files() == 2


def test_several_notes_become_one_with_first_and_last(desk: Desk) -> None:
    for _ in range(3):
        desk.refuse()
    found = desk.spool.read()
    desk.spool.merge(found)
    ((_, one),) = desk.spool.read()
    first, last = found[0][1], found[-1][1]
    assert one == Note(
        code=last.code,
        uuid=WEB1,
        name="web1",
        text="it is managed",
        at_ms=last.at_ms,
        first_ms=first.at_ms,
        count=3,
    )
    assert VmId(one.uuid) == WEB1
