"""Storage that isn't shared after all: by the marks that hosts read there, whatever leases do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from virtha.agent.files import Files
from virtha.agent.storage import prepare_storage
from virtha.agent.storage_probe import probe
from virtha.control.requests import VmStart
from virtha.control.storage_marks import mark_that_counts
from virtha.control.views import Caller
from virtha.model.errors import Refused
from virtha.model.facts import StorageReport
from virtha.model.host import HostState, StorageDomain
from virtha.model.ids import ClusterId, InstallationId, StorageDomainId
from virtha.model.policy import LeasePolicy, Policy
from virtha.model.user import Role
from virtha.store.changed import hosts_changed, usable_storage
from virtha.store.clusters import find_cluster, save_cluster

pytestmark = [pytest.mark.req("G7"), pytest.mark.bad_input("storage that isn't shared")]
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
GIB = 1 << 30
OURS = InstallationId("ours")
Tell = Callable[[Any], None]
World = Any


async def joined(world: World, *names: str) -> StorageDomain:
    for name in names:
        await world.join(name)
    domain: StorageDomain = (await world.add_storage()).domain
    return domain


async def says(world: World, host: str, domain: StorageDomain, mark: str, **more: Any) -> None:
    """Of what it can use, with the images of the storage that it has there."""
    report = StorageReport(
        storage_domain_id=domain.id,
        usable=True,
        size_bytes=100 * GIB,
        free_bytes=50 * GIB,
        mark=mark,
    )
    await world.hosts[host].tell(replace(report, **more))


async def lost(world: World, host: str, domain: StorageDomain) -> None:
    report = StorageReport(storage_domain_id=domain.id, usable=False, detail="I/O error")
    await world.hosts[host].tell(report)


async def usable_by(world: World) -> dict[str, bool | None]:
    found: dict[str, bool | None] = (await world.control.storage.get("ds1")).usable_by
    async with world.store.read() as tx:
        counted = await usable_storage(tx, [host.id for host in world.hosts.values()])
    for name, host in world.hosts.items():
        assert bool(found[name]) == bool(counted.get(host.id)), (
            "people and the engine are told the same"
        )
    return found


async def told(world: World) -> list[tuple[Any, Any]]:
    events = await world.events("storage.unusable")
    return [(one.fields["host"], one.fields["detail"]) for one in events]


async def found(world: World) -> list[tuple[str, str]]:
    view = await world.control.readiness.all()
    return [
        (one.about, one.severity.value)
        for one in view.findings
        if one.code == "ready.storage_other"
    ]


def test_a_directory_on_which_nothing_is_mounted_is_found_without_leases(
    tell: Tell, tmp_path: Path
) -> None:
    """Two real directories under the same name, as two hosts have them."""

    def look(host: str) -> str:
        root = tmp_path / host
        root.mkdir(exist_ok=True)
        domain = StorageDomain(
            id=StorageDomainId("d"), name="ds1", cluster_id=ClusterId("c"), path=str(root)
        )
        prepare_storage(domain, OURS, Files())
        return probe(domain, OURS, Files()).mark

    async def story(world: World) -> None:
        domain = await joined(world, "h1", "h2")
        async with world.store.write() as tx:
            cluster = await find_cluster(tx, "default")
            assert cluster is not None
            await save_cluster(
                tx, replace(cluster, policy=Policy(lease=LeasePolicy(enabled=False)))
            )
        await world.add_vm()
        assert await usable_by(world) == {"h1": True, "h2": True}
        await says(world, "h1", domain, look("h1"))
        await says(world, "h2", domain, look("h2"))
        assert await usable_by(world) == {"h1": True, "h2": False}
        detail = "it is not the storage that h1 sees there"
        assert (await world.control.storage.get("ds1")).detail == {"h2": detail}
        assert await told(world) == [("h2", detail)]
        assert await found(world) == [("host/h2", "error")]
        assert (await world.control.readiness.all()).verdict == "not_ready"
        with pytest.raises(Refused, match="ds1"):
            await world.control.vms.start(ADMIN, "web1", VmStart(host="h2"))
        await says(world, "h2", domain, look("h1"))  # it is mounted now
        assert await usable_by(world) == {"h1": True, "h2": True}
        assert (await found(world), len(await told(world))) == ([], 1)

    tell(story)


def test_what_was_seen_first_counts_however_many_see_something_else(tell: Tell) -> None:
    """VMs may have their disks there already."""

    async def story(world: World) -> None:
        domain = await joined(world, "h1", "h2", "h3")
        await says(world, "h1", domain, "a")
        await says(world, "h2", domain, "b")
        await says(world, "h3", domain, "b")
        assert await usable_by(world) == {"h1": True, "h2": False, "h3": False}
        assert [host for host, _ in await told(world)] == ["h2", "h3"]
        await says(world, "h2", domain, "b", free_bytes=GIB)
        assert await usable_by(world) == {"h1": True, "h2": False, "h3": False}
        assert len(await told(world)) == 2

    tell(story)


def test_a_host_that_loses_its_storage_does_not_make_another_one_right(tell: Tell) -> None:
    """That is when its VMs would start from the other one's directory."""

    async def story(world: World) -> None:
        domain = await joined(world, "h1", "h2")
        await says(world, "h1", domain, "a")
        await says(world, "h2", domain, "b")
        await lost(world, "h1", domain)
        await says(world, "h2", domain, "b", free_bytes=GIB)
        assert await usable_by(world) == {"h1": False, "h2": False}
        await lost(world, "h2", domain)
        await says(world, "h2", domain, "b")
        assert await usable_by(world) == {"h1": False, "h2": False}
        await world.control.hosts.presence_changed(world.hosts["h1"].id, HostState.UNREACHABLE)
        await says(world, "h2", domain, "b", free_bytes=GIB)
        assert await usable_by(world) == {"h1": False, "h2": False}
        await says(world, "h1", domain, "a")
        assert await usable_by(world) == {"h1": True, "h2": False}

    tell(story)


