"""Hosts that see one storage read one mark there, and hosts that don't read two: of every kind of storage domain."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from heartbeat_places import DS1, OURS, THEIRS
from storage_mounts import LoopMount
from storage_places import CLUSTER, StoragePlaces, made

from virtha.agent.files import Files
from virtha.agent.storage import check_header, prepare_storage
from virtha.agent.storage_mark import mark_of
from virtha.agent.storage_probe import probe
from virtha.model.errors import Failed, Refused
from virtha.model.host import StorageDomain

ROUNDS, HOSTS = 20, 6


@pytest.fixture(
    params=[
        "directory",
        "played ceph",
        # Ceph is up after half a minute only.
        pytest.param("ceph", marks=[pytest.mark.lab, pytest.mark.long, pytest.mark.req("F3")]),
    ]
)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoragePlaces]:
    yield from made(request, tmp_path)


def prepared(domain: StorageDomain) -> StorageDomain:
    prepare_storage(domain, OURS, Files())
    return domain


@pytest.mark.req("G7")
@pytest.mark.bad_input("storage that isn't shared")
def test_two_storages_of_the_same_ids_have_two_marks(places: StoragePlaces) -> None:
    """What hosts find on which nothing is mounted: the header is the same in both."""
    one, other = prepared(places.domain(1)), prepared(places.domain(2))
    headers = [check_header(each, OURS) for each in (one, other)]
    assert headers[0] == headers[1]
    assert mark_of(one, Files()) != mark_of(other, Files())


@pytest.mark.req("G7")
def test_whoever_looks_at_one_storage_reads_one_mark(places: StoragePlaces) -> None:
    domain = prepared(places.domain())
    marks = {mark_of(prepared(domain), Files()) for _ in range(3)}
    assert [mark.encode() for mark in marks] == [places.mark(domain)]


def test_a_domain_from_before_there_were_marks_gets_one_that_stays(places: StoragePlaces) -> None:
    domain = prepared(places.domain())
    assert places.mark(domain) is None, "its header alone makes none"
    first = mark_of(domain, Files())
    assert mark_of(domain, Files()) == first
    check_header(domain, OURS)


@pytest.mark.req("G7")
def test_of_hosts_that_look_first_at_once_all_read_the_same(places: StoragePlaces) -> None:
    domain = prepared(places.domain())
    for _ in range(ROUNDS):
        places.put_mark(domain, None)
        read = at_once(lambda: mark_of(domain, Files()), places)
        assert len(read) == HOSTS and len(set(read)) == 1, read
        assert places.mark(domain) == read[0].encode()


def at_once(look: Callable[[], str], places: StoragePlaces) -> list[str]:
    ready = threading.Barrier(HOSTS)
    read: list[str] = []

    def host() -> None:
        ready.wait()
        try:
            read.append(look())
        finally:
            places.done()

    threads = [threading.Thread(target=host) for _ in range(HOSTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return read


@pytest.mark.req("G7")
def test_nothing_is_marked_that_is_not_ours(places: StoragePlaces) -> None:
    domain = places.domain()
    with pytest.raises(Failed, match="is missing"):
        probe(domain, OURS, Files())
    prepare_storage(domain, THEIRS, Files())
    with pytest.raises(Refused, match="another installation"):
        probe(domain, OURS, Files())
    assert places.mark(domain) is None


@pytest.mark.bad_input
@pytest.mark.parametrize("damaged", [b"", b"0" * 31, b"0" * 33, b"x" * 32, b"0" * 4_096])
def test_a_damaged_mark_is_told_and_not_taken_for_one(
    places: StoragePlaces, damaged: bytes
) -> None:
    domain = prepared(places.domain())
    places.put_mark(domain, damaged)
    with pytest.raises(Failed, match="is damaged; remove it"):
        mark_of(domain, Files())
    assert places.mark(domain) == damaged


@pytest.mark.bad_input("storage that is read-only")
@pytest.mark.lab  # mounting needs root
def test_a_file_system_that_turns_read_only_is_not_usable(tmp_path: Path) -> None:
    mount = LoopMount(tmp_path)
    try:
        domain = StorageDomain(id=DS1, name="ds1", cluster_id=CLUSTER, path=str(mount.path))
        prepared(domain)
        before = probe(domain, OURS, Files())
        mount.remount("ro")
        with pytest.raises(Failed, match="is mounted read-only"):
            probe(domain, OURS, Files())
        mount.remount("rw")
        assert probe(domain, OURS, Files()).mark == before.mark
    finally:
        mount.close()
