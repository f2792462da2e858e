"""What every driver of heartbeat blocks keeps, on each kind of file system that it may find."""

import errno
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from heartbeat_places import DS1, DS2, OURS, THEIRS, CephPlace, DirectoryPlace, HeartbeatPlace
from msgspec.structs import replace
from storage_mounts import FuseMount, LoopMount, MemoryMount, Mount

from virtha.drivers.directory_domain import FILE_BYTES, HOSTS_MAX, DirectoryDomain
from virtha.drivers.disk_signs import DirectoryDisks, read_signs
from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.ids import BootId, HostId, Term
from virtha.model.slot import (
    BLOCK_BYTES,
    BlockFault,
    Declaration,
    Mailbox,
    Poison,
    Slot,
    Unreadable,
)
from virtha.ports.storage_domain import HeartbeatSlots

pytestmark = pytest.mark.req("F1")

H1, H2 = HostId("h1"), HostId("h2")
SLOT = Slot(
    installation_id=OURS,
    domain_id=DS1,
    index=0,
    host_id=H1,
    boot=BootId("boot-1"),
    counter=1,
    declaration=Declaration(armed=True, watchdog_ms=5_000),
)
MAILBOX = Mailbox(
    installation_id=OURS,
    domain_id=DS1,
    index=0,
    host_id=H1,
    counter=1,
    poison=Poison(boot=BootId("boot-1"), server="s1", term=Term(3), incident="7"),
)


def driver(path: Path, **other: Any) -> DirectoryDomain:
    return DirectoryDomain(str(path), **{"installation_id": OURS, "domain_id": DS1, **other})


KINDS = (
    "directory",
    "tmpfs",
    pytest.param("ext4", marks=pytest.mark.lab),
    pytest.param("fuse", marks=pytest.mark.lab),
    pytest.param("fuse direct", marks=pytest.mark.lab),
)


def make(kind: str, root: Path) -> Mount:
    match kind:
        case "directory":
            return Mount(root / "plain")
        case "tmpfs":
            return MemoryMount()
        case "ext4":
            return LoopMount(root)
    options = ["--forward-odirect=512"] if kind == "fuse direct" else []
    return FuseMount(root / "mounted", Mount(root / "backing").path, *options)


