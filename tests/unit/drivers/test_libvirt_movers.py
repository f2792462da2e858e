"""The processes that lead migrations: found again by whoever comes after, and ended without a word (ADR 14)."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from virtha.drivers.libvirt_mover import (
    MoveRequest,
    code_of,
    flags_of,
    parameters_of,
    standing,
    word_objection,
)
from virtha.drivers.libvirt_moves import LibvirtMoves, Mover, Movers
from virtha.model.facts import Result
from virtha.model.ids import VmId
from virtha.model.orders import MoveDestination
from virtha.ports.hypervisor import MoveEnd

libvirt = pytest.importorskip("libvirt")
WEB1 = VmId("50000000-0000-4000-8000-000000000001")
THERE = MoveDestination(address="192.0.2.8", name="h2.migration.virtha", data_uri="tcp://192.0.2.8")


def movers(tmp_path: Path, program: str) -> Movers:
    made = Movers(tmp_path / "movers", "qemu:///system")
    made.command = (sys.executable, "-c", program)
    return made


async def lead(made: Movers) -> MoveEnd:
    return await made.lead(WEB1, THERE, tls_directory=Path("/t"), serial_directory="/s")


async def lead_and_end(made: Movers) -> MoveEnd:
    """Nothing of it is left, however the test ends."""
    try:
        return await lead(made)
    finally:
        await made.end(WEB1)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story()

    asyncio.run(bounded())


async def begun(made: Movers) -> Mover:
    while (found := made.find(WEB1)) is None:
        await asyncio.sleep(0.01)
    return found


SAYS = 'import sys; r = sys.stdin.read(); print(\'{"result":"ok","detail":"%s"}\' % len(r))'
WAITS = "import sys, time; sys.stdin.read(); time.sleep(600)"


def test_its_word_is_what_it_said(tmp_path: Path) -> None:
    async def story() -> None:
        made = movers(tmp_path, SAYS)
        end = await lead(made)
        assert end.result is Result.OK
        assert int(end.detail) > 100, "it had its request"
        assert made.find(WEB1) is None
        assert not list((tmp_path / "movers").glob("*.json"))

    run(story)


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "print('nonsense')"])
def test_one_that_says_nothing_leaves_the_end_unknown(tmp_path: Path, program: str) -> None:
    async def story() -> None:
        assert (await lead(movers(tmp_path, program))).result is Result.UNKNOWN

    run(story)


BREAKS = """
from virtha.drivers import libvirt_mover as mover

def broken(request, relay):
    raise ValueError("not foreseen")

mover._lead = broken
mover.main()
"""


def test_one_that_breaks_in_itself_ends_and_says_so() -> None:
    """Its thread alone would end, and the agent wait for its process until the move's deadline."""

    async def story() -> None:
        # Short: a socket's path has no more than 107 bytes.
        with tempfile.TemporaryDirectory() as directory:
            end = await lead_and_end(movers(Path(directory), BREAKS))
        assert end == MoveEnd(result=Result.UNKNOWN, detail="ValueError('not foreseen')")

    run(story)


HANGS = """
import threading, time
from virtha.drivers import libvirt_mover as mover
from virtha.drivers.libvirt_rpc import Packet, PROGRAM, REPLY

def hung(request, relay):
    prepared = {prepared}
    relay.patience_s += 0.5
    if prepared:
        answer = Packet(data=b"", program=PROGRAM, procedure=303, kind=REPLY, serial=1, status=0)
        relay.filter.down(answer)
        time.sleep(2.0)  # more than its patience
        return mover.MoveEnd(result="ok")
    threading.Event().wait()

mover._lead, mover.PREPARE_S = hung, 0.1
init = mover.Relay.__init__

def impatient(self, request):
    init(self, request)
    self.patience_s = mover.PREPARE_S

mover.Relay.__init__ = impatient
mover.main()
"""


@pytest.mark.parametrize("prepared", [False, True])
def test_one_whose_target_is_not_ready_in_time_ends_and_says_so(prepared: bool) -> None:
    """A libvirt that hangs answers nothing, for ever: until the word that it is prepared nothing is copied."""

    async def story() -> None:
        with tempfile.TemporaryDirectory() as directory:
            end = await lead_and_end(movers(Path(directory), HANGS.format(prepared=prepared)))
        told = (end.result, end.code)
        late = (Result.FAILED, "migration.ended.unprepared")
        assert told == ((Result.OK, None) if prepared else late)

    run(story)


