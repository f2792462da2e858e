"""The hook script as libvirt runs it: arguments, XML on standard input, exit code, message."""

import os
import resource
import subprocess
import threading
import zlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from virtha.agent.files import Files
from virtha.agent.gate import (
    PROOF_VM_ID,
    GateRecords,
    GrantState,
    gate_installed,
    hook_path,
    install_gate,
    read_grant,
)
from virtha.agent.gate_hook import resolve
from virtha.agent.paths import AgentPaths
from virtha.drivers.machine_clock import MachineClock
from virtha.model.codes import REGISTRY
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    Incarnation,
    InstallationId,
    StorageDomainId,
    Term,
    VmId,
)
from virtha.model.orders import HeldVm, HostSettings
from virtha.model.vm import Vm

pytestmark = pytest.mark.req("A8")

OURS = VmId("11111111-1111-4111-8111-111111111111")
ELSEWHERE = VmId("22222222-2222-4222-8222-222222222222")
UNKNOWN = VmId("33333333-3333-4333-8333-333333333333")
POOL = CephPool(monitors=("10.0.0.11",), pool="vms", user="virtha")
MARK = "<metadata><v:vm xmlns:v='https://virtha.dev/domain/1' id='x'/></metadata>"


def xml(vm_id: str, inside: str = "", *, mark: str = "", name: str = "web1") -> str:
    return f"<domain type='kvm'><name>{name}</name><uuid>{vm_id}</uuid>{mark}{inside}</domain>"


def disk(path: str) -> str:
    return f"<devices><disk type='file'><source file='{path}'/></disk></devices>"


class Gate:
    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot_file = root / "boot_id"
        self.boot_file.write_text("boot-1\n")
        monkeypatch.setenv("VIRTHA_BOOT_ID_FILE", str(self.boot_file))
        monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(root / "hooks"))
        self.root = root
        self.paths = AgentPaths(root=str(root))
        self.paths.make_directories()
        install_gate(self.paths, Files())
        self.storage = root / "ds1"
        self.storage.mkdir()
        self.records = GateRecords(self.paths, Files(), boot=BootId("boot-1"))

    def write_records(self, path: Path | None = None, *pools: CephPool) -> None:
        vm = Vm(id=OURS, name="web1", cluster_id=ClusterId("c"), memory_bytes=1 << 20)
        domain = StorageDomain(
            id=StorageDomainId("d"),
            name="ds1",
            cluster_id=ClusterId("c"),
            path=str(path or self.storage),
        )
        self.records.write(
            HostSettings(
                revision=1,
                installation_id=InstallationId("i"),
                term=Term(1),
                storage_domains=(
                    domain,
                    *(replace(domain, path=pool.shown, ceph=pool) for pool in pools),
                ),
                vms=(HeldVm(vm=vm, incarnation=Incarnation(1), wanted_up=True),),
                foreign_vms=(ELSEWHERE,),
            )
        )

    def grant(self, vm_id: VmId = OURS, *, for_ms: int = 60_000) -> None:
        until_ms = MachineClock().monotonic_ms() + for_ms
        self.records.grant(vm_id, Incarnation(1), until_ms=until_ms)

    def ask(
        self, text: str | bytes, *, operation: str = "prepare", sub: str = "begin"
    ) -> tuple[int, str]:
        data = text.encode() if isinstance(text, str) else text
        answer = subprocess.run(
            [str(hook_path(self.paths)), "web1", operation, sub, "-"],
            input=data,
            capture_output=True,
            check=False,
            timeout=200,
            env={"PATH": "/usr/bin:/bin"},  # libvirt hands over next to nothing
        )
        assert answer.stdout == b""
        return answer.returncode, answer.stderr.decode()

    def refused(self, text: str | bytes) -> str:
        """The code of the refusal, which the registry must know."""
        code, message = self.ask(text)
        assert code == 1, message
        assert message.startswith("virtha: ")
        found = message.rstrip().rpartition("(")[2].rstrip(")")
        assert found in REGISTRY
        return found


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("operation", "sub"),
    [
        ("start", "begin"),
        ("started", "begin"),
        ("stopped", "end"),
        ("release", "end"),
        ("reconnect", "begin"),
        ("attach", "begin"),
        ("prepare", "end"),
        ("migrate", "end"),
        ("restore", "begin"),
    ],
)
def test_nothing_but_the_begins_of_prepare_and_migrate_is_judged(
    gate: Gate, operation: str, sub: str
) -> None:
    gate.write_records()
    assert gate.ask(xml(OURS, mark=MARK), operation=operation, sub=sub) == (0, "")