@pytest.fixture(params=KINDS)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    made = make(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[FuseMount]:
    made = FuseMount(tmp_path / "mounted", Mount(tmp_path / "backing").path)
    yield made
    made.close()


def prepared(path: Path) -> DirectoryDomain:
    made = driver(path)
    both_prepared(made)
    return made


def both_prepared(made: HeartbeatSlots) -> None:
    made.prepare(0, H1)
    made.prepare(1, H2)


@pytest.fixture(
    params=[
        "directory",
        # Ceph is up after half a minute only.
        pytest.param("ceph", marks=[pytest.mark.lab, pytest.mark.long, pytest.mark.req("F3")]),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HeartbeatPlace]:
    made: CephPlace | DirectoryPlace = DirectoryPlace(tmp_path)
    if request.param == "ceph":
        made = CephPlace(request.getfixturevalue("own_ceph"), namespace=uuid4().hex)
    yield made
    made.close()


def check_both_ways(one: HeartbeatSlots, other: HeartbeatSlots) -> None:
    assert one.read_slot(0) == Unreadable(fault=BlockFault.EMPTY)
    assert one.read_mailbox(0) == replace(MAILBOX, counter=0, poison=None)
    for counter in range(1, 4):
        one.write_slot(replace(SLOT, counter=counter))
        assert other.read_slot(0) == replace(SLOT, counter=counter)
    second = replace(SLOT, index=1, host_id=H2)
    other.write_slot(second)
    other.write_mailbox(MAILBOX)
    assert one.read_slots({H1: 0, H2: 1}) == {H1: replace(SLOT, counter=3), H2: second}
    assert one.read_mailbox(0) == MAILBOX
    one.write_slot(replace(SLOT, counter=4, acknowledged_poison=1))
    assert other.read_slots({H1: 0}) == {H1: replace(SLOT, counter=4, acknowledged_poison=1)}
    theirs = replace(MAILBOX, index=1, host_id=H2, counter=0, poison=None)
    assert other.read_mailboxes({H1: 0, H2: 1}) == {H1: MAILBOX, H2: theirs}
    assert other.read_mailboxes({}) == {}
    one.write_back()


def test_what_one_host_writes_the_other_reads(mount: Mount) -> None:
    one, other = prepared(mount.path), driver(mount.path)
    check_both_ways(one, other)
    assert one.file.stat().st_size == FILE_BYTES
    assert one.file.stat().st_blocks * 512 >= FILE_BYTES
    assert [path.name for path in one.file.parent.iterdir()] == ["heartbeat"]


def test_what_one_host_writes_the_other_reads_wherever_it_lies(place: HeartbeatPlace) -> None:
    one = place.driver()
    both_prepared(one)
    check_both_ways(one, place.driver())
    assert one.direct_io
    assert not place.driver().direct_io


def test_whether_the_caches_are_passed_is_said(tmp_path: Path) -> None:
    memory = MemoryMount()
    try:
        there, on_disk = prepared(memory.path), prepared(tmp_path)
        assert on_disk.direct_io
        # Kernels from 6.6 on take O_DIRECT there.
        assert there.direct_io == takes_direct_io(there.file)
        assert not driver(tmp_path).direct_io
    finally:
        memory.close()


def takes_direct_io(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_preparing_again_changes_nothing(place: HeartbeatPlace) -> None:
    one = place.driver()
    both_prepared(one)
    one.write_slot(SLOT)
    one.write_mailbox(MAILBOX)
    before = place.blocks()
    both_prepared(place.driver())
    assert before == place.blocks()


def test_several_hosts_that_prepare_at_once_make_one_file(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def join(index: int) -> None:
        try:
            driver(tmp_path).prepare(index, HostId(f"h{index}"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=join, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    seen = [driver(tmp_path).read_mailbox(index) for index in range(8)]
    assert [box.host_id for box in seen if isinstance(box, Mailbox)] == [f"h{n}" for n in range(8)]
    assert len(list((tmp_path / ".virtha").iterdir())) == 1


# Bad input


@pytest.mark.bad_input("slot of a foreign cluster")
@pytest.mark.parametrize("other", [{"installation_id": THEIRS}, {"domain_id": DS2}])
def test_a_foreign_place_is_neither_prepared_nor_written(
    place: HeartbeatPlace, other: dict[str, Any]
) -> None:
    both_prepared(place.driver(**other))
    before = place.blocks()
    with pytest.raises(Refused, match="another installation or domain") as refused:
        place.driver().prepare(0, H1)
    assert refused.value.code == "order.refused.storage_foreign"
    ours = place.driver()
    with pytest.raises(OSError, match=r"the mailbox is (foreign|misplaced)"):
        ours.write_slot(SLOT)
    with pytest.raises(OSError, match=r"the mailbox is (foreign|misplaced)"):
        ours.write_mailbox(MAILBOX)
    reading = ours.read_mailbox(0)
    assert isinstance(reading, Unreadable)
    assert reading.fault in (BlockFault.FOREIGN, BlockFault.MISPLACED)
    assert place.blocks() == before


def test_a_place_is_one_hosts(place: HeartbeatPlace) -> None:
    one = place.driver()
    both_prepared(one)
    with pytest.raises(Refused, match="place 0 is host h1's"):
        one.prepare(0, H2)
    with pytest.raises(OSError, match="that place is host h1's"):
        place.driver().write_slot(replace(SLOT, host_id=H2))
    with pytest.raises(InvalidInput, match=r"slot.index"):
        one.prepare(HOSTS_MAX, H1)


@pytest.mark.parametrize("damage", ["lost", "torn", "alien"])
def test_a_damaged_mailbox_is_not_made_anew(place: HeartbeatPlace, damage: str) -> None:
    one = place.driver()
    both_prepared(one)
    one.write_slot(SLOT)
    place.damage(
        40 if damage == "torn" else 0, bytes(BLOCK_BYTES) if damage == "lost" else b"damaged"
    )
    with pytest.raises(Failed, match=damage):
        place.driver().prepare(0, H1)
    with pytest.raises(OSError, match=r"the mailbox is (empty|torn|alien)"):
        place.driver().write_slot(SLOT)


def test_a_mailbox_is_written_over_the_one_before_only(place: HeartbeatPlace) -> None:
    one = place.driver()
    both_prepared(one)
    one.write_mailbox(MAILBOX)
    with pytest.raises(OSError, match="written by another since"):
        place.driver().write_mailbox(replace(MAILBOX, poison=None))
    place.driver().write_mailbox(replace(MAILBOX, counter=2))


def test_a_file_of_another_size_is_not_used(tmp_path: Path) -> None:
    one = prepared(tmp_path)
    os.truncate(one.file, FILE_BYTES - 1)
    with pytest.raises(OSError, match=f"has {FILE_BYTES - 1} bytes"):
        driver(tmp_path).read_slot(0)


def test_without_its_mount_nothing_is_made_and_the_fix_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="is the right file system mounted there"):
        driver(tmp_path / "nothing").prepare(0, H1)
    with pytest.raises(FileNotFoundError):
        driver(tmp_path).write_slot(SLOT)


@pytest.mark.lab
def test_a_full_domain_takes_renewals_and_no_new_file(tmp_path: Path) -> None:
    mounted = LoopMount(tmp_path)
    try:
        fill = mounted.path / "fill"
        write_until_full(fill)
        with pytest.raises(Failed, match=r"No space left.*make room: 8 MiB"):
            driver(mounted.path).prepare(0, H1)
        assert list((mounted.path / ".virtha").iterdir()) == []
        fill.unlink()
        one = prepared(mounted.path)
        write_until_full(fill)
        for counter in range(1, 20):
            one.write_slot(replace(SLOT, counter=counter))
        one.write_mailbox(MAILBOX)
        assert driver(mounted.path).read_slot(0) == replace(SLOT, counter=19)
    finally:
        mounted.close()


def write_until_full(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@pytest.mark.lab
def test_a_read_only_mount_is_said(tmp_path: Path) -> None:
    mounted = LoopMount(tmp_path)
    try:
        mounted.remount("ro")
        with pytest.raises(Failed, match="mount it for writing"):
            driver(mounted.path).prepare(0, H1)
        mounted.remount("rw")
        prepared(mounted.path).close()
        mounted.remount("ro")
        with pytest.raises(OSError, match="Read-only"):
            driver(mounted.path).write_slot(SLOT)
        mounted.remount("rw")
    finally:
        mounted.close()


# Storage that hangs, fails, and comes back


class Worker:
    """As a guardian has one per domain."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[object] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            try:
                self.answers.put(call())
            except OSError as error:
                self.answers.put(error)


@pytest.mark.lab
def test_what_hangs_lands_when_the_storage_goes_on(fuse: FuseMount) -> None:
    one, worker = prepared(fuse.path), Worker()
    one.write_slot(SLOT)
    fuse.hang()
    worker.put(lambda: one.write_slot(replace(SLOT, counter=2)))
    with pytest.raises(queue.Empty):
        worker.answers.get(
            timeout=0.5
        )  # long enough for an answer: only time shows that there is none
    fuse.go_on()
    assert worker.answers.get(timeout=200) is None
    assert driver(fuse.path).read_slot(0) == replace(SLOT, counter=2)


@pytest.mark.lab
def test_what_fails_is_told_and_works_again_after_a_new_mount(fuse: FuseMount) -> None:
    one = prepared(fuse.path)
    one.write_slot(SLOT)
    fuse.fail()
    for _ in range(2):
        with pytest.raises(OSError, match="not connected"):
            one.write_slot(replace(SLOT, counter=2))
        with pytest.raises(OSError, match="not connected"):
            one.read_mailbox(0)
    fuse.unmount()
    with pytest.raises(FileNotFoundError):  # the empty directory below the mount
        one.write_slot(replace(SLOT, counter=2))
    fuse.start()
    one.write_slot(replace(SLOT, counter=3))
    assert driver(fuse.path).read_slot(0) == replace(SLOT, counter=3)


@pytest.mark.lab
def test_another_domain_that_is_mounted_in_its_place_is_not_written(tmp_path: Path) -> None:
    backings = [Mount(tmp_path / name).path for name in ("one", "other")]
    driver(backings[1], domain_id=DS2).prepare(0, H1)
    before = (backings[1] / ".virtha/heartbeat").read_bytes()
    first = FuseMount(tmp_path / "mounted", backings[0])
    one = prepared(first.path)
    one.write_slot(SLOT)
    first.fail()
    first.unmount()
    second = FuseMount(tmp_path / "mounted", backings[1])
    try:
        for _ in range(3):
            with pytest.raises(OSError, match=r"not connected|misplaced"):
                one.write_slot(replace(SLOT, counter=2))
        assert (backings[1] / ".virtha/heartbeat").read_bytes() == before
    finally:
        second.close()


# Signs of writing on disks


@pytest.fixture
def disk(mount: Mount) -> Path:
    path = mount.path / "web1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G"], check=True)
    return path


@pytest.mark.req("F2")
def test_a_write_to_a_disk_is_a_sign_and_none_is_none(disk: Path) -> None:
    disks = DirectoryDisks(str(disk.parent))
    first = disks.read_signs([disk.name, "missing.qcow2"])
    assert first["missing.qcow2"] is None
    before = first[disk.name]
    assert before is not None
    assert disks.read_signs([disk.name])[disk.name] == before
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 512M 64k", str(disk)],
        check=True,
        capture_output=True,
    )
    written = read_signs(disk)
    assert before != written
    assert written.head + written.tables != before.head + before.tables


@pytest.mark.req("F2")
def test_a_clock_that_stands_still_hides_no_allocation(tmp_path: Path) -> None:
    """The time stamps of both are the same: a server's clock that jumped, or one that counts whole seconds."""
    path = tmp_path / "web1.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G"], check=True)
    before = read_signs(path)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 512M 64k", str(path)],
        check=True,
        capture_output=True,
    )
    os.utime(path, ns=(before.modified_ns, before.modified_ns))
    after = read_signs(path)
    assert after.modified_ns == before.modified_ns
    assert after != before


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"QFI\xfb" + b"\xff" * 100, bytes(100_000)])
def test_a_disk_may_hold_anything(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "disk"
    path.write_bytes(content)
    assert read_signs(path) == read_signs(path)
    assert read_signs(path).size_bytes == len(content)
