"""Evidence, host shutdown, the properties verbs, disk activity: parts that the big stories pass by."""

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest
from agent_bench import WEB1, Bench

from virtha.agent import host_shutdown
from virtha.agent.disk_activity import Fingerprint, wait_until_quiet
from virtha.agent.evidence import FOLDERS_PER_VM_MAX, SERIAL_TAIL_BYTES, EvidenceKeeper
from virtha.agent.images import ImageInfo, image_info
from virtha.cli.main import main
from virtha.drivers.service_notify import notify
from virtha.model.errors import Failed, Refused
from virtha.model.ids import VmId
from virtha.model.time import Millis, UtcMillis
from virtha.ports.hypervisor import HypervisorFailed

# Evidence


class NoScreen:
    async def screenshot(self, vm_id: VmId, path: str) -> str:
        raise HypervisorFailed("no screens to take a picture of")

    async def dump(self, vm_id: VmId, path: str) -> None:
        raise AssertionError("nobody asks for a dump")


@pytest.mark.req("W12")
def test_evidence_holds_screen_console_and_event(bench: Bench) -> None:
    log = bench.paths.serial_log(WEB1)
    log.write_bytes(b"early\n" * 20_000 + b"Kernel panic - not syncing\n")
    keeper = EvidenceKeeper(bench.paths, bench.hypervisor)

    async def gather() -> None:
        kept = await keeper.gather(
            bench.vm(), "watchdog reset", at=UtcMillis(1_760_000_000_123), screenshot=True
        )
        assert kept is not None
        folder = Path(str(kept.fields["path"]))
        assert folder.name == "20251009T085320.123Z-watchdog-reset"
        assert kept.fields["items"] == "serial.tail, event.json, screenshot.ppm"
        tail = await asyncio.to_thread((folder / "serial.tail").read_bytes)
        assert len(tail) == SERIAL_TAIL_BYTES
        assert tail.endswith(b"Kernel panic - not syncing\n")
        event = json.loads(await asyncio.to_thread((folder / "event.json").read_bytes))
        assert (event["name"], event["cause"]) == ("web1", "watchdog reset")

    asyncio.run(gather())


