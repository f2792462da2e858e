"""Who may see one cluster of two, by oVirt's clients: what is in the other is in no answer of the façade either, and is not acted on."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from test_ovirt_requests import ROOT, send, token
from two_clusters import MACS, PASSWORD, SIDES, add_user, fill, id_of

from virtha.api.ovirt import app as facade
from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.networks import network_id, profile_id
from virtha.api.ovirt.route import AREA_OF, Route
from virtha.api.ovirt.table import ROUTES
from virtha.model.access import AREAS, Permission, Scope
from virtha.model.errors import Conflict
from virtha.model.user import Role

Play = Callable[..., Any]
World = Any
NAMED = {
    "cluster": "cluster",
    "data_center": "cluster",
    "disk": "disk",
    "host": "host",
    "hosts": "host",
    "job": "operation",
    "nic": "nic",
    "storage_domain": "storage",
    "template": "template",
    "templates": "template",
    "vm": "vm",
    "vms": "vm",
}
"""What a parameter of a path names, of what is in both clusters."""


def path_of(route: Route, side: str) -> str:
    path = route.path
    for name, kind in NAMED.items():
        path = path.replace(f"{{{name}}}", id_of(kind, side))
    path = path.replace("{network}", network_id(id_of("cluster", side), "br0"))
    path = path.replace("{vnic_profile}", profile_id(id_of("cluster", side), "br0"))
    return "/".join("nothing" if part.startswith("{") else part for part in path.split("/"))


def names_what_is_there(route: Route) -> bool:
    parts = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    return bool(parts) and parts[0] in {*NAMED, "network", "vnic_profile"}


def body_of(route: Route) -> str:
    return f"<{SHAPES[route.reads].name}/>" if route.reads else ""


def test_no_look_of_the_facade_tells_of_the_other_cluster(play: Play) -> None:
    async def story(world: World) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        told = set()
        for route in ROUTES:
            if route.method != "GET":
                continue
            for side in SIDES:
                answer = await send(world, "GET", path_of(route, side), role="eve")
                for text in ("sueden", MACS["sueden"], id_of("nic", "sueden")):
                    assert text not in answer.text, (route.name, answer.text)
                if side == "sueden" and names_what_is_there(route):
                    assert answer.status_code == 404, (route.name, answer.status_code)
                else:
                    assert id_of("vm", "sueden") not in answer.text, route.name
                if answer.status_code == 200 and "norden" in answer.text:
                    told.add(route.path)
        # And it is not that nothing is told at all.
        assert {
            *("/vms", "/vms/{vm}", "/hosts", "/clusters", "/datacenters", "/storagedomains"),
            *("/templates", "/disks", "/events", "/jobs", "/disks/{disk}"),
        } <= told

    play(story)


def test_every_route_that_changes_something_refuses_who_may_not_and_hides_the_other_cluster(
    play: Play,
) -> None:
    async def story(world: World) -> None:
        await fill(world)
        await add_user(world, "sees", ("viewer", "norden"))
        await add_user(world, "eve", ("administrator", "norden"))
        await add_user(world, "new")
        wrong = []
        for route in ROUTES:
            if route.method == "GET":
                continue
            for name, side in (("sees", "norden"), ("sees", "sueden"), ("eve", "sueden")):
                answer = await send(
                    world, route.method, path_of(route, side), body_of(route), role=name
                )
                expected = 403
                if name == "eve" and names_what_is_there(route):
                    expected = 404
                if name == "eve" and not names_what_is_there(route):
                    continue
                if answer.status_code != expected:
                    wrong.append((route.name, name, side, answer.status_code, expected))
            path = path_of(route, "norden")
            refused = await send(world, route.method, path, body_of(route), role="new")
            if refused.status_code != 403:
                wrong.append((route.name, "new", "norden", refused.status_code, 403))
        assert wrong == []
        async with world.store.read() as tx:
            revision = await tx.revision_now()
        assert revision == (await world.ok("GET", "/v1/vms"))["revision"]

    play(story)


# What each change needs, written down a second time: the table of routes can't vouch for itself. The longest beginning counts.
NEEDS = {
    **dict.fromkeys(("/vms", "/disks", "/tags"), "vms.operate"),
    "/templates": "templates.operate",
    "/hosts": "hosts.administer",
    **dict.fromkeys(
        [f"/hosts/{{host}}/{word}" for word in ("activate", "deactivate", "fence")],
        "hosts.operate",
    ),
    "/hosts/{host}/fenceagents": "hosts.administer",
    "/hosts/{hosts}/tags": "hosts.operate",
    **dict.fromkeys(("/clusters", "/datacenters"), "clusters.administer"),
    "/storagedomains": "storage-domains.administer",
    "/events": "silences.operate",
    "/users": "subscriptions.administer",
}
OF_CLUSTERS = {f"{area}.operate" for area in ("vms", "templates", "hosts")}
ADMINISTERED = {f"{area}.administer" for area in ("clusters", "hosts", "storage-domains")}
WHERE = {
    "/vms": "<cluster id='{cluster}'/>",
    "/hosts": "<cluster id='{cluster}'/>",
    "/templates": "<vm id='{vm}'/>",
    "/disks": "<storage_domains><storage_domain id='{storage}'/></storage_domains>",
    "/storagedomains": "<data_center id='{cluster}'/>",
}
"""Of what is made: how its body says in which cluster."""
CALLERS: dict[str, tuple[set[str], str | None, str | None]] = {
    "sees": (set(), "viewer", "norden"),
    "operates": (OF_CLUSTERS, "operator", "norden"),
    "administers": (OF_CLUSTERS | ADMINISTERED, "administrator", "norden"),
    "does-vms": ({"vms.operate"}, None, "norden"),
    "does-templates-and-hosts": ({"templates.operate", "hosts.operate"}, None, "norden"),
    "does-storage": ({"storage-domains.administer"}, None, "norden"),
    "operates-all": (OF_CLUSTERS | {"silences.operate"}, "operator", None),
    "does-vms-of-all": ({"vms.operate"}, None, None),
    "silences-all": ({"silences.operate"}, None, None),
}
"""What they may, by which fixed role (None: one of their own), and in which cluster (None: in all)."""
LET_IN = 409


def needed_by(route: Route) -> str:
    return NEEDS[max((begin for begin in NEEDS if route.path.startswith(begin)), key=len)]


def told_body(route: Route, side: str) -> str:
    """With the cluster, where the path names none."""
    if not route.reads:
        return ""
    ids = {kind: id_of(kind, side) for kind in ("cluster", "vm", "storage")}
    shape = SHAPES[route.reads].name
    return f"<{shape}>{WHERE.get(route.path, '').format(**ids)}</{shape}>"


def expected_status(route: Route, caller: str, side: str) -> int:
    may, _, cluster = CALLERS[caller]
    if needed_by(route) not in may:
        return 403
    if cluster is None:
        return LET_IN
    says_where = route.path in WHERE or names_what_is_there(route)
    if not says_where:
        return 403  # what is in no cluster yet takes a right in all
    return LET_IN if side == cluster else 404


async def add_callers(world: World) -> None:
    for name, (permissions, role, cluster) in CALLERS.items():
        if role is not None and cluster is None:
            await add_user(world, name, role=role)
            continue
        if role is None:
            wanted = {"name": name, "permissions": sorted(permissions)}
            await world.ok("POST", "/v1/roles", wanted)
        await add_user(world, name, (role or name, cluster))


@pytest.mark.req("L6")
@pytest.mark.bad_input("role that may not in that cluster")
def test_every_change_with_every_kind_of_caller_in_their_cluster_and_in_another(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is let in comes to the handler, which is not carried out here."""

    async def stop(_call: Any, route: Route) -> Any:
        raise Conflict(f"{route.name} was let in")

    monkeypatch.setattr(facade, "answered", stop)

    async def story(world: World) -> None:
        await fill(world)
        await add_callers(world)
        wrong, let_in = [], set()
        for route in (one for one in ROUTES if one.method != "GET"):
            for caller in CALLERS:
                for side in SIDES:
                    path, body = path_of(route, side), told_body(route, side)
                    answer = await send(world, route.method, path, body, role=caller)
                    expected = expected_status(route, caller, side)
                    if answer.status_code != expected:
                        wrong.append((route.name, caller, side, answer.status_code, expected))
                    elif expected == LET_IN:
                        assert "was let in" in answer.text
                        let_in.add(route.name)
        assert wrong == []
        # Of those that nobody here may: what is in no cluster yet, and people's own subscriptions.
        of_all = {one.name for one in ROUTES if one.method != "GET"} - let_in
        assert of_all == {
            *("POST /clusters", "POST /datacenters", "POST /users/{user}/eventsubscriptions"),
            "DELETE /users/{user}/eventsubscriptions/{subscription}",
        }

    play(story)