def test_one_that_ended_before_it_was_asked_leaves_the_end_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        made = movers(tmp_path, "raise SystemExit(3)")
        note = Movers._note

        def ended_by_then(self: Movers, vm_id: VmId, pid: int) -> None:
            note(self, vm_id, pid)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        monkeypatch.setattr(Movers, "_note", ended_by_then)
        end = await lead(made)
        assert end == MoveEnd(result=Result.UNKNOWN, detail="its mover ended with 3")

    run(story)


def test_an_agent_that_ends_leaves_it_and_the_next_finds_and_ends_it(tmp_path: Path) -> None:
    async def story() -> None:
        first = movers(tmp_path, WAITS)
        leading = asyncio.ensure_future(lead(first))
        found = await begun(first)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        following = movers(tmp_path, WAITS)
        assert following.find(WEB1) == found
        await following.end(WEB1)
        assert following.find(WEB1) is None
        await following.end(WEB1)

    run(story)


def test_killed_while_it_leads_the_end_is_unknown(tmp_path: Path) -> None:
    async def story() -> None:
        made = movers(tmp_path, WAITS)
        leading = asyncio.ensure_future(lead(made))
        await begun(made)
        await made.end(WEB1)
        assert (await leading).result is Result.UNKNOWN

    run(story)


def test_another_process_with_its_number_is_left_alone(tmp_path: Path) -> None:
    async def story() -> None:
        made = movers(tmp_path, WAITS)
        leading = asyncio.ensure_future(lead(made))
        found = await begun(made)
        path = tmp_path / "movers" / f"{WEB1}.json"
        path.write_text(f'{{"pid":{found.pid},"start_ticks":{found.start_ticks - 1}}}')
        assert made.find(WEB1) is None
        await made.end(WEB1)
        assert Path(f"/proc/{found.pid}").exists()
        path.write_text(f'{{"pid":{found.pid},"start_ticks":{found.start_ticks}}}')
        await made.end(WEB1)
        await leading

    run(story)


