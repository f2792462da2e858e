"""What the server asks of an agent about the disks of a silent host's VMs, and what it is told (F2, J3)."""

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from virtha.agent.disk_looks import DiskLooks
from virtha.drivers.disk_signs import DirectoryDisks
from virtha.model.evidence import WatchedDisk
from virtha.model.host import StorageDomain
from virtha.model.ids import ClusterId, HostId, StorageDomainId
from virtha.ports.storage_domain import DiskSigns
from virtha.wire.witness_messages import DisksLooked, LookAtDisks

pytestmark = pytest.mark.req("F2")
H1, H2 = HostId("h1"), HostId("h2")
DS1, DS2 = StorageDomainId("ds1"), StorageDomainId("ds2")
FOREVER_MS = 60_000


class Reader:
    """An agent's part. ``written``: what is written between two looks."""

    def __init__(self, root: Path) -> None:
        self.domains = tuple(
            StorageDomain(id=one, name=one, cluster_id=ClusterId("c"), path=str(root / one))
            for one in (DS1, DS2)
        )
        for domain in self.domains:
            Path(domain.path).mkdir()
            Path(domain.path, "web").write_bytes(bytes(8_192))
        self.written: set[str] = set()
        self.hung: dict[str, threading.Event] = {}
        self.told: list[DisksLooked] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.looks = DiskLooks(
            lambda: self.domains,
            spawn=self.spawn,
            tell=self.told.append,
            activity_of=lambda domain: Signs(self, domain),
        )

    def write(self, data: bytes) -> None:
        with Path(self.domains[0].path, "web").open("ab") as disk:
            disk.write(data)

    def spawn(self, _name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    async def asked(
        self,
        number: int,
        domain_id: StorageDomainId = DS1,
        *,
        subject: HostId = H1,
        silence: str = "s1",
        gap_ms: int = 1,
        deadline_ms: int = FOREVER_MS,
        path: str = "web",
    ) -> bool | None:
        self.ask(number, domain_id, subject, silence, gap_ms, deadline_ms, path)
        await asyncio.gather(*self.tasks)
        (answer,) = [one for one in self.told if one.question == number]
        return answer.changed

    def ask(
        self,
        number: int,
        domain_id: StorageDomainId,
        subject: HostId,
        silence: str = "s1",
        gap_ms: int = 1,
        deadline_ms: int = FOREVER_MS,
        path: str = "web",
    ) -> None:
        self.looks.ask(
            LookAtDisks(
                question=number,
                subject=subject,
                silence=silence,
                disks=(WatchedDisk(domain_id=domain_id, path=path),),
                gap_ms=gap_ms,
                deadline_ms=deadline_ms,
            )
        )


class Signs(DirectoryDisks):
    def __init__(self, reader: Reader, domain: StorageDomain) -> None:
        super().__init__(domain.path)
        self._reader = reader
        self._domain = domain

    def read_signs(self, paths: Iterable[str]) -> dict[str, DiskSigns | None]:
        hung = self._reader.hung.get(self._domain.id)
        if hung is not None:
            hung.wait()
        found = super().read_signs(paths)
        if self._domain.id in self._reader.written:
            with Path(self._domain.path, "web").open("ab") as disk:
                disk.write(b"w")  # after this look, before the next one
        return found


def test_a_guest_that_writes_is_seen_and_an_idle_one_is_only_not_seen(tmp_path: Path) -> None:
    async def story() -> None:
        reader = Reader(tmp_path)
        assert await reader.asked(1) is False
        reader.written.add(DS1)
        assert await reader.asked(2, subject=H2) is True
        # Not again with each answer: what was seen before is compared with what is there now.
        reader.written.clear()
        assert await reader.asked(3, subject=H2) is True
        assert await reader.asked(4, subject=H2) is False
        assert [one.disks for one in reader.told] == [1, 1, 1, 1]

    asyncio.run(story())


def test_what_was_written_before_the_last_sign_of_a_host_is_no_sign_of_its_disks(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        reader = Reader(tmp_path)
        assert await reader.asked(1) is False
        reader.write(b"it beats, and writes")
        assert await reader.asked(2, silence="s2") is False
        reader.write(b"it does not beat, and writes")
        assert await reader.asked(3, silence="s2") is True

    asyncio.run(story())


HOURS_S = 3_600
FAR_S = (-30 * HOURS_S, -5 * HOURS_S, 5 * HOURS_S, 30 * HOURS_S)


@pytest.mark.bad_input("agent with a wrong clock")
@pytest.mark.parametrize("storage_s", FAR_S)
@pytest.mark.parametrize("writer_s", FAR_S)
def test_whose_clock_a_write_has_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_s: int, writer_s: int
) -> None:
    """Times of files are the storage's clock or the writing host's, and none of them is compared with the reader's, which is set to another time,
    too, while it looks: only that something is another than before counts."""
    now_s = time.time()
    disk = tmp_path / DS1 / "web"

    def stamp(at_s: float) -> None:
        os.utime(disk, (at_s, at_s))

    async def story() -> None:
        reader = Reader(tmp_path)
        stamp(now_s + storage_s)
        assert await reader.asked(1) is False, "idle, and written at a time that is far away"
        monkeypatch.setattr(time, "time", lambda: now_s - storage_s)
        monkeypatch.setattr(time, "time_ns", lambda: int((now_s - storage_s) * 1e9))
        assert await reader.asked(2) is False
        # In place, so that its size is the same, and by its writer's clock, which may be hours behind what was there.
        with disk.open("r+b") as file:
            file.write(b"one more block")
        stamp(now_s + writer_s + (1 if writer_s == storage_s else 0))
        assert await reader.asked(3) is True
        assert await reader.asked(4) is False

    asyncio.run(story())


def test_a_disk_that_is_not_there_or_a_domain_that_hangs_says_nothing_and_keeps_nobody(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        reader = Reader(tmp_path)
        assert await reader.asked(1, path="gone") is None
        assert await reader.asked(2, StorageDomainId("ds9")) is None
        reader.hung[DS2] = threading.Event()
        try:
            reader.ask(3, DS2, H2)
            reader.ask(4, DS1, H1)
            await reader.tasks[-1]
            assert [(one.question, one.changed) for one in reader.told[-1:]] == [(4, False)]
        finally:
            reader.hung[DS2].set()
        await asyncio.gather(*reader.tasks)
        reader.hung[DS2] = threading.Event()
        try:
            assert await reader.asked(7, DS2, subject=H2, deadline_ms=50) is None
        finally:
            reader.hung[DS2].set()

    asyncio.run(story())


def test_of_what_is_asked_while_it_looks_the_last_is_looked_at_next(tmp_path: Path) -> None:
    async def story() -> None:
        reader = Reader(tmp_path)
        for number in (1, 2, 3):
            reader.ask(number, DS1, H1)
        await asyncio.gather(*reader.tasks)
        assert [one.question for one in reader.told] == [1, 3]
        assert len(reader.tasks) == 1

    asyncio.run(story())
