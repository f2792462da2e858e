"""What the kernel says of processes: when one has ended for certain, and what it has open."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bench import DOMAIN, WEB1
from msgspec.structs import replace

from virtha.agent.process_table import has_ended, open_files, start_ticks
from virtha.agent.qemu_ledger import QemuLedger
from virtha.model.ids import StorageDomainId, VmId
from virtha.sentinel.guardian import QemuProcess

pytestmark = pytest.mark.req("F1")
OTHER = StorageDomainId("40000000-0000-4000-8000-000000000002")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    code = (
        "import os, sys, time\n"
        "flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if sys.argv[2] == 'direct' else 0)\n"
        "os.open(sys.argv[1], flags)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "disk"), "direct"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.wait(60)
    process.stdout.close()


def as_qemu(process: subprocess.Popen[bytes]) -> QemuProcess:
    ticks = start_ticks(Path("/proc"), process.pid)
    assert ticks is not None
    return QemuProcess(pid=process.pid, start_ticks=ticks, vm_id=VmId(WEB1))


def test_a_process_has_ended_when_none_of_its_threads_is_left(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    process = as_qemu(sleeper)
    assert not has_ended(process)
    assert has_ended(replace(process, start_ticks=process.start_ticks - 1))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(process)  # a zombie of one thread
    sleeper.wait(60)
    assert has_ended(process)
    folder = tmp_path / "7"
    (folder / "task/7").mkdir(parents=True)
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    (folder / "stat").write_bytes(b"7 (qemu) Z " + fields)
    dying = QemuProcess(pid=7, start_ticks=22, vm_id=VmId(WEB1))
    assert has_ended(dying, tmp_path)
    (folder / "task/8").mkdir()  # it waits for its storage
    assert not has_ended(dying, tmp_path)


def test_open_files_tell_the_domain_and_whether_the_cache_is_used(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    process, root = as_qemu(sleeper), str(tmp_path.resolve())
    found = open_files(process, [root, "/nowhere"])
    assert found is not None
    assert found.roots == {root} and not found.buffered
    assert open_files(process, ["/nowhere"]) is not None
    assert open_files(replace(process, start_ticks=1), [root]) is None
    ledger = QemuLedger()
    look = ledger.look([process], {}, {root: DOMAIN})
    assert look.qemus[0].domain_ids is None  # nobody said where its disks lie
    look = ledger.look([process], {process.vm_id: frozenset({OTHER})}, {root: DOMAIN})
    assert look.qemus[0].domain_ids == {DOMAIN, OTHER}
    sleeper.kill()
    sleeper.wait(60)
    (ended,) = ledger.look([], {}, {}).ended
    assert ended.process == process and not ended.buffered
    assert ledger.look([], {}, {}).ended == ()