def test_who_is_let_in_is_not_refused_by_what_carries_it_out(play: Play) -> None:
    """Other refusals there are: of a body that says nothing, of a host whose agent is not there, of an engine that leads nobody."""

    async def story(world: World) -> None:
        await fill(world)
        await add_callers(world)
        changes = sorted(
            (one for one in ROUTES if one.method != "GET"), key=lambda one: one.method == "DELETE"
        )
        refused, done = [], 0
        for route in changes:
            for caller in CALLERS:
                if expected_status(route, caller, "norden") != LET_IN:
                    continue
                path, body = path_of(route, "norden"), told_body(route, "norden")
                answer = await send(world, route.method, f"{path}?async=true", body, role=caller)
                if answer.status_code in (401, 403, 500):
                    refused.append((route.name, caller, answer.status_code, answer.text))
                done += answer.status_code < 300
        assert refused == []
        assert done >= 10

    play(story)


@pytest.mark.bad_input("id of a cluster that the user may not see")
def test_what_a_body_names_is_looked_up_as_its_caller_sees_it(play: Play) -> None:
    async def story(world: World) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        blank = '<template id="00000000-0000-0000-0000-000000000000"/>'
        here = f'<cluster id="{id_of("cluster", "norden")}"/>'
        there = id_of("storage", "sueden")
        vm = f"/vms/{id_of('vm', 'norden')}"
        for path, body in (
            ("/vms", f"<vm><name>n</name><cluster><name>sueden</name></cluster>{blank}</vm>"),
            ("/vms", f'<vm><name>n</name><cluster id="{id_of("cluster", "sueden")}"/>{blank}</vm>'),
            (
                "/vms",
                f"<vm><name>n</name>{here}<template><name>template-sueden</name></template></vm>",
            ),
            (
                "/vms",
                f'<vm><name>n</name>{here}<template id="{id_of("template", "norden")}"/>'
                f'<storage_domain id="{there}"/></vm>',
            ),
            ("/templates", "<template><name>n</name><vm><name>vm-sueden</name></vm></template>"),
            (f"{vm}/migrate", "<action><host><name>host-sueden</name></host></action>"),
            (
                f"{vm}/start",
                "<action><vm><placement_policy><hosts><host><name>host-sueden</name></host></hosts>"
                "</placement_policy></vm></action>",
            ),
            (
                f"{vm}/diskattachments",
                "<disk_attachment><disk><provisioned_size>1</provisioned_size><storage_domains>"
                f'<storage_domain id="{there}"/></storage_domains></disk></disk_attachment>',
            ),
            (
                "/storagedomains",
                "<storage_domain><name>n</name><storage><path>/srv/n</path><type>posixfs</type></storage>"
                "<data_center><name>sueden</name></data_center></storage_domain>",
            ),
        ):
            answer = await send(world, "POST", path, body, role="eve")
            assert answer.status_code == 404, (path, body, answer.text)
            # As unknown as what there is nowhere, but for the name that was said.
            for known, unknown in (
                (there, id_of("storage", "x")),
                (id_of("cluster", "sueden"), id_of("cluster", "x")),
                ("sueden", "suedem"),
            ):
                other = await send(world, "POST", path, body.replace(known, unknown), role="eve")
                assert other.status_code == 404
                if known in body:
                    said = other.text.replace(unknown, known)
                    assert said.partition(";")[0] == answer.text.partition(";")[0]
        taken = f"""<vm><name>n</name>{here}{blank}<nics><nic><name>a</name><network><name>br0</name></network>
            <mac><address>{MACS["sueden"]}</address></mac></nic></nics></vm>"""
        refused = await send(world, "POST", "/vms", taken, role="eve")
        assert refused.status_code >= 400 and "vm-sueden" not in refused.text
        # Whose cluster isn't said is nobody's: not the only one that there is.
        domain = (
            "<storage_domain><name>n</name><storage><path>/srv/n</path><type>posixfs</type></storage>"
            "</storage_domain>"
        )
        assert (await send(world, "POST", "/storagedomains", domain, role="eve")).status_code == 403
        # What is in no cluster yet takes a right in all, whatever of one's own the body names beside it.
        cluster = (
            f"<cluster><name>n</name><data_center><name>norden</name></data_center>{here}</cluster>"
        )
        assert (await send(world, "POST", "/clusters", cluster, role="eve")).status_code == 403
        # Only a template is looked up by nobody when it is called Blank.
        await world.ok("POST", "/v1/clusters", {"name": "Blank"})
        own = f'<storage_domain id="{id_of("storage", "norden")}"/>'
        body = f"<vm><name>n</name><cluster><name>Blank</name></cluster>{blank}{own}</vm>"
        assert (await send(world, "POST", "/vms", body, role="eve")).status_code == 404
        assert len((await world.ok("GET", "/v1/vms"))["items"]) == 2

    play(story)


