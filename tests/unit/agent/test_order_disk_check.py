"""The disk activity check (A5) in front of a start: what it stops, what skips it, and who is told."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from agent_bench import WEB1, Bench, prepared, qemu, stop
from msgspec import UNSET

from virtha.model.facts import Fact, Happened, HostReport, Result
from virtha.model.orders import CreateDisk, DiskCheck, StartVm
from virtha.model.vm import DiskFormat

pytestmark = pytest.mark.req("A5")


@pytest.fixture
def checking(bench: Bench) -> Bench:
    bench.properties = msgspec.structs.replace(
        bench.properties,
        diskactivity_check=True,
        diskactivity_quiet_ms=400,
        diskactivity_timeout_s=1,
    )
    return bench


def checks(bench: Bench) -> list[tuple[str, object]]:
    """(event, reason) of the VM's checks, oldest first."""
    return [
        (fact.body.code, fact.body.fields["code"])
        for fact in bench.facts()
        if isinstance(fact.body, Happened) and fact.body.code.startswith("vm.disk_check")
    ]


def last_check(bench: Bench) -> Happened:
    found: list[Fact] = [
        fact
        for fact in bench.facts()
        if isinstance(fact.body, Happened) and fact.body.code.startswith("vm.disk_check")
    ]
    body = found[-1].body
    assert isinstance(body, Happened)
    assert body.vm_id == WEB1
    return body


def disk_file(bench: Bench) -> Path:
    return Path(bench.storage.path, "disks", "web1.qcow2")


@asynccontextmanager
async def somebody_writes(path: Path) -> AsyncIterator[None]:
    over = asyncio.Event()

    async def write() -> None:
        while not over.is_set():
            with path.open("r+b") as file:
                file.seek(40)
                file.write(b"\0")
            await asyncio.sleep(0.05)

    writer = asyncio.create_task(write())
    try:
        yield
    finally:
        over.set()
        await writer


def test_a_disk_that_something_writes_is_not_started_and_everybody_is_told(
    checking: Bench,
) -> None:
    bench = checking
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        async with somebody_writes(disk_file(bench)):
            outcome = await bench.start(vm)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.disk_active")
        assert str(disk_file(bench)) in outcome.message
        assert qemu(bench) is None
        assert checks(bench) == [("vm.disk_check.failed", "disk_check.failed.active")]
        told = last_check(bench)
        assert told.fields["host"] == "h1"
        assert str(disk_file(bench)) in str(told.fields["result"])
        # Nothing was made, so the server may count this host out (P5).
        await bench.until(lambda: [fact.incarnation for fact in bench.released()] == [1])
        # Quiet again, it starts, and the history says for how long it was.
        assert (await bench.start(vm, incarnation=2)).result is Result.OK
        passed = last_check(bench)
        assert passed.fields["code"] == "disk_check.passed"
        assert "quiet for" in str(passed.fields["result"])

    bench.run(story)


def test_a_proven_start_skips_it_and_says_so(checking: Bench) -> None:
    bench = checking
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        async with somebody_writes(disk_file(bench)):
            proven = StartVm(vm=vm, grant=bench.grant(), by="ann", disk_check=DiskCheck.SKIP_PROVEN)
            assert (await bench.do(proven)).result is Result.OK
        assert checks(bench) == [("vm.disk_check", "disk_check.skipped.proven")]
        await bench.do(stop())

    bench.run(story)


def test_a_local_restart_skips_it_and_says_so(checking: Bench) -> None:
    bench = checking
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        assert (await bench.start(vm)).result is Result.OK
        async with somebody_writes(disk_file(bench)):
            bench.hypervisor.libvirt.kill_qemu(WEB1)
            await bench.until(lambda: "vm.restarted" in bench.codes())
            await bench.until(lambda: len(checks(bench)) == 2)
        assert checks(bench)[1] == ("vm.disk_check", "disk_check.skipped.local_restart")

    bench.run(story)


@pytest.mark.parametrize("kind", ["raw", "read-only", "none"])
def test_what_it_does_not_look_at_is_not_called_quiet(checking: Bench, kind: str) -> None:
    bench = checking
    disk = bench.disk()
    changed = {
        "raw": msgspec.structs.replace(disk, format=DiskFormat.RAW),
        "read-only": msgspec.structs.replace(disk, readonly=True),
    }
    vm = bench.vm(disks=(changed[kind],) if kind in changed else ())

    async def story() -> None:
        await prepared(bench)
        assert (await bench.start(vm)).result is Result.OK
        assert checks(bench) == [("vm.disk_check", "disk_check.skipped.no_qcow2")]

    bench.run(story)


def test_where_it_is_off_nothing_is_watched_and_nothing_told(bench: Bench) -> None:
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        async with somebody_writes(disk_file(bench)):
            assert (await bench.start(vm)).result is Result.OK
        assert checks(bench) == []

    bench.run(story)


def test_a_disk_that_can_not_be_read_is_not_a_quiet_one(checking: Bench) -> None:
    bench = checking
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        outcome = await bench.start(vm)  # the file was never made
        assert outcome.result is Result.FAILED
        assert qemu(bench) is None
        assert checks(bench) == [("vm.disk_check.failed", "disk_check.failed.unreadable")]
        assert "web1.qcow2" in str(last_check(bench).fields["result"])

    bench.run(story)


def test_storage_that_hangs_ends_with_the_check_not_with_the_patience_of_the_order(
    checking: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = checking
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        deadlines: list[int] = []
        free = threading.Event()
        real = bench.agent.host.workers.call

        async def hang(domain: object, call: object, *, deadline_ms: int) -> object:
            deadlines.append(deadline_ms)
            return await real(bench.storage, free.wait, deadline_ms=400)

        monkeypatch.setattr(bench.agent.host.workers, "call", hang)
        try:
            outcome = await bench.start(vm)
        finally:
            free.set()
        assert outcome.result is Result.FAILED
        assert deadlines[0] <= 1_000
        assert checks(bench) == [("vm.disk_check.failed", "disk_check.failed.unreadable")]

    bench.run(story)


def test_a_grant_that_is_shorter_than_the_check_is_refused_at_once(checking: Bench) -> None:
    bench = checking
    vm = bench.vm(disks=(bench.disk(),))

    async def story() -> None:
        await prepared(bench)
        await bench.do(CreateDisk(disk=bench.disk()))
        grant = bench.grant(duration_ms=200)
        outcome = await bench.do(StartVm(vm=vm, grant=grant, by="ann"))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.grant_expired")
        assert "grant.duration" in outcome.message
        assert checks(bench) == [("vm.disk_check.failed", "disk_check.failed.grant")]

    bench.run(story)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_server_learns_how_long_the_check_may_take(bench: Bench, is_on: bool) -> None:
    bench.properties = msgspec.structs.replace(bench.properties, diskactivity_check=is_on)

    def reports() -> list[HostReport]:
        return [fact.body for fact in bench.facts() if isinstance(fact.body, HostReport)]

    async def story() -> None:
        await bench.until(lambda: bool(reports()))
        assert reports()[-1].capabilities.disk_check_ms == (120_000 if is_on else UNSET)

    bench.run(story)
