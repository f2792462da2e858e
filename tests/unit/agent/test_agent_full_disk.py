"""No space left on a host: nothing is lost, nothing is told twice, and what failed says so."""

import asyncio
import errno
import os
import stat
from pathlib import Path

import pytest
from crash_files import FullDisk

from virtha.agent import outbox as outbox_module
from virtha.agent.files import Files
from virtha.agent.images import copy_image, create_empty
from virtha.agent.journal import Journal, replay
from virtha.agent.outbox import Outbox
from virtha.drivers.machine_clock import MachineClock
from virtha.model.errors import Failed
from virtha.model.facts import Happened
from virtha.model.ids import BootId
from virtha.model.time import Millis
from virtha.sentinel.events import SentinelRecords
from virtha.sentinel.sentinel import Sentinel

pytestmark = pytest.mark.bad_input("full disk")


def opened(path: Path, files: Files | None = None) -> Outbox:
    outbox = Outbox(path, boot=BootId("b"), clock=MachineClock(), files=files or Files())
    outbox.open()
    return outbox


def event(number: int) -> Happened:
    return Happened(code="vm.watchdog.fired", fields={"count": number})


def counts(outbox: Outbox) -> list[object]:
    return [
        fact.body.fields.get("count", fact.body.code)
        for fact in outbox.facts_after(0, 1_000)
        if isinstance(fact.body, Happened)
    ]


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.req("W7")
def test_an_outbox_opens_on_a_full_disk_and_keeps_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2)])
    outbox.close()
    (segment,) = tmp_path.glob("*.seg")
    segment.write_bytes(segment.read_bytes() + b"torn")
    (tmp_path / "high_water").unlink()
    files = FullDisk()
    files.full = True
    with monkeypatch.context() as full:
        full.setattr(outbox_module.os, "posix_fallocate", no_space)
        full.setattr(outbox_module.os, "pwrite", no_space)
        full.setattr(Path, "mkdir", lambda path, **_: None if path.is_dir() else no_space())
        outbox = opened(tmp_path, files)
        assert counts(outbox) == [1, 2]
        assert not outbox.append([event(3)])
        assert outbox.waiting == 2
    files.full = False
    assert outbox.append(())
    assert counts(outbox) == [1, 2, 3, "host.disk.full"]
    outbox.close()
    assert counts(opened(tmp_path)) == [1, 2, 3, "host.disk.full"]


@pytest.mark.req("W7")
def test_a_mark_that_can_not_be_written_doubles_no_fact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(tmp_path)
    monkeypatch.setattr(outbox_module.os, "pwrite", no_space)
    assert outbox.append([event(1)])
    assert outbox.append([event(2)])
    outbox.on_facts_acknowledged(1)
    assert counts(outbox) == [1, 2]
    monkeypatch.undo()
    outbox.close()
    outbox = opened(tmp_path)
    assert counts(outbox) == [1, 2]
    assert not outbox.damage.promised


@pytest.mark.req("X2")
def test_a_journal_on_a_full_disk_stops_nothing_and_what_it_has_replays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, boot=BootId("b"))
    sentinel = Sentinel(boot=BootId("b"), records=SentinelRecords(), now=Millis(1))
    journal.begin(Millis(1), SentinelRecords(), from_start=True)
    journal.add(Millis(2), (), sentinel.step(Millis(2), []))
    kept = journal.current.rename(tmp_path / "kept")
    journal.current.symlink_to("/dev/full")
    for at in (3, 4):
        journal.add(Millis(at), (), sentinel.step(Millis(at), []))
    journal.current.unlink()
    kept.rename(journal.current)
    journal.add(Millis(5), (), sentinel.step(Millis(5), []))
    assert list(replay(journal.current)) == []


@pytest.fixture
def full_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu-img that ends as the real one does when its target's file system is full."""
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho 'qemu-img: error while writing at byte 0: No space left on device' >&2\n"
        "exit 1\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


async def _copy(tmp_path: Path) -> None:
    await copy_image(tmp_path / "a", "raw", tmp_path / "b", "raw", on_percent=lambda _: None)


@pytest.mark.usefixtures("full_qemu_img")
@pytest.mark.parametrize("how", ["copy", "create"])
def test_an_image_that_finds_no_space_says_so(tmp_path: Path, how: str) -> None:
    for _ in range(20):  # its last words must not depend on who is quicker
        with pytest.raises(Failed) as full:
            if how == "copy":
                asyncio.run(_copy(tmp_path))
            else:
                asyncio.run(create_empty(tmp_path / "b", "raw", 1 << 20))
        assert full.value.code == "problem.disk.full"
        assert "No space left on device" in str(full.value)
        assert full.value.fix
