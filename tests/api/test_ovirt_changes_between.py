"""Changes by others between what a request of the façade looks at and what it writes."""

import itertools
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
from ovirtsdk4 import reader
from test_ovirt_protection import card_of, one_template, one_vm_with_card
from test_ovirt_requests import one_vm, send
from test_routes import answer_orders

from virtha.api.ovirt import listing
from virtha.api.ovirt.watchdogs import TRIES
from virtha.control.requests import VmChange, VmQuery, WatchdogRequest
from virtha.control.views import Caller
from virtha.model.errors import NotFound
from virtha.model.ids import SnapshotId, VmId
from virtha.model.snapshot import Snapshot
from virtha.model.user import Role
from virtha.store.snapshots import drop_snapshot, save_snapshot, snapshots_of

Play = Callable[..., Any]
World = Any
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
ACTION = "<watchdog><action>{}</action></watchdog>"
MODEL = "<watchdog><model>i6300esb</model></watchdog>"
Meanwhile = Callable[[], Awaitable[Any]]


def before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, meanwhile: Meanwhile, times: int = 1
) -> None:
    """``meanwhile`` is done after the request has looked, and before ``name`` of ``owner`` is."""
    real, left = getattr(owner, name), [times]

    async def late(*given: Any, **more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            await meanwhile()
        return await real(*given, **more)

    monkeypatch.setattr(owner, name, late)


async def both(world: World) -> list[tuple[Any, str, str]]:
    """Use cases, path and id of a VM and of a template, each with a card."""
    vm_id = await one_vm_with_card(world)
    template_id = await one_template(world, vm_id)
    return [
        (world.control.vms, f"/vms/{vm_id}", vm_id),
        (world.control.templates, f"/templates/{template_id}", template_id),
    ]


@pytest.mark.req("W3")
def test_a_part_of_a_card_that_is_left_out_is_as_others_made_it_meanwhile(play: Play) -> None:
    async def story(world: World) -> None:
        for cases, path, identifier in await both(world):
            put = cases.put_watchdog

            async def meanwhile(put: Any = put, identifier: str = identifier) -> None:
                await put(ADMIN, identifier, WatchdogRequest(model="i6300esb", action="poweroff"))

            with pytest.MonkeyPatch.context() as patch:
                before(patch, cases, "put_watchdog", meanwhile)
                answer = await send(world, "PUT", f"{path}/watchdogs/{identifier}", MODEL)
            assert answer.status_code == 200, answer.text
            assert "<action>poweroff</action>" in answer.text

    play(story)


@pytest.mark.req("W3")
def test_a_card_that_is_removed_meanwhile_is_not_put_back(play: Play) -> None:
    async def story(world: World) -> None:
        for cases, path, identifier in await both(world):
            remove = cases.remove_watchdog

            async def meanwhile(remove: Any = remove, identifier: str = identifier) -> None:
                await remove(ADMIN, identifier)

            for method, name, body in (
                ("PUT", "put_watchdog", ACTION.format("pause")),
                ("DELETE", "remove_watchdog", ""),
            ):
                with pytest.MonkeyPatch.context() as patch:
                    before(patch, cases, name, meanwhile)
                    answer = await send(world, method, f"{path}/watchdogs/{identifier}", body)
                assert answer.status_code == 404, answer.text
                with pytest.raises(NotFound):
                    await remove(ADMIN, identifier)
                await cases.add_watchdog(
                    ADMIN, identifier, WatchdogRequest(model="i6300esb", action="reset")
                )
                assert await card_of(world, path)

    play(story)


def test_who_is_late_each_time_is_told_in_the_end(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm_with_card(world)
        vms, put = world.control.vms, world.control.vms.put_watchdog
        actions = iter(("pause", "none") * TRIES)

        async def meanwhile() -> None:
            await put(ADMIN, vm_id, WatchdogRequest(model="i6300esb", action=next(actions)))

        before(monkeypatch, vms, "put_watchdog", meanwhile, times=TRIES)
        answer = await send(
            world, "PUT", f"/vms/{vm_id}/watchdogs/{vm_id}", ACTION.format("poweroff")
        )
        assert answer.status_code == 409 and "problem.stale" in answer.text, answer.text
        assert (await vms.with_watchdog(vm_id)).watchdog.action.value == "pause"

    play(story)


def test_a_snapshot_that_took_the_name_of_the_one_meant_is_not_it(play: Play) -> None:
    """Names are made of descriptions, and come again."""

    async def story(world: World) -> None:
        vm_id = VmId(await one_vm(world))
        meant, other = (
            Snapshot(id=SnapshotId(str(uuid4())), vm_id=vm_id, name="before", disks=(), created=1)
            for _ in range(2)
        )

        async def meanwhile() -> None:
            async with world.store.write() as tx:
                await drop_snapshot(tx, meant.id)
                await save_snapshot(tx, other)

        path = f"/vms/{vm_id}/snapshots/{meant.id}"
        for method, full, body, name in (
            ("POST", f"{path}/restore?async=true", "<action/>", "revert"),
            ("DELETE", f"{path}?async=true", "", "delete"),
        ):
            async with world.store.write() as tx:
                await drop_snapshot(tx, other.id)
                await save_snapshot(tx, meant)
            with pytest.MonkeyPatch.context() as patch:
                before(patch, world.control.snapshots, name, meanwhile)
                answer = await send(world, method, full, body)
            assert answer.status_code == 404, answer.text
            async with world.store.read() as tx:
                assert await snapshots_of(tx, vm_id) == (other,)

    play(story)


def test_a_vm_that_gets_another_name_between_two_pages_is_listed_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who makes sure that it is there, as Ansible does, makes another."""
    monkeypatch.setattr(listing, "LIST_LIMIT_MAX", 2)

    async def story(world: World) -> None:
        ids = {await one_vm(world)}
        host_id, last = (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]["id"], 100
        for name in ("web2", "web3", "web4", "web5"):
            made = await world.ok("POST", "/v1/vms", {"name": name, "memory_bytes": 1 << 30})
            last = await answer_orders(world, host_id, last)
            ids.add(made["subject"])
        vms = world.control.vms
        real = vms.list
        names = itertools.cycle(("a1", "web6", "z1", "b1"))
        for path in ("/vms", "/vms?search=name%3D*", "/vms?max=4", "/vms?max=100"):
            pages = 0

            async def late(query: Any) -> Any:
                nonlocal pages
                pages += 1
                if pages > 1:
                    found = (await real(VmQuery(limit=1_000))).items
                    other = found[-1] if pages % 2 else found[0]
                    await vms.change(ADMIN, other.vm.id, VmChange(name=next(names) + str(pages)))
                return await real(query)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(vms, "list", late)
                answer = reader.Reader.read((await send(world, "GET", path)).text)
            found = [one.id for one in answer]
            assert pages > 2 and len(set(found)) == len(found), (path, found)
            assert set(found) == ids or path.endswith("max=4"), path
            assert [one.name for one in answer] == sorted(one.name for one in answer)

    play(story)
