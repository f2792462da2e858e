"""Lists of the façade: what is looked through before ``max`` counts, and what is not looked through at all."""

from collections.abc import Callable
from typing import Any

import pytest
from ovirtsdk4 import reader
from test_ovirt_requests import one_vm, send

from virtha.api.ovirt.snapshots import name_for
from virtha.api.ovirt.table import ROUTES

Play = Callable[..., Any]
World = Any


async def names(world: World, path: str) -> list[str]:
    answer = await send(world, "GET", path)
    assert answer.status_code == 200, answer.text
    return [one.name for one in reader.Reader.read(answer.text)]


def test_the_storage_of_a_data_center_is_its_own_before_it_is_counted(play: Play) -> None:
    async def story(world: World) -> None:
        ids = {}
        for cluster in ("Default", "east"):
            made = await world.ok("POST", "/v1/clusters", {"name": cluster})
            ids[cluster] = made["id"]
        ids["default"] = next(
            one["id"]
            for one in (await world.ok("GET", "/v1/clusters"))["items"]
            if one["name"] == "default"
        )
        for number, cluster in enumerate(("default", "Default", "east", "east", "default")):
            body = {"name": f"ds{number}", "path": f"/srv/{number}", "cluster": ids[cluster]}
            await world.ok("POST", "/v1/storage-domains", body)
        east = f"/datacenters/{ids['east']}/storagedomains"
        assert await names(world, east) == ["ds2", "ds3"]
        assert await names(world, f"{east}?max=1") == ["ds2"]
        assert await names(world, f"{east}?search=name%3Dds3&max=1") == ["ds3"]
        assert await names(world, f"{east}?search=name%3Dds0+or+name%3Dds2") == ["ds2"]
        assert await names(world, f"{east}?search=sortby+name+desc+page+2&max=1") == ["ds2"]
        small = f"/datacenters/{ids['default']}/storagedomains"
        assert await names(world, f"{small}?case_sensitive=false") == ["ds0", "ds4"]
        (one,) = [
            it.id for it in reader.Reader.read((await send(world, "GET", f"{east}?max=1")).text)
        ]
        assert (await send(world, "GET", f"{east}/{one}")).status_code == 200
        assert (await send(world, "GET", f"{small}/{one}")).status_code == 404

    play(story)


@pytest.mark.bad_input("search that can't be read")
def test_a_search_is_refused_where_it_is_not_read(play: Play) -> None:
    """An answer of all would look like what was found."""

    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for path in ("/jobs", "/vnicprofiles", "/roles", f"/vms/{vm_id}/nics", f"/vms/{vm_id}", ""):
            for search in ("correlation_id%3DX", "name%3Dx"):
                answer = await send(world, "GET", f"{path}?search={search}")
                assert answer.status_code == 400 and "[search: is not read" in answer.text, path
            assert (await send(world, "GET", f"{path}?search=")).status_code == 200
        searched = {route.path for route in ROUTES if route.searched}
        assert {"/vms", "/hosts", "/events", "/templates", "/users"} <= searched
        for path in searched:
            if "{" not in path:
                wrong = await send(world, "GET", f"{path}?search=colour%3Dred")
                assert wrong.status_code == 400 and "problem.search.syntax" in wrong.text, path

    play(story)


def test_max_holds_of_each_collection(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for path in (f"/vms/{vm_id}/statistics", "/roles", "/operatingsystems", "/permissions"):
            assert len(await names(world, path)) > 1
            assert len(await names(world, f"{path}?max=1")) == 1
            assert await names(world, f"{path};max=0") == []

    play(story)


NOW = 1_763_885_045_123
DAY = "snapshot-20251123T080405"


@pytest.mark.parametrize(
    ("description", "taken", "name"),
    [
        ("before the change", (), "before-the-change"),
        ("before the change", ("before-the-change",), "before-the-change-2"),
        ("a", ("a", "a-2", "a-3"), "a-4"),
        ("перед изменением", (), DAY),
        ("---", (DAY,), f"{DAY}-2"),
        ("x" * 100, (), "x" * 59),
        ("x" * 100, ("x" * 59,), "x" * 59 + "-2"),
        ("2D0C2D94-6f5e-4c0b-9d6b-3c1f5a8f6a11", (), DAY),
    ],
)
def test_a_snapshot_is_named_by_its_description_or_by_the_time(
    description: str, taken: tuple[str, ...], name: str
) -> None:
    assert name_for(description, taken, NOW) == name
    assert len(name) <= 63