class PlayedDomain:
    """The source's, as libvirt shows it: ``leaves``: its own job moves it; ``stands``: all of it was sent."""

    def __init__(self, *, leaves: bool = False, stands: bool = False) -> None:
        self.leaves, self.stands = leaves, stands
        self.aborted = 0

    def isActive(self) -> bool:
        return True

    def jobStats(self) -> dict[str, int]:
        return {"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT} if self.leaves else {}

    def state(self) -> tuple[int, int]:
        if self.stands:
            return libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION
        return libvirt.VIR_DOMAIN_RUNNING, 1

    def abortJob(self) -> None:
        self.aborted += 1


@pytest.mark.parametrize(
    ("domain", "ends"),
    [
        (PlayedDomain(), True),
        (PlayedDomain(leaves=True), False),
        (PlayedDomain(stands=True), False),
    ],
)
def test_called_off_one_that_waits_for_a_target_s_libvirt_is_ended(
    tmp_path: Path, domain: PlayedDomain, ends: bool
) -> None:
    """There is no job of libvirt's to abort yet, and a libvirt that hangs never answers."""

    async def look(_what: str, _vm_id: VmId, function: Callable[[Any], Any]) -> Any:
        return function(domain)

    async def story() -> None:
        made = movers(tmp_path, WAITS)
        moves = LibvirtMoves(made, look, tls_directory=Path("/t"), serial_directory="/s")
        leading = asyncio.ensure_future(moves.move(WEB1, THERE))
        await begun(made)
        await moves.abort_move(WEB1)
        assert (made.find(WEB1) is None) is ends
        assert domain.aborted == domain.leaves
        await made.end(WEB1)
        assert (await leading).result is Result.UNKNOWN

    run(story)


# What libvirt is asked for


def request(**changes: str) -> MoveRequest:
    values = {"serial_directory": "/a", "relay_socket": "/r", "tls_directory": "/t", **changes}
    return MoveRequest(vm_id=WEB1, source_uri="", destination=THERE, **values)


def test_never_post_copy_and_never_without_tls() -> None:
    flags = flags_of(THERE)
    assert flags & libvirt.VIR_MIGRATE_TLS
    assert flags & libvirt.VIR_MIGRATE_LIVE
    for never in ("POSTCOPY", "PEER2PEER", "TUNNELLED", "PAUSED", "ABORT_ON_ERROR"):
        assert not flags & getattr(libvirt, f"VIR_MIGRATE_{never}"), never


def test_what_is_of_the_source_in_the_xml_becomes_the_targets() -> None:
    there = MoveDestination(
        address="192.0.2.8",
        name="h2.migration.virtha",
        data_uri="tcp://192.0.2.8",
        serial_directory="/b/serial",
        bandwidth_mib_s=12,
    )
    asked = MoveRequest(
        vm_id=WEB1,
        source_uri="",
        destination=there,
        relay_socket="/r",
        tls_directory="/t",
        serial_directory="/a/serial",
    )
    assert parameters_of(asked, "<log file='/a/serial/x.log'/>") == {
        libvirt.VIR_MIGRATE_PARAM_URI: "tcp://192.0.2.8",
        libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION: "h2.migration.virtha",
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 12,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: "<log file='/b/serial/x.log'/>",
    }
    assert libvirt.VIR_MIGRATE_PARAM_DEST_XML not in parameters_of(request(), "<x/>")


class Error(libvirt.libvirtError):
    def __init__(self, code: int, text: str) -> None:
        self.err = (code, libvirt.VIR_FROM_QEMU, text, 2, "", "", "", -1, -1)


@pytest.mark.bad_input("host that can't take a move")
@pytest.mark.parametrize(
    ("code", "text", "said"),
    [
        ("HOOK_SCRIPT_FAILED", "virtha: web1 is managed", "migration.ended.gate"),
        ("OPERATION_ABORTED", "migration out job: canceled by client", "migration.ended.cancelled"),
        ("CPU_INCOMPATIBLE", "the CPU is incompatible with host CPU", "migration.ended.cpu"),
        ("OPERATION_FAILED", "guest CPU doesn't match: not provided by host", "migration.ended.cpu"),
        ("OPERATION_FAILED", "guest CPU doesn't match specification: missing features: sse4.2", "migration.ended.cpu"),
        ("INTERNAL_ERROR", "cannot set up guest memory: Cannot allocate memory", "migration.ended.no_room"),
        ("SYSTEM_ERROR", "unable to connect to server: No route to host", "migration.ended.unreachable"),
        ("INTERNAL_ERROR", "something else", "migration.failed"),
    ],
)  # fmt: skip
def test_a_failure_is_told_by_code(code: str, text: str, said: str) -> None:
    assert code_of(Error(getattr(libvirt, f"VIR_ERR_{code}"), text)) == said


class Domain:
    """As much of libvirt's as is asked how it stands."""

    def __init__(self, state: str, reason: str = "UNKNOWN") -> None:
        self._found = [
            getattr(libvirt, f"VIR_DOMAIN_{state}"),
            getattr(libvirt, f"VIR_DOMAIN_{state}_{reason}"),
        ]

    def state(self) -> list[int]:
        return self._found


@pytest.mark.req("S6", "G6")
@pytest.mark.parametrize(
    ("state", "reason", "begins", "word"),
    [
        ("RUNNING", "BOOTED", None, "unknown None"),
        ("PAUSED", "MIGRATION", "failed migration.ended.paused", None),
        ("PAUSED", "USER", "failed migration.ended.paused", "failed migration.ended.paused"),
        ("PAUSED", "WATCHDOG", "failed migration.ended.paused", "failed migration.ended.paused"),
        ("PAUSED", "IOERROR", "failed migration.ended.io_error", "failed migration.ended.io_error"),
        ("PMSUSPENDED", "UNKNOWN", "failed migration.ended.paused", "failed migration.ended.paused"),
        # Ended when all of it was sent: what its target has is all there is.
        ("SHUTOFF", "CRASHED", None, None),
    ],
)  # fmt: skip
def test_what_stands_still_is_neither_moved_nor_let_run(
    state: str, reason: str, begins: str | None, word: str | None
) -> None:
    def said(end: MoveEnd | None) -> str | None:
        return None if end is None else f"{end.result.value} {end.code}"

    domain = Domain(state, reason)
    assert said(standing(domain)) == begins
    assert said(word_objection(domain)) == word


def test_a_libvirt_that_can_not_say_how_it_stands_gives_no_word() -> None:
    class Gone(Domain):
        def state(self) -> list[int]:
            raise Error(libvirt.VIR_ERR_NO_DOMAIN, "no such domain")

    end = word_objection(Gone("SHUTOFF"))
    assert end is not None
    assert end.result is Result.UNKNOWN


def test_it_is_gone_at_once_when_it_must_be(tmp_path: Path) -> None:
    """``lost`` returns to nobody, whatever threads there are."""
    program = (
        "import threading, time\n"
        "from virtha.drivers.libvirt_mover import lost\n"
        "threading.Thread(target=lambda: time.sleep(600)).start()\n"
        "try:\n    lost('no answer')\nfinally:\n    print('never', flush=True)\n"
    )

    async def story() -> None:
        end = await lead(movers(tmp_path, program))
        assert end == MoveEnd(result=Result.UNKNOWN, detail="no answer")

    run(story)
