"""The guardian on real processes, and its talk with the agent over the real socket."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from agent_bench import INSTALLATION, WEB1, WEB2, Bench
from fake_qemus import FakeQemus

from virtha.agent.files import Files
from virtha.agent.guardian_channel import GuardianClient, GuardianServer, Pulse, ReportFiles
from virtha.agent.guardian_process import GuardianProcess
from virtha.agent.paths import AgentPaths
from virtha.agent.process_table import kill, look, qemu_processes, start_ticks
from virtha.drivers.link import HostLink
from virtha.model.facts import Happened
from virtha.model.ids import BootId, Incarnation, Term
from virtha.sentinel.guardian import ProcessesSeen, QemuProcess
from virtha.wire.messages import Pace, Welcome

pytestmark = [pytest.mark.req("A8"), pytest.mark.usefixtures("process_table")]


def watched(bench: Bench) -> None:
    bench.make_agent()
    bench.agent.host.gate.write(bench.settings(bench.vm()))
    bench.agent.host.gate.restored()
    bench.agent.disk.close()
    bench.agent.outbox.close()


async def until_ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), 60)


def run_guardian(bench: Bench, story: Callable[[GuardianProcess], Awaitable[None]]) -> None:
    async def live() -> None:
        process = GuardianProcess(
            paths=bench.paths, boot=bench.boot, clock=bench.clock, files=Files()
        )
        life = asyncio.create_task(process.run())
        try:
            await asyncio.wait_for(story(process), 200)
        finally:
            process.stopping.set()
            await asyncio.wait_for(life, 60)

    asyncio.run(live())


def test_a_look_that_breaks_is_not_the_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blind for good, it would beat on as if it watched."""
    monkeypatch.setattr("virtha.agent.guardian_process.LOOK_S", 0.05)
    watched(bench)
    looks: list[int] = []

    def breaks_once(paths: AgentPaths, boot: BootId) -> ProcessesSeen:
        looks.append(1)
        if len(looks) == 1:
            raise ValueError("a mistake")
        return look(paths, boot)

    async def live() -> None:
        process = GuardianProcess(
            paths=bench.paths, boot=bench.boot, clock=bench.clock, files=Files(), look=breaks_once
        )
        life = asyncio.create_task(process.run())
        try:
            await bench.until(lambda: len(looks) > 1)
        finally:
            process.stopping.set()
            await asyncio.wait_for(life, 60)

    asyncio.run(live())


def test_an_ungranted_qemu_is_killed_and_told_and_others_live(
    bench: Bench, qemus: FakeQemus
) -> None:
    watched(bench)
    managed, unmanaged = qemus.start(WEB1), qemus.start(WEB2)
    pretender = qemus.start(WEB1, program="grep")

    async def story(_: GuardianProcess) -> None:
        assert await until_ended(managed) == -9
        reports = ReportFiles(bench.paths.guardian_kills, Files())
        await bench.until(
            lambda: any(e.code == "host.guardian.killed_vm" for _, e in reports.read())
        )

    run_guardian(bench, story)
    assert unmanaged.poll() is None
    assert pretender.poll() is None

    async def later() -> None:
        await bench.until(lambda: "host.guardian.killed_vm" in bench.codes())
        await bench.until(lambda: not list(bench.paths.guardian_kills.iterdir()))

    bench.run(later)
    (fact,) = [
        fact.body
        for fact in bench.facts()
        if isinstance(fact.body, Happened) and fact.body.code == "host.guardian.killed_vm"
    ]
    assert fact.fields["pid"] == managed.pid
    assert fact.fields["name"] == "h1"


