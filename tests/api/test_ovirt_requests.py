"""The façade's requests in the raw: signing in, forms of bodies and answers, roles, and what is wrong with a request."""

import asyncio
import base64
import re
from collections.abc import Callable
from typing import Any

import pytest
from ovirtsdk4 import reader
from test_routes import answer_orders, connect_host, join_host

from virtha.api.ovirt import sign_in
from virtha.api.ovirt.route import Route
from virtha.api.ovirt.table import ROUTES
from virtha.api.ovirt.vm_node import BLANK
from virtha.engine.events import SaveHost
from virtha.engine.records import HostRecord
from virtha.model.user import Role
from virtha.store.engine import save_intent

Play = Callable[..., Any]
World = Any
ROOT = "/ovirt-engine/api"
PASSWORD = "starts-and-stops"
"""The operator's, as the world of these tests has it."""
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
XML = {"Content-Type": "application/xml"}


async def token(world: World, **form: str) -> Any:
    raw = "&".join(f"{name}={value}" for name, value in form.items()).encode()
    path = "/ovirt-engine/sso/oauth/token"
    return await world.call("POST", path, raw=raw, role=None, headers=FORM)


async def send(world: World, method: str, path: str, body: str = "", **more: Any) -> Any:
    return await world.call(method, ROOT + path, raw=body.encode(), headers=XML, **more)


async def one_vm(world: World) -> str:
    """A host, and a VM without disks on it; returns the VM's id."""
    joined = await join_host(world)
    await connect_host(world, joined["host_id"])
    body = f"""<vm><name>web1</name><cluster><name>default</name></cluster>
        <template id="{BLANK}"/><nics><nic><network><name>br0</name></network></nic></nics></vm>"""
    answer = await send(world, "POST", "/vms?async=true", body)
    assert answer.status_code == 202, answer.text
    await answer_orders(world, joined["host_id"], 2)
    return re.search(r'<vm href="[^"]*" id="([^"]*)"', answer.text)[1]


# Signing in


def test_a_token_as_the_sso_gives_it_opens_the_api_until_it_is_logged_out(play: Play) -> None:
    async def story(world: World) -> None:
        name = "operator@internal"
        given = await token(
            world, grant_type="password", scope="ovirt-app-api", username=name, password=PASSWORD
        )
        assert given.status_code == 200 and given.headers["content-type"] == "application/json"
        text = given.json()["access_token"]
        assert given.json()["token_type"] == "bearer" and given.json()["scope"] == "ovirt-app-api"
        bearer = {"Authorization": f"Bearer {text}"}
        assert (await world.call("GET", ROOT, role=None, headers=bearer)).status_code == 200
        for _ in range(2):  # a second time it is over already, and that is what was wanted
            raw = f"scope=ovirt-app-api&token={text}".encode()
            path = "/ovirt-engine/services/sso-logout"
            over = await world.call("POST", path, raw=raw, role=None, headers=FORM)
            assert over.status_code == 200 and over.json() == {}
        after = await world.call("GET", ROOT, role=None, headers=bearer)
        assert after.status_code == 401 and "<fault>" in after.text
        assert after.headers["www-authenticate"].startswith("Basic")

    play(story)


@pytest.mark.bad_input("wrong password")
def test_who_is_not_let_in_is_told_in_the_words_that_clients_look_for(play: Play) -> None:
    async def story(world: World) -> None:
        for form, error in (
            ({"grant_type": "password", "username": "operator", "password": "no"}, "access_denied"),
            (
                {"grant_type": "password", "username": "operator@elsewhere", "password": PASSWORD},
                "access_denied",
            ),
            (
                {"grant_type": "password", "username": "nobody", "password": PASSWORD},
                "access_denied",
            ),
            ({"grant_type": "password", "username": "operator"}, "invalid_request"),
            ({"grant_type": "urn:ovirt:params:oauth:grant-type:http"}, "unsupported_grant_type"),
            ({}, "unsupported_grant_type"),
        ):
            answer = await token(world, **form)
            assert answer.status_code in (400, 401) and answer.json()["error"] == error, form
            assert answer.json()["error_description"]
        for header in ("Basic", "Basic !!!", "Digest x", "Bearer", "Bearer nonsense", "nonsense"):
            answer = await world.call("GET", ROOT, role=None, headers={"Authorization": header})
            assert answer.status_code == 401, header

    play(story)


