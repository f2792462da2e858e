"""What is changed through the façade is told as what is changed natively: who signed in there, what was before, what is after."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import PASSWORDS
from test_ovirt_protection import one_template, one_vm_with_card
from test_ovirt_requests import ROOT, XML, token

Play = Callable[..., Any]
World = Any
RESET = {"model": "i6300esb", "action": "reset"}
PAUSE = {"model": "i6300esb", "action": "pause"}
NOTHING: dict[str, Any] = {"watchdog": None}


async def _by_sso(world: World, name: str) -> str:
    form = {"grant_type": "password", "scope": "ovirt-app-api"}
    form |= {"username": f"{name}@internal", "password": PASSWORDS[name]}
    return f"Bearer {(await token(world, **form)).json()['access_token']}"


async def _by_password(world: World, name: str) -> str:
    return f"Basic {base64.b64encode(f'{name}@internal:{PASSWORDS[name]}'.encode()).decode()}"


class SignedIn:
    """Changes by who signed in at the façade, and the one event that each leaves."""

    def __init__(self, world: World, name: str, authorization: str) -> None:
        self.world, self.name = world, name
        self.headers = XML | {"Authorization": authorization}

    async def send(self, method: str, path: str, body: str = "") -> str:
        async with self.world.store.read() as tx:
            began = await tx.revision_now()
        sent: dict[str, Any] = {"raw": body.encode()} if body else {}
        answer = await self.world.call(method, ROOT + path, role=None, headers=self.headers, **sent)
        assert answer.status_code in (200, 201, 202), answer.text
        return str(began)

    async def told(self, code: str, after: str) -> tuple[Any, Any]:
        """Before and after of what happened since; who it was is looked at here."""
        path = f"/v1/events?code={code}&after={after}&order=asc"
        (event,) = (await self.world.ok("GET", path))["items"]
        assert event["user"] == self.name, event
        fields = event["fields"]
        return tuple(json.loads(fields[one]) if one in fields else None for one in _SIDES)

    async def change(self, code: str, method: str, path: str, body: str = "") -> tuple[Any, Any]:
        return await self.told(code, await self.send(method, path, body))


_SIDES = ("before", "after")


@pytest.mark.req("L6", "W1", "W3")
@pytest.mark.parametrize("sign_in", [_by_sso, _by_password], ids=["sso", "basic"])
def test_a_change_is_told_with_who_signed_in_at_the_facade_before_and_after(
    play: Play, sign_in: Any
) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm_with_card(world)
        template_id = await one_template(world, vm_id)
        operator = SignedIn(world, "operator", await sign_in(world, "operator"))

        edit = "<vm><description>a shop</description><memory>536870912</memory></vm>"
        had = (await world.ok("GET", f"/v1/vms/{vm_id}"))["vm"]
        before, after = await operator.change("vm.changed", "PUT", f"/vms/{vm_id}", edit)
        assert before == {"description": "", "memory_bytes": had["memory_bytes"]}
        assert after == {"description": "a shop", "memory_bytes": 536870912}

        for kind, its_id in (("vm", vm_id), ("template", template_id)):
            code, cards = f"{kind}.changed", f"/{kind}s/{its_id}/watchdogs"
            card = f"{cards}/{its_id}"
            body = "<watchdog><action>pause</action></watchdog>"
            before, after = await operator.change(code, "PUT", card, body)
            changed = ({"watchdog": {"action": "reset"}}, {"watchdog": {"action": "pause"}})
            assert (before, after) == changed
            assert await operator.change(code, "DELETE", card) == ({"watchdog": PAUSE}, NOTHING)
            body = "<watchdog><action>reset</action><model>i6300esb</model></watchdog>"
            assert await operator.change(code, "POST", cards, body) == (
                NOTHING,
                {"watchdog": RESET},
            )

        path = f"/templates/{template_id}"
        before, after = await operator.change("template.deleted", "DELETE", path)
        assert after is None and (before["name"], before["watchdog"]) == ("t1", RESET)

        administrator = SignedIn(world, "administrator", await sign_in(world, "administrator"))
        (cluster,) = (await world.ok("GET", "/v1/clusters"))["items"]
        body = "<cluster><description>in the cellar</description></cluster>"
        path = f"/clusters/{cluster['id']}"
        before, after = await administrator.change("cluster.changed", "PUT", path, body)
        assert (before, after) == ({"description": ""}, {"description": "in the cellar"})

    play(story)


@pytest.mark.req("L6")
def test_an_order_at_the_facade_says_who_signed_in_there(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm_with_card(world)
        operator = SignedIn(world, "operator", await _by_sso(world, "operator"))
        await operator.send("POST", f"/vms/{vm_id}/start?async=true", "<action/>")
        (order,) = [
            one
            for one in (await world.ok("GET", "/v1/operations"))["items"]
            if one["kind"] == "vm.start"
        ]
        assert (order["subject"], order["asked_by"]) == (vm_id, "operator")

    play(story)
