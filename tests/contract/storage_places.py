"""Storage domains of each kind, for the suite of what tells two of them apart. All of them have the same ids."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
from heartbeat_places import DS1, CephPlace

from virtha.agent import ceph_records
from virtha.agent.storage_mark import MARK
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import ClusterId

CLUSTER = ClusterId("c1")


class StoragePlaces(Protocol):
    """``domain``: one of several that have nothing in common. ``mark``: the bytes there; ``put_mark``: others in their place, None:
    none, as of a domain from before there were marks. ``done``: this thread looks no more."""

    def domain(self, number: int = 0) -> StorageDomain: ...

    def mark(self, domain: StorageDomain) -> bytes | None: ...

    def put_mark(self, domain: StorageDomain, mark: bytes | None) -> None: ...

    def done(self) -> None: ...


class Directories:
    def __init__(self, root: Path) -> None:
        self._root = root

    def domain(self, number: int = 0) -> StorageDomain:
        path = self._root / f"host{number}"
        path.mkdir(exist_ok=True)
        return StorageDomain(id=DS1, name="ds1", cluster_id=CLUSTER, path=str(path))

    def mark(self, domain: StorageDomain) -> bytes | None:
        path = Path(domain.path, MARK)
        return path.read_bytes() if path.exists() else None

    def put_mark(self, domain: StorageDomain, mark: bytes | None) -> None:
        path = Path(domain.path, MARK)
        path.unlink(missing_ok=True)
        if mark is not None:
            path.write_bytes(mark)

    def done(self) -> None:
        """Nothing is open."""


class Pools:
    """Namespaces of one pool."""

    def domain(self, number: int = 0) -> StorageDomain:
        pool = self._pool(number)
        return StorageDomain(
            id=DS1, name="ds1", cluster_id=CLUSTER, kind="ceph-rbd", path=pool.shown, ceph=pool
        )

    def _pool(self, number: int) -> CephPool:
        raise NotImplementedError

    def mark(self, domain: StorageDomain) -> bytes | None:
        assert isinstance(domain.ceph, CephPool)
        return ceph_records.read(domain.ceph, ceph_records.MARK)

    def put_mark(self, domain: StorageDomain, mark: bytes | None) -> None:
        assert isinstance(domain.ceph, CephPool)
        ceph_records.remove(domain.ceph, ceph_records.MARK)
        if mark is not None:
            ceph_records.write(domain.ceph, ceph_records.MARK, mark, over=None)

    def done(self) -> None:
        ceph_records.close_all()


class RealPools(Pools):
    def __init__(self, ceph: Any) -> None:
        self._ceph = ceph
        self._names = f"marks-{uuid4().hex}"

    def _pool(self, number: int) -> CephPool:
        return CephPlace(self._ceph, namespace=f"{self._names}-{number}").pool


class PlayedPools(Pools):
    """Objects in memory, behind what every question to Ceph goes through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._objects: dict[tuple[str, str], bytes] = {}
        self._one_at_a_time = threading.Lock()
        monkeypatch.setattr(ceph_records, "ask", self._ask)

    def _pool(self, number: int) -> CephPool:
        return CephPool(monitors=("10.0.0.9",), pool="vms", namespace=f"n{number}")

    def _ask(self, pool: CephPool, what: str, **words: Any) -> Any:
        with self._one_at_a_time:
            match what:
                case "identity":
                    return "fsid-1", 1
                case "read":
                    ((name, _, _),) = words["wanted"]
                    return (self._objects.get((pool.shown, name), errno.ENOENT),)
                case "remove":
                    return self._objects.pop((pool.shown, words["name"]), None)
                case "write":
                    assert words["exclusive"] and words["whole"]
                    key = pool.shown, words["name"]
                    if key in self._objects:
                        raise FileExistsError(errno.EEXIST, "it is there")
                    self._objects[key] = words["data"]
                    return None
        raise AssertionError(what)


def made(request: pytest.FixtureRequest, root: Path) -> Iterator[StoragePlaces]:
    if request.param == "directory":
        yield Directories(root)
    elif request.param == "played ceph":
        yield PlayedPools(request.getfixturevalue("monkeypatch"))
    else:
        pools = RealPools(request.getfixturevalue("own_ceph"))
        yield pools
        pools.done()