def test_basic_signs_in_once_and_ends_with_the_password(play: Play) -> None:
    async def story(world: World) -> None:
        def basic(password: str) -> dict[str, str]:
            raw = base64.b64encode(f"operator@internal:{password}".encode()).decode()
            return {"Authorization": f"Basic {raw}"}

        right = basic(PASSWORD)
        for _ in range(3):
            assert (
                await world.call("GET", f"{ROOT}/vms", role=None, headers=right)
            ).status_code == 200
        events = await world.ok("GET", "/v1/events?code=user.signed_in")
        assert (
            len([one for one in events["items"] if one["user"] == "operator"]) == 2
        )  # the world's own, and one
        assert (await world.call("GET", ROOT, role=None, headers=basic("no"))).status_code == 401
        await world.ok("PATCH", "/v1/users/operator", {"password": "another-long-password"})
        assert (await world.call("GET", ROOT, role=None, headers=right)).status_code == 401
        new = basic("another-long-password")
        assert (await world.call("GET", ROOT, role=None, headers=new)).status_code == 200

    play(story)


def test_requests_at_once_sign_in_once_and_who_comes_often_stays_signed_in(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_in, "SESSIONS_KEPT_MAX", 2)

    passwords = {
        "operator": PASSWORD,
        "viewer": "only-looks-around",
        "administrator": "may-do-everything",
    }

    async def story(world: World) -> None:
        async def ask(user: str) -> None:
            raw = base64.b64encode(f"{user}@internal:{passwords[user]}".encode()).decode()
            headers = {"Authorization": f"Basic {raw}"}
            answer = await world.call("GET", f"{ROOT}/vms", role=None, headers=headers)
            assert answer.status_code == 200, answer.text

        async def signed_in(user: str) -> int:
            events = (await world.ok("GET", "/v1/events?code=user.signed_in"))["items"]
            return [one["user"] for one in events].count(user) - 1  # the world's own

        await asyncio.gather(*(ask("operator") for _ in range(10)))
        assert await signed_in("operator") == 1
        for user in ("viewer", "operator", "administrator", "operator"):
            await ask(user)
        assert await signed_in("operator") == 1
        await ask("viewer")  # who has not come since
        assert await signed_in("viewer") == 2

    play(story)


# What may only be done by administrators, by the beginning of the route's name; of the rest, who looks is a viewer, and who changes
# something an operator.
ADMINISTRATOR_PREFIXES = (
    *(f"{method} /clusters" for method in ("POST", "PUT", "DELETE")),
    *(f"{method} /datacenters" for method in ("POST", "PUT", "DELETE")),
    *(f"{method} /storagedomains" for method in ("POST", "PUT", "DELETE")),
    *("PUT /hosts", "DELETE /hosts"),
    "POST /hosts/{host}/fenceagents",
    "POST /users/{user}/eventsubscriptions",
    "DELETE /users/{user}/eventsubscriptions",
)
ADMINISTRATORS_OWN = ("POST /hosts", "GET /users")
"""These and nothing below them."""
REFUSED = {
    None: {Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR},
    Role.VIEWER: {Role.OPERATOR, Role.ADMINISTRATOR},
    Role.OPERATOR: {Role.ADMINISTRATOR},
    Role.ADMINISTRATOR: set[Role](),
}
"""Of which routes, for each who asks."""


def expected_role(route: Route) -> Role:
    if route.name in ADMINISTRATORS_OWN or route.name.startswith(ADMINISTRATOR_PREFIXES):
        return Role.ADMINISTRATOR
    return Role.VIEWER if route.method == "GET" else Role.OPERATOR


def test_the_table_of_the_facade_says_what_was_agreed() -> None:
    said = {route.name: route.role for route in ROUTES}
    assert said == {route.name: expected_role(route) for route in ROUTES}


