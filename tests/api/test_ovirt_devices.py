"""Cards and disks of the façade: which one a name or an id means, from when on, and what it costs to look at many."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from counted_statements import statements
from ovirtsdk4 import reader
from test_ovirt_requests import ROOT, one_vm, send
from test_routes import answer_orders, connect_host, join_host, record

from virtha.api.ovirt import operations
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.follow import _followable
from virtha.api.ovirt.networks import network_id, profile_id
from virtha.api.ovirt.vm_node import BLANK
from virtha.model.facts import StorageReport
from virtha.model.ids import SnapshotId
from virtha.model.snapshot import Snapshot
from virtha.model.time import Millis
from virtha.store.snapshots import save_snapshot

Play = Callable[..., Any]
World = Any
NIC = "<nic><name>{}</name><network><name>br0</name></network></nic>"


async def names_of(world: World, path: str) -> list[str]:
    return [one.name for one in reader.Reader.read((await send(world, "GET", f"{path}/nics")).text)]


async def host_id_of(world: World) -> str:
    return (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]["id"]


async def add_storage(world: World) -> None:
    """That the host sees."""
    made = await world.ok("POST", "/v1/storage-domains", {"name": "ds1", "path": "/srv/ds1"})
    seen = StorageReport(storage_domain_id=made["domain"]["id"], usable=True)
    await record(world, await host_id_of(world), 50, seen)


async def add(world: World, path: str, body: str, status: int = 201) -> Any:
    """While the host answers what it is ordered."""
    host_id, last = await host_id_of(world), world.sequence
    asked = asyncio.create_task(send(world, "POST", path, body))
    while not asked.done():
        last = await answer_orders(world, host_id, last)
        await asyncio.sleep(0.01)
    world.sequence = last
    answer = await asked
    assert answer.status_code == status, answer.text
    return answer


async def begin(world: World) -> str:
    vm_id = await one_vm(world)
    world.sequence = 100
    return vm_id


def test_a_card_keeps_its_name_when_others_go(play: Play) -> None:
    """By its place the second would become the first, and who removes that by its name would take the wrong one."""

    async def story(world: World) -> None:
        vm_id = await begin(world)
        path = f"/vms/{vm_id}"
        (first,) = await names_of(world, path)
        mac = (await world.ok("GET", f"/v1/vms/{vm_id}"))["vm"]["nics"][0]["mac"]
        assert first == f"nic-{mac.replace(':', '')}"  # it was given none
        for name in ("front", "back"):
            made = await add(world, f"{path}/nics", NIC.format(name))
            node = reader.Reader.read(made.text)
            assert node.name == name and node.mac.address
            assert made.headers["location"] == f"{ROOT}{path}/nics/{node.id}"
        again = await send(world, "POST", f"{path}/nics", NIC.format("back"))
        assert again.status_code == 409 and "is called back already" in again.text
        taken = await send(world, "POST", f"{path}/nics", NIC.format(first))
        assert taken.status_code == 409
        cards = reader.Reader.read((await send(world, "GET", f"{path}/nics")).text)
        front = next(one.id for one in cards if one.name == "front")
        assert (await send(world, "DELETE", f"{path}/nics/{front}?async=true")).status_code == 200
        await answer_orders(world, await host_id_of(world), world.sequence)
        assert await names_of(world, path) == [first, "back"]
        # What VMs are made from keeps them, and so have these.
        body = f'<template><name>t1</name><vm id="{vm_id}"/></template>'
        template = await send(world, "POST", "/templates?async=true", body)
        template_id = re.search(r' id="([^"]*)"', template.text)[1]
        assert await names_of(world, f"/templates/{template_id}") == ["nic1", "back"]
        body = f"""<vm><name>web2</name><cluster><name>default</name></cluster><template id="{template_id}"/></vm>"""
        made = await send(world, "POST", "/vms?async=true", body)
        other = re.search(r'<vm href="[^"]*" id="([^"]*)"', made.text)[1]
        assert "back" in await names_of(world, f"/vms/{other}")

    play(story)


def test_a_card_is_on_the_network_that_its_id_says(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await begin(world)
        cluster = (await world.ok("GET", f"/v1/vms/{vm_id}"))["vm"]["cluster_id"]
        profile, network = profile_id(cluster, "br0"), network_id(cluster, "br0")
        new = f"""<vm><name>{{}}</name><cluster><name>default</name></cluster><template id="{BLANK}"/>
            <nics><nic><name>nic1</name>{{}}</nic></nics></vm>"""
        for number, said in enumerate(
            (
                f'<vnic_profile id="{profile}"/>',
                f'<network id="{network}"/>',
                f'<vnic_profile id="{profile}"><name>another</name></vnic_profile>',
                f'<vnic_profile id="{profile}"/><network><name>another</name></network>',
                "<vnic_profile><name>br0</name></vnic_profile>",
            )
        ):
            made = await send(world, "POST", "/vms?async=true", new.format(f"v{number}", said))
            assert made.status_code == 202, made.text
            (nic,) = (await world.ok("GET", f"/v1/vms/v{number}"))["vm"]["nics"]
            assert (nic["bridge"], nic["name"]) == ("br0", "nic1")
        for said, field in (
            (f'<vnic_profile id="{vm_id}"/>', "nic.vnic_profile"),
            ("<network><name>br9</name></network>", "nic.network"),
            (f'<vnic_profile id="{vm_id}"><name>br0</name></vnic_profile>', "nic.vnic_profile"),
        ):
            wrong = await send(world, "POST", "/vms", new.format("wrong", said))
            assert wrong.status_code == 400 and f"[{field}: " in wrong.text, wrong.text
            assert "allowed: br0" in wrong.text

    play(story)


def test_what_takes_longer_is_found_again_by_the_id_that_was_told(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "ANSWER_WAIT_MS", 1)

    async def story(world: World) -> None:
        vm_id = await begin(world)
        host_id = await host_id_of(world)
        await add_storage(world)
        disk = """<disk_attachment><disk><name>data</name><provisioned_size>1073741824</provisioned_size>
            <storage_domains><storage_domain><name>ds1</name></storage_domain></storage_domains></disk></disk_attachment>"""
        told = await send(world, "POST", f"/vms/{vm_id}/diskattachments?async=true", disk)
        assert told.status_code == 202, told.text
        node = reader.Reader.read(told.text)
        assert told.headers["location"] == f"{ROOT}/vms/{vm_id}/diskattachments/{node.id}"
        listed = reader.Reader.read(
            (await send(world, "GET", f"/vms/{vm_id}/diskattachments")).text
        )
        assert [one.id for one in listed] == [node.id]
        for status in ("locked", "ok"):
            one = reader.Reader.read((await send(world, "GET", f"/disks/{node.id}")).text)
            assert (one.status.value, one.name) == (status, "data")
            all_of_them = reader.Reader.read((await send(world, "GET", "/disks")).text)
            assert [it.status.value for it in all_of_them] == [status]
            await answer_orders(world, host_id, 100)
        same = (await world.ok("GET", f"/v1/vms/{vm_id}"))["vm"]["disks"]
        assert [it["id"] for it in same] == [node.id]

    play(story)


LINKS = {
    "vms": "vm",
    "disks": "disk",
    "templates": "template",
    "hosts": "host",
    "clusters": "cluster",
    "datacenters": "data_center",
    "storagedomains": "storage_domain",
    "networks": "network",
    "users": "user",
}
"""Of each list, its objects' type."""
DEEPER = {
    "vms": ("disk_attachments.disk,permissions,nics.vnic_profile", "snapshots.vm"),
    "disks": ("vm.snapshots", "vm.template"),
    "hosts": ("cluster.networks",),
}