@pytest.mark.parametrize(
    "protection", ["granted", "held", "unreadable grant", "no records", "no grants", "emptied"]
)
def test_what_has_a_grant_or_can_not_be_judged_lives(
    bench: Bench, qemus: FakeQemus, protection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.agent.guardian_process.LOOK_S", 0.4)
    watched(bench)
    gate = bench.agent.host.gate
    process = qemus.start(WEB1)
    match protection:
        case "granted":
            gate.grant(WEB1, Incarnation(1), until_ms=0)
        case "held":
            gate.hold(WEB1, Incarnation(1))
        case "unreadable grant":
            bench.paths.grant(WEB1).write_bytes(b"{")
        case "no records":
            gate.records_path.write_bytes(b"damaged")
        case "no grants":
            shutil.rmtree(bench.paths.grants)
        case "emptied":  # /run was cleaned and somebody made the directory again
            shutil.rmtree(bench.paths.grants)
            bench.paths.grants.mkdir()
    looks = 0

    async def story(guardian: GuardianProcess) -> None:
        nonlocal looks
        real = guardian._looked

        def counted(seen: Any) -> None:
            nonlocal looks
            looks += 1
            real(seen)

        monkeypatch.setattr(guardian, "_looked", counted)
        await bench.until(lambda: looks >= 5)

    run_guardian(bench, story)
    assert process.poll() is None


def test_a_process_number_that_was_used_again_is_not_killed(qemus: FakeQemus) -> None:
    process = qemus.start(WEB1)
    ticks = start_ticks(Path("/proc"), process.pid)
    assert ticks is not None
    assert not kill(QemuProcess(pid=process.pid, start_ticks=ticks - 1, vm_id=WEB1))
    assert process.poll() is None
    assert kill(QemuProcess(pid=process.pid, start_ticks=ticks, vm_id=WEB1))
    assert process.wait(60) == -9
    assert not kill(QemuProcess(pid=process.pid, start_ticks=ticks, vm_id=WEB1))


def test_the_process_table_is_read_as_it_is(tmp_path: Path) -> None:
    def entry(pid: int, command: bytes, stat: bytes) -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes(command)
        (folder / "stat").write_bytes(stat)

    uuid = WEB1.encode()
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    entry(10, b"/usr/bin/qemu-kvm\0-uuid\0" + uuid + b"\0", b"10 (a) b (c) S " + fields)
    entry(11, b"qemu-system-x86_64\0-uuid\0" + uuid + b"\0", b"11 (q) Z " + fields)
    entry(12, b"qemu-system-x86_64\0-uuid\0", b"12 (q) S " + fields)
    entry(13, b"qemu-system-x86_64\0-uuid\0none\0", b"13 (q) S " + fields)
    entry(14, b"vim\0-uuid\0" + uuid + b"\0", b"14 (v) S " + fields)
    (tmp_path / "15").mkdir()
    (tmp_path / "self").mkdir()
    assert qemu_processes(tmp_path) == (QemuProcess(pid=10, start_ticks=22, vm_id=WEB1),)


def test_a_look_at_this_machine_names_what_is_managed(bench: Bench, qemus: FakeQemus) -> None:
    watched(bench)
    process = qemus.start(WEB1)
    bench.agent.host.gate.hold(WEB2, Incarnation(1))
    seen = look(bench.paths, bench.boot)
    assert process.pid in {found.pid for found in seen.processes}
    assert seen.managed == {WEB1}
    assert seen.granted == {WEB2}


def test_agent_and_guardian_hear_each_other_and_notice_the_end(tmp_path: Path) -> None:
    path = tmp_path / "guardian.sock"
    heard: list[Pulse] = []
    gone: list[bool] = []
    reports: list[bool] = []

    async def story() -> None:
        server = GuardianServer(path, on_pulse=heard.append, on_gone=lambda: gone.append(True))
        serving = asyncio.create_task(server.run())
        client = GuardianClient(
            path,
            pulse=lambda: Pulse(inventory_revision=7, server_instance="s1"),
            on_reports=lambda: reports.append(True),
        )
        running = asyncio.create_task(client.run())
        async with asyncio.timeout(60):
            while len(heard) < 2:
                await asyncio.sleep(0.01)
            assert heard[0] == Pulse(inventory_revision=7, server_instance="s1")
            assert path.stat().st_mode & 0o777 == 0o600
            while client.server_instance != "g1":
                server.tell(Pulse(server_instance="g1", reports=True))
                await asyncio.sleep(0.01)
            assert reports
            serving.cancel()  # the guardian dies; the agent must not
            await asyncio.wait([serving])
            while client.connected:
                await asyncio.sleep(0.01)
            assert client.server_instance is None
            serving = asyncio.create_task(server.run())
            while not client.connected:
                await asyncio.sleep(0.01)
            before = len(heard)
            while len(heard) == before:
                await asyncio.sleep(0.01)
            running.cancel()
            while not gone:
                await asyncio.sleep(0.01)
            serving.cancel()
            await asyncio.wait([serving, running])

    asyncio.run(story())


def test_the_guardian_beats_and_says_when_the_agent_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    class Link:
        server_instance = "s1"

        def send_beat(self, beat: object) -> bool:
            sent.append(beat)
            return True

        async def run(self) -> None:
            await asyncio.Event().wait()

        def close(self) -> None:
            return

    def alive() -> list[bool]:
        return [beat.agent_alive for beat in sent]

    async def live() -> None:
        process = GuardianProcess(
            paths=bench.paths, boot=bench.boot, clock=bench.clock, files=Files()
        )
        process.connect(cast(HostLink, Link()))
        life = asyncio.create_task(process.run())
        welcome = Welcome(
            version_major=1,
            version_minor=0,
            installation_id=INSTALLATION,
            server_instance="s1",
            term=Term(1),
            beat_interval_ms=3_600_000,
        )
        process.on_connected(welcome, "server")
        process.on_pace(Pace(beat_interval_ms=50, silence_ms=5_000))
        await bench.until(lambda: len(sent) >= 3)
        assert alive() == [False] * len(sent)
        client = GuardianClient(
            bench.paths.guardian_socket,
            pulse=lambda: Pulse(inventory_revision=9),
            on_reports=lambda: None,
        )
        running = asyncio.create_task(client.run())
        await bench.until(lambda: alive()[-1])
        assert sent[-1].inventory_revision == 9
        running.cancel()
        await bench.until(lambda: not alive()[-1])
        process.on_disconnected("wire.closed.lost", "", "server")
        process.stopping.set()
        await asyncio.wait_for(life, 60)
        numbers = [beat.sequence for beat in sent]
        assert numbers == list(range(1, len(numbers) + 1))

    bench.make_agent()
    bench.agent.disk.close()
    bench.agent.outbox.close()
    monkeypatch.setattr(
        bench.agent, "outbox", type("NoFacts", (), {"facts_after": lambda *_: ()})()
    )
    asyncio.run(live())


def test_reports_are_bounded_and_damaged_ones_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.agent.guardian_channel.REPORTS_MAX", 3)
    reports = ReportFiles(tmp_path, Files())
    event = Happened(code="host.guardian.killed_vm", vm_id=WEB1)
    for number in range(3):
        reports.write(event, at_ms=5, number=number)
    with pytest.raises(OSError, match="is full"):
        reports.write(event, at_ms=5, number=4)
    (damaged, *_) = sorted(tmp_path.iterdir())
    damaged.write_bytes(b"{")
    assert [found for _, found in reports.read()] == [event, event]
    reports.done([path for path, _ in reports.read()])
    assert [path.suffix for path in tmp_path.iterdir()] == [".damaged"]


def test_memory_is_locked_or_the_reason_told() -> None:
    # In a child: locked memory must not stay with the test run.
    code = (
        "from virtha.agent.guardian_process import lock_memory\n"
        "locked = lock_memory()\n"
        "lines = open('/proc/self/status').read().split('\\n')\n"
        "size = [line for line in lines if line.startswith('VmLck')][0].split()[1]\n"
        "print(locked, int(size) > 1000)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    last = answer.stdout.strip().splitlines()[-1]
    assert last == "True True" or "memory can't be locked" in answer.stdout + answer.stderr
