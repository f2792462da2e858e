"""What the façade must not do behind a client's back: take protection away, pretend to keep it, or carry out what was asked
from elsewhere or is answered as refused."""

import base64
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from litestar.testing import AsyncTestClient
from test_ovirt_requests import FORM, ROOT, one_vm, send, token

from virtha.api.app import create_app
from virtha.api.ovirt.admission import check_site
from virtha.model.errors import Forbidden, Unavailable

Play = Callable[..., Any]
World = Any
CARD = "<watchdog><action>reset</action><model>i6300esb</model></watchdog>"


async def one_vm_with_card(world: World) -> str:
    vm_id = await one_vm(world)
    made = await send(world, "POST", f"/vms/{vm_id}/watchdogs", CARD)
    assert made.status_code == 201, made.text
    return vm_id


async def one_template(world: World, vm_id: str) -> str:
    made = await send(
        world,
        "POST",
        "/templates?async=true",
        f'<template><name>t1</name><vm id="{vm_id}"/></template>',
    )
    assert made.status_code == 201, made.text
    (view,) = (await world.ok("GET", "/v1/templates"))["items"]
    return view["template"]["id"]


async def card_of(world: World, path: str) -> Any:
    found = await send(world, "GET", f"{path}/watchdogs")
    return "<action>reset</action><model>i6300esb</model>" in found.text


@pytest.mark.req("W1", "W5")
def test_what_a_client_read_and_writes_back_keeps_the_card(play: Play) -> None:
    """The SDK writes links as it read them: ``<watchdogs href=…/>``, with nothing in it."""

    async def story(world: World) -> None:
        vm_id = await one_vm_with_card(world)
        template_id = await one_template(world, vm_id)
        for kind, identifier in (("vm", vm_id), ("template", template_id)):
            path = f"/{kind}s/{identifier}"
            for body in (
                f'<watchdogs href="/ovirt-engine/api{path}/watchdogs"/>',
                "<watchdogs/>",
                # With follow both forms are read.
                f"{CARD}<watchdogs>{CARD}</watchdogs>",
            ):
                answer = await send(world, "PUT", path, f"<{kind}>{body}</{kind}>")
                assert answer.status_code == 200, answer.text
                assert await card_of(world, path), (kind, body)
            read = (await send(world, "GET", path)).text
            back = await send(world, "PUT", path, read[read.index(f"<{kind} ") :])
            assert back.status_code == 200 and await card_of(world, path), back.text
        other = CARD.replace("reset", "pause")
        two = f"<vm><watchdogs>{CARD}{other}</watchdogs></vm>"
        assert (await send(world, "PUT", f"/vms/{vm_id}", two)).status_code == 409

    play(story)


UNKEPT_VM = {
    "delete_protected": "<delete_protected>true</delete_protected>",
    "stateless": "<stateless>true</stateless>",
    "placement_policy.affinity": "<placement_policy><affinity>pinned</affinity></placement_policy>",
    "lease.storage_domain": "<lease><storage_domain id='1'/></lease>",
    "placement_policy.hosts": "<placement_policy><hosts><host id='1'/></hosts></placement_policy>",
}