def test_links_and_searches_bring_nothing_of_the_other_cluster(play: Play) -> None:
    async def story(world: World) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        for path in (
            "/vms?follow=cluster,host,disk_attachments.disk,nics,statistics,permissions.user",
            "/hosts?follow=cluster,statistics",
            "/events?follow=vm,host,cluster",
            "/vms?search=name%3D*",
            "/vms?search=cluster%3Dsueden+or+name%3Dvm-sueden+or+host%3Dhost-sueden",
            "/events?search=vm.name%3Dvm-sueden",
            "/hosts?search=vm.name%3Dvm-*",
            "/templates?search=name%3D*",
            "/disks?search=name%3D*",
            "/datacenters?search=name%3D*",
            "/clusters?search=name%3D*&max=1",
            "/jobs?follow=steps",
        ):
            answer = await send(world, "GET", path, role="eve")
            assert answer.status_code == 200, answer.text
            assert "sueden" not in answer.text and id_of("vm", "sueden") not in answer.text, path
        summary = (await send(world, "GET", "", role="eve")).text
        assert "<vms><active>1</active><total>1</total></vms>" in summary.replace("\n", "")
        # Who may everything sees everything.
        assert "vm-sueden" in (await send(world, "GET", "/vms")).text

    play(story)


def test_all_ways_to_sign_in_see_the_same(play: Play) -> None:
    async def story(world: World) -> None:
        await fill(world)
        await add_user(world, "eve", ("operator", "norden"))
        given = await token(
            world,
            grant_type="password",
            scope="ovirt-app-api",
            username="eve@internal",
            password=PASSWORD,
        )
        basic = base64.b64encode(f"eve@internal:{PASSWORD}".encode()).decode()
        there, here = id_of("vm", "sueden"), id_of("vm", "norden")
        for header in (f"Bearer {given.json()['access_token']}", f"Basic {basic}"):
            for base in (ROOT, "/api"):
                headers = {"Authorization": header}
                for vm_id, status in ((there, 404), (here, 200)):
                    answer = await world.call(
                        "GET", f"{base}/vms/{vm_id}", role=None, headers=headers
                    )
                    assert answer.status_code == status, (header, base)
        await world.ok("PATCH", "/v1/users/eve", {"role": "none"})
        grants = await world.ok("GET", "/v1/users/eve/grants")
        grant_id = grants["items"][0]["grant"]["id"]
        assert (await world.call("DELETE", f"/v1/users/eve/grants/{grant_id}")).status_code == 204
        headers = {"Authorization": f"Basic {basic}"}
        answer = await world.call("GET", f"{ROOT}/vms/{here}", role=None, headers=headers)
        assert answer.status_code == 404
        own = await world.call("GET", f"{ROOT}/users", role=None, headers=headers)
        assert own.status_code == 403

    play(story)


