"""Images of one name, as clients of the API meet them."""

from collections.abc import Callable
from typing import Any

import pytest
from test_routes import connect_host, join_host, record

from virtha.model.facts import Image, StorageReport

Play = Callable[..., Any]
World = Any


@pytest.mark.bad_input("image name of two files", story=True)
def test_both_are_listed_and_one_must_be_said(play: Play) -> None:
    async def story(world: World) -> None:
        host_id = (await join_host(world))["host_id"]
        await connect_host(world, host_id)
        made = await world.ok("POST", "/v1/storage-domains", {"name": "ds1", "path": "/srv/ds1"})
        images = tuple(
            Image(
                name="web",
                path=f"images/web.{kind}",
                format=kind,
                size_bytes=1,
                virtual_size_bytes=1 << 30,
            )
            for kind in ("raw", "qcow2")
        )
        seen = StorageReport(storage_domain_id=made["domain"]["id"], usable=True, images=images)
        await record(world, host_id, 50, seen)
        paths, after = [], ""
        for _ in images:
            page = await world.ok("GET", f"/v1/storage-domains/ds1/images?limit=1{after}")
            paths += [one["path"] for one in page["items"]]
            after = f"&after={page['next']}"
        assert (paths, page["next"]) == (["images/web.qcow2", "images/web.raw"], None)
        body = {"name": "web1", "memory_bytes": 1 << 30, "image": "web"}
        answer = await world.call("POST", "/v1/vms", body)
        assert answer.status_code == 400, answer.text
        problem = answer.json()
        assert problem["field"] == "image" and "suffix" in problem["fix"]
        assert problem["allowed"] == ["web.qcow2", "web.raw"]
        assert (await world.ok("GET", "/v1/vms"))["items"] == []
        await world.ok("POST", "/v1/vms", {**body, "image": "web.raw"})

    play(story)
