"""Memory dumps of a watchdog with the action ``dump`` (W6): each firing names its own file, or says why not."""

import os
from pathlib import Path

import pytest
from agent_bench import Bench

from virtha.agent.dumps import DUMP_DIRECTORY, DumpFinder, dump_directory
from virtha.model.facts import Happened
from virtha.model.time import Millis, UtcMillis
from virtha.model.vm import Vm

pytestmark = pytest.mark.req("W6")

WALL_MS = 1_760_000_000_000


class HandClock:
    """Moved by the test; both of its clocks at once."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(WALL_MS + self.now)


class Host:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.clock = HandClock()

    def finder(self) -> DumpFinder:
        return DumpFinder(self.directory, self.clock)

    def write(self, name: str) -> str:
        """A dump that is complete now."""
        path = self.directory / name
        path.write_bytes(b"core")
        stamp = self.clock.wall_ms() * 1_000_000
        os.utime(path, ns=(stamp, stamp))
        return str(path)

    def pass_time(self, milliseconds: int) -> None:
        self.clock.now += milliseconds


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "dump")


@pytest.fixture
def vm(bench: Bench) -> Vm:
    return bench.vm()


def told(fact: Happened | None) -> tuple[str, str]:
    assert fact is not None
    return fact.code, str(fact.fields.get("path") or fact.fields.get("detail"))


def test_a_dump_that_worked_is_named(host: Host, vm: Vm) -> None:
    host.write("3-web1-2026-11-20-08:00:00")
    host.pass_time(86_400_000)
    finder = host.finder()
    host.pass_time(5_000)
    fired_ms = host.clock.now
    host.pass_time(3_000)
    path = host.write("4-web1-2026-11-21-08:00:00")
    host.write("5-web12-2026-11-21-08:00:00")
    assert told(finder.of_firing(vm, number=1, fired_ms=fired_ms)) == ("vm.dumped", path)
    assert finder.of_firing(vm, number=1, fired_ms=fired_ms) is None, "once per firing"


@pytest.mark.parametrize("age_ms", [1_000, 86_400_000])
def test_a_dump_that_failed_names_no_older_file(host: Host, vm: Vm, age_ms: int) -> None:
    host.write("3-web1-2026-11-20-08:00:00")
    host.pass_time(age_ms)
    finder = host.finder()
    code, detail = told(finder.of_firing(vm, number=1, fired_ms=host.clock.now))
    assert code == "vm.dump_failed"
    assert str(host.directory) in detail
    assert "libvirt's own log" in detail


def test_a_dump_that_found_no_room_says_so(host: Host, bench: Bench) -> None:
    vm = bench.vm(memory_bytes=1 << 60)
    code, detail = told(host.finder().of_firing(vm, number=1, fired_ms=host.clock.now))
    assert code == "vm.dump_failed"
    assert "free, the VM has 1048576TiB" in detail


def test_a_directory_that_can_not_be_read_says_so(
    host: Host, vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = host.finder()

    def broken(_path: Path) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", broken)
    code, detail = told(finder.of_firing(vm, number=1, fired_ms=host.clock.now))
    assert (code, "Input/output error" in detail) == ("vm.dump_failed", True)


def test_a_directory_that_libvirt_never_made_is_an_empty_one(tmp_path: Path, vm: Vm) -> None:
    finder = DumpFinder(tmp_path / "nowhere", HandClock())
    assert told(finder.of_firing(vm, number=1, fired_ms=1_000_000))[0] == "vm.dump_failed"


def test_two_firings_name_each_its_own(host: Host, vm: Vm) -> None:
    finder = host.finder()
    first = host.write("3-web1-a")
    assert told(finder.of_firing(vm, number=1, fired_ms=host.clock.now)) == ("vm.dumped", first)
    host.pass_time(2_000)  # sooner than the event's lateness could tell them apart
    fired_ms = host.clock.now
    second = host.write("3-web1-b")
    assert told(finder.of_firing(vm, number=2, fired_ms=fired_ms)) == ("vm.dumped", second)
    host.pass_time(2_000)
    failed = finder.of_firing(vm, number=3, fired_ms=host.clock.now)
    assert told(failed)[0] == "vm.dump_failed", "the third left nothing"


def test_a_file_that_libvirt_wrote_again_is_new(host: Host, vm: Vm) -> None:
    host.write("3-web1-a")
    finder = host.finder()
    host.pass_time(60_000)
    fired_ms = host.clock.now
    path = host.write("3-web1-a")
    assert told(finder.of_firing(vm, number=1, fired_ms=fired_ms)) == ("vm.dumped", path)


def test_an_agent_that_began_after_the_firing_finds_its_dump(host: Host, vm: Vm) -> None:
    host.write("2-web1-old")
    host.pass_time(60_000)
    fired_ms = host.clock.now
    host.pass_time(1_000)
    path = host.write("3-web1-new")
    host.pass_time(30_000)
    finder = host.finder()  # it knows the new file from the start
    assert told(finder.of_firing(vm, number=1, fired_ms=fired_ms)) == ("vm.dumped", path)


def test_a_look_for_another_vm_hides_nothing(host: Host, bench: Bench, vm: Vm) -> None:
    other = bench.vm(type(vm.id)("50000000-0000-4000-8000-000000000002"), "web2")
    finder = host.finder()
    fired_ms = host.clock.now
    mine, theirs = host.write("3-web1-a"), host.write("4-web2-a")
    assert told(finder.of_firing(other, number=1, fired_ms=fired_ms)) == ("vm.dumped", theirs)
    assert told(finder.of_firing(vm, number=1, fired_ms=fired_ms)) == ("vm.dumped", mine)


def test_long_names_are_cut_as_libvirt_cuts_them(host: Host, bench: Bench) -> None:
    vm = bench.vm(name="a-name-of-more-than-twenty-characters")
    path = host.write("3-a-name-of-more-than--2026-11-21")
    found = host.finder().of_firing(vm, number=1, fired_ms=host.clock.now - 1)
    assert told(found) == ("vm.dumped", path)


@pytest.mark.parametrize(
    ("text", "directory"),
    [
        (None, DUMP_DIRECTORY),
        ("", DUMP_DIRECTORY),
        ('#auto_dump_path = "/srv/no"\n', DUMP_DIRECTORY),
        ('user = "root"\nauto_dump_path = "/srv/dumps"\n', Path("/srv/dumps")),
    ],
)
def test_libvirts_configuration_says_where(
    tmp_path: Path, text: str | None, directory: Path
) -> None:
    path = tmp_path / "qemu.conf"
    if text is not None:
        path.write_text(text)
    assert dump_directory(path) == directory