def test_a_token_for_less_may_no_more_here(play: Play) -> None:
    async def story(world: World) -> None:
        await fill(world)
        wanted = {"description": "ansible", "cluster": "norden", "role": "viewer"}
        made = await world.ok("POST", "/v1/sessions/tokens", wanted)
        world.tokens["narrow"] = made["token"]
        assert "sueden" not in (await send(world, "GET", "/vms", role="narrow")).text
        for side, status in (("norden", 403), ("sueden", 403)):
            path = f"/vms/{id_of('vm', side)}/start"
            answer = await send(world, "POST", path, "<action/>", role="narrow")
            assert answer.status_code == status
        assert (await send(world, "GET", "/users", role="narrow")).status_code == 403

    play(story)


def test_each_route_has_an_area_and_no_fewer_rights_than_the_native_api_asks_for() -> None:
    assert set(AREA_OF.values()) <= set(AREAS)
    for route in ROUTES:
        assert route.role is not Role.NONE, route.name
        if route.method != "GET":
            assert route.permission is not Permission.VIEW, route.name
            assert route.scope is not Scope.OWN, route.name
    with pytest.raises(KeyError):
        Route(method="GET", path="/nobodyknows", role=Role.VIEWER, handler=ROUTES[0].handler)
    with pytest.raises(AssertionError):
        Route(method="POST", path="/vms/x", role=Role.VIEWER, handler=ROUTES[0].handler)
