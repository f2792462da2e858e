"""Where heartbeat blocks lie, for the suite that all drivers keep: a directory, and a namespace of a Ceph pool."""

import os
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from own_ceph import OwnCeph

from virtha.drivers.ceph_client import CephClient
from virtha.drivers.ceph_slots import CephSlots
from virtha.drivers.directory_domain import HOSTS_MAX, DirectoryDomain
from virtha.model.host import CephPool
from virtha.model.ids import InstallationId, StorageDomainId
from virtha.model.slot import BLOCK_BYTES
from virtha.ports.storage_domain import HeartbeatSlots

OURS, THEIRS = InstallationId("ours"), InstallationId("theirs")
DS1, DS2 = StorageDomainId("ds1"), StorageDomainId("ds2")


class Closes(Protocol):
    def close(self) -> None: ...


_Closes = TypeVar("_Closes", bound=Closes)


class HeartbeatPlace(Protocol):
    """``driver``: of another installation or domain where ``other`` says so. ``blocks``: all that is there of the first two
    hosts, to be compared. ``damage``: of the first host's mailbox, bytes from ``at`` on."""

    def driver(self, **other: Any) -> HeartbeatSlots: ...

    def blocks(self) -> bytes: ...

    def damage(self, at: int, data: bytes) -> None: ...


class DirectoryPlace:
    def __init__(self, path: Path) -> None:
        self._path = path

    def driver(self, **other: Any) -> DirectoryDomain:
        return DirectoryDomain(
            str(self._path), **{"installation_id": OURS, "domain_id": DS1, **other}
        )

    def blocks(self) -> bytes:
        return self._file.read_bytes() + str(self._file.stat().st_ino).encode()

    def damage(self, at: int, data: bytes) -> None:
        with self._file.open("r+b") as file:
            file.seek(HOSTS_MAX * BLOCK_BYTES + at)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Nothing is running."""

    @property
    def _file(self) -> Path:
        return self.driver().file


class CephPlace:
    def __init__(self, ceph: OwnCeph, namespace: str) -> None:
        self.ceph = ceph
        self.pool = CephPool(
            monitors=(ceph.monitor,),
            pool="vms",
            namespace=namespace,
            user="virtha",
            keyring=str(ceph.keyring("virtha")),
        )
        self._open = ExitStack()

    def driver(self, **other: Any) -> CephSlots:
        return self.opened(
            CephSlots(self.pool, **{"installation_id": OURS, "domain_id": DS1, **other})
        )

    def client(self) -> CephClient:
        return self.opened(CephClient(self.pool))

    def opened(self, made: _Closes) -> _Closes:
        """It is closed with the place."""
        return self._open.enter_context(closing(made))

    def blocks(self) -> bytes:
        return self.blocks_of(0, 1)

    def blocks_of(self, *places: int) -> bytes:
        wanted = [(f"virtha.heartbeat.{index}", 0, 2 * BLOCK_BYTES) for index in places]
        with closing(CephClient(self.pool)) as client:
            found = client.ask("read", wanted=wanted, wait_ms=50_000, patience_ms=60_000)
        return b"".join(found)

    def damage(self, at: int, data: bytes) -> None:
        words = {"expected": [], "exclusive": False, "whole": False, "patience_ms": 60_000}
        with closing(CephClient(self.pool)) as client:
            client.ask(
                "write", name="virtha.heartbeat.0", offset=BLOCK_BYTES + at, data=data, **words
            )

    def close(self) -> None:
        self._open.close()