@pytest.mark.bad_input("role that may not")
def test_every_route_of_the_facade_refuses_exactly_those_below_its_role(play: Play) -> None:
    """By what was agreed, not by what the table says of itself."""

    async def story(world: World) -> None:
        wrong = []
        for route in ROUTES:
            path = re.sub(r"\{[a-z_]+\}", "nothing", route.path)
            for role, refused in REFUSED.items():
                answer = await send(world, route.method, path, role=role)
                expected = {401 if role is None else 403} if expected_role(route) in refused else ()
                right = (
                    answer.status_code in expected
                    if expected
                    else answer.status_code not in (401, 403)
                )
                if not right or answer.status_code >= 500:
                    wrong.append((route.name, role, answer.status_code))
        assert wrong == []

    play(story)


# Bodies and answers


@pytest.mark.req("W3")
def test_every_link_leads_somewhere_and_the_stock_sdk_reads_what_is_there(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        card = "<watchdog><action>reset</action><model>i6300esb</model></watchdog>"
        assert (await send(world, "POST", f"/vms/{vm_id}/watchdogs", card)).status_code == 201
        await world.ok("POST", "/v1/storage-domains", {"name": "ds1", "path": "/srv/ds1"})
        seen: set[str] = set()
        waiting = [ROOT]
        while waiting:
            path = waiting.pop()
            answer = await world.call("GET", path)
            assert answer.status_code == 200, (path, answer.text)
            if "capabilities" not in path:
                assert reader.Reader.read(answer.text) is not None, path
            plain = re.sub(r"<actions>.*?</actions>", "", answer.text)
            for href in re.findall(r'href="([^"]*)"', plain):
                assert href.startswith(ROOT), href
                if href not in seen and "{query}" not in href:
                    seen.add(href)
                    waiting.append(href)
        kinds = {href.removeprefix(ROOT).split("/")[1] for href in seen}
        assert {
            "vms",
            "hosts",
            "clusters",
            "datacenters",
            "storagedomains",
            "events",
            "users",
        } <= kinds
        assert len(seen) > 80

    play(story)


def test_json_is_answered_and_read_like_xml(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        json = {"Accept": "application/json", "Content-Type": "application/json"}
        path = f"{ROOT}/vms/{vm_id}/watchdogs"
        made = await world.call("POST", path, {"action": "pause", "model": "ib700"}, headers=json)
        assert made.status_code == 201 and made.json()["action"] == "pause", made.text
        assert made.headers["content-type"] == "application/json"
        assert (await world.call("GET", path, headers=json)).json() == {"watchdog": [made.json()]}
        again = await world.call("POST", path, {"action": "pause", "model": "ib700"}, headers=json)
        assert again.status_code == 409 and again.json()["reason"] == "Operation Failed"
        assert "problem.watchdog.second" in again.json()["detail"]
        (vm,) = (await world.call("GET", f"{ROOT}/vms", headers=json)).json()["vm"]
        assert vm["memory"] == str(1 << 30) and vm["href"] == f"{ROOT}/vms/{vm_id}"

    play(story)


def test_hrefs_begin_with_the_root_that_was_asked_and_versions_are_held_against_ours(
    play: Play,
) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for root in ("/api", ROOT):
            answer = await world.call("GET", f"{root}/vms/{vm_id}")
            assert f'<vm href="{root}/vms/{vm_id}"' in answer.text
            assert f'<link href="{root}/vms/{vm_id}/watchdogs" rel="watchdogs"/>' in answer.text
        assert (await world.call("GET", f"{ROOT}/v4/vms")).status_code == 200
        for version, status in (("4", 200), ("3", 400), ("x", 400)):
            answer = await world.call("GET", f"{ROOT}/vms", headers={"Version": version})
            assert answer.status_code == status
        assert (await world.call("GET", f"{ROOT}/vms;max=0")).text.count("<vm ") == 0
        assert (await world.call("GET", f"{ROOT}/vms?max=1")).text.count("<vm ") == 1
        assert (await world.call("GET", f"{ROOT}/vms?schema")).status_code == 409

    play(story)


def test_linked_objects_are_put_in_where_that_is_asked(play: Play) -> None:
    async def story(world: World) -> None:
        await one_vm(world)
        path = f"{ROOT}/vms?follow=nics.vnic_profile,cluster,watchdogs,statistics"
        answer = await world.call("GET", path)
        (vm,) = reader.Reader.read(answer.text)
        (nic,) = vm.nics
        assert (nic.network.name, nic.vnic_profile.name, vm.cluster.name) == (
            "br0",
            "br0",
            "default",
        )
        assert nic.vnic_profile.network.id == nic.network.id and list(vm.watchdogs) == []
        assert {one.name for one in vm.statistics} >= {"memory.installed"}
        unknown = await world.call("GET", f"{ROOT}/vms?follow=colour")
        assert (
            unknown.status_code == 400 and "follow" in unknown.text and "watchdogs" in unknown.text
        )

    play(story)


@pytest.mark.bad_input("wrong content type", "body of 100 MB", "XML bomb", "external entity")
def test_bodies_that_are_not_taken_are_refused_and_nothing_changes(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        path = f"{ROOT}/vms/{vm_id}"
        bomb = '<!DOCTYPE vm [<!ENTITY a "b">]><vm><name>&a;</name></vm>'
        for body, kind, status in (
            (b"<vm/>", "text/plain", 415),
            (b"<vm/>", "application/json", 400),
            (b'{"name": "x"}', "application/xml", 400),
            (b"", "application/xml", 400),
            (b"<vm><memory>much</memory></vm>", "application/xml", 400),
            (b"<vm><name>" + b"x" * (100 << 20) + b"</name></vm>", "application/xml", 413),
            (bomb.encode(), "application/xml", 400),
            (b"<template/>", "text/xml; charset=utf-8", 400),
        ):
            answer = await world.call("PUT", path, raw=body, headers={"Content-Type": kind})
            assert answer.status_code == status, (body[:40], kind, answer.text)
            fault = reader.Reader.read(answer.text)
            assert fault.reason and fault.detail
        assert (await world.call("GET", ROOT, headers={"Accept": "text/csv"})).status_code == 406
        view = await world.ok("GET", f"/v1/vms/{vm_id}")
        assert view["vm"]["name"] == "web1"

    play(story)


@pytest.mark.bad_input("wrong value in a body")
def test_wrong_values_name_their_field(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for body, field in (
            ("<vm><memory>1</memory></vm>", "memory"),
            ("<vm><name>../x</name></vm>", "name"),
            (
                "<vm><cpu><topology><sockets>0</sockets></topology></cpu></vm>",
                "cpu.topology.sockets",
            ),
            (
                "<vm><high_availability><priority>500</priority></high_availability></vm>",
                "priority",
            ),
            (
                "<vm><storage_error_resume_behaviour>no</storage_error_resume_behaviour></vm>",
                "storage_error_resume",
            ),
            ("<vm><bios><type>q35_ovmf</type></bios></vm>", "bios.type"),
            (
                "<vm><custom_emulated_machine>vax</custom_emulated_machine></vm>",
                "custom_emulated_machine",
            ),
            (
                "<vm><watchdog><model>tardis</model><action>reset</action></watchdog></vm>",
                "watchdog.model",
            ),
            ("<vm><watchdog><model>ib700</model></watchdog></vm>", "watchdog.action"),
            ("<vm><cluster><name>elsewhere</name></cluster></vm>", "cluster"),
        ):
            answer = await send(world, "PUT", f"/vms/{vm_id}", body)
            assert answer.status_code == 400 and field in answer.text, (body, answer.text)
        missing = await send(world, "POST", "/vms", "<vm><name>x</name></vm>")
        fault = reader.Reader.read(missing.text)
        assert (missing.status_code, fault.reason) == (400, "Incomplete parameters")
        assert fault.detail == "Vm [cluster.id|name, template.id|name] required for add"

    play(story)


def test_what_is_not_here_says_so_and_never_as_the_servers_fault(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        host_id = (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]["id"]
        for method, path, body, status in (
            ("GET", "/instancetypes", "", 404),
            ("GET", f"/vms/{BLANK}", "", 404),
            ("GET", "/vms/web1", "", 404),  # by id only
            ("GET", "/events/0", "", 404),
            ("GET", "/events/999999999999999999999", "", 404),
            ("GET", "/clusterlevels/3.6", "", 404),
            ("PATCH", f"/vms/{vm_id}", "", 405),
            ("POST", f"/vms/{vm_id}/clone", "<action/>", 404),
            ("POST", f"/vms/{vm_id}/suspend", "<action/>", 409),
            ("POST", f"/vms/{vm_id}/migrate", "<action/>", 409),
            ("POST", "/hosts", "<host/>", 409),
            ("POST", f"/hosts/{host_id}/fence", "<action/>", 400),
            (
                "POST",
                f"/hosts/{host_id}/fence",
                "<action><fence_type>kick</fence_type></action>",
                400,
            ),
            (
                "POST",
                f"/hosts/{host_id}/fence",
                "<action><fence_type>manual</fence_type></action>",
                409,
            ),
            (
                "POST",
                f"/hosts/{host_id}/fence",
                "<action><fence_type>status</fence_type></action>",
                404,
            ),
            ("POST", "/disks", "<disk/>", 409),
            ("POST", "/tags", "<tag/>", 409),
            ("POST", "/events", "<event/>", 409),
            ("DELETE", f"/templates/{BLANK}", "", 409),
            ("POST", f"/templates/{BLANK}/watchdogs", "<watchdog/>", 409),
        ):
            answer = await send(world, method, path, body)
            assert answer.status_code == status, (method, path, answer.text)
            told = reader.Reader.read(answer.text)
            fault = told.fault if body.startswith("<action") and status != 404 else told
            fault = getattr(fault, "fault", None) or fault
            assert fault.detail, path

    play(story)


def test_a_list_says_which_hosts_are_in_maintenance(play: Play) -> None:
    async def story(world: World) -> None:
        for name in ("h1", "h2"):
            await join_host(world, name)
        h2 = (await world.control.hosts.get("h2")).host
        async with world.store.write() as tx:
            record = HostRecord(host_id=h2.id, maintenance="admin")
            await save_intent(tx, h2.cluster_id, SaveHost(record=record))
        hosts = reader.Reader.read((await send(world, "GET", "/hosts")).text)
        assert [host.status.value for host in hosts] == ["connecting", "maintenance"]
        one = reader.Reader.read((await send(world, "GET", f"/hosts/{h2.id}")).text)
        assert one.status is hosts[1].status

    play(story)


@pytest.mark.bad_input("wrong value in a body")
def test_what_would_be_told_too_late_is_told_before_anything_is_done(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        await world.ok("POST", "/v1/clusters", {"name": "other"})
        vm = "<vm><name>web2</name><cluster><name>default</name></cluster><template><name>Blank</name></template></vm>"
        template = "<template><name>t1</name><vm><name>web1</name></vm><cluster><name>other</name></cluster></template>"
        for path, body, field in (
            ("/vms?async=maybe", vm, "async"),
            ("/templates", template, "cluster"),
            (f"/vms/{vm_id}/nics", "<nic><name>eth0</name></nic>", "nic.network.name"),
            (
                f"/vms/{vm_id}/nics",
                "<nic><name>a card</name><network><name>br0</name></network></nic>",
                "nics[0].name",
            ),
        ):
            answer = await send(world, "POST", path, body)
            assert answer.status_code == 400 and f"[{field}: " in answer.text, answer.text
        vms = (await world.ok("GET", "/v1/vms"))["items"]
        assert [one["vm"]["name"] for one in vms] == ["web1"] and len(vms[0]["vm"]["nics"]) == 1
        assert (await world.ok("GET", "/v1/templates"))["items"] == []

    play(story)


@pytest.mark.bad_input("search that asks too much")
def test_a_search_of_events_that_looks_at_too_much_is_refused(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.api.ovirt.events.LOOKS_MAX", 0)

    async def story(world: World) -> None:
        answer = await send(world, "GET", "/events?search=severity%3Dalert")
        assert answer.status_code == 400 and "problem.search.costly" in answer.text

    play(story)


def test_a_path_that_is_escaped_is_the_same_path(play: Play) -> None:
    async def story(world: World) -> None:
        for path in ("/%61pi/vms", "/ovirt-engine/%61pi/vms"):
            assert (await world.call("GET", path)).status_code == 200

    play(story)