@pytest.mark.req("W12")
def test_evidence_is_bounded_and_needs_no_screen(bench: Bench) -> None:
    keeper = EvidenceKeeper(bench.paths, NoScreen())

    async def gather() -> None:
        for number in range(FOLDERS_PER_VM_MAX + 3):
            kept = await keeper.gather(
                bench.vm(), "crash", at=UtcMillis(1_000 + number // 2), screenshot=True
            )
            assert kept is not None
            assert kept.fields["items"] == "event.json"

    asyncio.run(gather())
    assert len(list((bench.paths.evidence / WEB1).iterdir())) == FOLDERS_PER_VM_MAX


def test_no_evidence_where_the_agents_own_state_needs_the_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = EvidenceKeeper(bench.paths, bench.hypervisor)
    monkeypatch.setattr(EvidenceKeeper, "_free_bytes", lambda _self: 1 << 20)
    assert asyncio.run(keeper.gather(bench.vm(), "crash", at=UtcMillis(0), screenshot=True)) is None


# The disk activity check, on a clock of its own


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(0)


@pytest.mark.req("A5")
@pytest.mark.parametrize(
    ("changes_until_ms", "timeout_ms", "quiet_after_ms"),
    [(0, 120_000, 30_000), (20_000, 120_000, 50_000), (10**9, 60_000, None)],
)
def test_quiet_is_counted_from_the_last_change_that_was_seen(
    monkeypatch: pytest.MonkeyPatch,
    changes_until_ms: int,
    timeout_ms: int,
    quiet_after_ms: int | None,
) -> None:
    clock = Clock()
    path = Path("/ds1/a.qcow2")

    async def sleep(seconds: float) -> None:
        clock.now += max(1, int(seconds * 1_000))

    async def read(_: Path) -> Fingerprint:
        # The time stamp is of a clock that is hours off: only that it changes counts.
        stamp = min(clock.now, changes_until_ms) - 10**15
        return Fingerprint(modified_ns=stamp, size_bytes=1, blocks=1, head=b"")

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def check() -> int:
        return await wait_until_quiet(
            (path,), read, clock=clock, quiet_ms=30_000, timeout_ms=timeout_ms
        )

    if quiet_after_ms is None:
        with pytest.raises(Refused) as caught:
            asyncio.run(check())
        assert caught.value.code == "order.refused.disk_active"
        assert clock.now >= timeout_ms
    else:
        assert asyncio.run(check()) >= 30_000
        assert quiet_after_ms <= clock.now < quiet_after_ms + 2_500


@pytest.mark.req("A5")
def test_slow_looks_are_no_activity(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as much time as quiet is asked for, a quiet disk on slow storage still passes."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += max(1, int(seconds * 1_000))

    async def read(_: Path) -> Fingerprint:
        clock.now += 700
        return Fingerprint(modified_ns=1, size_bytes=1, blocks=1, head=b"")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    paths = (Path("/ds1/a.qcow2"), Path("/ds1/b.qcow2"))
    quiet = wait_until_quiet(paths, read, clock=clock, quiet_ms=30_000, timeout_ms=30_000)
    assert asyncio.run(quiet) >= 30_000


# Images


def test_an_image_that_is_none_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "x.qcow2"
    with pytest.raises(Failed):
        asyncio.run(image_info(path))
    path.write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 200)
    with pytest.raises(Failed):
        asyncio.run(image_info(path))
    raw = tmp_path / "x.raw"
    raw.write_bytes(b"\0" * 1_024)
    assert asyncio.run(image_info(raw)) == ImageInfo(
        format="raw", virtual_size=1_024, actual_size=raw.stat().st_blocks * 512
    )


# Host shutdown, notify


def test_the_shutdown_verb_marks_this_boot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bench.paths.root
    monkeypatch.setattr(host_shutdown, "systemd_is_stopping", lambda: False)
    assert main(["agent", "host-shutdown", "--root", root]) == 0
    assert not host_shutdown.is_marked(bench.paths, bench.boot)
    assert "nothing was told" in capsys.readouterr().out
    monkeypatch.setattr(host_shutdown, "systemd_is_stopping", lambda: True)
    assert main(["agent", "host-shutdown", "--root", root]) == 0
    assert host_shutdown.is_marked(bench.paths, bench.boot)
    assert main(["agent", "host-shutdown", "--cancel", "--root", root]) == 0
    assert not host_shutdown.is_marked(bench.paths, bench.boot)


def test_notify_reaches_a_supervisor_and_none_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("STOPPING=1")  # the supervisor is gone
    os.environ.pop("NOTIFY_SOCKET")
    notify("STOPPING=1")


# The command line


@pytest.mark.req("A7")
def test_properties_are_set_read_and_unset(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", bench.paths.root]
    bench.paths.properties.write_bytes(b"# mine\r\nworkers=7")
    assert main(["agent", "properties", "set", "vm.rng.enable", "true", *root]) == 0
    assert bench.paths.properties.read_bytes().startswith(
        b"# mine\r\nworkers=7\r\nvm.rng.enable=true"
    )
    assert main(["agent", "properties", "get", "vm.rng.enable", *root]) == 0
    assert main(["agent", "properties", "get", "vm.rng.rate.bytes", *root]) == 0
    assert capsys.readouterr().out.split() == ["true", "2048"]
    assert main(["agent", "properties", "set", "vm.rng.enabel", "true", *root]) == 2
    assert "vm.rng.enable" in capsys.readouterr().err
    assert main(["agent", "properties", "get", "nonsense", *root]) == 3
    assert main(["agent", "properties", "unset", "vm.rng.enable", *root]) == 0
    assert b"rng" not in bench.paths.properties.read_bytes()
    assert main(["agent", "properties", "list", "--json", *root]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])}
    assert rows["workers"]["set"]
    assert not rows["vm.rng.enable"]["set"]


def test_running_without_having_joined_says_what_to_do(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["agent"], ["agent", "run"], ["guardian"]):
        assert main([*words, "--root", bench.paths.root]) == 1
        assert "virtha agent join" in capsys.readouterr().err


def test_the_gate_can_be_written_anew(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    hook = bench.paths.hooks / "qemu.d" / "virtha"
    hook.unlink()
    assert main(["agent", "install-gate", "--root", bench.paths.root]) == 0
    assert "restart libvirtd" in capsys.readouterr().out
    assert hook.exists()


def test_replay_of_what_is_no_journal(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello")
    assert main(["agent", "replay", str(path)]) == 2
    assert "no decision journal" in capsys.readouterr().err