@pytest.mark.bad_input("protection that is not kept")
def test_protection_that_is_not_kept_is_refused_by_name(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        host = (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]
        cluster = f"/clusters/{host['cluster_id']}"
        await world.ok("POST", "/v1/storage-domains", {"name": "ds1", "path": "/srv/ds1"})
        new = "<name>web2</name><cluster><name>default</name></cluster><template><name>Blank</name></template>"
        disk = "<disk><provisioned_size>1073741824</provisioned_size><name>d1</name>{}</disk>"
        cases = [
            *(("PUT", f"/vms/{vm_id}", f"<vm>{xml}</vm>", name) for name, xml in UNKEPT_VM.items()),
            *(("POST", "/vms", f"<vm>{new}{xml}</vm>", name) for name, xml in UNKEPT_VM.items()),
            *(
                (
                    "POST",
                    "/templates",
                    f'<template><name>t1</name><vm id="{vm_id}"/>{xml}</template>',
                    name,
                )
                for name, xml in UNKEPT_VM.items()
            ),
            *(
                ("POST", f"/vms/{vm_id}/start", f"<action><vm>{xml}</vm></action>", f"vm.{name}")
                for name, xml in (
                    ("stateless", UNKEPT_VM["stateless"]),
                    ("lease.storage_domain", UNKEPT_VM["lease.storage_domain"]),
                    ("cdroms", "<cdroms><cdrom id='1'/></cdroms>"),
                    ("placement_policy.affinity", UNKEPT_VM["placement_policy.affinity"]),
                )
            ),
            (
                "POST",
                f"/vms/{vm_id}/start",
                "<action><volatile>true</volatile></action>",
                "volatile",
            ),
            *(
                (
                    "POST",
                    f"/vms/{vm_id}/diskattachments",
                    f"<disk_attachment>{xml}</disk_attachment>",
                    name,
                )
                for name, xml in (
                    ("read_only", disk.format("") + "<read_only>true</read_only>"),
                    ("bootable", disk.format("") + "<bootable>false</bootable>"),
                    (
                        "disk.propagate_errors",
                        disk.format("<propagate_errors>true</propagate_errors>"),
                    ),
                    ("active", disk.format("") + "<active>false</active>"),
                    ("disk.read_only", disk.format("<read_only>true</read_only>")),
                    ("disk.shareable", disk.format("<shareable>true</shareable>")),
                    (
                        "disk.wipe_after_delete",
                        disk.format("<wipe_after_delete>true</wipe_after_delete>"),
                    ),
                )
            ),
            (
                "POST",
                f"/vms/{vm_id}/nics",
                "<nic><name>nic2</name><linked>false</linked><network><name>br0</name></network></nic>",
                "nic.linked",
            ),
            (
                "POST",
                f"/hosts/{host['id']}/fence",
                "<action><fence_type>restart</fence_type><maintenance_after_restart>true</maintenance_after_restart></action>",
                "maintenance_after_restart",
            ),
            (
                "PUT",
                f"/hosts/{host['id']}",
                "<host><power_management><kdump_detection>true</kdump_detection></power_management></host>",
                "power_management.kdump_detection",
            ),
            (
                "PUT",
                f"/hosts/{host['id']}",
                "<host><power_management><automatic_pm_enabled>true</automatic_pm_enabled></power_management></host>",
                "power_management.automatic_pm_enabled",
            ),
            *(
                (method, path, f"<cluster><name>other</name>{xml}</cluster>", name)
                for method, path in (("POST", "/clusters"), ("PUT", cluster))
                for name, xml in (
                    (
                        "error_handling.on_error",
                        "<error_handling><on_error>do_not_migrate</on_error></error_handling>",
                    ),
                    ("ha_reservation", "<ha_reservation>true</ha_reservation>"),
                    (
                        "fencing_policy.skip_if_sd_active.enabled",
                        "<fencing_policy><skip_if_sd_active><enabled>false</enabled></skip_if_sd_active></fencing_policy>",
                    ),
                    (
                        "fencing_policy.skip_if_connectivity_broken.threshold",
                        "<fencing_policy><skip_if_connectivity_broken><threshold>10</threshold></skip_if_connectivity_broken></fencing_policy>",
                    ),
                    (
                        "fencing_policy.skip_if_gluster_bricks_up",
                        "<fencing_policy><skip_if_gluster_bricks_up>true</skip_if_gluster_bricks_up></fencing_policy>",
                    ),
                )
            ),
        ]
        before = await world.ok("GET", f"/v1/vms/{vm_id}")
        for method, path, body, field in cases:
            answer = await send(world, method, path, body)
            assert answer.status_code == 409, (method, path, body, answer.text)
            assert f"[{field}: another value is not kept" in answer.text, (field, answer.text)
        assert (await world.ok("GET", f"/v1/vms/{vm_id}"))["vm"] == before["vm"]
        assert len((await world.ok("GET", "/v1/vms"))["items"]) == 1
        assert [one["name"] for one in (await world.ok("GET", "/v1/clusters"))["items"]] == [
            "default"
        ]

    play(story)


TEMPLATE_OTHERS = {
    "high_availability.enabled": "<high_availability><enabled>true</enabled></high_availability>",
    "high_availability.priority": "<high_availability><priority>7</priority></high_availability>",
    "cpu.topology": "<cpu><topology><sockets>3</sockets></topology></cpu>",
    "cpu.architecture": "<cpu><architecture>s390x</architecture></cpu>",
    "bios.type": "<bios><type>i440fx_sea_bios</type></bios>",
    "custom_emulated_machine": "<custom_emulated_machine>pc-i440fx</custom_emulated_machine>",
    "storage_error_resume_behaviour": "<storage_error_resume_behaviour>kill</storage_error_resume_behaviour>",
    "memory": "<memory>3221225472</memory>",
}
TEMPLATE_SAME = """<high_availability><enabled>false</enabled><priority>0</priority></high_availability><cpu><topology>
    <cores>1</cores></topology><architecture>undefined</architecture></cpu><bios><type>cluster_default</type></bios>
    <storage_error_resume_behaviour>auto_resume</storage_error_resume_behaviour><memory>1073741824</memory>"""


@pytest.mark.req("W5")
@pytest.mark.bad_input("protection that is not kept")
def test_a_template_is_not_said_to_have_what_it_has_not(play: Play) -> None:
    """Each VM made of it would be believed to be protected."""

    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        new = f'<template><name>t1</name><vm id="{vm_id}"/>{{}}</template>'
        for name, xml in TEMPLATE_OTHERS.items():
            answer = await send(world, "POST", "/templates?async=true", new.format(xml))
            assert answer.status_code == 409, (name, answer.text)
            assert f"[{name}: another value is not kept: it is as in web1" in answer.text
        wrong = CARD.replace("i6300esb", "diag288")
        answer = await send(world, "POST", "/templates?async=true", new.format(wrong))
        assert answer.status_code == 400 and "diag288" in answer.text, answer.text
        assert (await world.ok("GET", "/v1/templates"))["items"] == []
        said = f"{TEMPLATE_SAME}<watchdogs>{CARD}</watchdogs>"
        made = await send(world, "POST", "/templates?async=true", new.format(said))
        assert made.status_code == 201, made.text
        (view,) = (await world.ok("GET", "/v1/templates"))["items"]
        path = f"/templates/{view['template']['id']}"
        assert await card_of(world, path) and not await card_of(world, f"/vms/{vm_id}")
        for name, xml in TEMPLATE_OTHERS.items():
            answer = await send(world, "PUT", path, f"<template>{xml}</template>")
            assert answer.status_code == 409, (name, answer.text)
            assert f"[{name}: another value is not kept: it is as in the template" in answer.text
        same = await send(world, "PUT", path, f"<template>{TEMPLATE_SAME}</template>")
        assert same.status_code == 200, same.text
        (after,) = (await world.ok("GET", "/v1/templates"))["items"]
        assert after["template"] == view["template"]

    play(story)


@pytest.mark.bad_input("protection that is not kept")
def test_a_vm_of_a_template_is_refused_what_the_template_has_not(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        await one_template(world, vm_id)
        new = "<vm><name>web2</name><cluster><name>default</name></cluster><template><name>t1</name></template>{}</vm>"
        for name in ("bios.type", "custom_emulated_machine", "cpu.architecture"):
            answer = await send(world, "POST", "/vms?async=true", new.format(TEMPLATE_OTHERS[name]))
            assert answer.status_code == 409, answer.text
            assert f"[{name}: another value is not kept: it is as in template t1" in answer.text
        assert len((await world.ok("GET", "/v1/vms"))["items"]) == 1

    play(story)


@pytest.mark.bad_input("protection that is not kept")
def test_a_host_that_is_not_named_is_not_any_host(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for action, xml, field in (
            (
                "start",
                "<vm><placement_policy><hosts><host/></hosts></placement_policy></vm>",
                "vm.placement_policy.hosts",
            ),
            ("migrate", "<host><address>h1</address></host>", "host"),
        ):
            answer = await send(world, "POST", f"/vms/{vm_id}/{action}", f"<action>{xml}</action>")
            assert answer.status_code == 400, answer.text
            assert f"[{field}: says no host" in answer.text
        assert (await world.ok("GET", "/v1/operations?kind=vm.start"))["items"] == []

    play(story)


def test_what_is_read_of_a_cluster_a_host_and_a_disk_can_be_written_back(play: Play) -> None:
    async def story(world: World) -> None:
        await one_vm(world)
        host = (await world.ok("GET", "/v1/hosts"))["items"][0]["host"]
        for path in (f"/clusters/{host['cluster_id']}", f"/hosts/{host['id']}"):
            read = (await send(world, "GET", path)).text
            back = await send(world, "PUT", path, read.partition("?>")[2])
            assert back.status_code == 200, back.text

    play(story)


# What is carried out, and for whom


@pytest.mark.bad_input("body of a removal")
def test_a_removal_with_a_body_removes_nothing(play: Play) -> None:
    """Version 3 of oVirt's API said there what is to be kept."""

    async def story(world: World) -> None:
        vm_id = await one_vm_with_card(world)
        for path in (f"/vms/{vm_id}", f"/vms/{vm_id}/watchdogs/{vm_id}"):
            for body in (
                "<action><vm><disks><detach_only>true</detach_only></disks></vm></action>",
                "x",
            ):
                answer = await send(world, "DELETE", path, body)
                assert answer.status_code == 400 and "detach_only in the query" in answer.text
        assert len((await world.ok("GET", "/v1/vms"))["items"]) == 1
        assert await card_of(world, f"/vms/{vm_id}")
        gone = await send(world, "DELETE", f"/vms/{vm_id}/watchdogs/{vm_id}", " ")
        assert gone.status_code == 200, gone.text

    play(story)


@pytest.mark.bad_input("body of a removal")
def test_a_removal_with_an_unknown_parameter_removes_nothing(play: Play) -> None:
    """Misspelt, ``detach_only`` would keep nothing."""

    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        for told in ("?detachonly=true", "?detach-only", "?async=true&Detach_Only=1", ";detach=1"):
            answer = await send(world, "DELETE", f"/vms/{vm_id}{told}")
            assert answer.status_code == 400, (told, answer.text)
            assert "is no parameter of a removal" in answer.text and "detach_only" in answer.text
        assert len((await world.ok("GET", "/v1/vms"))["items"]) == 1
        assert (await world.ok("GET", "/v1/operations?kind=vm.delete"))["items"] == []
        gone = await send(world, "DELETE", f"/vms/{vm_id}?async=true&detach_only=true&force=true")
        assert gone.status_code == 200, gone.text

    play(story)


def test_what_was_carried_out_is_not_answered_as_refused(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm(world)
        body = "<vm><description>changed</description></vm>"
        for wanted in ("colour", "nics", "cluster"):
            answer = await send(world, "PUT", f"/vms/{vm_id}?follow={wanted}", body)
            assert answer.status_code == 200, answer.text
        card = await send(world, "POST", f"/vms/{vm_id}/watchdogs?follow=colour", CARD)
        assert card.status_code == 201, card.text
        refused = await send(world, "GET", f"/vms/{vm_id}?follow=colour")
        assert refused.status_code == 400
        # What of the question is wrong in itself is told before anything is done.
        wrong = await send(
            world, "PUT", f"/vms/{vm_id}?follow=..", body.replace("changed", "again")
        )
        assert wrong.status_code == 400
        assert (await world.ok("GET", f"/v1/vms/{vm_id}"))["vm"]["description"] == "changed"

    play(story)


@pytest.mark.bad_input("request from another site")
def test_what_a_browser_sends_for_another_site_is_not_carried_out(play: Play) -> None:
    async def story(world: World) -> None:
        vm_id = await one_vm_with_card(world)
        raw = base64.b64encode(b"administrator@internal:may-do-everything")
        basic = {"Authorization": f"Basic {raw.decode()}"}
        path = f"{ROOT}/vms/{vm_id}"

        async def ask(method: str, path: str, body: bytes = b"", **headers: str) -> int:
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            told = {**basic, **named}
            answer = await world.client.request(method, path, content=body, headers=told)
            return int(answer.status_code)

        for foreign in (
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "https://[evil"},
            {"Origin": "http://testserver.local", "Sec_Fetch_Site": "cross-site"},
        ):
            assert await ask("POST", f"{path}/start", **foreign) == 403, foreign
            assert await ask("DELETE", path, **foreign) == 403
            assert (
                await ask("PUT", path, b"<vm/>", Content_Type="application/xml", **foreign) == 403
            )
            for sso in ("sso/oauth/token", "services/sso-logout"):
                assert await ask("POST", f"/ovirt-engine/{sso}", **foreign) == 403
        # A form without a kind, and kinds that a page may send anywhere without asking.
        for kind in ({}, {"Content_Type": "text/plain"}, {"Content_Type": "multipart/form-data"}):
            assert await ask("PUT", path, b"<vm><description>x</description></vm>", **kind) == 415
            assert await ask("POST", f"{path}/start", b"<action/>", **kind) == 415
        assert (await world.ok("GET", "/v1/operations?kind=vm.start"))["items"] == []
        assert await ask("GET", path, Sec_Fetch_Site="cross-site") == 200
        host = world.client.base_url.netloc.decode()
        for own in (
            {},
            {"Sec_Fetch_Site": "same-origin"},
            {"Sec_Fetch_Site": "none"},
            {"Origin": f"http://{host}"},
        ):
            assert await ask("PUT", path, b"<vm/>", Content_Type="application/xml", **own) == 200, (
                own
            )
        view = await world.ok("GET", f"/v1/vms/{vm_id}")
        assert view["vm"]["description"] == "" and view["vm"]["watchdog"] is not None

    play(story)


OWN = frozenset({"https://ha.example.org"})


@pytest.mark.parametrize(
    ("headers", "own", "foreign"),
    [
        ({"origin": "https://s1:8443", "host": "s1:8443"}, (), False),
        # Behind a proxy the server has another name.
        ({"origin": "https://ha.example.org", "host": "10.0.0.1:8443"}, (), True),
        ({"origin": "https://ha.example.org", "host": "10.0.0.1:8443"}, OWN, False),
        ({"origin": "https://HA.example.org", "host": "10.0.0.1:8443"}, OWN, False),
        ({"origin": "http://ha.example.org", "host": "10.0.0.1:8443"}, OWN, True),
        ({"origin": "https://ha.example.org:1", "host": "10.0.0.1:8443"}, OWN, True),
        ({"origin": "https://ha.example.org.evil.example", "host": "10.0.0.1"}, OWN, True),
        # What the browser itself says goes before what can be concluded.
        ({"origin": "https://x", "host": "10.0.0.1", "sec-fetch-site": "same-origin"}, (), False),
        (
            {
                "origin": "https://ha.example.org",
                "host": "10.0.0.1",
                "sec-fetch-site": "same-site",
            },
            OWN,
            True,
        ),
        ({"origin": "null", "host": ""}, OWN, True),
        ({"origin": "", "host": ""}, OWN, True),
        # Whatever a proxy that anybody may be says of itself.
        (
            {"origin": "https://evil", "host": "10.0.0.1", "x-forwarded-host": "evil"},
            OWN,
            True,
        ),
    ],
)
def test_a_browser_behind_a_proxy_is_no_other_site(
    headers: dict[str, str], own: frozenset[str], foreign: bool
) -> None:
    with pytest.raises(Forbidden) if foreign else contextlib.nullcontext():
        check_site("POST", headers, own)
    check_site("GET", headers, own)


def test_the_origins_of_the_configuration_are_the_servers_own(play: Play) -> None:
    async def story(world: World) -> None:
        app = create_app(replace(world.services, origins=OWN))
        async with AsyncTestClient(app) as client:
            for origin, status in (("https://ha.example.org", 401), ("https://evil", 403)):
                answer = await client.delete(f"{ROOT}/vms/1", headers={"Origin": origin})
                assert answer.status_code == status, answer.text

    play(story)


@pytest.mark.bad_input("sign-in form of 1 MiB")
def test_a_sign_in_costs_little_and_always_answers_json(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody has signed in. Its clients look for ``error_code`` in JSON, and read nothing else."""

    async def story(world: World) -> None:
        for path in ("sso/oauth/token", "services/sso-logout"):
            for raw, status in (
                (b"&".join(b"a=%d" % number for number in range(17)), 400),
                (b"a=" + b"x" * (64 << 10), 413),
                (b"a=&" * (1 << 18), 413),
                (b"x" * (100 << 20), 413),
            ):
                answer = await world.call(
                    "POST", f"/ovirt-engine/{path}", raw=raw, role=None, headers=FORM
                )
                assert answer.status_code == status, answer.text
                assert answer.headers["content-type"] == "application/json"
                assert answer.json()["error_code"] == "invalid_request"
                assert answer.json()["error_description"]

        async def locked(*_: Any, **__: Any) -> None:
            raise Unavailable("the database is locked")

        monkeypatch.setattr(world.control.users, "sign_in", locked)
        busy = await token(world, grant_type="password", username="operator", password="x")
        assert busy.status_code == 503 and busy.json()["error_code"] == "server_error"
        assert busy.headers["retry-after"]
        monkeypatch.setattr(world.control.users, "sign_in", None)
        broken = await token(world, grant_type="password", username="operator", password="x")
        assert broken.status_code == 500 and broken.json()["error_code"] == "server_error"

    play(story)
