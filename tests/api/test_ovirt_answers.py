"""What answers claim: that something is there already, that a method is none, what a cluster's policy is."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from ovirtsdk4 import reader
from test_ovirt_devices import add_storage, host_id_of
from test_ovirt_requests import ROOT, one_vm, send
from test_routes import answer_orders, connect_host, join_host, record

from virtha.api.ovirt import operations
from virtha.api.ovirt.vm_node import BLANK
from virtha.model.facts import Outcome, Result
from virtha.model.ids import HostId
from virtha.model.orders import Order

Play = Callable[..., Any]
World = Any
VM = "<vm><name>{}</name><cluster><name>default</name></cluster><template{}/>{}</vm>"
PATIENT_MS = 60_000
"""However slow the machine is, the host has answered by then."""
NIC = "<nics><nic><network><name>br0</name></network></nic></nics>"


async def host_with_storage(world: World) -> str:
    joined = await join_host(world)
    await connect_host(world, joined["host_id"])
    await add_storage(world)
    world.sequence = 100
    return str(joined["host_id"])


async def vm_with_disk(world: World) -> str:
    disk = {"name": "root", "size_bytes": 1 << 30, "storage_domain": "ds1"}
    body = {"name": "web1", "memory_bytes": 1 << 30, "disks": [disk]}
    await world.ok("POST", "/v1/vms", body)
    world.sequence = await answer_orders(world, await host_id_of(world), world.sequence)
    return str((await world.ok("GET", "/v1/vms/web1"))["vm"]["id"])


class AnsweringHost:
    """Says of each order that it is done, as soon as it gets it: also within a request, which waits for that."""

    def __init__(self, world: World, host_id: str) -> None:
        self._world, self._host_id = world, host_id
        self._answers: list[asyncio.Task[None]] = []  # a task that nobody holds may end early
        world.links.deliver = self.deliver

    def deliver(self, host_id: HostId, order: Order) -> bool:
        outcome = Outcome(operation_id=order.operation_id, step=order.step, result=Result.OK)
        answer = record(self._world, HostId(self._host_id), self._world.sequence, outcome)
        self._world.sequence += 1
        self._answers.append(asyncio.get_running_loop().create_task(answer))
        return True


async def status_of(world: World, path: str, field: str = "status") -> str:
    answer = await send(world, "GET", path)
    found = re.search(f"<{field}>(.*?)</{field}>", answer.text)
    assert answer.status_code == 200 and found is not None, answer.text
    return found[1]


# Accepted, and created


@pytest.mark.parametrize("asked", ["?async=true", ""])
def test_a_vm_that_is_still_being_made_is_accepted_and_not_created(
    play: Play, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """``async``, and what takes longer than the answer."""
    monkeypatch.setattr(operations, "ANSWER_WAIT_MS", 1)

    async def story(world: World) -> None:
        host_id = await host_with_storage(world)
        body = VM.format("web1", f' id="{BLANK}"', NIC)
        told = await send(world, "POST", f"/vms{asked}", body)
        assert told.status_code == 202, told.text
        vm = reader.Reader.read(told.text)
        assert (vm.name, vm.status.value) == ("web1", "image_locked")
        path = f"/vms/{vm.id}"
        assert told.headers["location"] == ROOT + path
        await answer_orders(world, host_id, world.sequence)
        assert await status_of(world, path) == "down"

    play(story)


@pytest.mark.parametrize("asked", ["?async=true", ""])
def test_a_template_that_is_still_being_made_is_accepted_and_not_created(
    play: Play, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(operations, "ANSWER_WAIT_MS", 1)

    async def story(world: World) -> None:
        host_id = await host_with_storage(world)
        vm_id = await vm_with_disk(world)
        body = f'<template><name>t1</name><vm id="{vm_id}"/></template>'
        told = await send(world, "POST", f"/templates{asked}", body)
        assert told.status_code == 202, told.text
        template = reader.Reader.read(told.text)
        assert (template.name, template.status.value) == ("t1", "locked")
        path = f"/templates/{template.id}"
        assert told.headers["location"] == ROOT + path
        assert await status_of(world, f"/vms/{vm_id}") == "image_locked"
        last = await answer_orders(world, host_id, world.sequence)
        assert await status_of(world, path) == "ok"
        body = VM.format("web2", f' id="{template.id}"', "")
        thin = await send(world, "POST", f"/vms{asked}", body)
        assert thin.status_code == 202, thin.text
        await answer_orders(world, host_id, last)

    play(story)


def test_a_snapshot_that_is_still_being_made_is_accepted_and_not_created(play: Play) -> None:
    async def story(world: World) -> None:
        await host_with_storage(world)
        path = f"/vms/{await vm_with_disk(world)}/snapshots"
        body = "<snapshot><description>before</description></snapshot>"
        told = await send(world, "POST", f"{path}?async=true", body)
        assert told.status_code == 202, told.text
        assert "<snapshot_status>locked</snapshot_status>" in told.text

    play(story)


def test_what_is_there_when_it_is_answered_is_created(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "ANSWER_WAIT_MS", PATIENT_MS)

    async def story(world: World) -> None:
        host_id = await host_with_storage(world)
        vm_id = await vm_with_disk(world)
        AnsweringHost(world, host_id)
        template = f'<template><name>t1</name><vm id="{vm_id}"/></template>'
        snapshot = "<snapshot><description>before</description></snapshot>"
        by_name = VM.format("web3", "", "").replace(
            "<template/>", "<template><name>t1</name></template>"
        )
        for path, body, end in (
            ("/vms", VM.format("web2", f' id="{BLANK}"', NIC), "<status>down</status>"),
            ("/templates", template, "<status>ok</status>"),
            ("/vms", by_name, "<status>down</status>"),
            (f"/vms/{vm_id}/snapshots", snapshot, "<snapshot_status>ok</snapshot_status>"),
        ):
            made = await send(world, "POST", path, body)
            assert (made.status_code, end in made.text) == (201, True), (path, made.text)

    play(story)


# HEAD


def test_head_is_answered_as_get_is_without_what_it_would_bring(play: Play) -> None:
    """As oVirt does it; it was told as a problem of the native API."""

    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for path in (
            "/ovirt-engine/api",
            "/ovirt-engine/api/vms",
            f"/api/vms/{vm_id}",
            "/api/vms/nothing",
            "/api/nothing",
            f"/api/vms/{vm_id}/start",
            "/ovirt-engine/services/pki-resource",
            "/ovirt-engine/services/nothing",
        ):
            head, got = [await world.call(method, path) for method in ("HEAD", "GET")]
            assert (head.status_code, head.text) == (got.status_code, ""), path
            for name in ("content-type", "cache-control", "allow"):
                assert head.headers.get(name) == got.headers.get(name), (path, name)
        only_post = await world.call("HEAD", f"/api/vms/{vm_id}/start")
        assert (only_post.status_code, only_post.headers["allow"]) == (405, "POST")
        assert (await world.call("HEAD", "/api/vms", role=None)).status_code == 401

    play(story)


# A cluster's policy


def test_a_cluster_says_what_its_policy_says(play: Play) -> None:
    async def story(world: World) -> None:
        policy = await world.ok("GET", "/v1/clusters/default/policy")
        for reserve, witnesses, threshold in ((0, 51, 50), (1, 80, 21), (2, 100, 1)):
            policy["recovery"]["reserve_hosts"] = reserve
            policy["fencing"]["witnesses_percent"] = witnesses
            await world.ok("PUT", "/v1/clusters/default/policy", policy)
            shown = await send(world, "GET", "/clusters")
            (cluster,) = reader.Reader.read(shown.text)
            assert cluster.ha_reservation is (reserve > 0)
            broken = cluster.fencing_policy.skip_if_connectivity_broken
            assert (broken.enabled, broken.threshold) == (True, threshold)
            path = f"/clusters/{cluster.id}"
            one = (await send(world, "GET", path)).text
            assert (await send(world, "PUT", path, one)).status_code == 200, "as it was read"
            for body, field in (
                (f"<ha_reservation>{str(reserve == 0).lower()}</ha_reservation>", "ha_reservation"),
                (
                    f"<fencing_policy><skip_if_connectivity_broken><threshold>{threshold + 1}</threshold>"
                    "</skip_if_connectivity_broken></fencing_policy>",
                    "fencing_policy.skip_if_connectivity_broken.threshold",
                ),
            ):
                refused = await send(world, "PUT", path, f"<cluster>{body}</cluster>")
                assert refused.status_code == 409 and f"[{field}: " in refused.text
                assert "virtha policy set CLUSTER FILE" in refused.text

    play(story)