def test_once_no_host_sees_it_any_more_another_one_counts(tell: Tell) -> None:
    """The host that was the first had nothing mounted."""

    async def story(world: World) -> None:
        domain = await joined(world, "h1", "h2", "h3")
        for host, mark in (("h1", "a"), ("h2", "b"), ("h3", "b")):
            await says(world, host, domain, mark)
        async with world.store.read() as tx:
            before = await tx.revision_now()
        await says(world, "h1", domain, "b")
        assert await usable_by(world) == {"h1": True, "h2": True, "h3": True}
        assert await found(world) == []
        async with world.store.read() as tx:
            changed = {row.host.name for row in await hosts_changed(tx, before)}
        assert changed == {"h1", "h2", "h3"}, "the engine learns of all of them"

    tell(story)


def test_a_host_that_is_removed_takes_its_word_along(tell: Tell) -> None:
    async def story(world: World) -> None:
        domain = await joined(world, "h1", "h2", "h3")
        for host, mark in (("h1", "a"), ("h2", "b"), ("h3", "c")):
            await says(world, host, domain, mark)
        h1 = world.hosts["h1"]
        h1.vanish()
        await world.control.hosts.presence_changed(h1.id, HostState.UNREACHABLE)
        assert await usable_by(world) == {"h1": True, "h2": False, "h3": False}
        await world.control.hosts.delete(ADMIN, "h1", powered_off=True)
        del world.hosts["h1"]
        assert sorted((await usable_by(world)).values(), key=bool) == [False, True]
        assert len(await found(world)) == 1

    tell(story)


def test_agents_of_an_earlier_version_tell_no_mark_and_are_not_compared(tell: Tell) -> None:
    async def story(world: World) -> None:
        domain = await joined(world, "h1", "h2", "h3")  # none has told any
        await says(world, "h2", domain, "b")
        assert await usable_by(world) == {"h1": True, "h2": True, "h3": True}
        await says(world, "h3", domain, "c")
        assert await usable_by(world) == {"h1": True, "h2": True, "h3": False}
        # It goes back to the version before.
        report = StorageReport(storage_domain_id=domain.id, usable=True)
        await world.hosts["h3"].tell(report)
        assert await usable_by(world) == {"h1": True, "h2": True, "h3": True}

    tell(story)


def test_which_mark_counts() -> None:
    assert mark_that_counts(None, []) is None
    assert mark_that_counts(None, ["a"]) == "a"
    assert mark_that_counts("a", []) == "a", "nobody has told another"
    assert mark_that_counts("a", ["b", "b", "a"]) == "a"
    assert mark_that_counts("a", ["b", "c", "c"]) == "c"
    assert mark_that_counts("a", ["b", "c"]) == mark_that_counts("a", ["c", "b"])
