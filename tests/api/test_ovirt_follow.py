"""``follow``: which links are put in, each looked at once, and what is too much of it."""

import asyncio
from collections.abc import Sequence

import pytest

from virtha.api.ovirt import follow
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.follow import Links
from virtha.api.ovirt.parameters import parse_follow
from virtha.api.ovirt.route import Reply
from virtha.api.ovirt.shape import TURN, Node
from virtha.model.errors import InvalidInput, NotFound


def test_follow_is_a_tree() -> None:
    assert parse_follow("nics,disk_attachments.disk, nics.statistics") == {
        "nics": {"statistics": {}},
        "disk_attachments": {"disk": {}},
    }
    for wrong in (
        "a..b",
        ".",
        ",".join("abcdefghijklmnopqrstuvwxyzabcdefghijklmnop"),
        "a" + ".a" * 9,
    ):
        with pytest.raises(InvalidInput) as refused:
            parse_follow(wrong)
        assert refused.value.field == "follow"


class World:
    """Answers by path, and which were asked for."""

    def __init__(self) -> None:
        center = {"href": "/datacenters/1", "id": "1", "link": [("clusters", "/datacenters/1/c")]}
        cluster = {"href": "/clusters/1", "id": "1", "data_center": {"href": "/datacenters/1"}}
        self.answers: dict[str, Node | Sequence[Node]] = {
            "/clusters/1": {**cluster, "name": "east"},
            "/datacenters/1": center,
            "/datacenters/1/c": [cluster],
            "/vms/1/watchdogs": [{"id": "1", "model": "i6300esb"}],
        }
        self.asked: list[str] = []

    async def look(self, href: str) -> Reply:
        self.asked.append(href)
        if href not in self.answers:
            raise NotFound("nothing")
        return Reply(body=self.answers[href])

    def follow(self, nodes: list[Node], text: str) -> None:
        asyncio.run(Links(self.look).follow(SHAPES["vm"], nodes, parse_follow(text)))


def vms(count: int) -> list[Node]:
    return [
        {
            "id": str(number),
            "cluster": {"href": "/clusters/1"},
            "link": [("watchdogs", f"/vms/{number}/watchdogs"), ("nics", "/nics")],
        }
        for number in range(1, count + 1)
    ]


def test_a_cluster_of_many_vms_is_looked_at_once() -> None:
    world, nodes = World(), vms(3)
    world.follow(nodes, "cluster,watchdogs")
    assert world.asked.count("/clusters/1") == 1 and len(world.asked) == 4
    assert [node["cluster"]["name"] for node in nodes] == ["east"] * 3
    assert [len(node["watchdogs"]) for node in nodes] == [1, 0, 0]  # those of the others are gone
    assert nodes[0]["link"] == [("nics", "/nics")]


def test_links_that_lead_back_end() -> None:
    world, nodes = World(), vms(2)
    world.follow(nodes, "cluster.data_center.clusters.data_center.clusters.data_center")
    found = nodes[1]["cluster"]["data_center"]["clusters"][0]["data_center"]["clusters"][0]
    assert found["data_center"]["link"] == [("clusters", "/datacenters/1/c")]
    assert len(world.asked) == 3 and "link" in world.answers["/datacenters/1"]


def test_links_that_there_are_not_are_named_and_too_many_objects_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    with pytest.raises(InvalidInput) as refused:
        world.follow(vms(1), "colour")
    assert refused.value.field == "follow" and "watchdogs" in refused.value.allowed
    monkeypatch.setattr(follow, "FIELDS_MAX", 50)
    world.follow(vms(10), "cluster")  # of five fields each
    with pytest.raises(InvalidInput, match="more than 50 fields") as refused:
        world.follow(vms(11), "cluster")
    assert refused.value.field == "follow"


@pytest.mark.req("F1")
def test_the_server_has_its_turns_while_many_objects_have_one_and_the_same_behind_them() -> None:
    """Nothing is waited for then; beats are read and leases renewed all the same."""

    async def story() -> None:
        ticks, over = 0, False

        async def tick() -> None:
            nonlocal ticks
            while not over:
                ticks += 1
                await asyncio.sleep(0)

        ticker = asyncio.ensure_future(tick())
        nodes = vms(20 * TURN)
        await Links(world.look).follow(
            SHAPES["vm"], nodes, parse_follow("cluster,cluster.data_center")
        )
        over = True
        await ticker
        assert ticks >= 40 and nodes[-1]["cluster"]["data_center"]["id"] == "1"

    world = World()
    asyncio.run(story())


def test_what_is_put_in_at_one_place_is_not_at_the_others() -> None:
    world, nodes = World(), vms(2)
    nodes[1]["cluster"] = {"href": "/clusters/2", "data_center": {"href": "/datacenters/1"}}  # gone
    center = nodes[1]["cluster"]
    world.follow(nodes, "cluster.data_center.clusters")
    assert all(node["cluster"]["data_center"]["clusters"] for node in nodes)
    assert center == {"href": "/clusters/2", "data_center": {"href": "/datacenters/1"}}
    assert world.answers["/clusters/1"]["data_center"] == {"href": "/datacenters/1"}  # type: ignore[call-overload]  # JSON
    assert world.answers["/datacenters/1"]["link"]  # type: ignore[call-overload]  # JSON