async def one_more_of_each(world: World, number: int) -> None:
    for host_id, beat in list(world.links.beats.items()):  # the last one may be too long ago
        received_at = Millis(world.store.clock.monotonic_ms())
        world.links.beats[host_id] = msgspec.structs.replace(beat, received_at=received_at)
    disk = {"name": "data", "size_bytes": 1 << 30, "storage_domain": "ds1"}
    vm = {"name": f"v{number}", "cluster": "default", "memory_bytes": 1 << 30, "disks": [disk]}
    made = await world.ok("POST", "/v1/vms", vm | {"nics": [{"bridge": "br0"}]})
    async with world.store.write() as tx:
        for name in (f"before{number}", "before"):
            one = Snapshot(id=SnapshotId(str(uuid4())), vm_id=made["subject"], name=name, created=1)
            await save_snapshot(tx, one)
    await join_host(world, f"more{number}", cluster="default")
    password = "words that nobody says"
    await world.ok(
        "POST", "/v1/users", {"name": f"u{number}", "password": password, "role": "viewer"}
    )
    await world.ok("POST", "/v1/clusters", {"name": f"c{number}"})
    domain = {"name": f"s{number}", "path": f"/srv/s{number}", "cluster": "c0"}
    await world.ok("POST", "/v1/storage-domains", domain)


