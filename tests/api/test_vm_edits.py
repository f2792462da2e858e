"""Two people who change one VM, and names that are none, over HTTP."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from test_problems import check
from test_routes import answer_orders, connect_host, join_host

from virtha.model.ids import HostId

Play = Callable[..., Any]
VM = {"name": "web1", "memory_bytes": 1 << 28}
NAMES = (
    "größe",
    "a b",
    "日本",
    "x" * 300,
    "../etc/passwd",
    "/etc/passwd",
    "web1\n",
    "a\u202eb",
    "",
)


async def _with_vm(world: Any) -> Any:
    host_id = HostId((await join_host(world))["host_id"])
    await connect_host(world, host_id)
    assert (await world.call("POST", "/v1/vms", VM, role="operator")).status_code == 202
    await answer_orders(world, host_id, 2)
    return await world.call("GET", "/v1/vms/web1", role="operator")


@pytest.mark.bad_input("two edits at once")
def test_of_two_edits_at_once_one_is_done_and_the_other_told_why(play: Play) -> None:
    async def story(world: Any) -> None:
        seen = await _with_vm(world)
        match = {"If-Match": seen.headers["etag"]}

        async def edit(vcpus: int) -> Any:
            return await world.call(
                "PATCH", "/v1/vms/web1", {"vcpus": vcpus}, role="operator", headers=match
            )

        answers = await asyncio.gather(edit(2), edit(3))
        done, late = sorted(answers, key=lambda answer: int(answer.status_code))
        assert done.status_code == 200
        problem = check(late, 412, "problem.stale", "If-Match")
        now = done.json()["vm"]["revision"]
        assert f"at revision {now} by now" in problem["detail"]
        assert "load it again" in problem["fix"]
        view = await world.ok("GET", "/v1/vms/web1")
        assert (view["vm"]["vcpus"], view["vm"]["revision"]) == (done.json()["vm"]["vcpus"], now)
        for method, path, body in (
            ("DELETE", "/v1/vms/web1", None),
            ("POST", "/v1/vms/web1/disks/disk0/resize", {"size_bytes": 1 << 30}),
            ("POST", "/v1/vms/web1/nics", {"bridge": "br0"}),
            ("PUT", "/v1/vms/web1/watchdog", {"model": "i6300esb", "action": "reset"}),
        ):
            answer = await world.call(method, path, body, role="operator", headers=match)
            check(answer, 412, "problem.stale", "If-Match")
        assert (await world.ok("GET", "/v1/vms/web1"))["vm"]["revision"] == now

    play(story)


@pytest.mark.bad_input("name of a VM or disk")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_is_refused_and_never_found(play: Play, name: str) -> None:
    async def story(world: Any) -> None:
        await _with_vm(world)
        for method, path in (("POST", "/v1/vms"), ("PATCH", "/v1/vms/web1")):
            body = {**VM, "name": name} if method == "POST" else {"name": name}
            problem = check(
                await world.call(method, path, body, role="operator"),
                400,
                "problem.invalid",
                "name",
            )
            assert problem["fix"] or problem["allowed"], problem
        if name:
            path = f"/v1/vms/{quote(name, safe='')}"
            answer = await world.call("GET", path)
            assert answer.status_code == 404, answer.text
            assert len(answer.json()["detail"]) < 200
        names = [item["vm"]["name"] for item in (await world.ok("GET", "/v1/vms"))["items"]]
        assert names == ["web1"]

    play(story)
