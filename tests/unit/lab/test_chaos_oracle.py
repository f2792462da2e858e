"""The lab's oracles can fail: made-up logs of writers and records, good and bad."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from virtha.lab import guest_files
from virtha.lab.record_ledger import MARK, SECTOR, Ledger, LostRecord, acknowledged, lost, records
from virtha.lab.write_judge import Copy, Write, WriteJudge
from virtha.lab.write_notices import identity, watch_writes, writers

FIRST = Copy(host="h1", pid=100, start_ticks=1_000)
SECOND = Copy(host="h2", pid=200, start_ticks=2_000)
THIRD = Copy(host="h1", pid=90, start_ticks=3_000)
"""A restart on the first host: its process id says nothing of its age."""


def _judged(*copies: Copy | None) -> list[str]:
    judge = WriteJudge()
    for number, copy in enumerate(copies):
        host = "h9" if copy is None else copy.host
        judge.saw(Write(at_ms=number, vm="web1", disk="boot", host=host, copy=copy))
    assert judge.writes == len(copies)
    return [str(one) for one in judge.violations]


def test_copies_that_follow_each_other_are_no_violation() -> None:
    assert _judged(FIRST, FIRST, SECOND, SECOND, THIRD, THIRD) == []


def test_a_newer_copy_that_never_wrote_supersedes_nobody() -> None:
    """As a move that was broken off: its target was there, and the source goes on."""
    assert _judged(FIRST, FIRST, FIRST) == []


@pytest.mark.req("G4")
def test_a_copy_that_writes_after_a_newer_one_is_caught_each_time() -> None:
    (one,) = _judged(FIRST, SECOND, FIRST, SECOND)
    assert one == (
        "written by a superseded copy: 2 web1 boot h1 100@1000; newer: 1 web1 boot h2 200@2000"
    )
    assert len(_judged(FIRST, SECOND, FIRST, FIRST)) == 2
    assert len(_judged(SECOND, THIRD, FIRST)) == 1, "older than either"


def test_a_copy_that_was_frozen_before_its_first_write_is_caught_as_well() -> None:
    assert len(_judged(SECOND, FIRST)) == 1


def test_a_restart_on_the_same_host_supersedes_too() -> None:
    assert len(_judged(FIRST, THIRD, FIRST)) == 1


def test_writes_of_nobody_are_violations_and_vms_are_judged_apart() -> None:
    assert _judged(FIRST, None) == ["written by no copy: 1 web1 boot h9 nobody"]
    judge = WriteJudge()
    for vm, copy in (("web1", SECOND), ("web2", FIRST), ("web1", SECOND), ("web2", FIRST)):
        judge.saw(Write(at_ms=0, vm=vm, disk="boot", host=copy.host, copy=copy))
    assert judge.violations == []


# Records

A, B = "aaaaaaaa", "bbbbbbbb"


def _disk(*writers_of: str) -> bytes:
    """Record 1 by the first, record 2 by the second …"""
    sectors = [f"record {n} {who}".encode().ljust(SECTOR) for n, who in enumerate(writers_of, 1)]
    return b"".join([MARK.ljust(SECTOR, b"\0"), *sectors])


def test_only_whole_lines_are_acknowledgements() -> None:
    text = (
        b"SeaBIOS\r\nack 1 aaaaaaaa ok\r\nack 2 aaaaaaaa ok\r\nack 3 aaaaaSeaBIOS\r\n"
        b"[   1.0] oops ack 4 aaaaaaaa ok\r\nack 5 aaaaaaaa ok"
    )
    assert acknowledged(text) == {1: A, 2: A}


def test_what_was_acknowledged_and_is_there_is_not_lost() -> None:
    assert lost({1: A, 2: A, 3: B}, _disk(A, A, B, B)) == []
    assert list(records(_disk(A, B))) == [(1, A), (2, B)]


def test_a_record_that_is_gone_elsewhere_or_another_writers_is_lost() -> None:
    assert lost({1: A, 2: A}, _disk(A)) == [LostRecord(number=2, writer=A, found=None)]
    assert lost({1: A, 2: A}, _disk(A, B)) == [LostRecord(number=2, writer=A, found=B)]
    moved = _disk(A, A)[: 2 * SECTOR] + _disk(A)[SECTOR:]
    assert lost({2: A}, moved) == [LostRecord(number=2, writer=A, found=None)]
    torn = bytearray(_disk(A))
    torn[SECTOR + 100] = 0
    assert lost({1: A}, bytes(torn)) == [LostRecord(number=1, writer=A, found=None)]


def test_a_number_that_two_writers_acknowledged_is_lost_whatever_the_disk_says() -> None:
    ledger = Ledger()
    ledger.note({1: A, 2: A})
    ledger.note({2: A, 3: A})
    assert ledger.contradictions == [] and ledger.newest == 3
    ledger.note({3: B, 4: B})
    assert ledger.contradictions == [LostRecord(number=3, writer=A, found=B)]


def test_the_guests_writer_itself_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    """The very script, on a file in place of the guest's disk."""
    disk, said, size = tmp_path / "vdb", tmp_path / "console", tmp_path / "size"
    sectors = 6
    disk.write_bytes(MARK.ljust(sectors * SECTOR, b"\0"))
    size.write_text(f"{sectors}\n")
    script = guest_files.WRITER
    for there, here in (
        ("/dev/vdb", str(disk)),
        ("[ -b ", "[ -f "),
        ("/sys/class/block/vdb/size", str(size)),
        ("> /dev/console", f">> {said}"),
        ("conv=fsync", "conv=fsync,notrunc"),
        ("sleep 0.5", f"[ $newest != 2 ] || [ -e {said}.2 ] || exit 0"),
    ):
        assert there in script
        script = script.replace(there, here)
    program = tmp_path / "writer"
    program.write_text(script)
    subprocess.run(["sh", program], check=True, timeout=60)
    first = acknowledged(said.read_bytes())
    assert set(first) == {1, 2} and len(set(first.values())) == 1
    Path(f"{said}.2").touch()
    subprocess.run(["sh", program], check=True, timeout=60)
    told = acknowledged(said.read_bytes())
    assert set(told) == {1, 2, 3, 4, 5} and {1: told[1], 2: told[2]} == first
    assert told[3] != told[2], "each run has its own word"
    assert lost(told, disk.read_bytes()) == []
    unmarked = tmp_path / "unmarked"
    unmarked.write_text(re.sub("virtha-records", "others", script))
    subprocess.run(["sh", unmarked], check=True, timeout=60)
    assert acknowledged(said.read_bytes()) == told, "a disk of somebody else is left alone"


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel tells only root of writes")
def test_the_kernel_tells_of_writes_in_their_order_and_who_did_them(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_bytes(b"")
    notices = watch_writes([one, other])
    try:
        assert writers(notices) == []
        writer = "import sys; open(sys.argv[1], 'r+b').write(b'x')"
        told = []
        for path in (one, other, one):
            process = subprocess.Popen([sys.executable, "-c", writer, str(path)])
            process.wait(60)
            told.append((identity(path.stat()), process.pid))
        assert writers(notices) == told
    finally:
        os.close(notices)
    with pytest.raises(OSError, match="fanotify_mark"):
        watch_writes([tmp_path / "none"])