def test_other_operations_cost_no_python(gate: Gate) -> None:
    def spent_s(operation: str) -> float:
        """Processor time of ten calls, which other work on the machine doesn't lengthen as it does the clock's."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(10):
            gate.ask(xml(OURS), operation=operation)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    gate.write_records()
    assert spent_s("reconnect") * 3 < spent_s("prepare"), "an interpreter was started"


@pytest.mark.parametrize("vm_id", [OURS, ELSEWHERE, PROOF_VM_ID])
def test_managed_without_a_grant_is_refused(gate: Gate, vm_id: VmId) -> None:
    gate.write_records()
    assert gate.refused(xml(vm_id)) == "gate.refused.no_grant"


def test_the_message_says_what_to_do(gate: Gate) -> None:
    gate.write_records()
    _, message = gate.ask(xml(OURS))
    assert message == (
        "virtha: web1 is managed; start it with 'virtha vm start web1' (gate.refused.no_grant)\n"
    )


def test_a_grant_lets_one_vm_start_and_no_other(gate: Gate) -> None:
    gate.write_records()
    gate.grant()
    assert gate.ask(xml(OURS, disk(f"{gate.storage}/disks/a.qcow2"), mark=MARK)) == (0, "")
    assert gate.refused(xml(ELSEWHERE)) == "gate.refused.no_grant"


def test_grants_end(gate: Gate) -> None:
    gate.write_records()
    gate.grant(for_ms=-1)
    assert gate.refused(xml(OURS)) == "gate.refused.expired"
    gate.grant()
    gate.records.hold(OURS, Incarnation(1))
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"
    gate.grant()
    gate.records.revoke(OURS)
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"


def expect(gate: Gate, *, for_ms: int = 60_000) -> None:
    gate.write_records()
    until_ms = MachineClock().monotonic_ms() + for_ms
    gate.records.expect(OURS, Incarnation(2), until_ms=until_ms)


def test_a_grant_to_receive_starts_nothing(gate: Gate) -> None:
    expect(gate)
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"


def test_a_grant_to_receive_lets_one_copy_in_from_another_host(gate: Gate) -> None:
    expect(gate)
    assert gate.ask(xml(OURS), operation="migrate") == (0, "")
    assert gate.ask(xml(OURS)) == (0, "")
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant", "once"


def test_what_was_called_off_comes_in_no_more(gate: Gate) -> None:
    expect(gate)
    assert gate.ask(xml(OURS), operation="migrate") == (0, "")
    gate.records.revoke(OURS)
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"
    expect(gate)
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant", "its mark went with it"


def test_a_start_that_comes_long_after_is_refused(gate: Gate) -> None:
    expect(gate)
    assert gate.ask(xml(OURS), operation="migrate") == (0, "")
    mark = gate.paths.grant(OURS).with_suffix(".comes")
    mark.write_text(str(int(mark.read_text()) - 10_001))
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["", "x", "-1", "9" * 30])
def test_a_damaged_mark_lets_nothing_in(gate: Gate, content: str) -> None:
    expect(gate)
    gate.paths.grant(OURS).with_suffix(".comes").write_text(content)
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"


def test_nothing_comes_in_without_a_grant_to_receive(gate: Gate) -> None:
    gate.write_records()
    gate.grant()
    assert gate.ask(xml(OURS), operation="migrate")[0] == 1, "a grant to start is none"
    expect(gate, for_ms=-1)
    assert gate.ask(xml(OURS), operation="migrate")[0] == 1
    assert gate.ask(xml(ELSEWHERE), operation="migrate")[0] == 1
    assert gate.ask(xml(UNKNOWN), operation="migrate") == (0, "")


def test_a_grant_of_an_earlier_boot_starts_nothing(gate: Gate) -> None:
    gate.write_records()
    gate.grant()
    gate.boot_file.write_text("boot-2\n")
    assert gate.refused(xml(OURS)) == "gate.refused.other_boot"


def test_no_boot_id_means_no_grant(gate: Gate) -> None:
    gate.write_records()
    gate.grant()
    gate.boot_file.unlink()
    assert gate.refused(xml(OURS)) == "gate.refused.other_boot"
    assert gate.ask(xml(UNKNOWN)) == (0, "")


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"vm": "x"}', b'{"vm": 1, "boot": [], "state": 3}']
)
def test_a_damaged_grant_is_none(gate: Gate, damage: bytes) -> None:
    gate.write_records()
    gate.grant()
    gate.paths.grant(OURS).write_bytes(damage)
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"
    assert read_grant(gate.paths.grant(OURS)) is None


def test_the_mark_alone_makes_it_managed(gate: Gate) -> None:
    # No records at all: a domain that came with a copied /etc/libvirt, say.
    assert gate.refused(xml(UNKNOWN, mark=MARK)) == "gate.refused.no_grant"


def test_unmanaged_domains_start_on_a_host_that_manages_nothing(gate: Gate) -> None:
    assert gate.ask(xml(UNKNOWN, disk("/srv/other/a.qcow2"))) == (0, "")


DISKS = {
    "file": "<disk type='file'><source file='{}'/></disk>",
    "block": "<disk type='block'><source dev='{}'/></disk>",
    "backing": "<disk type='file'><source file='/x'/><backingStore><source file='{}'/></backingStore>"
    "</disk>",
    "mirror": "<disk><source file='/x'/><mirror><source file='{}'/></mirror></disk>",
    "filesystem": "<filesystem type='mount'><source dir='{}'/></filesystem>",
    "nvdimm": "<memory model='nvdimm'><source><path>{}</path></source></memory>",
}


@pytest.mark.parametrize("shape", DISKS.values(), ids=DISKS.keys())
def test_a_disk_of_ours_in_a_foreign_domain_is_refused(gate: Gate, shape: str) -> None:
    gate.write_records()
    inside = f"<devices>{shape.format(f'{gate.storage}/disks/a.qcow2')}</devices>"
    assert gate.refused(xml(UNKNOWN, inside)) == "gate.refused.disk"
    elsewhere = f"<devices>{shape.format('/srv/other/a.qcow2')}</devices>"
    assert gate.ask(xml(UNKNOWN, elsewhere)) == (0, "")


@pytest.mark.req("F3")
@pytest.mark.parametrize("namespace", ["", "one"])
def test_an_image_of_our_pool_in_a_foreign_domain_is_refused(gate: Gate, namespace: str) -> None:
    pool = replace(POOL, namespace=namespace)
    gate.write_records(None, pool)
    shapes = (
        "<devices><disk type='network'><source protocol='rbd' name='{}'/></disk></devices>",
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<q:arg value='file=rbd:{}:id=admin,if=virtio'/></q:commandline>",
    )
    for shape in shapes:
        ours = xml(UNKNOWN, shape.format(f"{pool.image_prefix}/web1"))
        assert gate.refused(ours) == "gate.refused.disk"
        for other in ("other/web1", "vms/two/web1", "vmsx/web1"):
            assert gate.ask(xml(UNKNOWN, shape.format(other))) == (0, "")
    gate.write_records()
    assert gate.ask(xml(UNKNOWN, shapes[0].format("vms/web1"))) == (0, "")


QEMU_ARGUMENTS = {
    "driver": ["-drive", "driver=rbd,pool={pool},image=web1,if=virtio"],
    "format": ["-drive", "format=rbd,file.pool={pool},file.image=web1"],
    "below": ["-drive", "driver=raw,file.driver=rbd,file.pool={pool},file.image=web1"],
    "blockdev": ["-blockdev", '{"driver":"rbd","node-name":"d","pool":"{pool}","image":"web1"}'],
    "escaped": ["-blockdev", '{"driver":"\\u0072bd","pool":"{pool}","image":"web1"}'],
    "nested": [
        "-blockdev",
        '{"driver":"raw","file":{"driver":"rbd","pool":"{pool}","image":"web1"}}',
    ],
    "flat": [
        "-blockdev",
        '{"driver":"raw","file.driver":"rbd","file.pool":"{pool}","file.image":"web1"}',
    ],
    "pseudo": ["-drive", 'file=json:{"driver":"rbd",,"pool":"{pool}",,"image":"web1"},if=virtio'],
    "filename": ["-blockdev", '{"driver":"raw","file":{"filename":"rbd:{pool}/web1:id=x"}}'],
    "legacy": ["-hda", "rbd:{pool}/web1"],
}


def _arguments(words: list[str], pool: str) -> str:
    values = "".join(
        f"<q:arg value='{word.replace('{pool}', pool).replace('<', '&lt;')}'/>" for word in words
    )
    return (
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"{values}</q:commandline>"
    )


@pytest.mark.req("F3")
@pytest.mark.parametrize("words", QEMU_ARGUMENTS.values(), ids=QEMU_ARGUMENTS.keys())
def test_an_image_of_our_pool_in_qemus_arguments_is_refused(gate: Gate, words: list[str]) -> None:
    gate.write_records(None, POOL)
    assert gate.refused(xml(UNKNOWN, _arguments(words, "vms"))) == "gate.refused.disk"
    assert gate.ask(xml(UNKNOWN, _arguments(words, "other"))) == (0, "")


@pytest.mark.bad_input("disk that can't be told", story=True)
@pytest.mark.req("F3")
@pytest.mark.parametrize(
    "words",
    [
        ["-readconfig", "/etc/vm.cfg"],
        ["-blockdev", '{"driver":"rbd","image":"web1"}'],
        ["-blockdev", '{"driver":"rbd","pool":"vms"'],
        ["-drive", "driver=rbd,image=web1"],
        ["-drive", "driver=quorum,a.driver=rbd,a.pool=o,a.image=x,b.driver=rbd,b.pool=o,b.image=y"],
    ],
    ids=["readconfig", "no pool", "cut short", "driver alone", "two in one"],
)
def test_what_cannot_be_told_is_refused_where_a_pool_is_managed(
    gate: Gate, words: list[str]
) -> None:
    gate.write_records(None, POOL)
    code, text = gate.ask(xml(UNKNOWN, _arguments(words, "vms")))
    assert code == 1
    assert "it can't be told" in text
    assert "protocol='rbd'" in text
    gate.write_records()
    assert gate.ask(xml(UNKNOWN, _arguments(words, "vms"))) == (0, "")


def test_a_disk_on_the_command_line_is_found(gate: Gate) -> None:
    gate.write_records()
    argument = f"<q:arg value='file={gate.storage}/a.qcow2,if=virtio'/>"
    inside = (
        "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>"
        f"<q:arg value='-drive'/>{argument}</q:commandline>"
    )
    assert gate.refused(xml(UNKNOWN, inside)) == "gate.refused.disk"


def test_paths_that_hide_where_they_lead(gate: Gate, tmp_path: Path) -> None:
    gate.write_records()
    (tmp_path / "link").symlink_to(gate.storage)
    (tmp_path / "relative").symlink_to("ds1")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to("../link/..")
    for path in (
        f"{tmp_path}/other/../ds1/a",
        f"{tmp_path}//ds1/./a",
        f"{tmp_path}/link/a",
        f"{tmp_path}/relative/a",
        f"{tmp_path}/deep/up/ds1/a",
        f"{gate.storage}/../outside/../ds1/a",
    ):
        assert gate.refused(xml(UNKNOWN, disk(path))) == "gate.refused.disk", path
    assert gate.ask(xml(UNKNOWN, disk(f"{tmp_path}/ds10/a"))) == (0, "")


def test_a_storage_domain_below_a_link_is_known_by_both_names(gate: Gate, tmp_path: Path) -> None:
    (tmp_path / "mnt").symlink_to(tmp_path)
    gate.write_records(tmp_path / "mnt" / "ds1")
    assert gate.refused(xml(UNKNOWN, disk(f"{gate.storage}/a"))) == "gate.refused.disk"
    assert gate.refused(xml(UNKNOWN, disk(f"{tmp_path}/mnt/ds1/a"))) == "gate.refused.disk"


@pytest.mark.parametrize("begins_anew", [False, True])
def test_storage_that_hangs_holds_up_no_records_and_no_spelling_is_forgotten(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_anew: bool
) -> None:
    """The domain is a directory below a mount: looking at it may hang, and the agent's one disk thread
    with it."""
    (tmp_path / "mnt").symlink_to(tmp_path)
    gate.write_records(tmp_path / "mnt" / "ds1")
    answers = threading.Event()
    real = os.readlink

    def readlink(path: str) -> str:
        assert answers.wait(600)
        return real(path)

    monkeypatch.setattr(os, "readlink", readlink)
    monkeypatch.setattr("virtha.agent.gate.SPELLING_S", 0.05)
    if begins_anew:
        gate.records = GateRecords(gate.paths, Files(), boot=BootId("boot-1"))
    threads = threading.active_count()
    try:
        for _ in range(3):  # none waits for the look, which waits for us
            gate.write_records(tmp_path / "mnt" / "ds1")
        assert threading.active_count() <= threads + 1, "one hanging look per path, not one per try"
        for path in (gate.storage, tmp_path / "mnt" / "ds1"):
            assert gate.refused(xml(UNKNOWN, disk(f"{path}/a"))) == "gate.refused.disk"
    finally:
        answers.set()


def test_a_loop_of_links_is_refused(gate: Gate, tmp_path: Path) -> None:
    gate.write_records()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert gate.refused(xml(UNKNOWN, disk(f"{tmp_path}/a/x"))) == "gate.refused.disk"


def test_the_storage_itself_is_never_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def readlink(path: str) -> str:
        asked.append(path)
        raise OSError

    monkeypatch.setattr(os, "readlink", readlink)
    assert resolve("/mnt/ds1/disks/a", frozenset({"/mnt/ds1"})) == ("/mnt/ds1/disks/a", True)
    assert asked == ["/mnt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "directory"])
def test_damaged_records_refuse_what_has_files(gate: Gate, damage: str) -> None:
    gate.write_records()
    path = gate.records.records_path
    data = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {"cut": data[:-20], "flipped": data.replace(b"web1", b"web2"), "empty": b""}[damage]
        )
    assert gate.refused(xml(UNKNOWN, disk("/srv/other/a"))) == "gate.refused.unreadable"
    # Nothing of it can be a disk of ours, so nothing is at stake.
    assert gate.ask(xml(UNKNOWN)) == (0, "")
    # A grant needs no records: the agent's restarts go on.
    gate.grant()
    assert gate.ask(xml(OURS, disk(f"{gate.storage}/a"))) == (0, "")


def test_records_in_another_format_are_unreadable(gate: Gate) -> None:
    body = b'{"managed": [], "paths": 3}'
    gate.records.records_path.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
    assert gate.refused(xml(UNKNOWN, disk("/srv/a"))) == "gate.refused.unreadable"


BAD_XML = {
    "nothing": "",
    "no XML": "hello",
    "no uuid": "<domain><name>web1</name></domain>",
    "uuid is a path": "<domain><name>a</name><uuid>../../../../etc/passwd/../aaaaaaaaaaaaaa</uuid></domain>",
    "laughs": "<!DOCTYPE d [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>",
    "file entity": "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><domain>&a;</domain>",
    "deep": "<a>" * 100_000,
    "cut": xml(OURS)[:-9],
}


@pytest.mark.parametrize("text", BAD_XML.values(), ids=BAD_XML.keys())
def test_what_is_no_domain_is_refused(gate: Gate, text: str) -> None:
    assert gate.refused(text) == "gate.refused.unreadable"


def test_too_large_is_refused_quickly(gate: Gate) -> None:
    data = b"<domain>" + b" " * (20 << 20)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert gate.refused(data) == "gate.refused.unreadable"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: how long that takes depends on who else wants it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_installing_is_repeatable_and_notices_changes(gate: Gate) -> None:
    path = hook_path(gate.paths)
    assert gate_installed(gate.paths) is None
    assert not install_gate(gate.paths, Files())
    path.chmod(0o644)
    assert "not executable" in (gate_installed(gate.paths) or "")
    install_gate(gate.paths, Files())
    assert gate_installed(gate.paths) is None
    path.write_text("#!/bin/sh\nexit 0\n")
    assert "not the one of this version" in (gate_installed(gate.paths) or "")
    # It was there when libvirtd started, so writing it anew needs no restart.
    assert not install_gate(gate.paths, Files())
    path.unlink()
    assert "missing" in (gate_installed(gate.paths) or "")
    assert install_gate(gate.paths, Files())


def test_grants_are_listed_for_this_boot_only(gate: Gate) -> None:
    gate.grant()
    gate.records.hold(ELSEWHERE, Incarnation(2))
    later = GateRecords(gate.paths, Files(), boot=BootId("boot-2"))
    assert {vm: grant.state for vm, grant in gate.records.grants().items()} == {
        OURS: GrantState.GRANTED,
        ELSEWHERE: GrantState.HELD,
    }
    assert later.grants() == {}


def test_unchanged_records_are_not_written_again(gate: Gate) -> None:
    gate.write_records()
    before = gate.records.records_path.stat().st_ino
    gate.write_records()
    assert gate.records.records_path.stat().st_ino == before
    gate.records.records_path.write_bytes(b"damaged")
    gate.write_records()
    assert gate.refused(xml(OURS)) == "gate.refused.no_grant"
