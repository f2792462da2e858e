"""What is read of a serial log, over rotations; and pictures as PNG."""

import asyncio
import struct
import zlib
from pathlib import Path

import pytest

from virtha.agent.picture import SIGNATURE, as_png
from virtha.agent.serial_log import read_log, remove_log, wait_and_read
from virtha.model.console import LOG_BYTES_MAX, LogPosition, ReadSerialLog
from virtha.model.errors import Failed
from virtha.model.ids import VmId

VM = VmId("0b2f5f0e-1111-4a7a-9d55-000000000001")


def ask(lines: int = 1_000, **more: object) -> ReadSerialLog:
    return ReadSerialLog(vm_id=VM, lines=lines, **more)


def test_the_newest_lines_over_rotated_files(tmp_path: Path) -> None:
    path = tmp_path / "vm.log"
    path.with_name("vm.log.1").write_bytes(b"one\ntwo\nthr")
    path.with_name("vm.log.0").write_bytes(b"ee\nfour\r50%\r100%\n")
    path.write_bytes(b"five\nlogin: ")
    assert read_log(path, ask()).text == b"one\ntwo\nthree\nfour\r50%\r100%\nfive\nlogin: "
    last = read_log(path, ask(2))
    assert last.text == b"five\nlogin: " and last.cut
    assert read_log(path, ask(contains="FOUR")).text == b"four\r50%\r100%\n"
    assert read_log(path, ask(contains="six")).text == b""
    remove_log(path)
    assert list(tmp_path.iterdir()) == []


def test_going_on_behind_a_place_also_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "vm.log"
    path.write_bytes(b"one\n")
    end = read_log(path, ask()).end
    assert read_log(path, ask(after=end)).text == b""
    with path.open("ab") as log:
        log.write(b"two\n")
    path.rename(path.with_name("vm.log.0"))
    path.write_bytes(b"three\n")
    assert read_log(path, ask(after=end)).text == b"two\nthree\n"


def test_a_place_that_is_gone_means_all(tmp_path: Path) -> None:
    path = tmp_path / "vm.log"
    path.write_bytes(b"one\n")
    inode = path.stat().st_ino
    for place in (LogPosition(file=1, offset=0), LogPosition(file=inode, offset=400)):
        assert read_log(path, ask(after=place)).text == b"one\n"


def test_no_log_is_no_error(tmp_path: Path) -> None:
    assert read_log(tmp_path / "vm.log", ask()).end is None


def test_no_more_than_the_bound_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "vm.log"
    path.write_bytes((b"x" * 99 + b"\n") * (3 * LOG_BYTES_MAX // 100))
    log = read_log(path, ask(20_000))
    assert len(log.text) == 2_000_000 and log.cut
    path.write_bytes(b"y" * (3 * LOG_BYTES_MAX))
    log = read_log(path, ask())
    assert len(log.text) <= LOG_BYTES_MAX and log.cut


def test_waiting_for_something_new(tmp_path: Path) -> None:
    path = tmp_path / "vm.log"
    path.write_bytes(b"one\n")
    end = read_log(path, ask()).end

    async def main() -> None:
        waiting = asyncio.create_task(wait_and_read(path, ask(after=end, wait_ms=20_000)))
        await asyncio.sleep(0)
        with path.open("ab") as log:
            log.write(b"two\n")
        assert (await waiting).text == b"two\n"
        assert (await wait_and_read(path, ask(contains="none", wait_ms=1))).text == b""

    asyncio.run(main())


def test_a_pixmap_becomes_a_png() -> None:
    rows = bytes(range(18))
    png = as_png(b"P6\n3 2\n255\n" + rows)
    assert png.startswith(SIGNATURE)
    assert struct.unpack(">II", png[16:24]) == (3, 2)
    data = png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8]
    assert zlib.decompress(data) == b"\0" + rows[:9] + b"\0" + rows[9:]
    assert as_png(png) == png


@pytest.mark.parametrize("bad", [b"", b"P5\n1 1\n255\nx", b"P6\n9 9\n255\nx", b"P6\n0 9\n255\n"])
def test_a_picture_that_is_none(bad: bytes) -> None:
    with pytest.raises(Failed):
        as_png(bad)
