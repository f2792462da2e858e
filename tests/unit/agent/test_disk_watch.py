"""Rounds of looks at the disks of a silent host's VMs."""

import asyncio
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from virtha.agent.disk_watch import DisksSeen, DiskWatch
from virtha.agent.storage import StorageWorkers
from virtha.drivers.disk_signs import DirectoryDisks
from virtha.model.evidence import WatchedDisk
from virtha.model.host import StorageDomain
from virtha.model.ids import ClusterId, HostId, StorageDomainId
from virtha.ports.storage_domain import DiskSigns

pytestmark = pytest.mark.req("F2")

H1, H2 = HostId("h1"), HostId("h2")
DS1, DS2 = StorageDomainId("ds1"), StorageDomainId("ds2")


class Storage:
    def __init__(self, root: Path) -> None:
        self.hung: dict[str, threading.Event] = {}
        self.domains = {
            each: StorageDomain(
                id=each, name=each, cluster_id=ClusterId("c"), path=str(root / each)
            )
            for each in (DS1, DS2)
        }
        for domain in self.domains.values():
            Path(domain.path).mkdir()
        self.deadline_ms = 60_000
        self.watch = DiskWatch(StorageWorkers(), self.activity_of)

    def activity_of(self, domain: StorageDomain) -> "Hanging":
        return Hanging(domain.path, self.hung.get(domain.id))

    def disk(self, name: str, domain_id: StorageDomainId = DS1) -> WatchedDisk:
        path = Path(self.domains[domain_id].path, name)
        if not path.exists():
            path.write_bytes(bytes(100_000))
        return WatchedDisk(domain_id=domain_id, path=name)

    def write(self, disk: WatchedDisk) -> None:
        path = Path(self.domains[disk.domain_id].path, disk.path)
        before = path.stat().st_mtime_ns
        with path.open("r+b") as file:
            file.write(os.urandom(8))
        os.utime(path, ns=(before, before))  # a clock that stands still

    async def look(self, **subjects: list[WatchedDisk]) -> dict[str, tuple[bool | None, int]]:
        wanted = {HostId(name): disks for name, disks in subjects.items()}
        seen: tuple[DisksSeen, ...] = await self.watch.look(
            wanted, self.domains, deadline_ms=self.deadline_ms
        )
        return {each.subject: (each.changed, each.disks) for each in seen}


class Hanging(DirectoryDisks):
    def __init__(self, path: str, hung: threading.Event | None) -> None:
        super().__init__(path)
        self._hung = hung

    def read_signs(self, paths: Iterable[str]) -> dict[str, DiskSigns | None]:
        if self._hung is not None:
            self._hung.wait()
        return super().read_signs(paths)


def test_a_change_is_one_between_two_looks_of_the_same_subject(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    web, db = storage.disk("web"), storage.disk("db", DS2)

    async def story() -> None:
        assert await storage.look(h1=[web], h2=[db]) == {"h1": (None, 0), "h2": (None, 0)}
        assert await storage.look(h1=[web], h2=[db]) == {"h1": (False, 1), "h2": (False, 1)}
        storage.write(web)
        assert await storage.look(h1=[web], h2=[db]) == {"h1": (True, 1), "h2": (False, 1)}
        assert await storage.look(h1=[web]) == {"h1": (False, 1)}
        storage.write(db)
        # It was left out for a round: what was seen before says nothing now.
        assert await storage.look(h1=[web], h2=[db]) == {"h1": (False, 1), "h2": (None, 0)}
        assert await storage.look(h1=[]) == {"h1": (None, 0)}

    asyncio.run(story())


def test_what_can_not_be_read_is_neither_life_nor_death(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    web, gone = storage.disk("web"), WatchedDisk(domain_id=DS1, path="gone")
    elsewhere = WatchedDisk(domain_id=StorageDomainId("unknown"), path="web")

    async def story() -> None:
        for _ in range(2):
            last = await storage.look(h1=[web, gone], h2=[web, elsewhere])
        assert last == {"h1": (None, 1), "h2": (None, 1)}
        storage.write(web)
        assert await storage.look(h1=[web, gone]) == {"h1": (True, 1)}

    asyncio.run(story())


def test_a_domain_that_hangs_is_not_waited_for_and_keeps_nobody_else(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    web, db = storage.disk("web"), storage.disk("db", DS2)

    async def story() -> None:
        for _ in range(2):
            await storage.look(h1=[web], h2=[db])
        storage.hung[DS1] = threading.Event()
        storage.deadline_ms = 1_500
        try:
            for _ in range(3):
                assert await storage.look(h1=[web], h2=[db]) == {
                    "h1": (None, 0),
                    "h2": (False, 1),
                }
        finally:
            storage.hung.pop(DS1).set()
        storage.write(web)
        async with asyncio.timeout(60):
            while (await storage.look(h1=[web], h2=[db]))["h1"] == (None, 0):
                await asyncio.sleep(0.05)

    asyncio.run(story())
