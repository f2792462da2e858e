"""No file belongs to two storage domains: else two VMs, each alone by its own domain's records, could be given one disk."""

import os
from pathlib import Path

import pytest
from agent_bench import CLUSTER, DOMAIN, INSTALLATION

from virtha.agent.files import Files
from virtha.agent.storage import check_header, inside, prepare_storage
from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.host import StorageDomain
from virtha.model.ids import ClusterId, StorageDomainId


def outer(directory: Path) -> StorageDomain:
    return StorageDomain(id=DOMAIN, name="outer", cluster_id=CLUSTER, path=str(directory))


def inner(directory: Path) -> StorageDomain:
    """Of another cluster."""
    return StorageDomain(
        id=StorageDomainId("inner"),
        name="inner",
        cluster_id=ClusterId("other"),
        path=str(directory),
    )


@pytest.mark.req("G7")
@pytest.mark.parametrize("where", ["disks", "disks/deep/down", "link"])
def test_a_domain_within_another_is_refused_before_anything_is_written(
    tmp_path: Path, where: str
) -> None:
    around, link = tmp_path / "outer", tmp_path / "link"
    around.mkdir()
    prepare_storage(outer(around), INSTALLATION, Files())
    (around / "disks/deep/down").mkdir(parents=True)
    link.symlink_to(around / "disks")
    place = link if where == "link" else around / where
    with pytest.raises(Refused, match="which is a storage domain itself") as refused:
        prepare_storage(inner(place), INSTALLATION, Files())
    assert refused.value.code == "order.refused.storage_foreign" and refused.value.fix
    assert not (place / ".virtha").exists()
    beside = tmp_path / "beside"
    beside.mkdir()
    prepare_storage(inner(beside), INSTALLATION, Files())


@pytest.mark.req("G7")
def test_the_outer_one_of_two_gives_no_file_of_the_inner_one(tmp_path: Path) -> None:
    """Where the inner one was there first: the outer one can't know of it when it is made."""
    within = tmp_path / "srv" / "inner"
    within.mkdir(parents=True)
    prepare_storage(inner(within), INSTALLATION, Files())
    prepare_storage(outer(tmp_path / "srv"), INSTALLATION, Files())
    (within / "disks" / "web1.qcow2").touch()
    for path in ("inner/disks/web1.qcow2", "inner/new.qcow2", "inner"):
        with pytest.raises(InvalidInput, match="a storage domain of its own") as refused:
            inside(outer(tmp_path / "srv"), path)
        assert (refused.value.code, refused.value.field) == ("problem.disk.outside", "disk.path")
    (tmp_path / "srv/disks/web2.qcow2").touch()
    for path in ("disks/web2.qcow2", "disks/new.qcow2", "new/new.qcow2"):
        assert inside(outer(tmp_path / "srv"), path) == tmp_path / "srv" / path
    # The inner one goes on: its VMs must not fall to whoever makes a storage domain around them.
    check_header(inner(within), INSTALLATION)
    prepare_storage(inner(within), INSTALLATION, Files())
    assert inside(inner(within), "disks/web1.qcow2") == within / "disks/web1.qcow2"


@pytest.mark.req("G7")
def test_no_disk_makes_a_storage_domain_of_a_directory(tmp_path: Path) -> None:
    prepare_storage(outer(tmp_path), INSTALLATION, Files())
    for path in ("disks/.virtha/domain.json", "disks/.virtha"):
        with pytest.raises(InvalidInput, match="the domain's own"):
            inside(outer(tmp_path), path)


@pytest.mark.req("G7")
def test_where_it_can_not_be_told_it_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a"
    place.mkdir()
    lstat = Path.lstat

    def stale(path: Path) -> os.stat_result:
        if path == tmp_path / ".virtha/domain.json":
            raise OSError(116, "Stale file handle")
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", stale)
    with pytest.raises(Failed, match="Stale"):
        prepare_storage(inner(place), INSTALLATION, Files())
    assert not (place / ".virtha").exists()