def test_to_follow_the_links_of_many_costs_what_it_costs_for_few(play: Play) -> None:
    """Each link of each list: no more statements than without following it grow with the list."""

    async def story(world: World) -> None:
        await one_vm(world)
        await add_storage(world)
        taken: dict[tuple[str, str], list[int]] = defaultdict(list)
        for numbers in (range(2), range(2, 4)):
            for number in numbers:
                await one_more_of_each(world, number)
            for path, shape in LINKS.items():
                for link in ("", *_followable(SHAPES[shape]), *DEEPER.get(path, ())):
                    with statements(world.store) as made:
                        answer = await send(world, "GET", f"/{path}?follow={link}")
                    assert answer.status_code == 200, answer.text
                    taken[path, link].append(len(made))
        grown = {at: counts[1] - counts[0] for at, counts in taken.items()}
        # What the list takes itself is another matter.
        assert {at: it for at, it in grown.items() if it > grown[at[0], ""]} == {}

    play(story)


def test_each_vm_has_its_own_snapshots_and_template_put_in(play: Play) -> None:
    async def story(world: World) -> None:
        await one_vm(world)
        await add_storage(world)
        for number in range(2):
            await one_more_of_each(world, number)
        found = reader.Reader.read((await send(world, "GET", "/vms?follow=snapshots.vm")).text)
        assert {vm.name: [one.name for one in vm.snapshots][1:] for vm in found} == {
            "web1": [],
            "v0": ["before", "before0"],
            "v1": ["before", "before1"],
        }
        assert all(one.vm.name == vm.name for vm in found for one in vm.snapshots)

    play(story)


def test_a_disk_that_there_is_not_costs_no_look_at_all_vms(play: Play) -> None:
    async def story(world: World) -> None:
        await one_vm(world)
        taken = []
        for number in range(3):
            with statements(world.store) as made:
                assert (await send(world, "GET", "/disks/nothing")).status_code == 404
            assert not [one for one in made if "FROM vm " in one and "vm.name >" in one], made
            taken.append(len(made))
            await world.ok("POST", "/v1/vms", {"name": f"v{number}", "memory_bytes": 1 << 30})
        assert len(set(taken)) == 1

    play(story)


def test_a_thin_vm_says_which_template_its_disks_need(play: Play) -> None:
    async def story(world: World) -> None:
        joined = await join_host(world)
        await connect_host(world, joined["host_id"])
        await add_storage(world)
        disk = {"name": "root", "size_bytes": 1 << 30, "storage_domain": "ds1"}
        await world.ok(
            "POST", "/v1/vms", {"name": "web1", "memory_bytes": 1 << 30, "disks": [disk]}
        )
        last = await answer_orders(world, joined["host_id"], 100)
        await send(
            world,
            "POST",
            "/templates?async=true",
            "<template><name>t1</name><vm><name>web1</name></vm></template>",
        )
        last = await answer_orders(world, joined["host_id"], last)
        body = "<vm><name>{}</name><cluster><name>default</name></cluster><template><name>t1</name></template></vm>"
        for name, clone in (("thin", "false"), ("full", "true")):
            made = await send(world, "POST", f"/vms?async=true&clone={clone}", body.format(name))
            assert made.status_code == 202, made.text
            last = await answer_orders(world, joined["host_id"], last)
        template = (await world.ok("GET", "/v1/templates"))["items"][0]["template"]["id"]
        vms = reader.Reader.read((await send(world, "GET", "/vms?follow=template")).text)
        assert {vm.name: (vm.template.id, vm.template.name) for vm in vms} == {
            "full": (BLANK, "Blank"),
            "thin": (template, "t1"),
            "web1": (BLANK, "Blank"),
        }
        thin = next(vm.id for vm in vms if vm.name == "thin")
        one = reader.Reader.read((await send(world, "GET", f"/vms/{thin}")).text)
        assert one.template.id == one.original_template.id == template

    play(story)
